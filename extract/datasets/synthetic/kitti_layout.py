"""Writes simulated scenes as SemanticKITTI and, without images, as SemanticPOSS: numbered files below sequences/.

The layouts are those of http://semantic-kitti.org/dataset.html (with KITTI odometry's calib.txt and times.txt) and of
SemanticPOSS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...projection import inverse_rigid, rigid_transform
from .rigs import KITTI_RIG, POSS_RIG
from .sensors import Scene, Sweep
from .writing import scene_names, with_images, write_scenes

KITTI_TRAIN, KITTI_VAL = ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"), ("08",)
POSS_TRAIN, POSS_VAL = ("00", "01", "02", "04", "05"), ("03",)
BASELINES_M = {"P0": 0.0, "P1": -0.54, "P2": 0.06, "P3": -0.48}  # x of camera 0 in each rectified camera

# nuScenes lidarseg id -> raw id, for the classes of the simulated world.
KITTI_IDS = {
    **dict.fromkeys((2, 3, 4), 30),
    9: 51,
    12: 99,
    14: 11,
    16: 13,
    17: 10,
    18: 20,
    21: 15,
    22: 20,
    23: 18,
    24: 40,
    25: 49,
    26: 48,
    27: 72,
    28: 50,
    30: 70,
}
KITTI_MOVING = {10: 252, 11: 253, 13: 257, 15: 255, 18: 258, 20: 259, 30: 254}  # two-wheelers with a rider
POSS_IDS = {
    **dict.fromkeys((2, 3, 4), 4),
    9: 17,
    12: 16,
    14: 21,
    16: 7,
    17: 7,
    18: 7,
    21: 21,
    22: 7,
    23: 7,
    24: 22,
    25: 22,
    26: 22,
    27: 22,
    28: 15,
    30: 9,
}


def write_semantic_kitti(
    root: str | Path,
    *,
    train_scenes: int = 4,
    val_scenes: int = 1,
    keyframes: int = 10,
    image_shape: tuple[int, int] | None = None,
    seed: int = 0,
) -> None:
    """Write scenes as a 64-beam Velodyne and one camera see them, in SemanticKITTI's layout.

    Arguments and scenes are those of `write_nuscenes`; the layout has room for ten scenes of train and one of val.

    Raises:
        DatasetError: an argument out of range, a `root` that is in use, or a folder that cannot be written.
    """
    train, val = scene_names(train_scenes, val_scenes, len(KITTI_TRAIN), len(KITTI_VAL))
    sequences = dict(zip([*train, *val], [*KITTI_TRAIN[: len(train)], *KITTI_VAL], strict=False))
    writer = partial(_SequenceWriter, sequences=sequences, ids=KITTI_IDS, moving=KITTI_MOVING)
    write_scenes(root, writer, with_images(KITTI_RIG, image_shape), list(sequences), keyframes, seed)


def write_semantic_poss(
    root: str | Path, *, train_scenes: int = 4, val_scenes: int = 1, keyframes: int = 10, seed: int = 0
) -> None:
    """Write scenes as a 40-beam lidar sees them, in SemanticPOSS' layout: at most five of train and one of val.

    Raises:
        DatasetError: as in `write_semantic_kitti`.
    """
    train, val = scene_names(train_scenes, val_scenes, len(POSS_TRAIN), len(POSS_VAL))
    sequences = dict(zip([*train, *val], [*POSS_TRAIN[: len(train)], *POSS_VAL], strict=False))
    writer = partial(_SequenceWriter, sequences=sequences, ids=POSS_IDS, moving={})
    write_scenes(root, writer, POSS_RIG, list(sequences), keyframes, seed)


class _SequenceWriter:
    """Writes each scene as a sequence."""

    def __init__(
        self, folder: Path, *, sequences: Mapping[str, str], ids: Mapping[int, int], moving: Mapping[int, int]
    ) -> None:
        self._folder, self._sequences = folder / "sequences", sequences
        self._ids, self._moving = ids, moving

    def write_scene(self, scene: Scene, keyframes: int, done: Callable[[], object]) -> None:
        folder = self._folder / self._sequences[scene.name]
        for name in ("velodyne", "labels", *(camera.channel for camera in scene.rig.cameras)):
            (folder / name).mkdir(parents=True)
        for keyframe in range(keyframes):
            sweep = scene.sweep(keyframe)
            sweep.points.tofile(folder / f"velodyne/{keyframe:06d}.bin")
            self._labels(scene, sweep).tofile(folder / f"labels/{keyframe:06d}.label")
            for camera in scene.rig.cameras:
                image = scene.render(camera.channel, keyframe).rgb
                Image.fromarray(image).save(folder / f"{camera.channel}/{keyframe:06d}.png")
            done()
        if scene.rig.cameras:
            (folder / "calib.txt").write_text(_calibration(scene))
            times = [(scene.time_us(keyframe) - scene.start_us) * 1e-6 for keyframe in range(keyframes)]
            (folder / "times.txt").write_text("".join(f"{time:e}\n" for time in times))

    def finish(self) -> None:
        """Do nothing: sequences need no common file."""

    def _labels(self, scene: Scene, sweep: Sweep) -> np.ndarray:
        """(N,) uint32: the instance in the high 16 bits, the class in the low ones."""
        moves = np.concatenate([[False], scene.world.is_moving])[sweep.instance]
        moving_ids = {each: self._moving.get(raw, raw) for each, raw in self._ids.items()}
        raw = np.where(moves, as_raw_ids(sweep.category, moving_ids), as_raw_ids(sweep.category, self._ids))
        return sweep.instance.astype(np.uint32) << 16 | raw


def as_raw_ids(category: np.ndarray, ids: Mapping[int, int]) -> np.ndarray:
    """Convert nuScenes lidarseg ids (N,) to raw ids (N,) uint32; KeyError for an id without one."""
    there = np.unique(category)
    table = np.zeros(int(there.max(initial=0)) + 1, dtype=np.uint32)
    for each in there.tolist():
        table[each] = ids[each]
    return table[category]


def _calibration(scene: Scene) -> str:
    """calib.txt: P0 to P3, the rectified cameras, and Tr, from the lidar to camera 0."""
    (camera,) = scene.rig.cameras
    cam2_from_lidar = inverse_rigid(camera.ego_from_cam) @ scene.rig.lidar.ego_from_lidar
    cam0_from_cam2 = rigid_transform(np.eye(3), np.array([-BASELINES_M["P2"], 0, 0]))
    matrices = {
        name: camera.intrinsics @ np.column_stack([np.eye(3), [shift, 0, 0]]) for name, shift in BASELINES_M.items()
    }
    matrices["Tr"] = (cam0_from_cam2 @ cam2_from_lidar)[:3]
    rows = {name: " ".join(f"{value:.12e}" for value in matrix.ravel()) for name, matrix in matrices.items()}
    return "".join(f"{name}: {row}\n" for name, row in rows.items())
