"""Falling snow after Hahner et al., "LiDAR Snowfall Simulation for Robust 3D Object Detection", CVPR 2022."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .fog import overlap_of_receiver
from .ground import Line, weakest_returns
from .scan import Scan
from .strengths import Benchmark, Snow

BEAM_DIVERGENCE_RAD = 0.003
SNOW_DENSITY = 0.1  # of a flake, relative to water
SNOW_REFLECTIVITY = 0.9
MM_H_PER_M_S = 3.6e6


def snow(scan: Scan, strength: Snow, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """A beam returns what is stronger: its target, as far as flakes let light through, or the strongest flake.

    As in the paper, flakes are discs in the plane that a beam sweeps. One of diameter D at range R hides q = D /
    (0.003 R) of the beam, and returns 0.9 q of full scale, less within a metre, where the receiver does not see all of
    the beam; the target returns the product of all 1 - q of its intensity. Neither is heard below `noise_floor` times
    the line of `weakest_returns`, but targets that were as weak in clear air stay: the lidar did hear them.

    Departures: flakes are drawn for each beam by itself, so that neighbouring beams do not share any; peaks of pulses
    are compared, overlapping ones are not added up; intensities are taken as calibrated for range, as the lidars of
    both datasets give them; noise is judged by the labelled ground; sizes of flakes follow from the rate itself, which
    the official code turns into one of rain first, so that its flakes are fewer and larger. Robo3D overwrites
    the ring of nuScenes with a flag (kept, attenuated, scattered): here it stays.
    """
    range_m, clear = scan.range_m, scan.intensity
    noise = _noise(scan, range_m, benchmark)
    flakes = _flakes(range_m, strength, rng)
    share = np.minimum(flakes.diameter_m / (BEAM_DIVERGENCE_RAD * flakes.range_m), 1 - 1e-9)
    passing = np.exp(np.bincount(flakes.beam, weights=np.log1p(-share), minlength=len(range_m)))
    target = clear * passing
    returned = benchmark.intensity_max * SNOW_REFLECTIVITY * share * overlap_of_receiver(flakes.range_m)
    returned[returned < strength.noise_floor * noise.at(flakes.range_m)] = 0
    strongest = _strongest(flakes.beam, returned, len(range_m))
    hit = np.flatnonzero(strongest >= 0)
    scattered = hit[returned[strongest[hit]] > target[hit]]
    flake = strongest[scattered]
    floor = strength.noise_floor * noise.at(range_m)
    kept = (target >= floor) | (clear < floor)
    kept[scattered] = True
    nearer = flakes.range_m[flake] / range_m[scattered]
    weakened = passing < 1
    snowy = scan.changed(weakened, intensity=target[weakened])
    snowy = snowy.changed(scattered, xyz=scan.xyz[scattered] * nearer[:, None], intensity=returned[flake])
    return snowy.relabelled(scattered, benchmark.made["snow"]).take(kept)


def size_slope_per_m(rate_mm_h: float) -> float:
    """Lambda [1/m] of N(D) = N_0 exp(-Lambda D): diameters of snow of a rate (Gunn and Marshall, J. Meteor. 1958)."""
    return 25.5 * rate_mm_h**-0.48 * 100


def flakes_per_m2(strength: Snow) -> float:
    """How many discs a plane through the snow has, so that they cover the share of it that snow fills of the air.

    That share is the flux of water over the flakes' density and velocity; a plane shows it, whatever the sizes
    (Delesse).
    """
    filled = strength.rate_mm_h / (MM_H_PER_M_S * SNOW_DENSITY * strength.terminal_velocity_m_s)
    mean_area_m2 = np.pi / 4 * 2 / size_slope_per_m(strength.rate_mm_h) ** 2  # of exponential diameters
    return filled / mean_area_m2


class _Flakes(NamedTuple):
    """F flakes in the beams, those of a beam together."""

    beam: np.ndarray  # (F,) int64
    range_m: np.ndarray  # (F,)
    diameter_m: np.ndarray  # (F,)


def _flakes(range_m: np.ndarray, strength: Snow, rng: np.random.Generator) -> _Flakes:
    """Flakes between the lidar and targets at `range_m` (N,), evenly over each beam's area."""
    counts = rng.poisson(flakes_per_m2(strength) * BEAM_DIVERGENCE_RAD / 2 * range_m**2)
    beam = np.repeat(np.arange(len(range_m)), counts)
    along = np.sqrt(1 - rng.random(len(beam)))  # never 0
    diameter_m = rng.exponential(1 / size_slope_per_m(strength.rate_mm_h), len(beam))
    return _Flakes(beam, range_m[beam] * along, diameter_m)


def _strongest(beam: np.ndarray, returned: np.ndarray, num_beams: int) -> np.ndarray:
    """(num_beams,) the flake that returns most in each beam, -1 where there is none."""
    strongest = np.full(num_beams, -1)
    weakest_first = np.argsort(returned, kind="stable")
    strongest[beam[weakest_first]] = weakest_first  # of several assignments the last one stays
    return strongest


def _noise(scan: Scan, range_m: np.ndarray, benchmark: Benchmark) -> Line:
    ground = np.isin(scan.labels, benchmark.ground)
    return weakest_returns(range_m[ground], scan.intensity[ground], benchmark.counted_from)
