"""Read scans and labels of a dataset with checks, for all callers and all dataset readers."""

from __future__ import annotations

import logging

import numpy as np

from ...counted import counted
from ...errors import DatasetError
from ...progress import progress
from ..intensity import IntensityStatistics
from .files import checked_points
from .frame import Dataset, Frame
from .labels import check_length

logger = logging.getLogger(__name__)

MEASURED_SCANS = 64


def read_points(dataset: Dataset, frame: Frame) -> np.ndarray:
    """Read a scan, (N, 4) float32: x y z in the lidar frame [m] and the raw return intensity, all finite, N > 0.

    Raises:
        DatasetError: missing or broken files.
    """
    return checked_points(dataset.read_points(frame), dataset.root / frame.scan)


def read_labelled_scan(dataset: Dataset, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Read a scan (N, 4) float32 with its labels (N,) uint8.

    Raises:
        DatasetError: missing or broken files, or a label file of another length.
    """
    points = read_points(dataset, frame)
    return points, read_labels(dataset, frame, len(points))


def read_labels(dataset: Dataset, frame: Frame, num_points: int) -> np.ndarray:
    """Read the labels of a scan of `num_points` points, (N,) uint8 train ids.

    Raises:
        DatasetError: a missing or broken file, or one of another length.
    """
    labels = dataset.read_labels(frame)
    check_length(len(labels), num_points, frame.scan, dataset.root / str(frame.labels))
    return labels


def intensity_of(dataset: Dataset) -> IntensityStatistics:
    """Return a dataset's intensity statistics; if it declares none, measure them on some of its scans.

    Raises:
        DatasetError: no scan can be read, or all points have one intensity.
    """
    return getattr(dataset, "intensity", None) or _measured(dataset)


def _measured(dataset: Dataset) -> IntensityStatistics:
    """Measure on scans spread evenly over the frames, always the same ones; broken scans are left out."""
    numbers = np.unique(np.linspace(0, len(dataset.frames) - 1, MEASURED_SCANS).round().astype(int)).tolist()
    values, problem = [], None
    with progress(len(numbers), "intensities", "scan") as bar:
        for number in numbers:
            try:
                values.append(read_points(dataset, dataset.frames[number])[:, 3])
            except DatasetError as error:
                problem = error
            bar.update()
    if not values:
        raise problem
    intensity = np.concatenate(values).astype(np.float64)
    statistics = IntensityStatistics(float(intensity.mean()), float(intensity.std()))
    logger.info(
        "%s has no intensity statistics of its own: mean %.6g, standard deviation %.6g in %s of %s",
        *(dataset.name, statistics.mean, statistics.std, counted(len(values), "scan"), dataset.split),
    )
    return statistics
