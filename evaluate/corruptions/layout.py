"""Files of clean and of corrupted scans: the layouts of nuScenes-C and SemanticKITTI-C (Robo3D)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from ...errors import DatasetError
from ...extract.datasets.files import COPY_AGAIN, file_of, read_raw_labels, read_scan
from ...extract.datasets.frame import Frame
from ...extract.datasets.labels import check_length
from ...extract.datasets.nuscenes import LABELS as NUSCENES_LABELS
from ...extract.datasets.nuscenes import read_lidarseg
from ...extract.datasets.semantic_kitti import LABELS as KITTI_LABELS
from ...extract.datasets.semantic_kitti import read_kitti_labels
from .scan import Scan, rings_by_turns
from .strengths import BENCHMARKS


class Layout(Protocol):
    """The files of a dataset, clean and corrupted."""

    def read(self, root: Path, frame: Frame) -> Scan:
        """The scan of a frame of the clean dataset.

        Raises:
            DatasetError: files are missing or damaged, or the numbers of labels and points differ.
        """
        ...

    def paths(self, frame: Frame) -> tuple[str, str]:
        """Paths of scan and labels, relative to the folder of a corruption and severity."""
        ...

    def contents(self, scan: Scan) -> tuple[bytes, bytes]:
        """Contents of the files of scan and labels."""
        ...


class NuScenesLayout:
    """Scans of x y z intensity ring, labels of one byte; paths as in the clean dataset."""

    def read(self, root: Path, frame: Frame) -> Scan:
        scan, label_file = file_of(root, frame.scan), file_of(root, frame.labels)  # names of nuScenes' tables
        labels, raw_labels = read_lidarseg(root, frame, NUSCENES_LABELS), read_raw_labels(label_file, np.uint8)
        points = read_scan(scan, columns=5)
        ring = np.fromfile(scan, np.float32).reshape(-1, 5)[:, 4]
        check_length(len(labels), len(points), frame.scan, label_file)
        if not np.isin(ring, np.arange(BENCHMARKS["nuscenes"].num_rings)).all():
            raise DatasetError(
                "the fifth value of a point is not a ring number in all rows", where=scan, fix=COPY_AGAIN
            )
        return Scan(points=points, ring=ring.astype(np.int64), labels=labels, raw_labels=raw_labels)

    def paths(self, frame: Frame) -> tuple[str, str]:
        return frame.scan, frame.labels

    def contents(self, scan: Scan) -> tuple[bytes, bytes]:
        return np.column_stack([scan.points, scan.ring]).astype(np.float32).tobytes(), scan.raw_labels.tobytes()


class KittiLayout:
    """Scans of x y z intensity, labels of four bytes with the instance; files keep their numbers, without sequences."""

    def read(self, root: Path, frame: Frame) -> Scan:
        labels = read_kitti_labels(root, frame, KITTI_LABELS)
        raw_labels = read_raw_labels(root / frame.labels, np.uint32)
        points = read_scan(root / frame.scan, columns=4)
        check_length(len(labels), len(points), frame.scan, root / frame.labels)
        ring = rings_by_turns(points[:, :3], BENCHMARKS["semantic_kitti"].num_rings)
        return Scan(points=points, ring=ring, labels=labels, raw_labels=raw_labels)

    def paths(self, frame: Frame) -> tuple[str, str]:
        return f"velodyne/{Path(frame.scan).name}", f"labels/{Path(frame.labels).name}"

    def contents(self, scan: Scan) -> tuple[bytes, bytes]:
        return scan.points.tobytes(), scan.raw_labels.tobytes()


LAYOUTS: dict[str, Layout] = {"nuscenes": NuScenesLayout(), "semantic_kitti": KittiLayout()}
