"""Preparation of scans for any backbone, with checks of their points.

Points are (N, 4): x y z [m] in the lidar frame and raw return intensity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..checkpoint_files import shortened
from ..errors import StudentError
from ..extract.intensity import LARGEST_INTENSITY, IntensityStatistics
from .backbones.backbone import PreparedScan, ScanInputs
from .backbones.calls import prepared, prepared_whole


def training_input(
    points: np.ndarray, intensity: IntensityStatistics, inputs: ScanInputs, feature_xyz: np.ndarray | None = None
) -> PreparedScan:
    """Backbone input for points that are drawn, augmented and inside the field of view: see `ScanInputs.prepare`.

    Raises:
        StudentError: no points, or user-defined inputs that return no valid scan.
    """
    require_points(points)
    return prepared(inputs, points, intensity, feature_xyz)


def evaluation_input(points: ArrayLike, intensity: IntensityStatistics, inputs: ScanInputs) -> PreparedScan:
    """Backbone input for a raw scan, for evaluation: `scores[prepared.row]` are the scores of all its points.

    Args:
        points: (N, 4) x y z [m] and raw intensity, of any numeric type; converted to float32 as in the official code.
        intensity: statistics of the dataset.
        inputs: input settings of the student's backbone.

    Raises:
        StudentError: no usable point, a coordinate that is not finite, points of another shape, or user-defined
            inputs that return no valid scan.
    """
    points = as_float32(points, "points", where="scan", wanted="Pass x, y, z in metres and raw intensity")
    require_points(points)
    return prepared_whole(inputs, points, intensity)


def as_float32(values: ArrayLike, what: str, *, where: str, wanted: str) -> np.ndarray:
    """Convert numbers to float32 in the machine's byte order, as the compiled loops need them.

    Args:
        values: an array, a tensor on the CPU, or rows of numbers.
        what, where, wanted: for errors: what the values are, what takes them, what to pass instead.

    Raises:
        StudentError: not an array of numbers, or masked values.
    """
    try:
        array = np.ma.asanyarray(values) if np.ma.isMaskedArray(values) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths; a tensor on a GPU
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
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused
        return np.asarray(array).astype(np.float32, copy=False)


def require_points(points: np.ndarray) -> None:
    """Refuse an array that is not a scan.

    Raises:
        StudentError: another shape than (N, 4), no point, or values that are not finite or no intensities.
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
    largest = float(np.abs(points[:, 3]).max())
    if largest > LARGEST_INTENSITY:
        raise StudentError(
            f"the largest intensity is {largest:.3g}, and a lidar's are at most {LARGEST_INTENSITY:g}",
            where="scan",
            fix="Check that the fourth value of a point is its intensity.",
        )


def check_finite(values: np.ndarray) -> None:
    # The sum is finite if all values are: one pass suffices, unless the sum overflows.
    with np.errstate(invalid="ignore", over="ignore"):
        total = values.sum()
    if not np.isfinite(total) and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).any(axis=1).sum())
        raise StudentError(
            f"{count} of {len(values)} points are not finite",
            where="scan",
            fix="Remove these rows before the scan is given to the student",
        )
