"""A labelled scan, the input and output of corruptions, and the rings of scans without ring numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...extract.datasets.labels import IGNORE_LABEL

HALF_TURN = np.pi


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """N points of one sweep. Corruptions return new scans: arrays of a scan are not written to.

    Attributes:
        points: (N, 4) float32, x y z in the lidar frame [m] and the raw intensity.
        ring: (N,) integers, the beam of each point.
        labels: (N,) uint8 train ids.
        raw_labels: (N,) labels as in the file: the dataset's own ids, with all else that the file stores in them.
    """

    points: np.ndarray
    ring: np.ndarray
    labels: np.ndarray
    raw_labels: np.ndarray

    @property
    def xyz(self) -> np.ndarray:
        """(N, 3) float64 [m]."""
        return self.points[:, :3].astype(np.float64)

    @property
    def intensity(self) -> np.ndarray:
        """(N,) float64, raw."""
        return self.points[:, 3].astype(np.float64)

    @property
    def range_m(self) -> np.ndarray:
        """(N,) float64."""
        return np.linalg.norm(self.xyz, axis=1)

    def take(self, kept: np.ndarray) -> Scan:
        """The points of a mask (N,) or of rows; the first point if no point is left, since no scan is empty."""
        rows = np.flatnonzero(kept) if kept.dtype == bool else kept
        rows = rows if len(rows) else np.zeros(1, dtype=np.int64)
        return Scan(**{name: getattr(self, name)[rows] for name in ("points", "ring", "labels", "raw_labels")})

    def changed(self, rows: np.ndarray, xyz: np.ndarray | None = None, intensity: np.ndarray | None = None) -> Scan:
        """The scan with new coordinates (R, 3) and intensities (R,) of R points; all other points are unchanged."""
        points = self.points.copy()
        if xyz is not None:
            points[rows, :3] = xyz
        if intensity is not None:
            points[rows, 3] = intensity
        return replace(self, points=points)

    def relabelled(self, rows: np.ndarray, raw_id: int) -> Scan:
        """The scan with a raw label without class at a mask or rows, for points that a corruption made or moved."""
        labels, raw_labels = self.labels.copy(), self.raw_labels.copy()
        labels[rows], raw_labels[rows] = IGNORE_LABEL, raw_id
        return replace(self, labels=labels, raw_labels=raw_labels)


def rings_by_turns(xyz: np.ndarray, num_rings: int) -> np.ndarray:
    """Ring numbers (N,) int64, derived from azimuth wrap-around, of a scan that is stored beam by beam, as in KITTI.

    Each beam goes from the front around to the left. A new beam starts where the azimuth falls by more than half a
    turn. Numbers stop at the last ring, as in Robo3D.

    Args:
        xyz: (N, 3) [m], in the order of the file.
        num_rings: number of rings of the lidar.
    """
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0]) % (2 * np.pi)
    ends = np.diff(azimuth, prepend=azimuth[:1]) < -HALF_TURN
    return np.minimum(np.cumsum(ends), num_rings - 1)
