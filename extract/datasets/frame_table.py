"""Frames as a parquet table with one row per view, in which nuScenes' frames are cached for the next start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..projection import Calibration
from .frame import Frame, View

MATRICES = {"cam_from_lidar": (3, 4), "intrinsics": (3, 3)}  # in row-major order
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("scene", "token")),
        ("timestamp", pa.int64()),
        *((name, pa.string()) for name in ("scan", "labels", "camera", "image", "image_token")),
        *((name, pa.int32()) for name in ("image_height", "image_width")),
        *((name, pa.list_(pa.float64(), rows * columns)) for name, (rows, columns) in MATRICES.items()),
    ]
)


class FrameTable(Sequence[Frame]):
    """The frames of a table with SCHEMA, created on access, so that a large split opens quickly.

    Args:
        dataset: name of the dataset.
        table: the table, in which the rows of a frame follow each other.
    """

    def __init__(self, dataset: str, table: pa.Table) -> None:
        self.dataset = dataset
        self._columns = {name: table[name].to_pylist() for name in SCHEMA.names if name not in MATRICES}
        self._cam_from_lidar = np.tile(np.eye(4), (table.num_rows, 1, 1))
        self._cam_from_lidar[:, :3] = _matrices(table, "cam_from_lidar")
        self._intrinsics = _matrices(table, "intrinsics")
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
            views=tuple(self._view(row) for row in range(start, stop)),
        )

    def _view(self, row: int) -> View:
        columns = self._columns
        return View(
            camera=columns["camera"][row],
            image=columns["image"][row],
            image_token=columns["image_token"][row],
            calibration=Calibration(cam_from_lidar=self._cam_from_lidar[row], intrinsics=self._intrinsics[row]),
            image_shape=(columns["image_height"][row], columns["image_width"][row]),
        )


def frames_as_table(frames: Sequence[Frame]) -> pa.Table:
    """Convert frames to a table; all frames must have views, and all views an image size."""
    rows = [_row(frame, view) for frame in frames for view in frame.views]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table atomically: completely or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:  # arrow accepts only paths in UTF-8
            pq.write_table(table, file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _row(frame: Frame, view: View) -> dict:
    height, width = view.image_shape
    return {
        **{name: getattr(frame, name) for name in ("scene", "token", "timestamp", "scan", "labels")},
        "camera": view.camera,
        "image": view.image,
        "image_token": view.image_token,
        "image_height": height,
        "image_width": width,
        "cam_from_lidar": view.calibration.cam_from_lidar[:3].ravel(),
        "intrinsics": view.calibration.intrinsics.ravel(),
    }


def _matrices(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of matrices as one array (rows, *shape) float64."""
    return table[name].combine_chunks().flatten().to_numpy().reshape(-1, *MATRICES[name])
