"""What a store holds, in memory: splits of datasets, blocks and views."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..intensity import IntensityStatistics

if TYPE_CHECKING:
    from ..targets import EncodedTargets

Rows = Iterator[tuple[tuple[np.ndarray, ...], dict]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of one dataset in the store, and its blocks."""

    dataset: str
    split: str
    frames_per_block: int
    first_block: int
    num_blocks: int
    attributes: dict  # as recorded: all of the above and what else the scans depend on

    @property
    def blocks(self) -> range:
        return range(self.first_block, self.first_block + self.num_blocks)

    @property
    def intensity(self) -> IntensityStatistics:
        return IntensityStatistics(**self.attributes["intensity"])


@dataclass(frozen=True, eq=False)
class ScanBlock:
    """The scans and pairs of one block, concatenated; `views` has format.SCANS_SCHEMA."""

    points: np.ndarray  # (P, 4) float32
    point_index: np.ndarray  # (R,) uint32, row in the view's scan
    pixel: np.ndarray  # (R, 2) uint16
    views: pa.Table
    skipped: dict[str, str] = field(default_factory=dict)  # frames that could not be used: token -> why

    @functools.cached_property
    def rows_by_token(self) -> dict[str, list[dict]]:
        """The rows of each frame's views."""
        rows: dict[str, list[dict]] = {}
        for row in self.views.to_pylist():
            rows.setdefault(row["token"], []).append(row)
        return rows

    def by_view(self) -> Rows:
        """Points, point_index and pixel of each view, and its row."""
        for row in self.views.to_pylist():
            pairs = slice(row["pairs_start"], row["pairs_stop"])
            points = self.points[row["points_start"] : row["points_stop"]]
            yield (points, self.point_index[pairs], self.pixel[pairs]), row


@dataclass(frozen=True, eq=False)
class TargetBlock:
    """One teacher's targets of a block, encoded and concatenated; `views` has format.TARGETS_SCHEMA."""

    vectors: np.ndarray  # (T, D) float16 or int8
    scale: np.ndarray | None  # (T,) float32 with int8; 0 of a vector of zeros
    channels: np.ndarray | None  # (2, D) float32 with int8: offset and scale of each channel
    views: pa.Table

    def by_view(self) -> Rows:
        """Vectors (and scale and the block's channels, with int8) of each view, and its row."""
        for row in self.views.to_pylist():
            rows = slice(row["start"], row["stop"])
            of_int8 = () if self.scale is None else (self.scale[rows], self.channels)
            yield (self.vectors[rows], *of_int8), row


@dataclass(frozen=True, eq=False)
class StoredView:
    """What `FeatureStore.read_view` gives: one view with its scan.

    `targets` is decoded when it is first asked for; a training step decodes `encoded` on its own device instead.
    """

    dataset: str
    intensity: IntensityStatistics
    points: np.ndarray  # (N, 4) float32, lidar frame [m] and raw intensity
    point_index: np.ndarray  # (R,) int64, row in `points`
    pixel: np.ndarray  # (R, 2) uint16, row and column
    encoded: EncodedTargets | None  # R pairs; None when no teacher was asked for

    @functools.cached_property
    def targets(self) -> np.ndarray | None:
        """(R, D) float32, in pair order."""
        return None if self.encoded is None else self.encoded.decode().numpy()


def source_of(attributes: dict) -> Source:
    """A source from what is recorded of it."""
    names = [name for name in Source.__dataclass_fields__ if name != "attributes"]
    return Source(**{name: attributes[name] for name in names}, attributes=attributes)
