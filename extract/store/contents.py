"""The contents of a store in memory: splits of datasets, blocks and views."""

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
    attributes: dict  # the record: all of the above, and everything else that the scans depend on

    @property
    def blocks(self) -> range:
        return range(self.first_block, self.first_block + self.num_blocks)

    @property
    def intensity(self) -> IntensityStatistics:
        return IntensityStatistics(**self.attributes["intensity"])

    @property
    def superpixels(self) -> dict | None:
        """How the superpixels of its images were made; None if it has none."""
        return self.attributes.get("superpixels")


@dataclass(frozen=True, eq=False)
class ScanBlock:
    """The scans and pairs of one block, concatenated; `views` has format.SCANS_SCHEMA."""

    points: np.ndarray  # (P, 4) float32
    point_index: np.ndarray  # (R,) uint32, row in the view's scan
    pixel: np.ndarray  # (R, 2) uint16
    views: pa.Table
    skipped: dict[str, str] = field(default_factory=dict)  # frames that could not be used: frame ID -> reason
    superpixel: np.ndarray | None = None  # (R,) uint16, segment of the view's image; None without superpixels

    @functools.cached_property
    def rows_by_token(self) -> dict[str, list[dict]]:
        """The rows of each frame's views, by frame ID."""
        rows: dict[str, list[dict]] = {}
        for row in self.views.to_pylist():
            rows.setdefault(row["token"], []).append(row)
        return rows

    def by_view(self) -> Rows:
        """Yield points, point_index and pixel (and superpixel, if the source has some) of each view, with its row."""
        for row in self.views.to_pylist():
            pairs = slice(row["pairs_start"], row["pairs_stop"])
            points = self.points[row["points_start"] : row["points_stop"]]
            superpixel = () if self.superpixel is None else (self.superpixel[pairs],)
            yield (points, self.point_index[pairs], self.pixel[pairs], *superpixel), row


@dataclass(frozen=True, eq=False)
class Segments:
    """A teacher's vectors of the S superpixels that hold a pair, of one view or of all views of a block.

    Attributes:
        id: (S,) uint16, ascending in a view.
        pixels: (S,) uint32, number of pixels at the teacher's image size; 0 if a thin segment disappears there.
        mean: (S, D), mean of the upsampled, normalised features over those pixels; zeros if there are none.
        direction: (S, D), normalised mean of the patch tokens whose first pixel belongs to the segment; zeros if there
            are none.
    """

    id: np.ndarray
    pixels: np.ndarray
    mean: np.ndarray
    direction: np.ndarray

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, rows: slice) -> Segments:
        return Segments(*(each[rows] for each in self.arrays))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays in the order of format.SEGMENT_ARRAYS."""
        return self.id, self.pixels, self.mean, self.direction


@dataclass(frozen=True, eq=False)
class TargetBlock:
    """One teacher's targets of a block, encoded and concatenated; `views` has format.TARGETS_SCHEMA."""

    vectors: np.ndarray | None  # (T, D) float16 or int8; None with encoding `segments`
    scale: np.ndarray | None  # (T,) float32 with int8, else None; 0 marks a vector of zeros
    channels: np.ndarray | None  # (2, D) float32 with int8, else None: offset and scale of each channel
    views: pa.Table
    segments: Segments | None = None  # of all views, concatenated; None without superpixels

    def by_view(self) -> Rows:
        """Yield the vectors (and, with int8, scale and the block's channels) of each view, with its row."""
        for row in self.views.to_pylist():
            rows = slice(row["start"], row["stop"])
            of_rows = [each[rows] for each in (self.vectors, self.scale) if each is not None]
            yield (*of_rows, *([] if self.channels is None else [self.channels])), row

    def segments_by_view(self) -> Iterator[tuple[Segments, dict]]:
        """Yield the segments of each view, with its row; nothing without superpixels."""
        for row in [] if self.segments is None else self.views.to_pylist():
            yield self.segments[row["segments_start"] : row["segments_stop"]], row


@dataclass(frozen=True, eq=False)
class StoredView:
    """One view with its scan of N points, its R pairs and their targets, as `FeatureStore.read_view` returns it.

    Attributes:
        dataset: name of the dataset, such as "nuscenes".
        intensity: mean and standard deviation with which the split's intensities are normalised.
        points: (N, 4) float32, x y z in the lidar frame [m] and raw intensity.
        point_index: (R,) int64, the row in `points` of each pair.
        pixel: (R, 2) uint16, row and column of each pair at the image's own resolution.
        encoded: the targets of the R pairs, not yet decoded; None if no teacher was named. A training step decodes
            them on its own device.
        superpixel: (R,) uint16, the segment of the image of each pair; None without superpixels.
        targets: (R, D) float32, the teacher's feature of each pair, decoded on first access; None without a teacher.
    """

    dataset: str
    intensity: IntensityStatistics
    points: np.ndarray  # (N, 4) float32, lidar frame [m] and raw intensity
    point_index: np.ndarray  # (R,) int64, row in `points`
    pixel: np.ndarray  # (R, 2) uint16, row and column
    encoded: EncodedTargets | None  # R pairs; None when no teacher was asked for
    superpixel: np.ndarray | None = None  # (R,) uint16, segment of the image; None without superpixels

    @functools.cached_property
    def targets(self) -> np.ndarray | None:
        """The teacher's feature of each pair, (R, D) float32; None if no teacher was named."""
        return None if self.encoded is None else self.encoded.decode().numpy()


def source_of(attributes: dict) -> Source:
    """Make a source from its recorded attributes."""
    names = [name for name in Source.__dataclass_fields__ if name != "attributes"]
    return Source(**{name: attributes[name] for name in names}, attributes=attributes)
