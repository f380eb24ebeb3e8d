"""A check at the beginning of a training for targets from which nothing can be learnt.

Such targets have one direction at all points, or a loss of superpixels finds only one superpixel in each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F

from ..errors import StoreError
from ..extract.targets import EncodedTargets
from .dataset import DistillBatch, SampleId

SAMPLES = 8  # checked before the training stops: the camera of one sample may see a single object
PAIRS = 256  # checked first in a batch
SAME = 0.02  # distance of unit vectors that rounding to int8 can cause: a cosine of 0.9998


class VaryingTargets:
    """The batches of a loader, checked at the beginning.

    The check ends when each teacher's targets vary and, for a loss of superpixels, when a batch has two of them.

    Args:
        batches: (epoch, first step) -> the epoch's batches.
        teachers: in the order of a batch's targets.
        describe: sample -> its name in messages.
    """

    def __init__(
        self,
        batches: Callable[[int, int], Iterable[DistillBatch]],
        teachers: Sequence[str],
        describe: Callable[[SampleId], str],
    ) -> None:
        self.batches, self.teachers, self.describe = batches, teachers, describe
        self._in_doubt: dict[int, torch.Tensor | None] = dict.fromkeys(range(len(teachers)))  # first direction (1, D)
        self._superpixels_in_doubt = True
        self._seen: list[SampleId] = []

    def __call__(self, epoch: int, first_step: int = 0) -> Iterator[DistillBatch]:
        """The epoch's batches.

        Raises:
            StoreError: in SAMPLES samples or more, all targets of a teacher have one direction, or no batch has two
                superpixels.
        """
        for batch in self.batches(epoch, first_step):
            if self._in_doubt or self._superpixels_in_doubt:
                self._seen += batch.samples
                self._look_at_superpixels(batch)
                self._look_at_directions(batch)
            yield batch

    def _look_at_superpixels(self, batch: DistillBatch) -> None:
        if batch.segments is None or len(batch.segments) > 1:
            self._superpixels_in_doubt = False
        elif self._superpixels_in_doubt and len(self._seen) >= SAMPLES:
            raise StoreError(
                f"{len(self._seen)} samples, of which this is the first, have one superpixel in each batch, and no"
                " other to tell it from",
                where=self.describe(self._seen[0]),
                fix="Extract smaller superpixels into another --out, or give a larger training.batch_size.",
            )

    def _look_at_directions(self, batch: DistillBatch) -> None:
        for number, direction in list(self._in_doubt.items()):
            targets = batch.targets[number] if batch.targets else EncodedTargets(batch.segments.mean)
            if direction is None:
                direction = self._in_doubt[number] = _directions(targets, 1)
            if any(_varies(_directions(targets, count), direction) for count in (PAIRS, len(targets))):
                del self._in_doubt[number]
            elif len(self._seen) >= SAMPLES:
                raise StoreError(
                    f"{len(self._seen)} samples, of which this is the first, have the same target of"
                    f" {self.teachers[number]} at all points",
                    where=self.describe(self._seen[0]),
                    fix="Check the teacher's weights, and extract its targets again.",
                )


def _directions(targets: EncodedTargets, count: int) -> torch.Tensor:
    """(at most count, D): unit targets of evenly spread pairs."""
    pairs = torch.linspace(0, len(targets) - 1, min(count, len(targets))).round().long()
    return F.normalize(targets.select(pairs).decode(), dim=1)


def _varies(directions: torch.Tensor, direction: torch.Tensor) -> bool:
    # Written so that NaN passes this check; the loss then names the sample.
    return not bool((torch.linalg.vector_norm(directions - direction, dim=1) < SAME).all())
