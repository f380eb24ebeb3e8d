"""Wet ground after Hahner et al., "LiDAR Snowfall Simulation for Robust 3D Object Detection", CVPR 2022."""

from __future__ import annotations

import numpy as np

from .ground import MIN_POINTS, Line, cosine_of_incidence, weakest_returns
from .scan import Scan
from .strengths import Benchmark, WetGround

PAVEMENT_DEPTH_M = 0.0012  # of its texture: where water stands as high, it covers everything
POWER_FACTOR = 15  # a perfect reflector returns as many times what the ground usually does
WATER = 1.33  # refractive index
REFLECTED_INSIDE = 0.472  # of diffuse light that reaches the water's surface from below
GRAZING = 0.01  # smallest cosine of incidence


def wet_ground(scan: Scan, strength: WetGround, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """Ground under water is darker, at grazing angles above all, and lost where its return is below the noise.

    Water of height h covers min(1, h / 1.2 mm) of a textured pavement. Of what is covered, a smooth film mirrors its
    share away from the lidar (Fresnel), and the pavement below returns the rest (`film_gain`). Its reflectivity is its
    intensity over that of a perfect reflector, which is POWER_FACTOR times a line through intensity / cos over range.
    A return is lost below `noise_floor` times the line of `weakest_returns`.

    Ground is what is labelled as such, its normal that of a plane through it. Departures: coverage is in proportion to
    the height of the water, and the film is that of Lekner and Dorf, "Why some things are darker when wet" (Applied
    Optics, 1988). Nothing is random. A scan with fewer than 1000 ground points stays as it is.
    """
    ground = np.isin(scan.labels, benchmark.ground)
    if ground.sum() < MIN_POINTS:
        return scan
    range_m, intensity = scan.range_m[ground], scan.intensity[ground]
    cosine = np.clip(cosine_of_incidence(scan.xyz[ground]), GRAZING, 1)
    dry = intensity / cosine
    full = POWER_FACTOR * Line.fit(range_m, dry).at(range_m)
    reflectivity = np.divide(dry, full, out=np.zeros_like(dry), where=full > 0).clip(0, 1)
    covered = min(1.0, strength.water_height_m / PAVEMENT_DEPTH_M)
    wet = intensity * (1 - covered + covered * film_gain(cosine, reflectivity))
    floor = strength.noise_floor * weakest_returns(range_m, intensity, benchmark.counted_from).at(range_m)
    kept = np.ones(len(scan.points), dtype=bool)
    kept[ground] = wet >= floor
    return scan.changed(ground, intensity=np.minimum(wet, benchmark.intensity_max)).take(kept)


def film_gain(cosine: np.ndarray, reflectivity: np.ndarray) -> np.ndarray:
    """What a film of water leaves of the return of a Lambertian ground (G,): T(theta)^2 / (n^2 (1 - rho R_inside)).

    Light crosses the surface twice, spreads as it leaves the water, and some of it is thrown back to the ground.

    Args:
        cosine: (G,) of the angle of incidence theta.
        reflectivity: (G,) rho, of the dry ground.
    """
    return (1 - fresnel_reflectance(cosine)) ** 2 / (WATER**2 * (1 - reflectivity * REFLECTED_INSIDE))


def fresnel_reflectance(cosine: np.ndarray) -> np.ndarray:
    """(G,) share of unpolarised light that water mirrors, by the cosine of the angle of incidence (G,)."""
    refracted = np.sqrt(1 - (1 - cosine**2) / WATER**2)  # Snell's law
    across = (cosine - WATER * refracted) / (cosine + WATER * refracted)
    along = (WATER * cosine - refracted) / (WATER * cosine + refracted)
    return (across**2 + along**2) / 2
