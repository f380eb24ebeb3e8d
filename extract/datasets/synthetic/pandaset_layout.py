"""Write simulated scenes as PandaSet: two lidars in one table, in world coordinates, and six cameras.

The layout is that of the pandaset-devkit; only keyframes half a second apart are written, not ten per second.
"""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from ....errors import DatasetError
from ..pandaset import SCAN_FROM_POSE, TRAIN_LATITUDE
from .kitti_layout import as_raw_ids
from .rigs import PANDAR64_RIG, PANDARGT_RIG
from .sensors import Scene, Sweep, simulate_scene
from .writing import save_jpeg, scene_names, with_images, write_scenes

if TYPE_CHECKING:
    import pandas

FIRST_TRAIN, FIRST_VAL = 1, 101  # numbers of the scenes' folders
PICKLE_PROTOCOL = 3  # as the real files

# nuScenes lidarseg id -> raw id, for the classes of the simulated world.
IDS = {
    **dict.fromkeys((2, 3, 4), 30),
    9: 39,
    12: 37,
    14: 26,
    16: 23,
    17: 13,
    18: 19,
    21: 18,
    22: 17,
    23: 15,
    24: 7,
    25: 12,
    26: 11,
    27: 6,
    28: 41,
    30: 5,
}
CLASSES = {
    5: "Vegetation",
    6: "Ground",
    7: "Road",
    11: "Sidewalk",
    12: "Driveway",
    13: "Car",
    15: "Medium-sized Truck",
    17: "Towed Object",
    18: "Motorcycle",
    19: "Other Vehicle - Construction Vehicle",
    23: "Bus",
    26: "Bicycle",
    30: "Pedestrian",
    37: "Cones",
    39: "Temporary Construction Barriers",
    41: "Building",
}


def write_pandaset(
    root: str | Path,
    *,
    train_scenes: int = 4,
    val_scenes: int = 2,
    keyframes: int = 10,
    image_shape: tuple[int, int] | None = None,
    seed: int = 0,
) -> None:
    """Write scenes as a Pandar64, a forward PandarGT and six cameras see them, in PandaSet's layout.

    Arguments and scenes are those of `write_nuscenes`; the layout has room for a hundred scenes of train.

    Raises:
        DatasetError: an argument out of range, a `root` that is in use, a folder that cannot be written, or no pandas.
    """
    _require_pandas()
    train, val = scene_names(train_scenes, val_scenes, most_train=FIRST_VAL - FIRST_TRAIN)
    folders = {name: (f"{number:03d}", TRAIN_LATITUDE + 0.2) for number, name in enumerate(train, FIRST_TRAIN)}
    folders |= {name: (f"{number:03d}", TRAIN_LATITUDE - 0.1) for number, name in enumerate(val, FIRST_VAL)}
    rig = with_images(PANDAR64_RIG, image_shape)
    write_scenes(root, partial(_SceneWriter, folders=folders), rig, list(folders), keyframes, seed)


class _SceneWriter:
    """Writes each scene into a folder, its GPS at the latitude of its split."""

    def __init__(self, root: Path, *, folders: Mapping[str, tuple[str, float]]) -> None:
        self._root, self._folders = root, folders

    def write_scene(self, scene: Scene, keyframes: int, done: Callable[[], object]) -> None:
        name, latitude = self._folders[scene.name]
        folder = self._root / name
        for each in ("lidar", "annotations/semseg", "meta", *(_camera(camera.channel) for camera in scene.rig.cameras)):
            (folder / each).mkdir(parents=True)
        forward = simulate_scene(scene.name, seed=scene.seed, rig=PANDARGT_RIG)
        for keyframe in range(keyframes):
            _write_scan(folder, keyframe, (scene, forward))
            for camera in scene.rig.cameras:
                image = scene.render(camera.channel, keyframe).rgb
                save_jpeg(image, folder / _camera(camera.channel) / f"{keyframe:02d}.jpg")
            done()
        _write_poses(folder, scene, keyframes)
        times = [scene.time_us(keyframe) * 1e-6 for keyframe in range(keyframes)]
        gps = [{"lat": latitude, "long": -122.4, "height": 3.0, "xvel": 0.0, "yvel": 0.0} for _ in times]
        _write_json(folder / "meta/timestamps.json", times)
        _write_json(folder / "meta/gps.json", gps)
        _write_json(folder / "annotations/semseg/classes.json", {str(number): each for number, each in CLASSES.items()})

    def finish(self) -> None:
        """Do nothing: scenes need no common file."""


def _write_scan(folder: Path, keyframe: int, scenes: tuple[Scene, Scene]) -> None:
    """Write the sweeps of both lidars, the Pandar64's first, and their labels."""
    import pandas

    sweeps = [scene.sweep(keyframe) for scene in scenes]
    parts = [_rows(scenes[number], keyframe, number, sweep) for number, sweep in enumerate(sweeps)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    index = pandas.RangeIndex(len(columns["x"]), name="index")
    raw = np.concatenate([as_raw_ids(sweep.category, IDS) for sweep in sweeps]).astype(np.int64)
    _write_table(pandas.DataFrame(columns, index=index), folder / f"lidar/{keyframe:02d}.pkl.gz")
    _write_table(pandas.DataFrame({"class": raw}), folder / f"annotations/semseg/{keyframe:02d}.pkl.gz")


def _rows(scene: Scene, keyframe: int, number: int, sweep: Sweep) -> dict[str, np.ndarray]:
    world_from_lidar = scene.world_from_ego(scene.time_us(keyframe)) @ scene.rig.lidar.ego_from_lidar
    world = sweep.points[:, :3].astype(np.float64) @ world_from_lidar[:3, :3].T + world_from_lidar[:3, 3]
    return {
        **dict(zip("xyz", world.T, strict=True)),
        "i": sweep.points[:, 3].astype(np.float64),
        "t": np.full(len(world), scene.time_us(keyframe) * 1e-6),
        "d": np.full(len(world), number, dtype=np.int64),
    }


def _write_poses(folder: Path, scene: Scene, keyframes: int) -> None:
    """Write poses and timestamps of the Pandar64 and of each camera, and the cameras' intrinsics."""
    sensors = {"lidar": (None, scene.rig.lidar.ego_from_lidar @ SCAN_FROM_POSE)}
    for camera in scene.rig.cameras:
        sensors[_camera(camera.channel)] = (camera.channel, camera.ego_from_cam)
        (fx, _, cx), (_, fy, cy), _ = camera.intrinsics.tolist()
        _write_json(folder / _camera(camera.channel) / "intrinsics.json", {"fx": fx, "fy": fy, "cx": cx, "cy": cy})
    for name, (channel, ego_from_sensor) in sensors.items():
        times = [scene.time_us(keyframe, channel) for keyframe in range(keyframes)]
        poses = [_pose(scene.world_from_ego(time) @ ego_from_sensor) for time in times]
        _write_json(folder / name / "poses.json", poses)
        _write_json(folder / name / "timestamps.json", [time * 1e-6 for time in times])


def _camera(channel: str) -> str:
    return f"camera/{channel}_camera"


def _pose(matrix: np.ndarray) -> dict[str, dict[str, float]]:
    position, heading = matrix[:3, 3].tolist(), Rotation.from_matrix(matrix[:3, :3]).as_quat().tolist()
    return {"position": dict(zip("xyz", position, strict=True)), "heading": dict(zip("xyzw", heading, strict=True))}


def _write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values))


def _write_table(table: pandas.DataFrame, path: Path) -> None:
    # Without the time and the name that gzip stores, so that the bytes are equal every time.
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        pickle.dump(table, packed, protocol=PICKLE_PROTOCOL)


def _require_pandas() -> None:
    try:
        import pandas  # noqa: F401
    except ImportError:
        raise DatasetError(
            "PandaSet's files are pandas tables, and pandas is not installed",
            where="layout pandaset",
            fix="Install it: pip install 'scalr-distill[pandaset]'.",
        ) from None
