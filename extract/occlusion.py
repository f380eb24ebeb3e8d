"""Occluded pairs: the lidar is mounted above the cameras and sees over surfaces that hide its points from a camera."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import minimum_filter

CELLS_PER_SPACING = 2  # of the pairs in the image: whatever lidar and image size, a neighbour is about two cells away
TOLERANCE, TOLERANCE_M = 0.1, 0.5  # a pair must be nearer by more: surfaces slant, and cameras fire at other moments


def hidden_pairs(pixel: np.ndarray, depth_m: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """Find the pairs of one view that lie behind a nearer surface, as far as the view's own pairs show it.

    The pairs fill a z-buffer whose cells are half their mean spacing. A pair is occluded if nearer pairs surround it on
    four sides: above, below, to the left and to the right, within two cells. Nearer ground lies below a point only, and
    so occludes nothing; nor does a surface that is only beside or above the point. docs/occlusion.md has the measured
    recall and precision (`tests/benchmarks/occlusion.py`).

    Args:
        pixel: (R, 2), row and column.
        depth_m: (R,) along the optical axis.
        image_shape: (H, W) of the image [px].

    Returns:
        (R,) bool, True for occluded pairs.
    """
    if len(pixel) == 0:
        return np.zeros(0, dtype=bool)
    height, width = image_shape
    spacing = np.sqrt(height * width / len(pixel))
    row, column = (pixel / max(1.0, spacing / CELLS_PER_SPACING)).astype(np.int64).T + 1
    nearest = np.full((row.max() + 2, column.max() + 2), np.inf)  # a margin of empty cells
    np.minimum.at(nearest, (row, column), depth_m)
    around = minimum_filter(nearest, 3, mode="constant", cval=np.inf)
    sides = (around[row - 1, column], around[row + 1, column], around[row, column - 1], around[row, column + 1])
    return depth_m > np.maximum.reduce(sides) * (1 + TOLERANCE) + TOLERANCE_M
