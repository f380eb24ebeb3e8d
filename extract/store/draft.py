"""A block while a job writes it: its scans and pairs, and teachers' targets of its views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ..encoding import Encoding
from . import format as fmt
from .arrays import ArrayWriter
from .commit import ScratchFolder
from .contents import Segments
from .files import files_below
from .format import COSINES, SCANS, SCANS_SCHEMA, SEGMENT_ARRAYS, SEGMENTS, SUPERPIXEL, TARGETS_SCHEMA


class NewView(NamedTuple):
    """A view to be stored."""

    row: dict  # the columns of SCANS_SCHEMA that identify and describe the view
    point_index: np.ndarray  # (R,) uint32, row in the frame's points
    pixel: np.ndarray  # (R, 2) uint16
    superpixel: np.ndarray | None = None  # (R,) uint16, if the source has superpixels

    @property
    def of_pairs(self) -> list[np.ndarray]:
        """The arrays with a row per pair."""
        return [each for each in (self.point_index, self.pixel, self.superpixel) if each is not None]


class NewTargets(NamedTuple):
    """One teacher's encoded targets of a view."""

    vectors: np.ndarray | None  # (T, D) float16 or int8; None with encoding `segments`
    scale: np.ndarray | None  # (T,) float32 with int8, else None
    cosine: np.ndarray  # (T,) between stored and exact vectors
    cosine_centred: np.ndarray  # (T,) the same after subtracting the teacher's mean from both
    segments: Segments | None = None  # float16, if the source has superpixels


class Draft:
    """A block in a scratch folder; `StoreWriter.draft` begins it, and `StoreWriter.commit` commits it.

    Views are added in the order of the block, and each teacher's targets in the same order, after their views.

    Args:
        block: number of the block.
        scratch: folder in which it is written.
        source: record of the block's source.
        teachers: record of each teacher whose targets are added.
        channels: (2, D) float32 for each teacher with int8 vectors, see `TeacherStatistics.channels`.
        views: the views of committed scans, format.SCANS_SCHEMA; None if this draft adds the scans.
    """

    def __init__(
        self,
        block: int,
        scratch: ScratchFolder,
        source: Mapping,
        teachers: Mapping[str, Mapping],
        channels: Mapping[str, np.ndarray],
        views: pa.Table | None = None,
    ) -> None:
        self.block, self.scratch, self.source = block, scratch, source
        self.brings_scans = views is None
        self.skipped: dict[str, str] = {}  # frames that are left out: frame ID -> reason
        self.num_bytes = 0  # size on disk, once it is finished
        self._rows: list[dict] = [] if views is None else views.to_pylist()
        self._targets = {
            name: _TargetsDraft(record, self.group(name), channels.get(name), self.has_superpixels)
            for name, record in teachers.items()
        }
        self._scans: list[ArrayWriter] | None = None
        self._points = self._pairs = 0

    @property
    def teachers(self) -> list[str]:
        return list(self._targets)

    @property
    def has_superpixels(self) -> bool:
        return self.source.get("superpixels") is not None

    def record_of(self, teacher: str) -> Mapping:
        """The record of a teacher whose targets are added."""
        return self._targets[teacher].record

    @property
    def views(self) -> pa.Table:
        """The views of the block: format.SCANS_SCHEMA."""
        return pa.Table.from_pylist(self._rows, schema=SCANS_SCHEMA)

    def add_frame(self, points: np.ndarray, views: Sequence[NewView]) -> None:
        """Add a frame's points (N, 4) float32 and its views.

        Raises:
            ScratchTakenError, StoreError: see `ScratchFolder.writing`.
        """
        with self.scratch.writing():
            of_points, *of_pairs = self._scan_arrays()
            of_points.append(points)
            for view in views:
                for array, values in zip(of_pairs, view.of_pairs, strict=True):
                    array.append(values)
                self._rows.append(self._row(points, view))
                self._pairs += len(view.pixel)
            self._points += len(points)

    def add_targets(self, teacher: str, targets: NewTargets) -> None:
        """Add a teacher's targets of the next view.

        Raises:
            ScratchTakenError, StoreError: see `ScratchFolder.writing`.
        """
        with self.scratch.writing():
            draft = self._targets[teacher]
            draft.add(self._rows[len(draft.rows)], targets)

    def finish(self) -> None:
        """Write the remaining rows and the indexes.

        Raises:
            ScratchTakenError, StoreError: see `ScratchFolder.writing`.
        """
        with self.scratch.writing() as folder:
            if self.brings_scans:
                for array in self._scan_arrays():
                    array.finish()
                for name in (".", "pairs", "targets"):
                    fmt.write_group(self.group(SCANS) / name, {})
            for name, draft in self._targets.items():
                draft.finish()
                fmt.write_index(draft.views, name, self.block, self.group(name), draft.record)
            if self.brings_scans:
                fmt.write_index(self.views, SCANS, self.block, self.group(SCANS), self.source, self.skipped)
            self.num_bytes = sum(file.stat().st_size for file in files_below(folder))

    def group(self, kind: str) -> Path:
        """The path of the group of scans, or of a teacher's targets, in the scratch folder."""
        if kind == SCANS or not self.brings_scans:
            return self.scratch.path / kind
        return self.scratch.path / SCANS / "targets" / kind

    def _scan_arrays(self) -> list[ArrayWriter]:
        """Writers of points, point_index, pixel, and superpixel if the source has some."""
        if self._scans is None:
            group = self.group(SCANS)
            shapes = {"points": ((4,), "float32"), "pairs/point_index": ((), "uint32"), "pairs/pixel": ((2,), "uint16")}
            if self.has_superpixels:
                shapes[SUPERPIXEL] = ((), "uint16")
            self._scans = [ArrayWriter(group / name, *shape) for name, shape in shapes.items()]
        return self._scans

    def _row(self, points: np.ndarray, view: NewView) -> dict:
        return {
            **view.row,
            "block": self.block,
            "points_start": self._points,
            "points_stop": self._points + len(points),
            "pairs_start": self._pairs,
            "pairs_stop": self._pairs + len(view.pixel),
            "crc32c": fmt.crc32c(0, points, *view.of_pairs),
        }


class _TargetsDraft:
    """One teacher's targets of the block, while they are written."""

    def __init__(self, record: Mapping, group: Path, channels: np.ndarray | None, has_segments: bool) -> None:
        self.record, self.group, self.rows = record, group, []
        encoding = Encoding(record["encoding"], record["dtype"])
        self._arrays: list[ArrayWriter] = []
        self._channels: list[np.ndarray] = []
        self._segments: list[ArrayWriter] = []
        if encoding.of_pairs:
            self._arrays.append(ArrayWriter(group / "vectors", (record["dim"],), encoding.dtype))
        if encoding.dtype == "int8":
            self._arrays.append(ArrayWriter(group / "scale", (), "float32"))
            self._channels.append(channels)
        if has_segments:
            columns = {"mean": (record["dim"],), "direction": (record["dim"],)}
            self._segments = [
                ArrayWriter(group / SEGMENTS / name, columns.get(name, ()), dtype)
                for name, dtype in SEGMENT_ARRAYS.items()
            ]

    @property
    def views(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, schema=TARGETS_SCHEMA)

    def add(self, view: dict, targets: NewTargets) -> None:
        values = [each for each in (targets.vectors, targets.scale) if each is not None]
        start, stop = _append(self._arrays, values)
        kept = (targets.cosine, targets.cosine_centred)
        cosines = [value for each in kept for value in _mean_and_worst(each)]
        self.rows.append(
            {
                **{name: view[name] for name in ("block", "token", "camera")},
                "start": start,
                "stop": stop,
                **dict(zip(COSINES, cosines, strict=True)),
                "crc32c": fmt.crc32c(view["crc32c"], *values, *self._channels),
                **({} if targets.segments is None else self._add_segments(view, targets.segments)),
            }
        )

    def _add_segments(self, view: dict, segments: Segments) -> dict:
        """Write a view's segments, and return their columns of the index."""
        start, stop = _append(self._segments, segments.arrays)
        checksum = fmt.crc32c(view["crc32c"], *segments.arrays)
        return {"segments_start": start, "segments_stop": stop, "segments_crc32c": checksum}

    def finish(self) -> None:
        for channels in self._channels:
            array = ArrayWriter(self.group / "channels", channels.shape[1:], "float32")
            array.append(channels)
            self._arrays.append(array)
        for array in (*self._arrays, *self._segments):
            array.finish()
        fmt.write_group(self.group, {})
        if self._segments:
            fmt.write_group(self.group / SEGMENTS, {})


def _append(arrays: Sequence[ArrayWriter], values: Sequence[np.ndarray]) -> tuple[int, int]:
    """Append the same number of rows to each array; return the first new row and the one after the last."""
    start = arrays[0].rows_to_come if arrays else 0
    for array, value in zip(arrays, values, strict=True):
        array.append(value)
    return start, start + (len(values[0]) if values else 0)


def _mean_and_worst(cosine: np.ndarray) -> tuple[float, float]:
    """The mean and the minimum; 1 if there are no vectors."""
    return (float(cosine.mean()), float(cosine.min())) if len(cosine) else (1.0, 1.0)
