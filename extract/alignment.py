"""Measure how well an image fits the points that project into it, without any other reference.

If the calibration is right and the image belongs to the scan, the image (its colours) and the scan (its intensities and
depths) change at the same places: within a small window, the colours explain a fraction of the variance of the points.
That fraction is smaller for another image, a mirrored one, or a shifted one. It compares images and scans of any
sensors, since it only assumes a linear relation within each window (as LC2 does for medical images: Wein et al., 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from .projection import Pairs

WINDOW = 9  # cells of a window's side
FILLED = 0.5  # minimum fraction of a window's cells that hold points
PAIRS_OF_A_CELL = 1.5
MOST_COLUMNS, FEWEST_ROWS = 160, 6
THUMBNAIL = 320  # width of the small image that is kept for comparisons [px]
FEWEST_PAIRS = 200


@dataclass(frozen=True, eq=False)
class PointMap:
    """The points of one view, averaged over the cells of its image.

    Attributes:
        values: (2, h, w) float32: logarithms of intensity and depth, averaged over the points of each cell.
        occupied: (h, w) float32, 1 for cells that hold points.
    """

    values: np.ndarray
    occupied: np.ndarray


def thumbnail(image: Image.Image) -> np.ndarray:
    """A small copy of an image, (h, w, 3) uint8."""
    height = max(1, round(image.height * THUMBNAIL / image.width))
    return np.asarray(image.convert("RGB").resize((THUMBNAIL, height), Image.Resampling.BOX))


def grid_of(num_pairs: int, image_shape: tuple[int, int]) -> tuple[int, int] | None:
    """The number of cells (h, w) for a view with `num_pairs` pairs; None if there are too few pairs."""
    height, width = image_shape
    if num_pairs < FEWEST_PAIRS:
        return None
    columns = min(MOST_COLUMNS, int(np.sqrt(num_pairs / PAIRS_OF_A_CELL * width / height)))
    return max(FEWEST_ROWS, columns * height // width), max(FEWEST_ROWS, columns)


def point_map(intensity: np.ndarray, pairs: Pairs, image_shape: tuple[int, int], grid: tuple[int, int]) -> PointMap:
    """Average a view's pairs over cells; `intensity` (N,) holds a value for each point of the scan."""
    rows, columns = (pairs.pixel.astype(np.int64) * grid // np.array(image_shape)).T
    cell, num_cells = rows * grid[1] + columns, grid[0] * grid[1]
    count = np.bincount(cell, minlength=num_cells)
    strength = intensity[pairs.point_index].astype(np.float64)
    strength = np.log1p(10 * strength.clip(min=0) / max(float(strength.mean()), 1e-9))
    values = [np.bincount(cell, of, num_cells) / np.maximum(count, 1) for of in (strength, np.log(pairs.depth_m + 0.1))]
    return PointMap(np.array(values, np.float32).reshape(2, *grid), (count > 0).astype(np.float32).reshape(grid))


def image_map(small: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Average a `thumbnail` over cells: brightness and two colour differences, (3, h, w) float32."""
    cells = Image.fromarray(small).resize(grid[::-1], Image.Resampling.BOX)
    red, green, blue = np.moveaxis(np.asarray(cells, np.float32), 2, 0)
    grey = (red + green + blue) / 3
    return np.stack([np.log1p(grey), (red - blue) / (grey + 10), (green - grey) / (grey + 10)])


def fit(points: PointMap, image: np.ndarray) -> tuple[float, int]:
    """Return the fraction of variance that the image explains of the scan, and the number of windows compared.

    Args:
        points: the points of a view.
        image: (3, h, w), see `image_map`, on the same grid.
    """
    around = _mean_around(points.occupied)
    windows = (points.occupied > 0) & (around > FILLED)
    if not windows.any():
        return 0.0, 0

    def mean(values: np.ndarray) -> np.ndarray:
        return _mean_around(values * points.occupied)[windows] / around[windows]

    def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = mean(values)
        return values, centre, (mean(values * values) - centre * centre).clip(min=0)

    of_image, shares = [moments(values) for values in image], []
    for scan, scan_mean, scan_variance in map(moments, points.values):
        for colour, colour_mean, colour_variance in of_image:
            covariance = mean(scan * colour) - scan_mean * colour_mean
            floor = 1e-4 * scan_variance.mean() * colour_variance.mean() + 1e-12  # windows of one colour tell nothing
            shares.append(float((covariance**2 / (scan_variance * colour_variance + floor)).mean()))
    return float(np.mean(shares)), int(windows.sum())


def _mean_around(values: np.ndarray) -> np.ndarray:
    return uniform_filter(values, WINDOW, mode="constant")
