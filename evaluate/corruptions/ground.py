"""Properties of a lidar from returns of the ground: their usual intensity, and the weakest detectable intensity.

Wet ground and snow need both (Hahner et al., "LiDAR Snowfall Simulation for Robust 3D Object Detection", CVPR 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_POINTS = 1000  # ground points; Robo3D does not change scans with fewer
NUM_GROUPS = 50
WEAKEST = 0.01  # the quantile


@dataclass(frozen=True)
class Line:
    """A straight line over range, constant outside of the ranges that it was fitted to."""

    slope: float
    offset: float
    nearest_m: float
    farthest_m: float

    @classmethod
    def fit(cls, range_m: np.ndarray, values: np.ndarray) -> Line:
        """The least-squares line through (M,) values at ranges (M,), M > 0."""
        columns = np.stack([range_m, np.ones_like(range_m)], axis=1)
        slope, offset = np.linalg.lstsq(columns, values, rcond=None)[0]
        return cls(float(slope), float(offset), float(range_m.min()), float(range_m.max()))

    def at(self, range_m: np.ndarray) -> np.ndarray:
        """The line's values at ranges (N,), at least 0."""
        within = np.clip(range_m, self.nearest_m, self.farthest_m)
        return np.maximum(self.slope * within + self.offset, 0)


SILENCE = Line(0.0, 0.0, 0.0, 0.0)


def weakest_returns(range_m: np.ndarray, intensity: np.ndarray, counted_from: float) -> Line:
    """The weakest intensities of the ground over range: a line through the first percentiles of groups of points.

    Deviation: the official code searches the rarest intensity in a histogram, which is arbitrary.

    Args:
        range_m: (G,) ranges of the ground points [m].
        intensity: (G,) raw intensities of the ground points.
        counted_from: only points with a higher intensity count.

    Returns:
        The line; 0 everywhere if fewer than MIN_POINTS points count.
    """
    counted = np.flatnonzero(intensity > counted_from)
    if len(counted) < MIN_POINTS:
        return SILENCE
    by_range = counted[np.argsort(range_m[counted], kind="stable")]
    groups = np.array_split(by_range, NUM_GROUPS)
    centres = np.array([range_m[group].mean() for group in groups])
    return Line.fit(centres, np.array([np.quantile(intensity[group], WEAKEST) for group in groups]))


def cosine_of_incidence(xyz: np.ndarray) -> np.ndarray:
    """(G,) |cos| between the beams to ground points (G, 3) and the normal of the plane through them (flat earth)."""
    columns = np.column_stack([xyz[:, :2], np.ones(len(xyz))])
    (by_x, by_y, _), *_ = np.linalg.lstsq(columns, xyz[:, 2], rcond=None)
    normal = np.array([-by_x, -by_y, 1.0]) / np.sqrt(by_x**2 + by_y**2 + 1)
    return np.abs(xyz @ normal) / np.maximum(np.linalg.norm(xyz, axis=1), 1e-6)
