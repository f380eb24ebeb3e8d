"""What a job makes of one block, written as it comes: its scans and pairs, and teachers' targets of its views."""

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
    """A view that is to be stored."""

    row: dict  # the columns of SCANS_SCHEMA that say what it is of
    point_index: np.ndarray  # (R,) uint32, row in the frame's points
    pixel: np.ndarray  # (R, 2) uint16
    superpixel: np.ndarray | None = None  # (R,) uint16, where the source has superpixels

    @property
    def of_pairs(self) -> list[np.ndarray]:
        """The arrays of R rows."""
        return [each for each in (self.point_index, self.pixel, self.superpixel) if each is not None]


class NewTargets(NamedTuple):
    """One teacher's targets of a view, encoded."""

    vectors: np.ndarray | None  # (T, D) float16 or int8; None where segments alone are kept
    scale: np.ndarray | None  # (T,) float32 with int8, else None
    cosine: np.ndarray  # (T,) of stored and exact vectors
    cosine_centred: np.ndarray  # (T,) once the teacher's mean is taken away from both
    segments: Segments | None = None  # float16, where the source has superpixels


class Draft:
    """A block in a scratch folder; `StoreWriter.draft` begins one, and `StoreWriter.commit` makes it count.

    Views are added in the order of the block, and each teacher's targets in that order, too, after their views.

    Args:
        block: its number.
        scratch: where it is written.
        source: the record of its source.
        teachers: the record of each teacher whose targets it gets.
        channels: (2, D) float32 of each teacher whose vectors are int8, see `TeacherStatistics.channels`.
        views: of the scans that are committed already: format.SCANS_SCHEMA. None where this draft brings them.
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
        self.skipped: dict[str, str] = {}  # frames that are left out: token -> why
        self.num_bytes = 0  # on disk, once it is finished
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
        """What the targets of a teacher depend on."""
        return self._targets[teacher].record

    @property
    def views(self) -> pa.Table:
        """Of the scans: format.SCANS_SCHEMA."""
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
        """Write what is left and the indexes.

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
        """Where a kind's group is in the scratch folder."""
        if kind == SCANS or not self.brings_scans:
            return self.scratch.path / kind
        return self.scratch.path / SCANS / "targets" / kind

    def _scan_arrays(self) -> list[ArrayWriter]:
        """Points, point_index, pixel, and superpixel where the source has some."""
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
    """One teacher's targets of the block."""

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
        """Their columns of the index."""
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
    """Add as many rows to each array; gives the first of them, and that after the last."""
    start = arrays[0].rows_to_come if arrays else 0
    for array, value in zip(arrays, values, strict=True):
        array.append(value)
    return start, start + (len(values[0]) if values else 0)


def _mean_and_worst(cosine: np.ndarray) -> tuple[float, float]:
    """Where there are none, nothing is lost."""
    return (float(cosine.mean()), float(cosine.min())) if len(cosine) else (1.0, 1.0)
