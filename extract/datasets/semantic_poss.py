"""SemanticPOSS in its native layout: a 40-beam lidar on a campus, without images, so for evaluation only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ..projection import Visibility
from .files import numbered_files, read_scan
from .frame import Frame
from .labels import LabelMap
from .semantic_kitti import numbered_frame, read_kitti_labels
from .splits import chosen_scenes

SPLITS = {"train": frozenset({"00", "01", "02", "04", "05"}), "val": frozenset({"03"})}

# Raw ids of the classes; one person and several persons are one class, and so are the three kinds of signs.
LABELS = LabelMap(
    {
        "person": (4, 5),
        "rider": (6,),
        "car": (7,),
        "trunk": (8,),
        "plants": (9,),
        "traffic-sign": (10, 11, 12),
        "pole": (13,),
        "trashcan": (14,),
        "building": (15,),
        "cone-stone": (16,),
        "fence": (17,),
        "bike": (21,),
        "ground": (22,),
    },
    ignored=(0, 1, 2, 3, 18, 19, 20),
)


class SemanticPoss:
    """The scans of a split, sequence by sequence.

    Args:
        root: the folder of `sequences/` or `dataset/sequences/`.
        split: train, val, or sequences; several separated by commas.

    Raises:
        DatasetError: no sequences, an unknown split, or an empty split.
    """

    name = "semantic_poss"
    label_map = LABELS
    class_names = LABELS.class_names
    visibility = Visibility()
    intensity = None  # no statistics are published

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        folder = "sequences" if (root / "sequences").is_dir() else "dataset/sequences"
        available = sorted(path.name for path in (root / folder).glob("[0-9]*"))
        sequences = chosen_scenes(split, SPLITS, available)
        self.frames = [frame for name in sequences for frame in self._frames(folder, name)]
        if not self.frames:
            raise DatasetError(
                f"the folder has no scan of split '{split}'",
                where=root / folder,
                fix="Pass --root with the top folder of SemanticPOSS (sequences found:"
                f" {', '.join(available) or 'none'}).",
            )

    def read_points(self, frame: Frame) -> np.ndarray:
        """Read a scan, (N, 4) float32: x forward, y left, z up [m] and intensity."""
        return read_scan(self.root / frame.scan, columns=4)

    def read_labels(self, frame: Frame) -> np.ndarray:
        """Read labels, (N,) uint8 train ids 0..12, or IGNORE_LABEL."""
        return read_kitti_labels(self.root, frame, self.label_map)

    def _frames(self, folder: str, sequence: str) -> list[Frame]:
        scans, labels = f"{folder}/{sequence}/velodyne", f"{folder}/{sequence}/labels"
        labelled = numbered_files(self.root / labels, ".label")
        numbers = {*numbered_files(self.root / scans, ".bin"), *labelled}
        folders = (scans, labels if labelled else None)
        return [numbered_frame(self.name, sequence, number, *folders) for number in sorted(numbers)]
