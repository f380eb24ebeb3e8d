"""Robo3D's eight corruptions as functions of a scan (Kong et al., "Robo3D", ICCV 2023).

Each takes a scan, a strength, the benchmark that it is for and a random generator, and gives another scan. Fog, wet
ground and snow are written from their papers' equations, the others from Robo3D's description; each says in what it
departs. Scores on what they make are not comparable with published ones.
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
