"""Convert the tables of nuScenes to frames, and cache these in a small table for the next start.

The devkit loads all tables (2.6 million records of sensor data, as many poses, a million boxes) and keeps them in
memory. Here each file is parsed once, and only records of keyframes are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import DatasetError
from ..projection import Calibration, inverse_rigid, pose
from .devkit_splits import devkit_splits
from .files import missing_file, read_json
from .frame import Frame, View
from .frame_table import SCHEMA, frames_as_table, write_table

logger = logging.getLogger(__name__)

LIDAR = "LIDAR_TOP"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")

# The 100 scenes of train on which SLidR chooses its settings ("verifying"); the other 600 are its training scenes
# ("parametrizing"). Same lists in BEVContrast, ALSO and ScaLR.
SLIDR_VAL = """
    0008 0009 0019 0029 0032 0042 0045 0049 0052 0054 0056 0066 0067 0073 0131 0152 0166 0168 0183 0190
    0194 0208 0210 0211 0241 0243 0248 0259 0260 0261 0287 0292 0297 0305 0306 0350 0352 0358 0361 0365
    0368 0377 0388 0391 0395 0413 0427 0428 0438 0444 0452 0453 0459 0463 0464 0475 0513 0533 0544 0575
    0587 0589 0642 0652 0658 0669 0678 0687 0701 0703 0706 0710 0715 0726 0735 0740 0758 0786 0790 0804
    0806 0847 0856 0868 0882 0897 0899 0976 0996 1012 1015 1016 1018 1020 1024 1044 1058 1094 1098 1107
"""
CACHE_VERSION = 2  # a cached table of another version is replaced
UNPACK = "Unpack the metadata archive again."

FIELDS = {  # the fields that are read of each table
    "calibrated_sensor": ("token", "sensor_token", "translation", "rotation", "camera_intrinsic"),
    "ego_pose": ("token", "translation", "rotation"),
    "sample": ("token", "next"),
    "sample_data": (
        *("token", "sample_token", "ego_pose_token", "calibrated_sensor_token", "filename"),
        *("timestamp", "is_key_frame", "height", "width"),
    ),
    "scene": ("token", "name", "first_sample_token"),
    "sensor": ("token", "channel"),
    "lidarseg": ("sample_data_token", "filename"),
}
OPTIONAL = ("lidarseg",)


def keyframe_table(tables: Path) -> tuple[pa.Table, dict[str, list[str]]]:
    """Return all keyframes of a version folder, scenes in the order of the scene table, and the scenes of each split.

    The table has frame_table.SCHEMA. Both are cached in the user's cache folder ($XDG_CACHE_HOME), and built again if
    the size or time of a table has changed.

    Raises:
        DatasetError: a missing, broken or inconsistent table.
    """
    kept, fingerprint = _kept_table(tables), _fingerprint(tables)
    if kept is None:
        logger.warning(
            "the tables cannot be cached and will be read again in the next run: there is no home folder;"
            " set $XDG_CACHE_HOME"
        )
        return frames_as_table(read_keyframes(tables)), named_splits()
    try:
        kept_table = pq.ParquetFile(pa.BufferReader(kept.read_bytes()))
        about = json.loads(kept_table.schema_arrow.metadata[b"scalr"])
        if about["tables"] == fingerprint:
            return kept_table.read().cast(SCHEMA), about["splits"]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        pass  # the cached table is missing or incomplete
    logger.info("reading nuScenes tables in %s", tables)
    table, splits = _table_of_keyframes(tables), named_splits()
    try:
        about = {"tables": fingerprint, "splits": splits}
        write_table(table.replace_schema_metadata({"scalr": json.dumps(about)}), kept)
    except OSError as error:
        logger.warning(
            "the tables cannot be cached and will be read again in the next run: %s cannot be written (%s)",
            kept,
            error.strerror,
        )
    return table, splits


def named_splits() -> dict[str, list[str]]:
    """The scenes of the devkit's splits, and of SLidR's splits."""
    verifying = {f"scene-{number}" for number in SLIDR_VAL.split()}
    named = {name: devkit_splits()[name] for name in ("train", "val", "test", "mini_train", "mini_val")}
    parametrizing = [scene for scene in named["train"] if scene not in verifying]
    return named | {"slidr_train": parametrizing, "slidr_val": sorted(verifying)}


def _table_of_keyframes(tables: Path) -> pa.Table:
    frames = read_keyframes(tables)
    try:
        return frames_as_table(frames)
    except (TypeError, ValueError, OverflowError) as error:  # from pyarrow, for a value of another type
        raise _diagnose(tables, error) from error


def read_keyframes(tables: Path) -> list[Frame]:
    """Read every keyframe of a version folder from its JSON tables.

    Raises:
        DatasetError: a missing, broken or inconsistent table.
    """
    try:
        return list(_Tables(tables).frames())
    except (KeyError, TypeError, ValueError, IndexError, OSError) as error:
        raise _diagnose(tables, error) from error


def lidar_tokens(tables: Path) -> dict[str, str]:
    """Map each keyframe's scan file to the token of its sample_data record, which names its labels and predictions.

    Raises:
        DatasetError: missing or broken tables.
    """
    try:
        records = _records(tables, "sample_data", lambda record: record["is_key_frame"])
    except (KeyError, TypeError, ValueError, IndexError, OSError) as error:
        raise _diagnose(tables, error) from error
    return {record["filename"]: record["token"] for record in records}


class _Tables:
    """The records of keyframes, by token."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scenes = folder, _records(folder, "scene")
        self.next_sample = {record["token"]: record["next"] for record in _records(folder, "sample")}
        channels = {record["token"]: record["channel"] for record in _records(folder, "sensor")}
        self.sensors = {record["token"]: record for record in _records(folder, "calibrated_sensor")}
        channel_of = {token: channels[record["sensor_token"]] for token, record in self.sensors.items()}
        wanted = {LIDAR, *CAMERAS}
        self.data = {
            (record["sample_token"], channel_of[record["calibrated_sensor_token"]]): record
            for record in _records(folder, "sample_data", lambda record: record["is_key_frame"])
            if channel_of[record["calibrated_sensor_token"]] in wanted
        }
        poses = {record["ego_pose_token"] for record in self.data.values()}
        self.poses = {
            record["token"]: record for record in _records(folder, "ego_pose", lambda record: record["token"] in poses)
        }
        self.labels = {record["sample_data_token"]: record["filename"] for record in _records(folder, "lidarseg")}

    def frames(self) -> Iterator[Frame]:
        for scene in self.scenes:
            token = scene["first_sample_token"]
            while token:
                yield self._frame(scene["name"], token)
                token = self.next_sample[token]

    def _frame(self, scene: str, sample: str) -> Frame:
        lidar = self.data[sample, LIDAR]
        global_from_lidar = self._global_from_ego(lidar) @ self._ego_from_sensor(lidar)
        return Frame(
            dataset="nuscenes",
            scene=scene,
            token=sample,
            timestamp=lidar["timestamp"],
            scan=lidar["filename"],
            labels=self.labels.get(lidar["token"]),
            views=tuple(self._view(camera, self.data[sample, camera], global_from_lidar) for camera in CAMERAS),
        )

    def _view(self, camera: str, record: dict, global_from_lidar: np.ndarray) -> View:
        cam_from_global = inverse_rigid(self._ego_from_sensor(record)) @ inverse_rigid(self._global_from_ego(record))
        sensor = self.sensors[record["calibrated_sensor_token"]]
        intrinsics = np.array(sensor["camera_intrinsic"], dtype=np.float64)
        if intrinsics.shape != (3, 3):
            raise DatasetError(
                f"the intrinsics of calibrated sensor {sensor['token']} are not 3x3 numbers",
                where=self.folder / "calibrated_sensor.json",
                fix=UNPACK,
            )
        return View(
            camera=camera,
            image=record["filename"],
            image_token=record["token"],
            image_shape=(record["height"], record["width"]),
            calibration=Calibration(
                cam_from_lidar=cam_from_global @ global_from_lidar,
                intrinsics=intrinsics,
            ),
        )

    def _ego_from_sensor(self, record: dict) -> np.ndarray:
        return _pose(self.sensors[record["calibrated_sensor_token"]])

    def _global_from_ego(self, record: dict) -> np.ndarray:
        return _pose(self.poses[record["ego_pose_token"]])


def _pose(record: dict) -> np.ndarray:
    return pose(record["rotation"], record["translation"])


def _records(folder: Path, table: str, keep: Callable[[dict], bool] = lambda record: True) -> list[dict]:
    """Read the records of a table that `keep` selects, with the needed fields only."""
    path = folder / f"{table}.json"
    if not path.is_file():
        if table in OPTIONAL:
            return []
        raise missing_file(path)

    def needed(record: dict) -> dict | None:  # called while parsing: all records together would be gigabytes of objects
        return {field: record[field] for field in FIELDS[table]} if keep(record) else None

    with path.open(encoding="utf-8") as file:
        return [record for record in json.load(file, object_hook=needed) if record is not None]


def _kept_table(tables: Path) -> Path | None:
    """The path of the cached table; None if the user has no home folder, as in a container without an account."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(tables.resolve())).hexdigest()[:16]
    return cache / "scalr" / f"nuscenes-{name}.parquet"


def _fingerprint(tables: Path) -> dict:
    """Sizes and times of the tables, which show whether they have changed since they were cached."""
    stats = {name: (tables / f"{name}.json") for name in FIELDS}
    found = {name: path.stat() for name, path in stats.items() if path.is_file()}
    return {"version": CACHE_VERSION} | {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}


def _diagnose(tables: Path, error: Exception) -> DatasetError:
    """Find out which table is wrong; called only after an error."""
    for table, fields in FIELDS.items():
        path = tables / f"{table}.json"
        if table in OPTIONAL and not path.is_file():
            continue
        try:
            records = read_json(path)
        except DatasetError as broken:
            return broken
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            return DatasetError("the table is not a list of records", where=path, fix=UNPACK)
        for number, record in enumerate(records):
            missing = [field for field in fields if field not in record]
            if missing:
                return DatasetError(f"record {number} has no field '{missing[0]}'", where=path, fix=UNPACK)
    return DatasetError(
        f"the tables do not fit together ({type(error).__name__}: {error})",
        where=tables,
        fix="Unpack the metadata archives (v1.0 tables and, if used, lidarseg) again, all of one version.",
    )
