"""Strengths of the corruptions, from Robo3D's generators (Kong et al., ICCV 2023; folder create/)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...extract.datasets.corruptions import CORRUPTIONS
from ...extract.datasets.nuscenes import LABELS as NUSCENES_LABELS
from ...extract.datasets.semantic_kitti import LABELS as KITTI_LABELS


@dataclass(frozen=True, kw_only=True)
class Fog:
    beta: float  # backscattering coefficient


@dataclass(frozen=True, kw_only=True)
class WetGround:
    water_height_m: float
    noise_floor: float  # fraction of the weakest dry returns


@dataclass(frozen=True, kw_only=True)
class Snow:
    rate_mm_h: float  # snowfall rate as water
    terminal_velocity_m_s: float
    noise_floor: float = 0.7


@dataclass(frozen=True, kw_only=True)
class MotionBlur:
    std_m: float


@dataclass(frozen=True, kw_only=True)
class BeamMissing:
    draws: int  # with replacement, so that fewer distinct beams are lost


@dataclass(frozen=True, kw_only=True)
class Crosstalk:
    share: float  # fraction of the points


@dataclass(frozen=True, kw_only=True)
class IncompleteEcho:
    share: float  # fraction of the points of a vehicle class


@dataclass(frozen=True, kw_only=True)
class CrossSensor:
    lost_rings: tuple[int, ...]


Strength = Fog | WetGround | Snow | MotionBlur | BeamMissing | Crosstalk | IncompleteEcho | CrossSensor
Levels = tuple[Strength | None, ...]  # light, moderate, heavy; None if not published


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Properties of a dataset that corruptions need.

    Attributes:
        intensity_max: raw intensity at full scale.
        whole_intensities: whether fog rounds intensities.
        num_rings: number of rings of the lidar.
        losable_rings: first and last ring that may be removed.
        counted_from: returns with a higher raw intensity are used to estimate the lidar's noise.
        ground, vehicles: train ids.
        made: raw label of the points that a corruption makes or moves.
        levels: the published strengths, by corruption.
    """

    intensity_max: float
    whole_intensities: bool
    num_rings: int
    losable_rings: tuple[int, int]
    counted_from: float
    ground: tuple[int, ...]
    vehicles: tuple[int, ...]
    made: Mapping[str, int]
    levels: Mapping[str, Levels]


def levels_of(
    benchmark: Benchmark, motion_blur_m: tuple[float, ...] | None, crosstalk_share: tuple[float, ...] | None
) -> dict[str, Levels]:
    """Strengths of light, moderate and heavy of every corruption: the given ones, otherwise the published ones."""
    given = {}
    if motion_blur_m is not None:
        given["motion_blur"] = tuple(MotionBlur(std_m=value) for value in motion_blur_m)
    if crosstalk_share is not None:
        given["crosstalk"] = tuple(Crosstalk(share=value) for value in crosstalk_share)
    return {name: given.get(name, benchmark.levels[name]) for name in CORRUPTIONS}


def _levels(num_rings: int, noise_floors: tuple[float, float, float], draws: tuple[int, int, int]) -> dict[str, Levels]:
    """The published strengths: those that both benchmarks share, and those that depend on the lidar."""
    return {
        "fog": tuple(Fog(beta=beta) for beta in (0.008, 0.05, 0.2)),
        "wet_ground": tuple(
            WetGround(water_height_m=height, noise_floor=floor)
            for height, floor in zip((0.0002, 0.0010, 0.0012), noise_floors, strict=True)
        ),
        "snow": tuple(
            Snow(rate_mm_h=rate, terminal_velocity_m_s=velocity)
            for rate, velocity in ((0.5, 2.0), (1.0, 1.6), (2.5, 1.6))
        ),
        "beam_missing": tuple(BeamMissing(draws=number) for number in draws),
        "incomplete_echo": tuple(IncompleteEcho(share=share) for share in (0.75, 0.85, 0.95)),
        "cross_sensor": tuple(
            CrossSensor(lost_rings=tuple(np.arange(1, num_rings, step).astype(int).tolist())) for step in (4, 2, 1.33)
        ),
    }


def _train_ids(class_names: tuple[str, ...], *names: str) -> tuple[int, ...]:
    return tuple(class_names.index(name) for name in names)


_OF_NUSCENES, _OF_KITTI = NUSCENES_LABELS.class_names, KITTI_LABELS.class_names

BENCHMARKS = {
    "nuscenes": Benchmark(
        intensity_max=255.0,
        whole_intensities=True,
        num_rings=32,
        losable_rings=(2, 28),
        counted_from=0.0,
        ground=_train_ids(_OF_NUSCENES, "driveable_surface", "other_flat", "sidewalk"),
        vehicles=_train_ids(
            _OF_NUSCENES, "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "trailer", "truck"
        ),
        made={"fog": 41, "snow": 42, "crosstalk": 43},
        levels={
            **_levels(32, (0.2, 0.3, 0.7), (8, 16, 24)),
            # Robo3D's repository has the light strengths only.
            "motion_blur": (MotionBlur(std_m=0.2), None, None),
            "crosstalk": (Crosstalk(share=0.03), None, None),
        },
    ),
    "semantic_kitti": Benchmark(
        intensity_max=1.0,
        whole_intensities=False,
        num_rings=64,
        losable_rings=(4, 58),
        counted_from=5 / 255,
        ground=_train_ids(_OF_KITTI, "road", "parking", "sidewalk", "other-ground"),
        vehicles=_train_ids(_OF_KITTI, "car", "bicycle", "motorcycle", "truck", "other-vehicle"),
        made={"fog": 21, "snow": 22, "crosstalk": 23},
        levels={
            **_levels(64, (0.3, 0.3, 0.7), (16, 32, 48)),
            "motion_blur": tuple(MotionBlur(std_m=std) for std in (0.20, 0.25, 0.30)),
            "crosstalk": tuple(Crosstalk(share=share) for share in (0.006, 0.008, 0.010)),
        },
    ),
}
