"""Falling snow after Hahner et al., "LiDAR Snowfall Simulation for Robust 3D Object Detection", CVPR 2022."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .fog import overlap_of_receiver
from .ground import Line, weakest_returns
from .scan import Scan
from .strengths import Benchmark, Snow

BEAM_DIVERGENCE_RAD = 0.003
SNOW_DENSITY = 0.1  # density of a flake, relative to water
SNOW_REFLECTIVITY = 0.9
MM_H_PER_M_S = 3.6e6


def snow(scan: Scan, strength: Snow, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """Each beam returns the stronger of two echoes: its target, attenuated by the flakes, or the strongest flake.

    As in the paper, flakes are discs in the plane that a beam sweeps. A flake of diameter D at range R occludes q = D /
    (0.003 R) of the beam, and returns 0.9 q of full scale, less within a metre, where the receiver does not see all of
    the beam. The target returns its intensity times the product of all 1 - q. Returns below `noise_floor` times the
    line of `weakest_returns` are lost, except targets that were as weak in clear air: the lidar did detect them.

    Deviations: flakes are drawn for each beam separately, so that neighbouring beams do not share flakes; peaks of
    pulses are compared, and overlapping pulses are not added; intensities are taken as calibrated for range, as the
    lidars of both datasets give them; noise is estimated from the labelled ground; sizes of flakes follow from the
    snowfall rate, which the official code first converts to a rate of rain, so that its flakes are fewer and larger;
    the ring of nuScenes is kept, which Robo3D overwrites with a flag (kept, attenuated, scattered).
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
    """Lambda [1/m] of N(D) = N_0 exp(-Lambda D), diameters at a snowfall rate (Gunn and Marshall, J. Meteor. 1958)."""
    return 25.5 * rate_mm_h**-0.48 * 100


def flakes_per_m2(strength: Snow) -> float:
    """Number of discs per m2 of a plane through the snow, which cover the fraction of the air that snow fills.

    The fraction is the flux of water / (density × velocity of the flakes). It is the same in a plane as in the volume,
    whatever the sizes (Delesse).
    """
    filled = strength.rate_mm_h / (MM_H_PER_M_S * SNOW_DENSITY * strength.terminal_velocity_m_s)
    mean_area_m2 = np.pi / 4 * 2 / size_slope_per_m(strength.rate_mm_h) ** 2  # for exponentially distributed diameters
    return filled / mean_area_m2


class _Flakes(NamedTuple):
    """F flakes in the beams, ordered by beam."""

    beam: np.ndarray  # (F,) int64
    range_m: np.ndarray  # (F,)
    diameter_m: np.ndarray  # (F,)


def _flakes(range_m: np.ndarray, strength: Snow, rng: np.random.Generator) -> _Flakes:
    """Flakes between the lidar and targets at `range_m` (N,), uniform over each beam's area."""
    counts = rng.poisson(flakes_per_m2(strength) * BEAM_DIVERGENCE_RAD / 2 * range_m**2)
    beam = np.repeat(np.arange(len(range_m)), counts)
    along = np.sqrt(1 - rng.random(len(beam)))  # never 0
    diameter_m = rng.exponential(1 / size_slope_per_m(strength.rate_mm_h), len(beam))
    return _Flakes(beam, range_m[beam] * along, diameter_m)


def _strongest(beam: np.ndarray, returned: np.ndarray, num_beams: int) -> np.ndarray:
    """The flake with the strongest return in each beam, (num_beams,); -1 for a beam without flakes."""
    strongest = np.full(num_beams, -1)
    weakest_first = np.argsort(returned, kind="stable")
    strongest[beam[weakest_first]] = weakest_first  # the last of several assignments remains
    return strongest


def _noise(scan: Scan, range_m: np.ndarray, benchmark: Benchmark) -> Line:
    ground = np.isin(scan.labels, benchmark.ground)
    return weakest_returns(range_m[ground], scan.intensity[ground], benchmark.counted_from)
