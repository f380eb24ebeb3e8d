"""Find out whether a file of bare numbers is read with the right number of values per point, and the right type.

Each value of a point has its own distribution: heights are narrow, intensities have one sign. If a file is read with
the wrong number of columns, each column mixes values of all kinds, and all columns have similar distributions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DatasetError

LOOKED_AT = 2_000  # points sampled from a scan
FEWEST = 100
ALIKE, APART = 0.1, 0.2  # distances between distributions of mixed columns (below), and of a lidar's columns (above)
ALTERNATING = 0.4  # distance between the distributions of odd and even rows, in x or y
A_COLUMN = 0.02  # minimum gain in distance per additional column: two points per row look like one
FARTHEST_M = 1e4  # larger values are no coordinates
LAYOUTS = [(dtype, columns) for dtype in (np.float32, np.float64) for columns in range(3, 9)]


def refuse_other_layout(points: np.ndarray, path: Path) -> None:
    """Refuse a scan whose values are implausible in its columns and plausible in another layout.

    Args:
        points: (N, columns) float32, all values of a file in row-major order.
        path: path of the file.

    Raises:
        DatasetError: another number of columns, float64, or values column by column fit clearly better.
    """
    if len(points) < FEWEST:
        return
    if _are_coordinates(points) and max(_distances(points)) > ALIKE and not _alternate(points):
        return
    content = np.ascontiguousarray(points).tobytes()
    fitting = {}
    for dtype, columns in LAYOUTS:
        if (dtype, columns) != (np.float32, points.shape[1]) and len(content) % (
            columns * np.dtype(dtype).itemsize
        ) == 0:
            others = np.frombuffer(content, dtype).reshape(-1, columns)
            if len(others) >= FEWEST and _are_coordinates(others) and min(_distances(others)) > APART:
                fitting[np.dtype(dtype).name, columns] = sum(_distances(others)) - A_COLUMN * columns
    if fitting:
        name, columns = max(fitting, key=fitting.get)
        raise DatasetError(
            f"the values are no lidar scan with {points.shape[1]} float32 per point, but one with {columns}"
            f" {name} per point",
            where=path,
            fix="Write the file in the dataset's own layout, use the dataset reader that fits the file, or pass"
            " --columns to 'scalr predict'.",
        )
    by_columns = points.reshape(points.shape[::-1]).T
    if _are_coordinates(by_columns) and min(_distances(by_columns)) > APART:
        raise DatasetError(
            f"the values are no lidar scan with {points.shape[1]} values per point, but one with all x"
            " first, then all y",
            where=path,
            fix="Write the file point by point: x, y, z and intensity of the first point, then of the second.",
        )


def _are_coordinates(points: np.ndarray) -> bool:
    distances = np.abs(_some(points)[:, :3])
    return not (np.isfinite(distances) & (distances >= FARTHEST_M)).any()  # nan and infinity are rays without a return


def _alternate(points: np.ndarray) -> bool:
    """Whether odd and even rows differ, as they do if rows are read with half of their values."""
    even, odd = (_some(points[start::2]) for start in (0, 1))
    even, odd = (rows[rows[:, :3].any(axis=1)] for rows in (even, odd))  # second returns may be (0, 0, 0)
    return max(_distance(np.sort(even[:, each]), np.sort(odd[:, each])) for each in (0, 1)) > ALTERNATING


def _distances(points: np.ndarray) -> list[float]:
    """Kolmogorov–Smirnov distances, 0 to 1, between the distributions of x and z, and of y and intensity."""
    columns = [np.sort(column[np.isfinite(column)]) for column in _some(points).T]
    return [_distance(columns[one], columns[other]) for one, other in ((0, 2), (1, 3)) if other < len(columns)]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov–Smirnov distance of two sorted samples; 0 for empty samples."""
    if not (len(one) and len(other)):
        return 0.0
    both = np.concatenate([one, other])
    below = (np.searchsorted(each, both, side="right") / len(each) for each in (one, other))
    return float(np.abs(np.subtract(*below)).max())


def _some(points: np.ndarray) -> np.ndarray:
    """Draw rows at random: rows at equal distances might all begin with the same value of a point."""
    return points[np.random.default_rng(0).integers(len(points), size=LOOKED_AT)]
