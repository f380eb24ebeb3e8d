"""Fixed noise for procedural textures: tiling tables that are read at world positions."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter

PLANE_CELL_M = 0.125
SOLID_CELL_M = 0.09


def plane_noise(x: np.ndarray, y: np.ndarray, cell_m: float = PLANE_CELL_M) -> np.ndarray:
    """Noise over the plane, (N,) float32 with mean 0 and standard deviation 1; repeats every 512 cells."""
    return _plane_table()[_wrap(x, cell_m, 511), _wrap(y, cell_m, 511)]


def solid_noise(points: np.ndarray, cell_m: float = SOLID_CELL_M) -> np.ndarray:
    """Noise in space at `points` (3, N) [m], (N,) float32 as in `plane_noise`; repeats every 64 cells."""
    return _solid_table()[tuple(_wrap(axis, cell_m, 63) for axis in points)]


def _wrap(coordinate: np.ndarray, cell_m: float, mask: int) -> np.ndarray:
    return np.floor(coordinate * np.float32(1 / cell_m)).astype(np.int32) & mask


@cache
def _plane_table() -> np.ndarray:
    return _octaves(np.random.default_rng(0).standard_normal((512, 512)), (0.5, 1.5, 6.0, 24.0))


@cache
def _solid_table() -> np.ndarray:
    return _octaves(np.random.default_rng(1).standard_normal((64, 64, 64)), (0.5, 1.5, 5.0))


def _octaves(white: np.ndarray, widths: tuple[float, ...]) -> np.ndarray:
    layers = [gaussian_filter(white, width, mode="wrap") for width in widths]
    total = sum(layer / layer.std() for layer in layers)
    return ((total - total.mean()) / total.std()).astype(np.float32)
