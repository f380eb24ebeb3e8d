"""Robo3D's eight corruptions as functions of a scan (Kong et al., "Robo3D", ICCV 2023).

Each function takes a scan, a strength, a benchmark and a random generator, and returns another scan. Fog, wet ground
and snow follow their papers' equations, the others Robo3D's description; each function lists its deviations. Scores on
their scans are not comparable with published scores.
"""

from __future__ import annotations

from collections.abc import Callable

from .echoes import beam_missing, cross_sensor, incomplete_echo
from .fog import fog
from .motion import crosstalk, motion_blur
from .scan import Scan
from .snow import snow
from .strengths import BENCHMARKS, Benchmark, Strength, levels_of
from .wet_ground import wet_ground

CORRUPT: dict[str, Callable[..., Scan]] = {  # (scan, strength, benchmark, rng) -> scan
    "fog": fog,
    "wet_ground": wet_ground,
    "snow": snow,
    "motion_blur": motion_blur,
    "beam_missing": beam_missing,
    "crosstalk": crosstalk,
    "incomplete_echo": incomplete_echo,
    "cross_sensor": cross_sensor,
}

__all__ = ["BENCHMARKS", "CORRUPT", "Benchmark", "Scan", "Strength", "levels_of"]
