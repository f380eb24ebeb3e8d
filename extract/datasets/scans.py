"""Scans of a dataset as all who use them read them: checked, whoever wrote the reader."""

from __future__ import annotations

import logging

import numpy as np

from ...errors import DatasetError
from ..intensity import IntensityStatistics
from .files import checked_points
from .frame import Dataset, Frame

logger = logging.getLogger(__name__)

MEASURED_SCANS = 64


def read_points(dataset: Dataset, frame: Frame) -> np.ndarray:
    """(N, 4) float32: x y z in the lidar frame [m] and the raw return intensity, all finite, N > 0.

    Raises:
        DatasetError: missing or broken files.
    """
    return checked_points(dataset.read_points(frame), dataset.root / frame.scan)


def read_labelled_scan(dataset: Dataset, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 4) and labels (N,).

    Raises:
        DatasetError: missing or broken files, or a label file of another length.
    """
    points, labels = read_points(dataset, frame), dataset.read_labels(frame)
    if len(points) != len(labels):
        raise DatasetError(
            f"{len(labels)} labels for the {len(points)} points of {frame.scan}",
            where=dataset.root / str(frame.labels),
            fix="Copy both files again from the dataset's archives.",
        )
    return points, labels


def intensity_of(dataset: Dataset) -> IntensityStatistics:
    """A dataset's own statistics; where it has none, those of some of its scans.

    Raises:
        DatasetError: no scan can be read, or all have one intensity.
    """
    return getattr(dataset, "intensity", None) or _measured(dataset)


def _measured(dataset: Dataset) -> IntensityStatistics:
    """Over scans spread evenly over the frames, the same for everyone who asks; broken scans are left out."""
    numbers = np.unique(np.linspace(0, len(dataset.frames) - 1, MEASURED_SCANS).round().astype(int)).tolist()
    values, problem = [], None
    for number in numbers:
        try:
            values.append(read_points(dataset, dataset.frames[number])[:, 3])
        except DatasetError as error:
            problem = error
    if not values:
        raise problem
    intensity = np.concatenate(values).astype(np.float64)
    statistics = IntensityStatistics(float(intensity.mean()), float(intensity.std()))
    logger.info(
        "%s has no intensity statistics of its own: mean %.6g, standard deviation %.6g in %d scans of split %s",
        *(dataset.name, statistics.mean, statistics.std, len(values), dataset.split),
    )
    return statistics
