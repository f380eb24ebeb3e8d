"""Frames as a table of one row per view, in parquet: the cache of nuScenes' tables, and `frames.parquet` of one's own.

docs/datasets.md describes the columns for people.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..projection import Calibration
from .frame import Frame, View

MATRIX_34, MATRIX_33 = pa.list_(pa.float64(), 12), pa.list_(pa.float64(), 9)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("scene", "token")),
        ("timestamp", pa.int64()),
        *((name, pa.string()) for name in ("scan", "labels", "camera", "image")),
        *((name, pa.int32()) for name in ("image_height", "image_width")),
        ("cam_from_lidar", MATRIX_34),  # row by row
        ("intrinsics", MATRIX_33),
    ]
)


class FrameTable(Sequence[Frame]):
    """Frames over a table with SCHEMA, made when they are asked for: a large split opens at once.

    Args:
        dataset: name of the dataset.
        table: rows of a frame follow each other. A row without an image is a frame without views.
    """

    def __init__(self, dataset: str, table: pa.Table) -> None:
        self.dataset = dataset
        self._columns = {
            name: table[name].to_pylist() for name in SCHEMA.names if not name.startswith(("cam_", "intr"))
        }
        self._cam_from_lidar = np.tile(np.eye(4), (table.num_rows, 1, 1))
        self._cam_from_lidar[:, :3] = _matrices(table["cam_from_lidar"], (3, 4))
        self._intrinsics = _matrices(table["intrinsics"], (3, 3))
        tokens = self._columns["token"]
        self._starts = [row for row in range(table.num_rows) if row == 0 or tokens[row] != tokens[row - 1]]
        self._stops = [*self._starts[1:], table.num_rows]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Frame:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        start, stop = self._starts[number], self._stops[number]
        columns = self._columns
        return Frame(
            dataset=self.dataset,
            **{name: columns[name][start] for name in ("scene", "token", "timestamp", "scan", "labels")},
            views=tuple(self._view(row) for row in range(start, stop) if columns["image"][row] is not None),
        )

    def _view(self, row: int) -> View:
        columns = self._columns
        height, width = columns["image_height"][row], columns["image_width"][row]
        return View(
            camera=columns["camera"][row],
            image=columns["image"][row],
            calibration=Calibration(cam_from_lidar=self._cam_from_lidar[row], intrinsics=self._intrinsics[row]),
            image_shape=None if height is None else (height, width),
        )


def frames_as_table(frames: Sequence[Frame]) -> pa.Table:
    """The table of frames that all have views."""
    rows = [_row(frame, view) for frame in frames for view in frame.views]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _row(frame: Frame, view: View) -> dict:
    height, width = view.image_shape or (None, None)
    return {
        **{name: getattr(frame, name) for name in ("scene", "token", "timestamp", "scan", "labels")},
        "camera": view.camera,
        "image": view.image,
        "image_height": height,
        "image_width": width,
        "cam_from_lidar": view.calibration.cam_from_lidar[:3].ravel(),
        "intrinsics": view.calibration.intrinsics.ravel(),
    }


def _matrices(column: pa.ChunkedArray, shape: tuple[int, int]) -> np.ndarray:
    """(rows, *shape) float64; NaN where the table has none."""
    values = np.full((len(column), shape[0] * shape[1]), np.nan)
    valid = column.is_valid().to_numpy()
    if valid.any():
        values[valid] = column.drop_null().combine_chunks().flatten().to_numpy().reshape(valid.sum(), -1)
    return values.reshape(-1, *shape)
