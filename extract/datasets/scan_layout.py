"""Whether a file of bare numbers is read with the right number of values a point, and of the right type.

Each value of a point has a distribution of its own: heights are narrow, intensities have one sign. Read with a wrong
number of columns, each column holds values of all kinds, and the columns are alike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DatasetError

LOOKED_AT = 2_000  # points of a scan
FEWEST = 100
ALIKE, APART = 0.1, 0.2  # distances between the distributions of columns that are mixtures, and of a lidar's
ALTERNATING = 0.4  # distance between the rows with odd numbers and the others, of x or y
A_COLUMN = 0.02  # of distance, that one more has to be worth: two points a row look like one
FARTHEST_M = 1e4  # values beyond are no coordinates
LAYOUTS = [(dtype, columns) for dtype in (np.float32, np.float64) for columns in range(3, 9)]


def refuse_other_layout(points: np.ndarray, path: Path) -> None:
    """
    Args:
        points: (N, columns) float32, the values of a whole file, row by row.
        path: of the file.

    Raises:
        DatasetError: its values make no sense in these columns, and do in others.
    """
    is_sound = _are_coordinates(points) and max(_distances(points)) > ALIKE and not _alternate(points)
    if len(points) < FEWEST or is_sound:
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
            f"{points.shape[1]} float32 values a point make no scan of a lidar, and {columns} {name} values do",
            where=path,
            fix="Write the file as the dataset has it, use the reader of the dataset that it comes from, or pass"
            " --columns to 'scalr predict'.",
        )
    by_columns = points.reshape(points.shape[::-1]).T
    if _are_coordinates(by_columns) and min(_distances(by_columns)) > APART:
        raise DatasetError(
            f"{points.shape[1]} values a point make no scan of a lidar, and do where all x stand first, then all y",
            where=path,
            fix="Write the values of each point one after the other.",
        )


def _are_coordinates(points: np.ndarray) -> bool:
    distances = np.abs(_some(points)[:, :3])
    return not (np.isfinite(distances) & (distances >= FARTHEST_M)).any()  # nan and infinity: a ray without a return


def _alternate(points: np.ndarray) -> bool:
    """Whether every other row holds something else, as where rows of twice as many values are read."""
    even, odd = (_some(points[start::2]) for start in (0, 1))
    even, odd = (rows[rows[:, :3].any(axis=1)] for rows in (even, odd))  # second returns may be (0, 0, 0)
    return max(_distance(np.sort(even[:, each]), np.sort(odd[:, each])) for each in (0, 1)) > ALTERNATING


def _distances(points: np.ndarray) -> list[float]:
    """Between the distributions of x and z, and of y and intensity (0 to 1, Kolmogorov and Smirnov's)."""
    columns = [np.sort(column[np.isfinite(column)]) for column in _some(points).T]
    return [_distance(columns[one], columns[other]) for one, other in ((0, 2), (1, 3)) if other < len(columns)]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Of two sorted samples; 0 where there are no values."""
    if not (len(one) and len(other)):
        return 0.0
    both = np.concatenate([one, other])
    below = (np.searchsorted(each, both, side="right") / len(each) for each in (one, other))
    return float(np.abs(np.subtract(*below)).max())


def _some(points: np.ndarray) -> np.ndarray:
    """Drawn, since rows at equal distances may all begin with the same value of a point."""
    return points[np.random.default_rng(0).integers(len(points), size=LOOKED_AT)]
