"""Scans on their way into any backbone, and what can be wrong with their points.

Points are (N, 4): x y z [m] in the lidar frame and raw return intensity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..checkpoint_files import shortened
from ..errors import StudentError
from ..extract.intensity import IntensityStatistics
from .backbones.backbone import PreparedScan, ScanInputs
from .backbones.calls import prepared, prepared_whole


def training_input(
    points: np.ndarray, intensity: IntensityStatistics, inputs: ScanInputs, feature_xyz: np.ndarray | None = None
) -> PreparedScan:
    """Points that are drawn, augmented and inside, as a backbone reads them: see `ScanInputs.prepare`.

    Raises:
        StudentError: no points, or inputs of one's own that prepare no such scan.
    """
    require_points(points)
    return prepared(inputs, points, intensity, feature_xyz)


def evaluation_input(points: ArrayLike, intensity: IntensityStatistics, inputs: ScanInputs) -> PreparedScan:
    """A raw scan as it is evaluated: `scores[prepared.row]` scores all of its points.

    Args:
        points: (N, 4) x y z [m], raw intensity; numbers of any kind, taken to float32 as in the official code.
        intensity: of the dataset.
        inputs: of the student's backbone.

    Raises:
        StudentError: no point that can be used, a coordinate that is not finite, points of another shape, or
            inputs of one's own that prepare no such scan.
    """
    points = as_float32(points, "points", where="scan", wanted="Pass x, y, z in metres and raw intensity")
    require_points(points)
    return prepared_whole(inputs, points, intensity)


def as_float32(values: ArrayLike, what: str, *, where: str, wanted: str) -> np.ndarray:
    """Numbers of any kind in the machine's byte order: what the compiled loops read.

    Args:
        values: an array, a tensor of the CPU, or rows of numbers.
        what, where, wanted: of errors: what the values are, what they are given to, what to pass instead.

    Raises:
        StudentError: they are no array of numbers, or values are masked.
    """
    try:
        array = np.ma.asanyarray(values) if np.ma.isMaskedArray(values) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths; a tensor of a GPU
        raise StudentError(
            f"{what} are not an array of numbers ({shortened(error)})",
            where=where,
            fix="Pass a numpy array or a list of rows",
        ) from None
    if array.dtype.kind not in "fiu":
        raise StudentError(f"{what} are {array.dtype}, not numbers", where=where, fix=wanted)
    if np.ma.is_masked(array):
        raise StudentError(
            f"{what} have {np.ma.count_masked(array)} masked values", where=where, fix="Remove these rows"
        )
    with np.errstate(over="ignore"):  # what float32 does not hold is not finite then, and refused
        return np.asarray(array).astype(np.float32, copy=False)


def require_points(points: np.ndarray) -> None:
    """Refuse what is no scan.

    Raises:
        StudentError: an array of another shape than (N, 4), no point, or values that are not finite.
    """
    if points.ndim != 2 or points.shape[1] != 4:
        raise StudentError(
            f"points have shape {points.shape}",
            where="scan",
            fix="Pass an array of shape (N, 4): x, y, z in metres and raw intensity",
        )
    if len(points) == 0:
        raise StudentError(
            "no point of the scan is inside the field of view",
            where="scan",
            fix="Leave this scan out, or enlarge the field of view of the student's inputs.",
        )
    check_finite(points)


def check_finite(values: np.ndarray) -> None:
    # A sum is finite where all are: one pass, and only a sum that overflows needs a second look.
    with np.errstate(invalid="ignore", over="ignore"):
        total = values.sum()
    if not np.isfinite(total) and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).any(axis=1).sum())
        raise StudentError(
            f"{count} of {len(values)} points are not finite",
            where="scan",
            fix="Remove these rows before the scan is given to the student",
        )
