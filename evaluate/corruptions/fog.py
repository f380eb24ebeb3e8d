"""Fog after Hahner et al., "Fog Simulation on Real LiDAR Point Clouds in Adverse Weather", ICCV 2021."""

from __future__ import annotations

import functools

import numpy as np
from scipy.integrate import simpson

from .scan import Scan
from .strengths import Benchmark, Fog

LIGHT_SPEED_M_S = 299_792_458.0
ALPHAS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.06)  # attenuation coefficients [1/m], one drawn for each scan
HALF_PULSE_S = 20e-9  # tau_H, the pulse's width at half of its power
BETA_0 = 1e-6 / np.pi  # differential reflectivity of every hard target: gamma / pi
BLIND_M, SEEN_M = 0.9, 1.0  # the receiver sees nothing of the beam up to the first range, all of it from the second
FARTHEST_M, STEP_M = 200.0, 0.1
PULSE_SAMPLES = 401
NOISE_M = 10.0


def fog(scan: Scan, strength: Fog, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """Each beam returns the stronger of two echoes: its attenuated target, or the fog in front of it.

    The paper's Algorithm 1, for a target at R0 with intensity i:

        i_hard = i exp(-2 alpha R0)
        i_soft = max over R <= R0 of  i R0^2 beta / beta_0  I(R)

    with I(R) of `soft_response`. If i_soft > i_hard, the point moves along its beam to R r / r', with r' drawn from
    R0 - 10 m to R0 + 10 m. Deviations: r' is drawn from R on if R is farther than R0 - 10 m, so that no point moves
    away from the lidar or behind it; and the integral is evaluated here instead of read from published tables.

    Points that move get the fog's raw label. Intensities of nuScenes' hard targets are rounded, as in Robo3D.
    """
    alpha = float(rng.choice(ALPHAS))
    range_m, intensity = scan.range_m, scan.intensity
    hard = intensity * np.exp(-2 * alpha * range_m)
    if benchmark.whole_intensities:
        hard = np.round(hard)
    response, peak_m = nearest_peak(range_m, alpha)
    soft = np.minimum(intensity * range_m**2 * strength.beta / BETA_0 * response, benchmark.intensity_max)
    drawn_m = rng.uniform(np.maximum(range_m - NOISE_M, peak_m), range_m + NOISE_M)
    moved = soft > hard
    nearer = peak_m[moved] / drawn_m[moved]
    foggy = scan.changed(slice(None), intensity=np.where(moved, soft, hard))
    return foggy.changed(moved, xyz=scan.xyz[moved] * nearer[:, None]).relabelled(moved, benchmark.made["fog"])


def nearest_peak(range_m: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The largest I(R) of `soft_response` in front of targets at `range_m` (N,), and its R [m]: both (N,)."""
    response, largest = _response_table(alpha)
    row = np.minimum(range_m / STEP_M, len(response) - 1).astype(np.int64)
    return response[largest[row]], largest[row] * STEP_M


def soft_response(range_m: np.ndarray, alpha: float) -> np.ndarray:
    """I(R) (N,) of fog along the beam, for R (N,) [m]: the paper's integral, by Simpson's rule.

        I(R) = integral from 0 to 2 tau_H of  sin^2(pi t / (2 tau_H)) exp(-2 alpha r) / r^2 xi(r) dt,  r = R - c t / 2

    xi is the overlap of beam and receiver: 0 up to 0.9 m, 1 from 1 m on. A target beyond R does not change I(R).
    """
    time_s = np.linspace(0, 2 * HALF_PULSE_S, PULSE_SAMPLES)
    r = np.asarray(range_m)[:, None] - LIGHT_SPEED_M_S * time_s / 2
    overlap = overlap_of_receiver(r)
    r = np.maximum(r, BLIND_M)  # the overlap is 0 at smaller ranges
    pulse = np.sin(np.pi * time_s / (2 * HALF_PULSE_S)) ** 2
    return simpson(pulse * np.exp(-2 * alpha * r) / r**2 * overlap, x=time_s, axis=1)


def overlap_of_receiver(range_m: np.ndarray) -> np.ndarray:
    """xi: the fraction of the beam at these ranges that the receiver sees, from 0 to 1."""
    return np.clip((range_m - BLIND_M) / (SEEN_M - BLIND_M), 0, 1)


@functools.lru_cache(maxsize=len(ALPHAS))
def _response_table(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """I(R) at multiples of STEP_M, and for each multiple the row of the largest I up to it."""
    rows = np.arange(round(FARTHEST_M / STEP_M) + 1)
    response = soft_response(rows * STEP_M, alpha)
    largest = np.maximum.accumulate(response)
    return response, np.maximum.accumulate(np.where(response >= largest, rows, 0))
