"""nuScenes-C (Robo3D): the validation scans under corruptions, for evaluation.

    root/<corruption>/<severity>/samples/LIDAR_TOP/…pcd.bin
    root/<corruption>/<severity>/lidarseg/v1.0-trainval/…_lidarseg.bin

Scans and labels are read from the corrupted copy, since corruptions add and remove points. Frames come from the clean
tables.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ...paths import expanded
from ..projection import Visibility
from .corruptions import corruption_folder
from .files import file_of, read_scan
from .frame import Frame
from .nuscenes import LABELS as CLEAN_LABELS
from .nuscenes import NuScenes, read_lidarseg

ADDED = (41, 42, 43)  # labels of points that fog, snow and crosstalk added or moved
LABELS = CLEAN_LABELS.with_ignored(ADDED)


class NuScenesC:
    """The validation keyframes under one corruption; frames have no views.

    Args:
        root: the folder of the corruptions.
        split: corruption and severity, such as `fog/light`.
        clean_root: nuScenes' folder with the tables; by default `root` or $NUSCENES.

    Raises:
        DatasetError: an unknown split, or a missing folder or tables.
    """

    name = "nuscenes_c"
    label_map = LABELS
    class_names = LABELS.class_names
    visibility = Visibility()
    intensity = NuScenes.intensity

    def __init__(self, root: Path, split: str, clean_root: Path | None = None) -> None:
        self.root, self.split = root, split
        corrupted = corruption_folder(root, split)
        clean = NuScenes(clean_root or _folder_of_tables(root), "val")
        self.frames = [_corrupted(frame, corrupted) for frame in clean.frames]

    def read_points(self, frame: Frame) -> np.ndarray:
        """Read a scan, (N, 4) float32: x y z in the lidar frame [m] and intensity 0..255."""
        return read_scan(file_of(self.root, frame.scan), columns=5)

    def read_labels(self, frame: Frame) -> np.ndarray:
        """Read labels, (N,) uint8 train ids 0..15, or IGNORE_LABEL, also for points that the corruption added."""
        return read_lidarseg(self.root, frame, self.label_map)


def _corrupted(frame: Frame, folder: str) -> Frame:
    labels = frame.labels and f"{folder}/{frame.labels}"
    return replace(frame, dataset=NuScenesC.name, views=(), scan=f"{folder}/{frame.scan}", labels=labels)


def _folder_of_tables(root: Path) -> Path:
    clean = os.environ.get("NUSCENES")
    places = [root, *([expanded(clean, DatasetError)] if clean else [])]
    for place in places:
        if (place / "v1.0-trainval").is_dir():
            return place
    raise DatasetError(
        "nuScenes-C has no tables of its own, and the tables of nuScenes were not found",
        where=" or ".join(str(place / "v1.0-trainval") for place in places),
        fix="Set $NUSCENES to the folder of nuScenes, or link its v1.0-trainval into the folder of nuScenes-C.",
    )
