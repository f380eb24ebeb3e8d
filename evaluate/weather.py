"""Fog, snow and wet ground on clear scans, for `scalr corrupt`: written from the papers, simpler than Robo3D's own.

Intensities are shares of the sensor's largest reading, 0 to 1, and range-compensated, as sensors report them: a
reading is the reflectance of what was hit. A return's power is its reading by the square of its range.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

LIGHT_SPEED = 299_792_458.0  # [m/s]
FOG_ATTENUATIONS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.06)  # alpha [1/m], one drawn for each scan
PULSE_HALF_WIDTH_S = 20e-9  # tau_H
FOG_GAMMA = 1e-6  # of the hard target's response, gamma / pi
FOG_REACH_M = 200.0
OVERLAP_M = (0.9, 1.0)  # between which the receiver begins to see the beam
SOFT_SPREAD = 0.1  # of the range of fog's returns, to both sides

BEAM_DIVERGENCE_RAD = 0.003
SNOW_DENSITY = 0.1  # of water's
SNOW_REFLECTANCE = 0.9
SMALLEST_READING = 0.01
SNOW_REACH_M = 15.0  # no flake farther away fills enough of a beam to be read

WATER_INDEX = 1.33
PAVEMENT_DEPTH_M = 0.0012  # of its texture: so much water covers all of it
MIN_GROUND_POINTS = 1000
RANGE_BINS = 20


class Weathered(NamedTuple):
    """A scan after the weather: N points in, M out."""

    xyz: np.ndarray  # (M, 3) float64 [m]
    reading: np.ndarray  # (M,) float64, 0 to 1
    kept: np.ndarray  # (M,) int64 rows of the clear scan
    scattered: np.ndarray  # (M,) bool: what was hit is not the target


def fog(xyz: np.ndarray, reading: np.ndarray, backscatter: float, rng: np.random.Generator) -> Weathered:
    """Fog after Hahner et al., ICCV 2021, equations 8 to 15: each beam returns the stronger of target and fog.

    The target is attenuated by exp(-2 alpha R). The fog's response is that of a sin^2 pulse scattered along the way,
    whose peak up to the target's range is tabulated over ranges.

    Args:
        xyz: (N, 3) [m] in the lidar frame.
        reading: (N,) 0 to 1.
        backscatter: beta.
        rng: draws alpha, and by how much the fog's returns lie off the peak of its response.
    """
    alpha = rng.choice(FOG_ATTENUATIONS)
    distance = np.linalg.norm(xyz, axis=1)
    peak, peak_at = _fog_response(alpha)
    step = FOG_REACH_M / (len(peak) - 1)
    index = np.minimum(distance / step, len(peak) - 1).astype(int)
    hard = reading * np.exp(-2 * alpha * distance)
    soft = reading * distance**2 * backscatter * math.pi / FOG_GAMMA * peak[index]
    scattered = soft > hard
    spread = rng.uniform(1 - SOFT_SPREAD, 1 + SOFT_SPREAD, len(xyz))
    hit_at = np.where(scattered, np.minimum(peak_at[index] * spread, distance), distance)
    shorter = np.divide(hit_at, distance, out=np.ones_like(distance), where=distance > 0)
    return Weathered(
        xyz * shorter[:, None], np.clip(np.where(scattered, soft, hard), 0, 1), np.arange(len(xyz)), scattered
    )


def _fog_response(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The strongest response of the fog up to each range of a table from 0 to FOG_REACH_M, and where that is [m]."""
    ranges = np.linspace(0, FOG_REACH_M, 2001)
    times = np.linspace(0, 2 * PULSE_HALF_WIDTH_S, 101)
    scattered_at = ranges[:, None] - LIGHT_SPEED * times / 2
    near, full = OVERLAP_M
    overlap = np.clip((scattered_at - near) / (full - near), 0, 1)
    at = np.maximum(scattered_at, near)  # where nothing overlaps, any number does
    pulse = np.sin(math.pi * times / (2 * PULSE_HALF_WIDTH_S)) ** 2
    response = np.trapz(pulse * overlap / at**2 * np.exp(-2 * alpha * at), times, axis=1)
    best = np.maximum.accumulate(response)
    at_best = ranges[np.maximum.accumulate(np.where(response >= best, np.arange(len(ranges)), 0))]
    return best, at_best


def snow(
    xyz: np.ndarray, reading: np.ndarray, rate_mm_h: float, terminal_velocity_m_s: float, rng: np.random.Generator
) -> Weathered:
    """Falling snow after Hahner et al., CVPR 2022: flakes that fill enough of a beam return it instead of the target.

    Diameters are exponential (Gunn & Marshall 1958, slope 2.29 rate^-0.45 per mm), and there are as many flakes as hold
    the snow that falls. Here flakes are drawn for each beam alone, up to SNOW_REACH_M, where the paper draws them in
    space; what they hide of the target is its mean.

    Args:
        xyz: (N, 3) [m] in the lidar frame.
        reading: (N,) 0 to 1.
        rate_mm_h: snowfall, as water.
        terminal_velocity_m_s: with which flakes fall.
    """
    slope = 2.29 * rate_mm_h**-0.45 * 1e3  # per metre of diameter
    volume_share = rate_mm_h / 3.6e6 / terminal_velocity_m_s / SNOW_DENSITY
    flakes_per_m3 = volume_share / (math.pi / slope**3)  # the mean flake has pi / 6 * 6 / slope^3
    distance = np.linalg.norm(xyz, axis=1)
    widening = BEAM_DIVERGENCE_RAD / 2
    reach = np.minimum(distance, SNOW_REACH_M)
    counts = rng.poisson(flakes_per_m3 * math.pi * widening**2 * reach**3 / 3)
    beam = np.repeat(np.arange(len(xyz)), counts)
    flake_at = reach[beam] * np.cbrt(rng.random(len(beam)))
    diameter = rng.exponential(1 / slope, len(beam))
    share = np.minimum(1, (diameter / 2 / (widening * np.maximum(flake_at, 1e-3))) ** 2)
    flake_reading = SNOW_REFLECTANCE * share
    hidden = flakes_per_m3 * math.pi / 4 * (2 / slope**2)  # share of the beam per metre
    target_reading = reading * np.exp(-2 * hidden * distance)
    power = np.where(flake_reading >= SMALLEST_READING, flake_reading / flake_at**2, 0.0) * (flake_at > OVERLAP_M[0])
    strongest = _strongest_of_each(power, beam, len(xyz))
    has_flake = strongest >= 0
    flake_power = np.where(has_flake, power[strongest] if len(power) else 0.0, 0.0)
    scattered = flake_power > target_reading / np.maximum(distance, 1e-3) ** 2
    result_at, result = distance.copy(), target_reading
    result_at[scattered] = flake_at[strongest[scattered]]
    result[scattered] = flake_reading[strongest[scattered]]
    shorter = np.divide(result_at, distance, out=np.ones_like(distance), where=distance > 0)
    return Weathered(xyz * shorter[:, None], result, np.arange(len(xyz)), scattered)


def _strongest_of_each(values: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """For each of `count` groups the index of its largest value, -1 where it has none; `group` is ascending."""
    order = np.lexsort((values, group))
    last = np.flatnonzero(np.diff(group[order], append=count))
    strongest = np.full(count, -1)
    strongest[group[order][last]] = order[last]
    return strongest


def wet_ground(
    xyz: np.ndarray, reading: np.ndarray, is_ground: np.ndarray, water_height_m: float, noise_floor: float
) -> Weathered:
    """A film of water after Hahner et al., CVPR 2022: ground points dim by Fresnel's law, and faint ones are lost.

    Flat earth: the angle of incidence follows from range and the ground's height. Water covers as much of the pavement
    as it fills of its texture; there light is transmitted into the water and out again, the rest goes on as a mirror's.
    The faintest readings of the ground in this scan, by a line over range, tell what the sensor can still detect.
    Nothing changes in a scan with fewer than MIN_GROUND_POINTS.

    Args:
        xyz: (N, 3) [m] in the lidar frame.
        reading: (N,) 0 to 1.
        is_ground: (N,) bool.
        water_height_m: of the film.
        noise_floor: share of the faintest dry readings below which a return is lost.
    """
    everything = Weathered(xyz, reading.copy(), np.arange(len(xyz)), np.zeros(len(xyz), dtype=bool))
    if is_ground.sum() < MIN_GROUND_POINTS:
        return everything
    distance = np.linalg.norm(xyz[is_ground], axis=1)
    height = abs(np.median(xyz[is_ground, 2]))
    cos_in = np.clip(height / np.maximum(distance, 1e-3), 1e-3, 1)
    covered = min(1.0, water_height_m / PAVEMENT_DEPTH_M)
    dry = reading[is_ground]
    wet = dry * (1 - covered + covered * transmission(cos_in) ** 2)
    everything.reading[is_ground] = wet
    lost = np.zeros(len(xyz), dtype=bool)
    lost[is_ground] = wet < noise_floor * _faintest(distance, dry)
    kept = np.flatnonzero(~lost)
    return Weathered(*(values[kept] for values in everything))


def transmission(cos_in: np.ndarray) -> np.ndarray:
    """The share of unpolarised light that goes from air into water (Fresnel), by the cosine of its incidence."""
    cos_out = np.sqrt(1 - (1 - cos_in**2) / WATER_INDEX**2)
    perpendicular = (cos_in - WATER_INDEX * cos_out) / (cos_in + WATER_INDEX * cos_out)
    parallel = (WATER_INDEX * cos_in - cos_out) / (WATER_INDEX * cos_in + cos_out)
    return 1 - (perpendicular**2 + parallel**2) / 2


def _faintest(distance: np.ndarray, reading: np.ndarray) -> np.ndarray:
    """At each distance, the faintest tenth of readings there, by a line fitted over bins of range."""
    edges = np.quantile(distance, np.linspace(0, 1, RANGE_BINS + 1))
    of_point = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, RANGE_BINS - 1)
    bins = [number for number in range(RANGE_BINS) if (of_point == number).any()]
    centres = [distance[of_point == number].mean() for number in bins]
    faint = [np.quantile(reading[of_point == number], 0.1) for number in bins]
    slope, offset = np.polyfit(centres, faint, 1) if len(bins) > 1 else (0.0, faint[0])
    return np.maximum(slope * distance + offset, 0)
