"""Scans that are files of their own, without a dataset around them: read, checked and prepared for a backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from ..distill.backbones.backbone import PreparedScan, ScanInputs
from ..distill.inputs import evaluation_input
from ..errors import DatasetError, DoubtfulError, ScalrError
from ..extract.datasets.frame import Frame
from ..extract.datasets.pandaset import PANDAR64, PANDARGT, TABLE_ENDINGS, read_scan_beside_poses
from ..extract.datasets.scan_files import READERS, VALUES_PER_POINT, read_scan_file
from ..extract.intensity import INTENSITY_STATISTICS, IntensityStatistics
from ..extract.plan import spread
from ..extract.plausibility import findings_of_points, findings_of_scans
from .scan_list import FileState, ScanFile

logger = logging.getLogger(__name__)

NonFinite = Literal["refuse", "unlabelled"]
SAMPLED_SCANS = 8  # that are looked at before the first prediction
# Highest intensity of a lidar, the lowest being 0; lidars whose range is not known are not here.
HIGHEST_INTENSITY = {"nuscenes": 255.0, "semantic_kitti": 1.0, "pandaset_64": 255.0, "pandaset_gt": 255.0}
LIDARS = (*INTENSITY_STATISTICS, "semantic_poss", "frames")
PANDASET = {sensor.dataset: sensor for sensor in (PANDAR64, PANDARGT)}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the files of scans are read.

    Attributes:
        dataset: one of LIDARS, the dataset whose lidar recorded them; "frames" is any other lidar.
        columns: float32 values of a point in a .bin file; None: five of nuScenes' and of .pcd.bin files, else four.
        intensity_range: lowest and highest intensity in the files, which become those of the dataset; None: they are.
        non_finite: what is done with points at nan or infinity, rays without a return: the scan is refused, or they
            have no class and no feature.
    """

    dataset: str
    columns: int | None = None
    intensity_range: tuple[float, float] | None = None
    non_finite: NonFinite = "refuse"

    def __post_init__(self) -> None:
        if self.intensity_range is not None and self.dataset not in HIGHEST_INTENSITY:
            raise ScalrError(
                f"the range of intensities of {self.dataset} is not known, so files cannot be scaled to it",
                where="--intensity-range",
                fix="Use --intensity with the mean and standard deviation of the files' own intensities.",
            )

    @property
    def endings(self) -> tuple[str, ...]:
        """Endings of the files that are read."""
        return (*READERS, *(TABLE_ENDINGS if self.dataset in PANDASET else ()))

    def values(self, path: Path) -> np.ndarray:
        """(N, 4 or more) float64 or float32, the points of a file as they are in it.

        Raises:
            DatasetError: a missing or broken file, or one of another layout.
        """
        if self.dataset in PANDASET and path.name.lower().endswith(TABLE_ENDINGS):
            return read_scan_beside_poses(path, PANDASET[self.dataset])
        columns = VALUES_PER_POINT[".pcd.bin"] if self.dataset == "nuscenes" else None
        return read_scan_file(path, self.columns or columns)

    def points(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """The finite points (P, 4) float32 of a file with N rows, the intensity in the dataset's range; and (N,) bool,
        which rows they are.

        Raises:
            DatasetError: as `values`; no finite point, or with `refuse` one that is not finite.
        """
        values = self.values(path)
        with np.errstate(over="ignore"):  # what float32 does not hold is not finite
            points = values[:, :4].astype(np.float32)
        if len(points) == 0:
            raise DatasetError("the scan has no points", where=path, fix="Leave this scan out.")
        is_finite = np.isfinite(points).all(axis=1)
        if not is_finite.any():
            raise DatasetError(f"none of the {len(points)} points is finite", where=path, fix="Leave this scan out.")
        if self.non_finite == "refuse" and not is_finite.all():
            raise DatasetError(
                f"{int((~is_finite).sum())} of {len(points)} points are not finite",
                where=path,
                fix="Pass --non-finite unlabelled if they are rays without a return, or copy the file again.",
            )
        points = points[is_finite]
        if self.intensity_range is not None:
            low, high = self.intensity_range
            points[:, 3] = (points[:, 3] - low) * (HIGHEST_INTENSITY[self.dataset] / (high - low))
        return points, is_finite


class RawScans:
    """Scan files as a dataset (`frame.Dataset`) without images and labels, whose points are all finite."""

    split, class_names = "the given files", ()

    def __init__(
        self, scans: Sequence[ScanFile], root: Path, reading: Reading, intensity: IntensityStatistics | None
    ) -> None:
        self.scans, self.root, self.reading = scans, root, reading
        self.name, self.intensity = reading.dataset, intensity or INTENSITY_STATISTICS.get(reading.dataset)

    @cached_property
    def frames(self) -> list[Frame]:
        common = {"dataset": self.name, "scene": "", "timestamp": 0, "labels": None, "views": ()}
        return [Frame(token=scan.name, scan=str(scan.path), **common) for scan in self.scans]

    def read_points(self, frame: Frame) -> np.ndarray:
        """(P, 4) float32."""
        return self.reading.points(Path(frame.scan))[0]

    def warn_of_doubts(self) -> None:
        """Log what is probably not as it should be in a sample of the scans; those that cannot be read are left out."""
        seen = []
        for number in spread(len(self.scans))[:SAMPLED_SCANS]:
            path = self.scans[number].path
            try:
                seen.append((self.reading.points(path)[0], path))
            except DatasetError:  # said when its turn comes
                continue
        for finding in findings_of_scans(self, seen):
            if isinstance(finding, DoubtfulError):
                logger.warning("%s", finding)


@dataclass(frozen=True, eq=False)
class RawScan:
    """A scan of N rows, P of them with finite points."""

    number: int  # in the list of scans
    state: FileState | None  # of its file, from before it was read
    points: np.ndarray  # (P, 4) float32
    is_finite: np.ndarray  # (N,) bool
    prepared: PreparedScan  # of the P points


class PreparedScans(TorchDataset):
    """Scans as a backbone reads them. Used in worker processes.

    Args:
        scans: which.
        intensity: by which intensities are normalised.
        inputs: of the backbone.
    """

    def __init__(self, scans: RawScans, intensity: IntensityStatistics, inputs: ScanInputs) -> None:
        self.scans, self.intensity, self.inputs = scans, intensity, inputs

    def __len__(self) -> int:
        return len(self.scans.scans)

    def __getitem__(self, number: int) -> RawScan | ScalrError:
        """An error comes back as an item: raised in a worker, it would arrive as a traceback."""
        path = self.scans.scans[number].path
        try:
            state = self.scans.scans[number].state()
            points, is_finite = self.scans.reading.points(path)
            for finding in findings_of_points(points, path):
                if not isinstance(finding, DoubtfulError):
                    return finding
            prepared = evaluation_input(points, self.intensity, self.inputs)
            return RawScan(number, state, points, is_finite, prepared)
        except ScalrError as error:
            return error if isinstance(error, DatasetError) else error.inside(str(path))
