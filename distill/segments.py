"""Segments in samples and batches: superpixels that hold pairs, with the values that the store holds for them.

Letters in shapes: R pairs, S segments, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ..extract.store import Segments


class TargetParts(NamedTuple):
    """The parts of the teachers' targets that a loss needs."""

    pairs: bool  # the vector of each pair
    segments: bool  # the segment of each pair
    means: bool  # the mean of each segment
    directions: bool  # the direction of each segment


PAIRS = TargetParts(pairs=True, segments=False, means=False, directions=False)


@dataclass(frozen=True, eq=False)
class SegmentTargets:
    """The segments of a view, sample or batch that hold pairs.

    Attributes:
        row: (R,) int64, the segment of each pair.
        sample: (S,) int64, the sample of each segment.
        mean: (S, D) float16: mean of the teacher's unit vectors over the segment's pixels; None if not needed.
        direction: (S, D) float16: unit vector of the mean of the segment's patches; None if not needed.
    """

    row: torch.Tensor
    sample: torch.Tensor
    mean: torch.Tensor | None
    direction: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.sample)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> SegmentTargets:
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SegmentTargets:
        """A copy in page-locked memory, from which a GPU copies while it computes."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> SegmentTargets:
        return SegmentTargets(*(None if part is None else function(part) for part in vars(self).values()))

    @staticmethod
    def of_view(superpixel: np.ndarray, stored: Segments | None, parts: TargetParts) -> SegmentTargets:
        """The segments of pairs with superpixel ids (R,). If means or directions are needed, `stored` holds each id."""
        ids, row = np.unique(superpixel, return_inverse=True)

        def of_ids(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values[np.searchsorted(stored.id, ids)].astype(np.float16))  # as they are stored

        return SegmentTargets(
            row=torch.from_numpy(row),
            sample=torch.zeros(len(ids), dtype=torch.int64),
            mean=of_ids(stored.mean) if parts.means else None,
            direction=of_ids(stored.direction) if parts.directions else None,
        )

    @staticmethod
    def of_sample(views: Sequence[SegmentTargets]) -> SegmentTargets:
        """The segments of several views, concatenated: superpixels of different images are different segments."""
        first = np.cumsum([0, *(len(part) for part in views[:-1])]).tolist()
        mean, direction = ([getattr(part, name) for part in views] for name in ("mean", "direction"))
        return SegmentTargets(
            row=torch.cat([part.row + start for part, start in zip(views, first, strict=True)]),
            sample=torch.cat([part.sample for part in views]),
            mean=None if mean[0] is None else torch.cat(mean),
            direction=None if direction[0] is None else torch.cat(direction),
        )

    @staticmethod
    def of_batch(samples: Sequence[SegmentTargets]) -> SegmentTargets:
        """The segments of several samples, concatenated."""
        sizes = torch.tensor([len(each) for each in samples])
        return replace(SegmentTargets.of_sample(samples), sample=torch.arange(len(samples)).repeat_interleave(sizes))


def is_usable(superpixel: np.ndarray, stored: Segments, parts: TargetParts) -> np.ndarray:
    """(R,) bool: whether the store holds the needed values for the segment of each pair.

    A thin segment may hold no pixel at the teacher's image size, and a small one no patch.
    """
    usable = np.ones(len(stored.id), dtype=bool)
    if parts.means:
        usable &= stored.mean.any(axis=1)
    if parts.directions:
        usable &= stored.direction.any(axis=1)
    return usable[np.searchsorted(stored.id, superpixel)]
