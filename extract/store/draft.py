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
from .files import files_below
from .format import COSINES, SCANS, SCANS_SCHEMA, TARGETS_SCHEMA


class NewView(NamedTuple):
    """A view that is to be stored."""

    row: dict  # the columns of SCANS_SCHEMA that say what it is of
    point_index: np.ndarray  # (R,) uint32, row in the frame's points
    pixel: np.ndarray  # (R, 2) uint16


class NewTargets(NamedTuple):
    """One teacher's targets of a view, encoded."""

    vectors: np.ndarray  # (T, D) float16 or int8
    scale: np.ndarray | None  # (T,) float32 with int8, else None
    cosine: np.ndarray  # (T,) of stored and exact vectors
    cosine_centred: np.ndarray  # (T,) once the teacher's mean is taken away from both


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
            name: _TargetsDraft(record, self.group(name), channels.get(name)) for name, record in teachers.items()
        }
        self._scans: list[ArrayWriter] | None = None
        self._points = self._pairs = 0

    @property
    def teachers(self) -> list[str]:
        return list(self._targets)

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
            arrays = self._scan_arrays()
            arrays[0].append(points)
            for view in views:
                arrays[1].append(view.point_index)
                arrays[2].append(view.pixel)
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
        """Points, point_index, pixel."""
        if self._scans is None:
            group = self.group(SCANS)
            shapes = {"points": ((4,), "float32"), "pairs/point_index": ((), "uint32"), "pairs/pixel": ((2,), "uint16")}
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
            "crc32c": fmt.crc32c(0, points, view.point_index, view.pixel),
        }


class _TargetsDraft:
    """One teacher's targets of the block."""

    def __init__(self, record: Mapping, group: Path, channels: np.ndarray | None) -> None:
        self.record, self.group, self.rows = record, group, []
        self._start = 0
        encoding = Encoding(record["encoding"], record["dtype"])
        self._arrays = [ArrayWriter(group / "vectors", (record["dim"],), encoding.dtype)]
        self._channels: list[np.ndarray] = []
        if encoding.dtype == "int8":
            self._arrays.append(ArrayWriter(group / "scale", (), "float32"))
            self._channels.append(channels)

    @property
    def views(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, schema=TARGETS_SCHEMA)

    def add(self, view: dict, targets: NewTargets) -> None:
        values = [targets.vectors, targets.scale][: len(self._arrays)]
        for array, value in zip(self._arrays, values, strict=True):
            array.append(value)
        stop = self._start + len(targets.vectors)
        kept = (targets.cosine, targets.cosine_centred)
        cosines = [value for each in kept for value in _mean_and_worst(each)]
        self.rows.append(
            {
                **{name: view[name] for name in ("block", "token", "camera")},
                "start": self._start,
                "stop": stop,
                **dict(zip(COSINES, cosines, strict=True)),
                "crc32c": fmt.crc32c(view["crc32c"], *values, *self._channels),
            }
        )
        self._start = stop

    def finish(self) -> None:
        for channels in self._channels:
            array = ArrayWriter(self.group / "channels", channels.shape[1:], "float32")
            array.append(channels)
            self._arrays.append(array)
        for array in self._arrays:
            array.finish()
        fmt.write_group(self.group, {})


def _mean_and_worst(cosine: np.ndarray) -> tuple[float, float]:
    """Where there are none, nothing is lost."""
    return (float(cosine.mean()), float(cosine.min())) if len(cosine) else (1.0, 1.0)
