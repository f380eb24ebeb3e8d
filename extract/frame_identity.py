"""The table of a split's frames that a store keeps, to find out whether a later job means the same frames.

The table has a row per view, and one row for a frame without views: scene, token, timestamp [us], paths relative to the
dataset's root, camera, image size [px], and the calibration that follows from the tables' poses and intrinsics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from .datasets.frame import Frame, View

OF_A_FRAME = ("token", "scene", "timestamp", "scan", "unusable")
OF_A_VIEW = ("camera", "image", "image_height", "image_width")
MATRICES = {"cam_from_lidar": (4, 4), "intrinsics": (3, 3)}  # in row-major order
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("token", "scene")),
        ("timestamp", pa.int64()),
        ("scan", pa.string()),
        ("unusable", pa.bool_()),  # according to the dataset's tables
        *((name, pa.string()) for name in ("camera", "image")),
        *((name, pa.int32()) for name in ("image_height", "image_width")),
        *((name, pa.list_(pa.float64(), rows * columns)) for name, (rows, columns) in MATRICES.items()),
    ]
)
# Of calibrations: matrix products differ in their last bits between machines, which is far too little to move a pixel.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def frames_table(frames: Sequence[Frame]) -> pa.Table:
    """Build the table of a split's frames, in their order."""
    rows = [(frame, view) for frame in frames for view in (frame.views or (None,))]
    columns = {name: [_of_frame(frame, name) for frame, _ in rows] for name in OF_A_FRAME}
    columns |= {name: [_of_view(view, name) for _, view in rows] for name in OF_A_VIEW}
    columns |= {name: _matrices([view for _, view in rows], name) for name in MATRICES}
    return pa.table(columns, schema=SCHEMA)


def frames_sha256(table: pa.Table) -> str:
    """SHA-256 over a table of frames: two runs with the same digest have the same frames and the same plan."""
    digest = hashlib.sha256()
    for name in SCHEMA.names:
        column = table[name].combine_chunks()
        if name in MATRICES:
            digest.update(np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False)).tobytes())
        else:
            digest.update("\0".join(map(repr, column.to_pylist())).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def first_difference(theirs: pa.Table, ours: pa.Table) -> str | None:
    """Describe the first frame and field in which two tables differ, with both values; None if the frames are the same.

    Calibrations may differ in their last bits, and a frame that the tables made unusable may have been repaired since.
    """
    for number, (their_frame, our_frame) in enumerate(zip_longest(_by_frame(theirs), _by_frame(ours))):
        if their_frame is None or our_frame is None:
            there = their_frame or our_frame
            found = "the store has it, the dataset no longer" if our_frame is None else "the store does not have it"
            return f"frame {there[0]['token']} (number {number}): {found}"
        difference = _difference_of_frames(their_frame, our_frame)
        if difference:
            return f"frame {their_frame[0]['token']} (number {number}): {difference}"
    return None


def _difference_of_frames(theirs: list[dict], ours: list[dict]) -> str | None:
    if theirs[0]["token"] == ours[0]["token"] and theirs[0]["unusable"]:
        return None
    for name in OF_A_FRAME:
        if theirs[0][name] != ours[0][name]:
            return _both(name, theirs[0][name], ours[0][name])
    cameras = [[row["camera"] or "none" for row in rows] for rows in (theirs, ours)]
    if cameras[0] != cameras[1]:
        return _both("cameras", *(", ".join(names) for names in cameras))
    for their_view, our_view in zip(theirs, ours, strict=True):
        difference = _difference_of_views(their_view, our_view)
        if difference:
            return f"camera {their_view['camera']}: {difference}"
    return None


def _difference_of_views(theirs: dict, ours: dict) -> str | None:
    for name in OF_A_VIEW:
        if theirs[name] != ours[name]:
            return _both(name, theirs[name], ours[name])
    for name in MATRICES:
        if not np.allclose(theirs[name], ours[name], **TOLERANCE, equal_nan=True):
            return _both(f"calibration ({name})", *(np.round(each[name], 6).tolist() for each in (theirs, ours)))
    return None


def _both(name: str, theirs: object, ours: object) -> str:
    return f"{name} is {theirs!r} in the store and {ours!r} now"


def _by_frame(table: pa.Table) -> Iterator[list[dict]]:
    for _, rows in groupby(table.to_pylist(), key=lambda row: row["token"]):
        yield list(rows)


def _of_frame(frame: Frame, name: str) -> object:
    return frame.error is not None if name == "unusable" else getattr(frame, name)


def _of_view(view: View | None, name: str) -> object:
    if view is None:
        return None
    if name in ("image_height", "image_width"):
        return None if view.image_shape is None else int(view.image_shape[name == "image_width"])
    return getattr(view, name)


def _matrices(views: Sequence[View | None], name: str) -> pa.Array:
    """The matrices as rows of numbers; NaN for frames without a view."""
    nothing = np.full(MATRICES[name], np.nan)
    matrices = [nothing if view is None else getattr(view.calibration, name) for view in views]
    values = np.array(matrices, dtype=np.float64).ravel()
    return pa.FixedSizeListArray.from_arrays(values, SCHEMA.field(name).type.list_size)
