"""nuScenes in its native layout, read through the nuscenes-devkit.

Lidar and cameras fire at different moments, each with its own ego pose, so the way from a point to a pixel is
lidar -> ego (lidar time) -> global -> ego (camera time) -> camera, here composed in float64.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ..projection import Calibration, Visibility, inverse_rigid, rigid_transform
from .frame import IGNORE_LABEL, Frame, View, missing_file, read_bytes, read_scan

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")

# The version folder that holds each split of the devkit.
VERSIONS = {"train": "v1.0-trainval", "val": "v1.0-trainval", "mini_train": "v1.0-mini", "mini_val": "v1.0-mini"}

# Raw lidarseg ids of each of the 16 classes of the lidar segmentation challenge; all other ids are ignored.
CLASSES = {
    "barrier": (9,),
    "bicycle": (14,),
    "bus": (15, 16),
    "car": (17,),
    "construction_vehicle": (18,),
    "motorcycle": (21,),
    "pedestrian": (2, 3, 4, 6),
    "traffic_cone": (12,),
    "trailer": (22,),
    "truck": (23,),
    "driveable_surface": (24,),
    "other_flat": (25,),
    "sidewalk": (26,),
    "terrain": (27,),
    "manmade": (28,),
    "vegetation": (30,),
}

TRAIN_ID = np.full(256, IGNORE_LABEL, dtype=np.uint8)  # raw lidarseg id -> train id
for _train_id, _raw_ids in enumerate(CLASSES.values()):
    TRAIN_ID[list(_raw_ids)] = _train_id

# What the reader and the devkit look up in each table.
REQUIRED_FIELDS = {
    "attribute": ("token",),
    "calibrated_sensor": ("token", "sensor_token", "translation", "rotation", "camera_intrinsic"),
    "category": ("token", "name"),
    "ego_pose": ("token", "translation", "rotation", "timestamp"),
    "instance": ("token", "category_token"),
    "log": ("token", "location"),
    "map": ("token", "log_tokens", "filename"),
    "sample": ("token", "scene_token", "timestamp", "next"),
    "sample_annotation": ("token", "sample_token", "instance_token"),
    "sample_data": (
        *("token", "sample_token", "ego_pose_token", "calibrated_sensor_token", "filename"),
        *("timestamp", "is_key_frame", "height", "width"),
    ),
    "scene": ("token", "name", "first_sample_token", "log_token"),
    "sensor": ("token", "channel", "modality"),
    "visibility": ("token",),
}


class NuScenes:
    """The keyframes of one split, in the order of the scene table.

    Args:
        root: the folder that holds `samples/` and the version folder.
        split: a key of `VERSIONS`.

    Raises:
        DatasetError: unknown split, missing version folder, broken or inconsistent tables, no frame in the split.
    """

    name = "nuscenes"
    class_names = tuple(CLASSES)
    visibility = Visibility()

    def __init__(self, root: Path, split: str) -> None:
        if split not in VERSIONS:
            raise DatasetError(f"nuScenes has no split '{split}'", where="--split", fix=f"Use one of {list(VERSIONS)}.")
        self.root, self.split = root, split
        tables = root / VERSIONS[split]
        _check_version_folder(tables)
        try:
            self.frames = list(self._keyframes(_load_tables(tables)))
        except (KeyError, TypeError, ValueError, IndexError, AssertionError, OSError) as error:
            raise _diagnose(tables, error) from error
        if not self.frames:
            raise DatasetError(
                f"no scene of split '{split}'",
                where=tables / "scene.json",
                fix="Choose a split that is in this folder.",
            )

    def read_points(self, frame: Frame) -> np.ndarray:
        """(N, 4) float32, x y z in the lidar frame [m] and intensity 0..255 (the file's fifth value is the ring)."""
        return read_scan(self.root / frame.scan, columns=5)

    def read_labels(self, frame: Frame) -> np.ndarray:
        """(N,) uint8 train ids 0..15, or IGNORE_LABEL."""
        if frame.labels is None:
            raise DatasetError(
                f"frame {frame.token} has no lidarseg labels",
                where=self.root / VERSIONS[self.split] / "lidarseg.json",
                fix="Unpack the nuScenes-lidarseg archive into the dataset's folder.",
            )
        return TRAIN_ID[np.frombuffer(read_bytes(self.root / frame.labels), dtype=np.uint8)]

    def _keyframes(self, nusc) -> Iterator[Frame]:
        from nuscenes.utils.splits import create_splits_scenes

        in_split = set(create_splits_scenes()[self.split])
        for scene in nusc.scene:
            token = scene["first_sample_token"] if scene["name"] in in_split else ""
            while token:
                sample = nusc.get("sample", token)
                yield _frame(nusc, scene["name"], sample)
                token = sample["next"]


def _frame(nusc, scene: str, sample: dict) -> Frame:
    lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    global_from_lidar = _global_from_ego(nusc, lidar) @ _ego_from_sensor(nusc, lidar)
    return Frame(
        dataset=NuScenes.name,
        scene=scene,
        token=sample["token"],
        timestamp=lidar["timestamp"],
        scan=lidar["filename"],
        labels=_lidarseg_file(nusc, lidar["token"]),
        views=tuple(_view(nusc, camera, sample["data"][camera], global_from_lidar) for camera in CAMERAS),
    )


def _view(nusc, camera: str, token: str, global_from_lidar: np.ndarray) -> View:
    record = nusc.get("sample_data", token)
    cam_from_global = inverse_rigid(_ego_from_sensor(nusc, record)) @ inverse_rigid(_global_from_ego(nusc, record))
    intrinsics = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])["camera_intrinsic"]
    return View(
        camera=camera,
        image=record["filename"],
        image_shape=(record["height"], record["width"]),
        calibration=Calibration(
            cam_from_lidar=cam_from_global @ global_from_lidar,
            intrinsics=np.array(intrinsics, dtype=np.float64).reshape(3, 3),
        ),
    )


def _ego_from_sensor(nusc, sample_data: dict) -> np.ndarray:
    return _pose(nusc.get("calibrated_sensor", sample_data["calibrated_sensor_token"]))


def _global_from_ego(nusc, sample_data: dict) -> np.ndarray:
    return _pose(nusc.get("ego_pose", sample_data["ego_pose_token"]))


def _pose(record: dict) -> np.ndarray:
    from pyquaternion import Quaternion

    return rigid_transform(Quaternion(record["rotation"]).rotation_matrix, np.array(record["translation"]))


def _lidarseg_file(nusc, token: str) -> str | None:
    return nusc.get("lidarseg", token)["filename"] if "lidarseg" in nusc.table_names else None


def _load_tables(tables: Path):
    from nuscenes.nuscenes import NuScenes as Devkit

    return Devkit(version=tables.name, dataroot=str(tables.parent), verbose=False)


def _check_version_folder(tables: Path) -> None:
    if not tables.is_dir():
        found = sorted(path.name for path in tables.parent.glob("v1.0-*")) or "none"
        raise DatasetError(
            f"the version folder is missing (found here: {found})",
            where=tables,
            fix="Pass --root with the folder that holds it, or a --split of a version that is there"
            " (train, val: v1.0-trainval; mini_train, mini_val: v1.0-mini).",
        )
    for table in REQUIRED_FIELDS:
        if not (tables / f"{table}.json").is_file():
            raise missing_file(tables / f"{table}.json")


def _diagnose(tables: Path, error: Exception) -> DatasetError:
    """Find out which table made the devkit stumble; only called once it has."""
    for table, fields in REQUIRED_FIELDS.items():
        path = tables / f"{table}.json"
        fix = "Unpack the metadata archive again."
        try:
            records = json.loads(read_bytes(path))
        except ValueError as broken:
            return DatasetError(f"the table is not valid JSON ({broken})", where=path, fix=fix)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            return DatasetError("the table is not a list of records", where=path, fix=fix)
        for number, record in enumerate(records):
            missing = [field for field in fields if field not in record]
            if missing:
                return DatasetError(f"record {number} has no field '{missing[0]}'", where=path, fix=fix)
    return DatasetError(
        f"the tables do not fit together ({type(error).__name__}: {error})",
        where=tables,
        fix="Unpack the metadata archives (v1.0 tables and, if used, lidarseg) again, all of one version.",
    )
