"""Displaced points: motion blur and crosstalk, as in Robo3D (Kong et al., ICCV 2023)."""

from __future__ import annotations

import numpy as np

from .scan import Scan
from .strengths import Benchmark, Crosstalk, MotionBlur

JITTER = (0.1, 0.1, 0.05)  # standard deviation of a point along x, y, z, relative to the shift of the scan
FARTHEST_JITTER = 3.0  # largest jitter, relative to the shift of the scan
CROSSTALK_STD = 3.0  # standard deviation of x, y, z [m] and of the raw intensity


def motion_blur(scan: Scan, strength: MotionBlur, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """Shift the scan by one normal draw per axis, and each point by a smaller draw of its own, clipped at 3 t."""
    shift = rng.normal(0, strength.std_m, 3)
    jitter = rng.normal(0, strength.std_m * np.array(JITTER), (len(scan.points), 3))
    farthest = FARTHEST_JITTER * strength.std_m
    return scan.changed(slice(None), xyz=scan.xyz + shift + np.clip(jitter, -farthest, farthest))


def crosstalk(scan: Scan, strength: Crosstalk, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """Add normal noise to x, y, z and intensity of a fraction of the points, rounded down, with crosstalk's raw label.

    Deviation: intensities are clipped to their scale; those of SemanticKITTI, from 0 to 1, mostly become 0 or 1.
    """
    rows = rng.choice(len(scan.points), int(strength.share * len(scan.points)), replace=False)
    noise = rng.normal(0, CROSSTALK_STD, (len(rows), 4))
    intensity = np.clip(scan.intensity[rows] + noise[:, 3], 0, benchmark.intensity_max)
    mixed = scan.changed(rows, xyz=scan.xyz[rows] + noise[:, :3], intensity=intensity)
    return mixed.relabelled(rows, benchmark.made["crosstalk"])
