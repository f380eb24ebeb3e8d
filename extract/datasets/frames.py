"""Any rig: `frames.parquet`, a table of one row per view, and `dataset.yaml` with what holds for all of them.

docs/datasets.md describes both files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ...errors import DatasetError, did_you_mean
from ..intensity import IntensityStatistics
from ..projection import Calibration, Visibility, rigid_transform
from .files import COPY_AGAIN, checked_points, missing_file, read_bytes, read_raw_labels, read_scan
from .frame import Frame, View
from .labels import LabelMap

REQUIRED = {"scene": str, "token": str, "timestamp": int, "scan": str}
OPTIONAL = {
    "split": str,
    "labels": str,
    "camera": str,
    "image": str,
    "image_height": int,
    "image_width": int,
    "projection": list,
    "cam_from_lidar": list,
    "intrinsics": list,
}
OF_A_FRAME = ("scene", "timestamp", "scan", "labels")
DESCRIPTION_KEYS = ("name", "intensity", "classes", "ignored", "visibility")
COLUMNS = f"Give it {', '.join(REQUIRED)}, and if you like {', '.join(OPTIONAL)}."
CORRECT = "Correct the row; 'scalr check' lists every bad one."


@dataclass(frozen=True)
class Description:
    """What `dataset.yaml` says: its keys are DESCRIPTION_KEYS, and every one may be left out."""

    name: str
    intensity: IntensityStatistics | None  # measured where there is none
    label_map: LabelMap
    visibility: Visibility


class Frames:
    """The frames of a table, in its order.

    A bad row makes a frame that cannot be used and that says why: `Frame.error`.

    Args:
        root: the folder of frames.parquet; its paths are relative to it.
        split: a value of column `split`; without that column, all rows are `train`.

    Raises:
        DatasetError: a missing or broken file, a missing column, no row of the split.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        about = _read_description(root / "dataset.yaml")
        self.name, self.intensity, self.visibility = about.name, about.intensity, about.visibility
        self.label_map, self.class_names = about.label_map, about.label_map.class_names
        path = root / "frames.parquet"
        rows = [row for row in _read_rows(path) if row.get("split", "train") == split]
        if not rows:
            raise DatasetError(f"no row of split '{split}'", where=path, fix="Choose a value of its column 'split'.")
        self.frames = list(_frames(self.name, path, rows))

    def read_points(self, frame: Frame) -> np.ndarray:
        """(N, 4) float32 from .npy (N, 4 or more), .pcd.bin (five float32 per point) or .bin (four)."""
        if not frame.scan:
            raise frame.error
        path = self.root / frame.scan
        if path.name.endswith(".npy"):
            return checked_points(_load_array(path), path)
        return read_scan(path, columns=5 if path.name.endswith(".pcd.bin") else 4)

    def read_labels(self, frame: Frame) -> np.ndarray:
        """(N,) uint8 train ids from .npy, .label (uint32, class in the low 16 bits) or .bin (uint8)."""
        if not frame.labels:
            raise DatasetError(
                f"frame {frame.token} has no labels",
                where=self.root / "frames.parquet",
                fix="Fill the column 'labels', or leave the frame out.",
            )
        path = self.root / frame.labels
        if path.name.endswith(".npy"):
            raw = _load_array(path)
        else:
            wide = path.name.endswith(".label")
            raw = read_raw_labels(path, np.uint32) & 0xFFFF if wide else read_raw_labels(path, np.uint8)
        if raw.ndim != 1 or not np.issubdtype(raw.dtype, np.integer):
            raise DatasetError(
                f"labels of shape {raw.shape} and dtype {raw.dtype}", where=path, fix="Write (N,) whole numbers."
            )
        return self.label_map.train_ids(raw, path)


def _read_rows(path: Path) -> list[dict]:
    """The rows, each with its number as `row`."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"not a parquet file that can be read ({error})", where=path, fix=COPY_AGAIN) from None
    missing = [name for name in REQUIRED if name not in table.column_names]
    unknown = [name for name in table.column_names if name not in (*REQUIRED, *OPTIONAL)]
    if missing:
        raise DatasetError(f"no column '{missing[0]}'", where=path, fix=COLUMNS)
    if unknown:
        raise DatasetError(
            f"unknown column '{unknown[0]}'{did_you_mean(unknown[0], [*REQUIRED, *OPTIONAL])}", where=path, fix=COLUMNS
        )
    return [row | {"row": number} for number, row in enumerate(table.to_pylist())]


def _frames(dataset: str, path: Path, rows: list[dict]) -> Iterator[Frame]:
    seen: set[object] = set()
    for token, group in groupby(rows, key=lambda row: row["token"]):
        yield _frame(dataset, path, list(group), token in seen)
        seen.add(token)


def _frame(dataset: str, path: Path, rows: list[dict], token_is_taken: bool) -> Frame:
    first, views, problems = rows[0], [], []
    for row in rows:
        wrong = _frame_problem(row, first, token_is_taken)
        try:
            view = None if wrong else _view(row)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            problems.append(f"row {row['row']}: {wrong}")
        elif view is not None:
            views.append(view)
    cameras = [view.camera for view in views]
    if len(set(cameras)) < len(cameras):
        problems.append(f"rows {first['row']} to {rows[-1]['row']}: a camera appears twice in frame {first['token']}")
    return Frame(
        dataset=dataset,
        scene=str(first["scene"]),
        token=str(first["token"]),
        timestamp=first["timestamp"] if isinstance(first["timestamp"], int) else 0,
        scan=first["scan"] if isinstance(first["scan"], str) else "",
        labels=first.get("labels") if isinstance(first.get("labels"), str) else None,
        views=() if problems else tuple(views),
        error=_unusable(path, problems) if problems else None,
    )


def _unusable(path: Path, problems: list[str]) -> DatasetError:
    return DatasetError(f"a frame cannot be used: {'; '.join(problems)}", where=path, fix=CORRECT)


def _frame_problem(row: dict, first: dict, token_is_taken: bool) -> str | None:
    for name, kind in {**REQUIRED, **OPTIONAL}.items():
        value = row.get(name)
        may_be_missing = name in OPTIONAL and value is None
        if not may_be_missing and (not isinstance(value, kind) or value == ""):
            return f"'{name}' is {value!r}"
    if token_is_taken:
        return f"frame {row['token']} has other rows further up: the rows of a frame must follow each other"
    for name in OF_A_FRAME:
        if row.get(name) != first.get(name):
            return f"'{name}' is {row.get(name)!r}, and {first.get(name)!r} in row {first['row']} of the same frame"
    return None


def _view(row: dict) -> View | None:
    if row.get("image") is None:
        return None
    height, width = row.get("image_height"), row.get("image_width")
    if (height is None) != (width is None):
        raise ValueError("image_height and image_width go together")
    return View(
        camera=row.get("camera") or "camera",
        image=row["image"],
        calibration=_calibration(row),
        image_shape=None if height is None else (height, width),
    )


def _calibration(row: dict) -> Calibration:
    if row.get("projection") is not None:
        return Calibration.from_projection(_matrix(row, "projection", (3, 4)))
    matrix, intrinsics = _matrix(row, "cam_from_lidar", (3, 4)), _matrix(row, "intrinsics", (3, 3))
    rotation = matrix[:, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) or np.linalg.det(rotation) < 0:
        raise ValueError("the left 3x3 part of 'cam_from_lidar' is not a rotation")
    if not np.allclose(intrinsics[[1, 2, 2], [0, 0, 1]], 0) or (np.diag(intrinsics) <= 0).any():
        raise ValueError("'intrinsics' is not [fx s cx; 0 fy cy; 0 0 1]")
    return Calibration(cam_from_lidar=rigid_transform(rotation, matrix[:, 3]), intrinsics=intrinsics / intrinsics[2, 2])


def _matrix(row: dict, name: str, shape: tuple[int, int]) -> np.ndarray:
    if row.get(name) is None:
        raise ValueError("neither 'projection' nor 'cam_from_lidar' and 'intrinsics'")
    try:
        matrix = np.array(row[name], dtype=np.float64).reshape(shape)
    except (TypeError, ValueError):
        raise ValueError(f"'{name}' is not {shape[0]}x{shape[1]} numbers, row by row") from None
    if not np.isfinite(matrix).all():
        raise ValueError(f"'{name}' has values that are not finite")
    return matrix


def _read_description(path: Path) -> Description:
    try:
        values = (yaml.safe_load(read_bytes(path)) or {}) if path.exists() else {}
        unknown = [key for key in values if key not in DESCRIPTION_KEYS]
        if unknown:
            raise ValueError(f"unknown key '{unknown[0]}'{did_you_mean(unknown[0], DESCRIPTION_KEYS)}")
        name = values.get("name", "frames")
        if not isinstance(name, str) or not name:
            raise ValueError(f"'name' is {name!r}, not a text")
        return Description(
            name=name,
            intensity=IntensityStatistics(**values["intensity"]) if "intensity" in values else None,
            label_map=LabelMap(values.get("classes", {}), values.get("ignored", (0,))),
            visibility=Visibility(**values.get("visibility", {})),
        )
    except DatasetError as error:
        raise error.inside(str(path)) from None
    except (yaml.YAMLError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DatasetError(
            f"it cannot be used ({error})", where=path, fix="See docs/datasets.md for its keys."
        ) from None


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"not an array that can be read ({error})", where=path, fix=COPY_AGAIN) from None
