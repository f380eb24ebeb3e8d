"""Missing echoes: missing beams, incomplete echoes, another sensor (Robo3D, Kong et al., ICCV 2023).

Remaining points are unchanged, bit for bit.
"""

from __future__ import annotations

import numpy as np

from .scan import Scan
from .strengths import BeamMissing, Benchmark, CrossSensor, IncompleteEcho

FEW_POINTS = 10  # a class with at most this many points keeps them all


def beam_missing(scan: Scan, strength: BeamMissing, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """Remove rings that are drawn with replacement, as in Robo3D."""
    first, last = benchmark.losable_rings
    lost = rng.choice(np.arange(first, last + 1), strength.draws)
    return scan.take(~np.isin(scan.ring, lost))


def incomplete_echo(scan: Scan, strength: IncompleteEcho, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """Remove a fraction of the points of each vehicle class with more than 10 points, rounded down."""
    kept = np.ones(len(scan.points), dtype=bool)
    for vehicle in benchmark.vehicles:
        rows = np.flatnonzero(scan.labels == vehicle)
        if len(rows) > FEW_POINTS:
            kept[rng.choice(rows, int(strength.share * len(rows)), replace=False)] = False
    return scan.take(kept)


def cross_sensor(scan: Scan, strength: CrossSensor, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """Imitate a lidar with fewer beams and half the azimuths: remove rings, then every second point. Not random."""
    return scan.take(np.flatnonzero(~np.isin(scan.ring, strength.lost_rings))[::2])
