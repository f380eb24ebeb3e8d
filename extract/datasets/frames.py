"""The dataset reader for any rig: `frames.parquet`, a table with one row per view, and `dataset.yaml` for the rest.

docs/own_dataset.md describes both files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ...errors import DatasetError, did_you_mean
from ..intensity import IntensityStatistics
from ..projection import Calibration, Visibility, rigid_transform
from .files import checked_points, file_of, read_bytes, read_raw_labels
from .frame import Frame, View
from .labels import LabelMap, check_length
from .scan_files import read_array, read_scan_file
from .splits import refuse_share, several

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
LARGEST_OFF = 1e-4  # maximum distance of a rotation times its transpose from the identity
OF_AN_IMAGE = ("camera", "image_height", "image_width", "projection", "cam_from_lidar", "intrinsics")
OF_A_FRAME = ("scene", "timestamp", "scan", "labels")
KINDS = {str: "a text", int: "a whole number", list: "a list of numbers"}
KIND_OF_TIME = "a whole number of microseconds, nor a column of times"
BOUNDS = {"timestamp": (-(2**63), 2**63 - 1), **dict.fromkeys(("image_height", "image_width"), (1, 65536))}
PANDAS_INDEX = re.compile(r"__index_level_\d+__")
NoReturns = Literal["keep", "drop"]
DESCRIPTION_KEYS = ("name", "intensity", "classes", "ignored", "visibility", "no_returns")
COLUMNS = f"Add the column; required are {', '.join(REQUIRED)}, optional {', '.join(OPTIONAL)}."
CORRECT = "Correct the table; docs/own_dataset.md describes its columns."
WRITE_AGAIN = "Write the table again as parquet, with pandas, polars or pyarrow."


@dataclass(frozen=True)
class Description:
    """The content of `dataset.yaml`: its keys are DESCRIPTION_KEYS, all of them optional."""

    name: str
    intensity: IntensityStatistics | None  # None: measured on scans
    label_map: LabelMap
    visibility: Visibility
    no_returns: NoReturns  # whether points at nan or (0, 0, 0) are kept


class Frames:
    """The frames of a table, in its order.

    A bad row yields a frame that cannot be used, with the reason in `Frame.error`.

    Args:
        root: the folder of frames.parquet, to which its paths are relative.
        split: a value of column `split`, or several separated by commas; without that column, all rows are `train`.

    Raises:
        DatasetError: a missing or broken file, a missing column, or no row of the split.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        about = _read_description(root / "dataset.yaml")
        self.name, self.intensity, self.visibility = about.name, about.intensity, about.visibility
        self.label_map, self.class_names = about.label_map, about.label_map.class_names
        self._no_returns = about.no_returns
        path = root / "frames.parquet"
        self.frames: Sequence[Frame] = _FramesOfRows(self.name, path, _rows_of_split(_read_rows(path), split, path))

    def read_points(self, frame: Frame) -> np.ndarray:
        """Read a scan, (N, 4) float32: x y z in the lidar frame [m] and raw intensity; file formats: `scan_files`."""
        if not frame.scan:
            raise frame.error
        path = file_of(self.root, frame.scan)
        scan = read_scan_file(path)
        is_return = _is_return(scan)
        if self._no_returns == "drop":
            if len(scan) and not is_return.any():
                raise DatasetError(
                    f"none of the {len(scan)} points is a return", where=path, fix="Leave the frame out of the table."
                )
            return checked_points(scan[is_return], path)
        if missing := int((~np.isfinite(scan[:, :3]).all(axis=1)).sum()):
            raise DatasetError(
                f"{missing} of {len(scan)} points are not finite",
                where=path,
                fix="Set 'no_returns: drop' in dataset.yaml to leave out rays without a return, or copy the file"
                " again.",
            )
        return checked_points(scan, path)

    def read_labels(self, frame: Frame) -> np.ndarray:
        """Read labels, (N,) uint8 train ids, from .npy, .label (uint32, class in the low 16 bits) or .bin (uint8)."""
        train_ids = self._read_all_labels(frame)
        if self._no_returns == "keep":
            return train_ids
        scan = read_scan_file(file_of(self.root, frame.scan))
        check_length(len(train_ids), len(scan), frame.scan, self.root / str(frame.labels))
        return train_ids[_is_return(scan)]

    def _read_all_labels(self, frame: Frame) -> np.ndarray:
        if not frame.labels:
            raise DatasetError(
                f"frame {frame.token} has no labels",
                where=self.root / "frames.parquet",
                fix="Fill the column 'labels' of the frame, or leave the frame out.",
            )
        path = file_of(self.root, frame.labels)
        read = LABEL_READERS.get(path.suffix.lower())
        if read is None:
            raise DatasetError(
                f"files of labels with the suffix '{path.suffix}' cannot be read",
                where=path,
                fix=f"Write the labels as one of: {', '.join(LABEL_READERS)}.",
            )
        raw = read(path)
        if raw.ndim != 1 or not np.issubdtype(raw.dtype, np.integer):
            raise DatasetError(
                f"the labels have shape {raw.shape} and dtype {raw.dtype}, not (N,) integers",
                where=path,
                fix="Write one integer per point.",
            )
        return self.label_map.train_ids(raw, path)


LABEL_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".label": lambda path: read_raw_labels(path, np.uint32) & 0xFFFF,
    ".bin": lambda path: read_raw_labels(path, np.uint8),
    ".npy": read_array,
}


class _FramesOfRows(Sequence[Frame]):
    """The frames of a table's rows, created on access, so that a long table opens quickly."""

    def __init__(self, dataset: str, path: Path, rows: list[dict]) -> None:
        self._dataset, self._path, self._rows = dataset, path, rows
        tokens = [str(row["token"]) for row in rows]
        self._starts = [number for number, token in enumerate(tokens) if number == 0 or token != tokens[number - 1]]
        self._stops = [*self._starts[1:], len(rows)]
        first: dict[str, int] = {}
        for start in self._starts:
            first.setdefault(tokens[start], start)
        self._taken = [first[tokens[start]] != start for start in self._starts]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Frame:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        rows = self._rows[self._starts[number] : self._stops[number]]
        return _frame(self._dataset, self._path, rows, self._taken[number])


def _read_rows(path: Path) -> list[dict]:
    """Read the rows as dictionaries, with their number as `row`; integers become int, missing values None."""
    content = read_bytes(path)
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read()
        columns = {name: _values(table[name], kind) for name, kind in _known_columns(table, path).items()}
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise DatasetError(f"the file cannot be read as parquet ({error})", where=path, fix=WRITE_AGAIN) from None
    names = [*columns, "row"]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), range(table.num_rows), strict=True)]


def _known_columns(table: pa.Table, path: Path) -> dict[str, type]:
    """The Python type of each known column; the column in which pandas keeps an unnamed index is ignored."""
    known, names = {**REQUIRED, **OPTIONAL}, [name for name in table.column_names if not PANDAS_INDEX.fullmatch(name)]
    missing = [name for name in REQUIRED if name not in names]
    unknown = [name for name in names if name not in known]
    twice = [name for name in known if names.count(name) > 1]
    if missing:
        raise DatasetError(f"the table has no column '{missing[0]}'", where=path, fix=COLUMNS)
    if unknown:
        raise DatasetError(
            f"the table has an unknown column '{unknown[0]}'{did_you_mean(unknown[0], known)}",
            where=path,
            fix=f"Remove the column, or rename it to one of {', '.join(known)}.",
        )
    if twice:
        raise DatasetError(f"the table has two columns '{twice[0]}'", where=path, fix="Remove one of the two columns.")
    return {name: known[name] for name in names}


def _values(column: pa.ChunkedArray, kind: type) -> list:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind is not int:
        return column.to_pylist()
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    is_float = pa.types.is_floating(column.type)
    most = 2 ** (np.finfo(column.type.to_pandas_dtype()).nmant + 1) if is_float else 2**63  # exact up to this
    return [_as_whole_number(value, most) for value in column.to_pylist()]


def _as_whole_number(value: Any, most: int) -> Any:
    """Convert to int if exact: pandas and polars keep integers of a column with gaps as floats, and gaps as nan."""
    if not isinstance(value, float | Decimal):
        return value
    if value != value:
        return None
    return int(value) if abs(value) <= most and value == int(value) else value


def _rows_of_split(rows: list[dict], split: str, path: Path) -> list[dict]:
    there = dict.fromkeys(name for row in rows if isinstance(name := row.get("split", "train"), str))
    wanted = [split] if split in there else several(split)
    missing = [name for name in wanted if name not in there]
    if missing:
        refuse_share(missing[0])
        raise DatasetError(
            f"the table has no row of split '{missing[0]}'{did_you_mean(missing[0], there)}",
            where=path,
            fix=f"Choose a value of its column 'split' ({', '.join([*there][:20]) or 'it has none'}).",
        )
    return [row for row in rows if row.get("split", "train") in wanted]


def _is_return(scan: np.ndarray) -> np.ndarray:
    """Which points are returns, (N,) bool: drivers write rays that hit nothing as nan or as (0, 0, 0)."""
    return np.isfinite(scan[:, :3]).all(axis=1) & scan[:, :3].any(axis=1)


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
        timestamp=first["timestamp"] if _is_within(*BOUNDS["timestamp"], first["timestamp"]) else 0,
        scan=first["scan"] if isinstance(first["scan"], str) else "",
        labels=first.get("labels") if isinstance(first.get("labels"), str) else None,
        views=() if problems else tuple(views),
        error=_unusable(path, problems) if problems else None,
    )


def _is_within(low: int, high: int, value: Any) -> bool:
    return isinstance(value, int) and low <= value <= high


def _unusable(path: Path, problems: list[str]) -> DatasetError:
    return DatasetError(f"a frame cannot be used: {'; '.join(problems)}", where=path, fix=CORRECT)


def _frame_problem(row: dict, first: dict, token_is_taken: bool) -> str | None:
    for name, kind in {**REQUIRED, **OPTIONAL}.items():
        value = row.get(name)
        may_be_missing = name in OPTIONAL and value is None
        if may_be_missing:
            continue
        if not isinstance(value, kind) or isinstance(value, bool) or value == "":
            return f"'{name}' is {value!r}, not {KIND_OF_TIME if name == 'timestamp' else KINDS[kind]}"
        if name in BOUNDS and not _is_within(*BOUNDS[name], value):
            return f"'{name}' is {value}, and it must be from {BOUNDS[name][0]} to {BOUNDS[name][1]}"
    if token_is_taken:
        return f"frame {row['token']} has other rows further up: the rows of a frame must follow each other"
    for name in OF_A_FRAME:
        if row.get(name) != first.get(name):
            return f"'{name}' is {row.get(name)!r}, and {first.get(name)!r} in row {first['row']} of the same frame"
    return None


def _view(row: dict) -> View | None:
    if row.get("image") is None:
        if of_an_image := next((name for name in OF_AN_IMAGE if row.get(name) is not None), None):
            raise ValueError(f"'image' is None, and the row has a '{of_an_image}'")
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
        return _from_projection(_matrix(row, "projection", (3, 4)).tobytes())
    return _from_factors(_matrix(row, "cam_from_lidar", (3, 4)).tobytes(), _matrix(row, "intrinsics", (3, 3)).tobytes())


@lru_cache(4096)  # most rigs have one calibration per camera, and checking one takes 0.1 ms
def _from_factors(outer: bytes, inner: bytes) -> Calibration:
    matrix, intrinsics = np.frombuffer(outer).reshape(3, 4), np.frombuffer(inner).reshape(3, 3)
    rotation = matrix[:, :3]
    off = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    determinant = float(np.linalg.det(rotation))
    if off > LARGEST_OFF or determinant < 0:
        raise ValueError(
            f"the left 3x3 part of 'cam_from_lidar' is not a rotation: its determinant is {determinant:.6g}, and its"
            f" rows miss length 1 and right angles by {off:.2g}; 1 and less than {LARGEST_OFF:g} are expected"
        )
    if not np.allclose(intrinsics[[1, 2, 2], [0, 0, 1]], 0) or (np.diag(intrinsics) <= 0).any():
        raise ValueError("'intrinsics' is not [fx s cx; 0 fy cy; 0 0 1]")
    return Calibration(cam_from_lidar=rigid_transform(rotation, matrix[:, 3]), intrinsics=intrinsics / intrinsics[2, 2])


@lru_cache(4096)  # for the same reason
def _from_projection(matrix: bytes) -> Calibration:
    return Calibration.from_projection(np.frombuffer(matrix).reshape(3, 4))


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
            no_returns=_one_of(NoReturns, "no_returns", values.get("no_returns", "keep")),
        )
    except DatasetError as error:
        raise error.inside(str(path)) from None
    except (yaml.YAMLError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DatasetError(
            f"the description of the dataset cannot be used ({error})",
            where=path,
            fix="See docs/own_dataset.md for the keys of dataset.yaml.",
        ) from None


def _one_of(choices: Any, name: str, value: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"'{name}' is {value!r}, not one of {', '.join(get_args(choices))}")
    return value
