"""Wet ground after Hahner et al., "LiDAR Snowfall Simulation for Robust 3D Object Detection", CVPR 2022."""

from __future__ import annotations

import numpy as np

from .ground import MIN_POINTS, Line, cosine_of_incidence, weakest_returns
from .scan import Scan
from .strengths import Benchmark, WetGround

PAVEMENT_DEPTH_M = 0.0012  # depth of the pavement's texture: water of this height covers everything
POWER_FACTOR = 15  # return of a perfect reflector / usual return of the ground
WATER = 1.33  # refractive index
REFLECTED_INSIDE = 0.472  # fraction of diffuse light that the water's surface reflects from below
GRAZING = 0.01  # smallest cosine of incidence


def wet_ground(scan: Scan, strength: WetGround, benchmark: Benchmark, rng: np.random.Generator) -> Scan:
    """Darken wet ground, most at grazing angles, and remove returns below the noise.

    Water of height h covers min(1, h / 1.2 mm) of a textured pavement. On the covered part, a smooth film reflects a
    fraction of the light away from the lidar (Fresnel), and the pavement below returns the rest (`film_gain`). The
    reflectivity of the pavement is its intensity / the intensity of a perfect reflector, which is POWER_FACTOR times a
    line through intensity / cos over range. Returns below `noise_floor` times the line of `weakest_returns` are lost.

    Ground points are those labelled as ground; the normal is that of a plane through them. Deviations: coverage is
    proportional to the height of the water, and the film is that of Lekner and Dorf, "Why some things are darker when
    wet" (Applied Optics, 1988). Nothing is random. A scan with fewer than 1000 ground points is not changed.
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
    """Fraction (G,) of a Lambertian ground's return through a film of water: T(theta)^2 / (n^2 (1 - rho R_inside)).

    Light crosses the surface twice, spreads as it leaves the water, and is partly reflected back to the ground.

    Args:
        cosine: (G,) cosine of the angle of incidence theta.
        reflectivity: (G,) rho, reflectivity of the dry ground.
    """
    return (1 - fresnel_reflectance(cosine)) ** 2 / (WATER**2 * (1 - reflectivity * REFLECTED_INSIDE))


def fresnel_reflectance(cosine: np.ndarray) -> np.ndarray:
    """Fraction (G,) of unpolarised light that water reflects, by the cosine of the angle of incidence (G,)."""
    refracted = np.sqrt(1 - (1 - cosine**2) / WATER**2)  # Snell's law
    across = (cosine - WATER * refracted) / (cosine + WATER * refracted)
    along = (WATER * cosine - refracted) / (WATER * cosine + refracted)
    return (across**2 + along**2) / 2
