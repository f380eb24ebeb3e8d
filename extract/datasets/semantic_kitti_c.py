"""SemanticKITTI-C (Robo3D): sequence 08 under corruptions, for evaluation.

root/<corruption>/<severity>/velodyne/NNNNNN.bin
root/<corruption>/<severity>/labels/NNNNNN.label
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ..projection import Visibility
from .corruptions import corruption_folder
from .files import numbered_files, read_scan
from .frame import Frame
from .semantic_kitti import LABELS as CLEAN_LABELS
from .semantic_kitti import SemanticKitti, numbered_frame, read_kitti_labels

ADDED = (21, 22, 23)  # labels of points that fog, snow and crosstalk added or moved
LABELS = CLEAN_LABELS.with_ignored(ADDED)


class SemanticKittiC:
    """The scans of sequence 08 under one corruption; frames have no views.

    Args:
        root: the folder of the corruptions.
        split: corruption and severity, such as `fog/light`.

    Raises:
        DatasetError: an unknown split, a missing folder, or no scans.
    """

    name = "semantic_kitti_c"
    label_map = LABELS
    class_names = LABELS.class_names
    visibility = Visibility()
    intensity = SemanticKitti.intensity

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        folder = corruption_folder(root, split)
        numbers = {
            *numbered_files(root / folder / "velodyne", ".bin"),
            *numbered_files(root / folder / "labels", ".label"),
        }
        if not numbers:
            raise DatasetError(
                "the folder has no scans", where=root / folder / "velodyne", fix="Unpack SemanticKITTI-C again."
            )
        self.frames = [
            numbered_frame(self.name, "08", number, f"{folder}/velodyne", f"{folder}/labels")
            for number in sorted(numbers)
        ]

    def read_points(self, frame: Frame) -> np.ndarray:
        """Read a scan, (N, 4) float32: x forward, y left, z up [m] and intensity 0..1."""
        return read_scan(self.root / frame.scan, columns=4)

    def read_labels(self, frame: Frame) -> np.ndarray:
        """Read labels, (N,) uint8 train ids 0..18, or IGNORE_LABEL, also for points that the corruption added."""
        return read_kitti_labels(self.root, frame, self.label_map)
