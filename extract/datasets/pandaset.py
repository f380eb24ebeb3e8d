"""PandaSet in its native layout: two lidars in one file, the spinning Pandar64 and the forward PandarGT.

Files hold points in world coordinates. As in the official reader, points are transformed by the inverse of the lidar's
pose, and 1.6 m is subtracted from z, since the pose's origin is near the ground and the lidar about 1.6 m higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...errors import DatasetError
from ..intensity import INTENSITY_STATISTICS
from ..projection import Calibration, Visibility, inverse_rigid, pose, rigid_transform
from .files import checked_points, numbered_files, read_json
from .frame import Frame, View
from .labels import LabelMap, check_length
from .pandas_pickle import read_columns
from .splits import chosen_scenes

# Raw ids of the 17 classes of the official reader.
LABELS = LabelMap(
    {
        "road": (7,),
        "traffic_sign": (36, 38),
        "barrier": (35, 39),
        "pedestrian": (30, 31),
        "vegetation": (5,),
        "road_marking": (8, 9, 10),
        "sidewalk": (11,),
        "manmade": (41, 42),
        "traffic_cone": (34, 37),
        "car": (13,),
        "motorcycle": (18,),
        "truck": (14, 15, 16),
        "bus": (23,),
        "bicycle": (26,),
        "other_vehicle": (17, 19, 20, 21, 27, 28, 29),
        "ground": (6,),
        "driveway": (12,),
    },
    ignored=(0, 1, 2, 3, 4, 22, 24, 25, 32, 33, 40),
)
TRAIN_LATITUDE = 37.6  # north of it (San Francisco): train; the rest (El Camino Real): val, as in the official reader
SCAN_FROM_POSE = rigid_transform(np.eye(3), np.array([0.0, 0.0, -1.6]))


@dataclass(frozen=True)
class Sensor:
    """One of the two lidars: its number in column `d`, and the cameras used with it."""

    dataset: str
    number: int
    cameras: tuple[str, ...]


PANDAR64 = Sensor("pandaset_64", 0, ("front", "front_right", "right", "back", "left", "front_left"))
PANDARGT = Sensor("pandaset_gt", 1, ("front",))
TABLE_ENDINGS = (".pkl.gz", ".pkl")  # as published, and unpacked
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
T = TypeVar("T")


class PandaSet:
    """One lidar's scans in the scenes that have semantic labels.

    Args:
        root: the folder that holds the scenes' folders `001`, `002`, …
        split: train, val (by the latitude in each scene's GPS data), or scenes; several separated by commas.
        sensor: the lidar whose points are read.

    Raises:
        DatasetError: no scenes, an unknown split, broken GPS data, or an empty split.
    """

    label_map = LABELS
    class_names = LABELS.class_names
    visibility = Visibility(min_depth_m=0.0, border_px=0)

    def __init__(self, root: Path, split: str, sensor: Sensor) -> None:
        self.root, self.split, self.sensor = root, split, sensor
        self.name, self.intensity = sensor.dataset, INTENSITY_STATISTICS[sensor.dataset]
        self._json = _JsonFiles(root)
        labelled = sorted(path.parent.parent.name for path in root.glob("*/annotations/semseg"))
        if not labelled:
            raise DatasetError(
                "no scene in this folder has annotations/semseg",
                where=root,
                fix="Pass --root with the folder that holds PandaSet's scenes 001, 002, …",
            )
        scenes = chosen_scenes(split, self._splits(labelled), labelled)
        self.frames = [frame for scene in scenes for frame in self._frames(scene)]
        if not self.frames:
            raise DatasetError(
                f"the folder has no scan of split '{split}'", where=root, fix=f"Name scenes of: {labelled}."
            )

    def read_points(self, frame: Frame) -> np.ndarray:
        """Read a scan, (N, 4) float32: x y z [m] in the lidar pose's frame, z reduced by 1.6 m, intensity 0..255."""
        pose_of_lidar = self._json.pose(f"{frame.scene}/lidar", frame.token.split("/")[1])
        return _points_of(self.sensor, self.root / frame.scan, pose_of_lidar)

    def read_labels(self, frame: Frame) -> np.ndarray:
        """Read labels, (N,) uint8 train ids 0..16, or IGNORE_LABEL."""
        path = self.root / str(frame.labels)
        raw = read_columns(path, ("class",))[:, 0]
        sensor = read_columns(self.root / frame.scan, ("d",))[:, 0]
        check_length(len(raw), len(sensor), frame.scan, path)
        return self.label_map.train_ids(raw[sensor == self.sensor.number].astype(np.int64), path)

    def _splits(self, scenes: Sequence[str]) -> dict[str, set[str]]:
        train = {scene for scene in scenes if self._latitude(scene) > TRAIN_LATITUDE}
        return {"train": train, "val": set(scenes) - train}

    def _latitude(self, scene: str) -> float:
        return self._json.value(f"{scene}/meta/gps.json", lambda gps: float(gps[0]["lat"]))

    def _frames(self, scene: str) -> list[Frame]:
        endings = {f"{scene}/lidar": TABLE_ENDINGS, f"{scene}/annotations/semseg": TABLE_ENDINGS}
        endings |= {f"{scene}/camera/{camera}_camera": IMAGE_ENDINGS for camera in self.sensor.cameras}
        found = {folder: numbered_files(self.root / folder, *each) for folder, each in endings.items()}

        def file(folder: str, number: str) -> str:
            """The path of a numbered file with its suffix; a missing file gets the suffix of the others."""
            usual = next(iter(found[folder].values()), endings[folder][0])
            return f"{folder}/{number}{found[folder].get(number, usual)}"

        return [self._frame(scene, number, file) for number in sorted(set().union(*found.values()))]

    def _frame(self, scene: str, number: str, file: Callable[[str, str], str]) -> Frame:
        token, views, error, timestamp = f"{scene}/{number}", (), None, 0
        try:
            times = f"{scene}/lidar/timestamps.json"
            timestamp = self._json.value(times, lambda seconds: round(float(seconds[int(number)]) * 1e6))
            world_from_scan = self._json.pose(f"{scene}/lidar", number) @ inverse_rigid(SCAN_FROM_POSE)
            views = tuple(self._view(camera, token, world_from_scan, file) for camera in self.sensor.cameras)
        except DatasetError as problem:
            error = problem
        return Frame(
            dataset=self.name,
            scene=scene,
            token=token,
            timestamp=timestamp,
            scan=file(f"{scene}/lidar", number),
            labels=file(f"{scene}/annotations/semseg", number),
            views=views,
            error=error,
        )

    def _view(self, camera: str, token: str, world_from_scan: np.ndarray, file: Callable[[str, str], str]) -> View:
        scene, number = token.split("/")
        folder = f"{scene}/camera/{camera}_camera"
        fx, fy, cx, cy = self._json.value(
            f"{folder}/intrinsics.json", lambda values: [float(values[name]) for name in ("fx", "fy", "cx", "cy")]
        )
        return View(
            camera=camera,
            image=file(folder, number),
            calibration=Calibration(
                cam_from_lidar=inverse_rigid(self._json.pose(folder, number)) @ world_from_scan,
                intrinsics=np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]),
            ),
        )


class _JsonFiles:
    """The JSON files of a folder; each is parsed once, since all frames of its scene use it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._contents: dict[Path, object] = {}

    def pose(self, folder: str, number: str) -> np.ndarray:
        """The transform (4, 4) float64 from a folder's sensor to the world, at the frame of a number."""

        def matrix(poses: list) -> np.ndarray:
            record = poses[int(number)]
            return pose([record["heading"][axis] for axis in "wxyz"], [record["position"][axis] for axis in "xyz"])

        return self.value(f"{folder}/poses.json", matrix)

    def value(self, name: str, of: Callable[[Any], T]) -> T:
        """Apply `of` to the content of a JSON file; errors become a DatasetError that names the file."""
        path = self.root / name
        if path not in self._contents:
            self._contents[path] = read_json(path)
        try:
            return of(self._contents[path])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise DatasetError(
                f"the file does not have PandaSet's format ({type(error).__name__}: {error})",
                where=path,
                fix="Copy it again from the dataset's archive.",
            ) from None


def read_scan_beside_poses(path: Path, sensor: Sensor) -> np.ndarray:
    """The points that `PandaSet.read_points` gives of a scan's file, whose folder also holds poses.json.

    Raises:
        DatasetError: a missing or broken file, or one that is not called by the number of its frame, as 07.pkl.gz.
    """
    number = path.name.partition(".")[0]
    return _points_of(sensor, path, _JsonFiles(path.parent).pose(".", number))


def _points_of(sensor: Sensor, path: Path, pose_of_lidar: np.ndarray) -> np.ndarray:
    columns = read_columns(path, ("x", "y", "z", "i", "d"))
    world = columns[columns[:, 4] == sensor.number, :4]
    points = checked_points(world, path)
    scan_from_world = SCAN_FROM_POSE @ inverse_rigid(pose_of_lidar)
    points[:, :3] = world[:, :3] @ scan_from_world[:3, :3].T + scan_from_world[:3, 3]
    return points


Pandar64 = partial(PandaSet, sensor=PANDAR64)
PandarGT = partial(PandaSet, sensor=PANDARGT)
