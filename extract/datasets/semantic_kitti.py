"""SemanticKITTI in its native layout: Velodyne scans with labels, and KITTI odometry's left colour camera.

A lidar point x projects to the pixel P2 Tr x (odometry's calib.txt). As in the official reader, only points more than a
metre ahead of the lidar are visible.
"""

from __future__ import annotations

import codecs
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ..intensity import INTENSITY_STATISTICS
from ..projection import Calibration, Visibility
from .files import numbered_files, read_bytes, read_raw_labels, read_scan
from .frame import Frame, View
from .labels import LabelMap
from .splits import Split, chosen_scenes

SPLITS = {
    "train": frozenset(f"{sequence:02d}" for sequence in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10)),
    "val": frozenset({"08"}),
    "test": frozenset(f"{sequence:02d}" for sequence in range(11, 22)),
}

# Raw ids of the 19 classes of the single-scan benchmark; its server takes the first id of each class.
LABELS = LabelMap(
    {
        "car": (10, 252),
        "bicycle": (11,),
        "motorcycle": (15,),
        "truck": (18, 258),
        "other-vehicle": (20, 13, 16, 256, 257, 259),
        "person": (30, 254),
        "bicyclist": (31, 253),
        "motorcyclist": (32, 255),
        "road": (40, 60),
        "parking": (44,),
        "sidewalk": (48,),
        "other-ground": (49,),
        "building": (50,),
        "fence": (51,),
        "vegetation": (70,),
        "trunk": (71,),
        "terrain": (72,),
        "pole": (80,),
        "traffic-sign": (81,),
    },
    ignored=(0, 1, 52, 99),
)

# Folders into which archives of SemanticKITTI and KITTI odometry are unpacked: together, or each in its own folder.
SCAN_FOLDERS = ("", "dataset", "data_odometry_velodyne/dataset", "velodyne/dataset")
LABEL_FOLDERS = ("", "dataset", "data_odometry_labels/dataset", "labels/dataset")
IMAGE_FOLDERS = ("", "dataset", "data_odometry_color/dataset", "color/dataset", "image_2/dataset", "image_2")
CALIB_FOLDERS = ("", "dataset", "data_odometry_calib/dataset", "calib/dataset", "calib")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")  # KITTI's, and those of smaller copies
FRAME_US = 100_000  # ten scans a second


class SemanticKitti:
    """The scans of a split, sequence by sequence.

    There is a frame for each number that a scan, an image or a label file has; a missing file is reported when it is
    read.

    Args:
        root: folder of `sequences/` or `dataset/sequences/`, or of a folder with these for each of KITTI odometry's
            archives.
        split: train, val, test, or sequences; several separated by commas. `train-1%` keeps scans 1, 101, …, as in
            SLidR and ScaLR (192 scans).

    Raises:
        DatasetError: no sequences, an unknown split, or an empty split.
    """

    name = "semantic_kitti"
    label_map = LABELS
    class_names = LABELS.class_names
    visibility = Visibility(min_depth_m=0.0, min_x_m=1.0)
    intensity = INTENSITY_STATISTICS["semantic_kitti"]

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        wanted = Split.parse(split)
        available = sorted(
            {path.name for folder in SCAN_FOLDERS for path in (root / folder / "sequences").glob("[0-9]*")}
        )
        if not available:
            raise DatasetError(
                "the folder has no sequences",
                where=root / "sequences",
                fix="Pass --root with the folder that holds sequences/ or dataset/sequences/.",
            )
        sequences = chosen_scenes(wanted.base, SPLITS, available, wanted.every_nth)
        self.frames = [frame for name in sequences for frame in self._frames(name)][:: wanted.every_nth]
        if not self.frames:
            raise DatasetError(
                f"the folder has no scan of split '{split}'", where=root, fix=f"Name sequences of: {available}."
            )

    def read_points(self, frame: Frame) -> np.ndarray:
        """Read a scan, (N, 4) float32: x forward, y left, z up [m] and intensity 0..1."""
        return read_scan(self.root / frame.scan, columns=4)

    def read_labels(self, frame: Frame) -> np.ndarray:
        """Read labels, (N,) uint8 train ids 0..18, or IGNORE_LABEL."""
        return read_kitti_labels(self.root, frame, self.label_map)

    def _frames(self, sequence: str) -> list[Frame]:
        scans = self._folder(SCAN_FOLDERS, sequence, "velodyne")
        labels = self._folder(LABEL_FOLDERS, sequence, "labels")
        images = self._folder(IMAGE_FOLDERS, sequence, "image_2")
        labelled = numbered_files(self.root / labels, ".label")
        pictured = numbered_files(self.root / images, *IMAGE_ENDINGS)
        numbers = {*numbered_files(self.root / scans, ".bin"), *pictured, *labelled}
        usual = next(iter(pictured.values()), IMAGE_ENDINGS[0])  # the suffix of a missing image
        calibration = error = None
        try:
            calibration = read_calibration(self.root / self._folder(CALIB_FOLDERS, sequence, "calib.txt"))
        except DatasetError as problem:
            error = problem

        def views(number: str) -> tuple[View, ...]:
            image = f"{images}/{number}{pictured.get(number, usual)}"
            return (View(camera="image_2", image=image, calibration=calibration),) if calibration else ()

        return [
            replace(
                numbered_frame(self.name, sequence, number, scans, labels if labelled else None),
                views=views(number),
                error=error,
            )
            for number in sorted(numbers)
        ]

    def _folder(self, folders: tuple[str, ...], sequence: str, name: str) -> str:
        """Return the first existing path of a sequence's folder or file, else the usual path."""
        paths = [Path(folder, "sequences", sequence, name) for folder in folders]
        there = [path for path in paths if (self.root / path).exists()]
        usual = Path(SCAN_FOLDERS[0] if (self.root / "sequences").is_dir() else "dataset", "sequences", sequence, name)
        return str(there[0] if there else usual)


def numbered_frame(dataset: str, sequence: str, number: str, scans: str, labels: str | None) -> Frame:
    """Make a frame without views from the numbered files in the folders `scans` and `labels`."""
    return Frame(
        dataset=dataset,
        scene=sequence,
        token=f"{sequence}/{number}",
        timestamp=int(number) * FRAME_US,
        scan=f"{scans}/{number}.bin",
        labels=None if labels is None else f"{labels}/{number}.label",
        views=(),
    )


def read_calibration(path: Path) -> Calibration:
    """Read the calibration of the left colour camera (P2) relative to the Velodyne from a calib.txt of KITTI odometry.

    Raises:
        DatasetError: a missing file, or no P2 or Tr of 12 numbers.
    """
    rows = dict(line.split(":", 1) for line in _text(read_bytes(path)).splitlines() if ":" in line)
    try:
        matrices = {name: np.array(rows[name].split(), dtype=np.float64).reshape(3, 4) for name in ("P2", "Tr")}
        return Calibration.from_projection(matrices["P2"] @ np.vstack([matrices["Tr"], [0, 0, 0, 1]]))
    except (KeyError, ValueError) as error:
        what = f"no row {error}" if isinstance(error, KeyError) else str(error)
        raise DatasetError(
            f"the file is not a calibration of KITTI odometry, with P2 and Tr of 3x4 numbers ({what})",
            where=path,
            fix="Copy calib.txt again from data_odometry_calib.zip.",
        ) from None


def _text(content: bytes) -> str:
    """Decode a text file, also with a byte-order mark as some editors write it."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig", "replace")


def read_kitti_labels(root: Path, frame: Frame, label_map: LabelMap) -> np.ndarray:
    """Read train ids (N,) uint8 from a .label file: uint32, class in the low 16 bits, instance in the others.

    Raises:
        DatasetError: the frame has no labels, or their file is missing, broken or has unknown ids.
    """
    if frame.labels is None:
        raise DatasetError(
            f"frame {frame.token} has no labels",
            where=root / frame.scan,
            fix="Unpack data_odometry_labels.zip, or choose a split with labels.",
        )
    path = root / frame.labels
    return label_map.train_ids(read_raw_labels(path, np.uint32) & 0xFFFF, path)
