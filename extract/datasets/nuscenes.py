"""nuScenes in its native layout.

Lidar and cameras fire at different moments, each with its own ego pose. The transforms from a point to a pixel are
lidar -> ego (lidar time) -> global -> ego (camera time) -> camera, composed in float64 (`nuscenes_tables`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import DatasetError
from ..intensity import INTENSITY_STATISTICS
from ..projection import Visibility
from .files import file_of, read_raw_labels, read_scan
from .frame import Frame
from .frame_table import FrameTable
from .labels import LabelMap
from .nuscenes_tables import keyframe_table
from .splits import Split, chosen_scenes, several

# The version folder of each named split; scenes by name are looked for in v1.0-trainval if it exists.
VERSIONS = {
    "train": "v1.0-trainval",
    "val": "v1.0-trainval",
    "mini_train": "v1.0-mini",
    "mini_val": "v1.0-mini",
    "test": "v1.0-test",
    "slidr_train": "v1.0-trainval",
    "slidr_val": "v1.0-trainval",
}

# Raw lidarseg ids of the 16 classes of the lidar segmentation challenge.
LABELS = LabelMap(
    {
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
    },
    ignored=(0, 1, 5, 7, 8, 10, 11, 13, 19, 20, 29, 31),
)


class NuScenes:
    """The keyframes of one split, in the order of the scene table.

    Args:
        root: the folder that holds `samples/` and the version folder.
        split: train, val, test, mini_train or mini_val of the devkit, slidr_train or slidr_val (600 and 100 scenes of
            train), or scenes; several separated by commas. A fraction of the labels may follow, as in `train-1%`:
            scenes 100, 200, … of the split in the order of the scene table, as in SLidR, BEVContrast and ScaLR.

    Raises:
        DatasetError: an unknown split, a missing version folder, broken or inconsistent tables, or an empty split.
    """

    name = "nuscenes"
    label_map = LABELS
    class_names = LABELS.class_names
    visibility = Visibility()
    intensity = INTENSITY_STATISTICS["nuscenes"]

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        wanted = Split.parse(split)
        self.tables = tables = _version_folder(root, wanted.base)
        table, splits = keyframe_table(tables)
        scenes = chosen_scenes(wanted.base, splits, table["scene"].unique().to_pylist(), wanted.every_nth)
        if scenes and len(scenes) < wanted.every_nth:
            raise DatasetError(
                f"split '{split}' keeps every {wanted.every_nth}th scene of split '{wanted.base}', which has"
                f" {len(scenes)} here",
                where=tables / "scene.json",
                fix="Choose a larger fraction (--labels or --split), or a split with more scenes.",
            )
        scenes = scenes[wanted.every_nth - 1 :: wanted.every_nth]
        self.frames = FrameTable(self.name, table.filter(pc.is_in(table["scene"], pa.array(scenes, pa.string()))))
        if not len(self.frames):
            raise DatasetError(
                f"the tables have no scene of split '{split}'",
                where=tables / "scene.json",
                fix="Choose a split whose scenes are in this folder.",
            )

    def read_points(self, frame: Frame) -> np.ndarray:
        """Read a scan, (N, 4) float32: x y z in the lidar frame [m], intensity 0..255 (the file also has the ring)."""
        return read_scan(file_of(self.root, frame.scan), columns=5)

    def read_labels(self, frame: Frame) -> np.ndarray:
        """Read labels, (N,) uint8 train ids 0..15, or IGNORE_LABEL."""
        return read_lidarseg(self.root, frame, self.label_map)


def read_lidarseg(root: Path, frame: Frame, label_map: LabelMap) -> np.ndarray:
    """Read a lidarseg file, which has a byte per point, as (N,) uint8 train ids.

    Raises:
        DatasetError: the frame has no labels, or their file is missing, broken or has unknown ids.
    """
    if frame.labels is None:
        raise DatasetError(
            f"frame {frame.token} has no labels in lidarseg.json",
            where=root,
            fix="Unpack the nuScenes-lidarseg archive into nuScenes' folder.",
        )
    path = file_of(root, frame.labels)
    return label_map.train_ids(read_raw_labels(path, np.uint8), path)


def _version_folder(root: Path, base: str) -> Path:
    found = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
    versions = {VERSIONS[name] for name in several(base) if name in VERSIONS}
    if len(versions) > 1:
        raise DatasetError(
            f"the splits '{base}' belong to several versions of nuScenes: {', '.join(sorted(versions))}",
            where="--split",
            fix="Name splits of one version: train and val of v1.0-trainval, mini_train and mini_val of v1.0-mini.",
        )
    usual = next(iter(versions), "v1.0-trainval")
    if usual in found:
        return root / usual
    if versions or not found:
        raise DatasetError(
            f"split '{base}' needs the folder {usual}, and this one has {', '.join(found) or 'no v1.0-*'}",
            where=root,
            fix=f"Pass --root with the folder that holds {usual}, or a --split of a version that exists there"
            " (train, val: v1.0-trainval; mini_train, mini_val: v1.0-mini; test: v1.0-test).",
        )
    return root / found[0]
