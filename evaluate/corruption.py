"""One scan under one of Robo3D's corruptions, and their strengths on each of its sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import sensor_faults as faults
from . import weather

# Light, moderate, heavy (Robo3D, create/). None: its repository does not say.
FOG_BACKSCATTER = (0.008, 0.05, 0.2)
WATER_HEIGHT_M = (0.0002, 0.0010, 0.0012)
SNOWFALL = ((0.5, 2.0), (1.0, 1.6), (2.5, 1.6))  # mm/h, terminal velocity [m/s]
ECHO_SHARE = (0.75, 0.85, 0.95)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How one of Robo3D's sets is made of its clean one."""

    columns: int  # of a scan file
    label_dtype: type
    brightest: float  # raw intensity
    rings: int
    losable: range  # rings that can go missing
    missing: tuple[int, int, int]  # how many do
    ring_step: tuple[float, float, float]  # every so many rings another sensor lacks one
    motion_blur_m: tuple[float | None, float | None, float | None]
    crosstalk_share: tuple[float | None, float | None, float | None]
    noise_floor: tuple[float, float, float]  # of wet ground
    ground: tuple[str, ...]
    vehicles: tuple[str, ...]
    added: dict[str, int]  # raw label of points that a corruption made or moved


BENCHMARKS = {
    "nuscenes": Benchmark(
        columns=5,
        label_dtype=np.uint8,
        brightest=255.0,
        rings=32,
        losable=range(2, 29),
        missing=(8, 16, 24),
        ring_step=(4, 2, 1.33),
        motion_blur_m=(0.2, None, None),
        crosstalk_share=(0.03, None, None),
        noise_floor=(0.2, 0.3, 0.7),
        ground=("driveable_surface", "other_flat", "sidewalk"),
        vehicles=("bicycle", "bus", "car", "construction_vehicle", "motorcycle", "trailer", "truck"),
        added={"fog": 41, "snow": 42, "crosstalk": 43},
    ),
    "semantic_kitti": Benchmark(
        columns=4,
        label_dtype=np.uint32,
        brightest=1.0,
        rings=64,
        losable=range(4, 59),
        missing=(16, 32, 48),
        ring_step=(4, 2, 1.33),
        motion_blur_m=(0.20, 0.25, 0.30),
        crosstalk_share=(0.006, 0.008, 0.010),
        noise_floor=(0.3, 0.3, 0.7),
        ground=("road", "parking", "sidewalk", "other-ground"),
        vehicles=("car", "bicycle", "motorcycle", "truck", "other-vehicle"),
        added={"fog": 21, "snow": 22, "crosstalk": 23},
    ),
}


@dataclass(frozen=True, eq=False)
class RawScan:
    """A scan as its file has it."""

    values: np.ndarray  # (N, columns) float32: x y z [m], raw intensity, and the ring where the file has it
    raw_labels: np.ndarray  # (N,) as in the file
    labels: np.ndarray  # (N,) uint8 train ids
    ring: np.ndarray  # (N,) int64


def corrupted(
    scan: RawScan, corruption: str, strength, benchmark: Benchmark, class_names: Sequence[str], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One scan under one corruption: values (M, columns) float32 and raw labels (M,); at least one point stays."""
    values, raw_labels = scan.values.copy(), scan.raw_labels.copy()
    xyz, reading = values[:, :3].astype(np.float64), np.clip(values[:, 3] / benchmark.brightest, 0, 1).astype(float)
    kept = np.arange(len(values))
    if corruption == "motion_blur":
        values[:, :3] = faults.motion_blur(xyz, strength, rng)
    elif corruption == "beam_missing":
        kept = np.flatnonzero(faults.beam_missing(scan.ring, strength, benchmark.losable, rng))
    elif corruption == "crosstalk":
        rows, noise = faults.crosstalk(len(values), strength, rng)
        values[rows, :4] += noise
        values[rows, 3] = np.clip(values[rows, 3], 0, benchmark.brightest)
        raw_labels[rows] = benchmark.added["crosstalk"]
    elif corruption == "incomplete_echo":
        vehicles = [class_names.index(name) for name in benchmark.vehicles]
        kept = np.flatnonzero(faults.incomplete_echo(scan.labels, strength, vehicles, rng))
    elif corruption == "cross_sensor":
        kept = faults.cross_sensor(scan.ring, np.arange(1, benchmark.rings, strength).astype(int).tolist())
    else:
        weathered = _weathered(scan, xyz, reading, corruption, strength, benchmark, class_names, rng)
        kept = weathered.kept
        changed = (weathered.xyz != xyz[kept]).any(axis=1) | (weathered.reading != reading[kept])
        values[kept[changed], :3] = weathered.xyz[changed]
        values[kept[changed], 3] = weathered.reading[changed] * benchmark.brightest
        if corruption in benchmark.added:
            raw_labels[kept[weathered.scattered]] = benchmark.added[corruption]
    kept = kept if len(kept) else np.arange(1)
    return values[kept], raw_labels[kept]


def _weathered(
    scan: RawScan,
    xyz: np.ndarray,
    reading: np.ndarray,
    corruption: str,
    strength,
    benchmark: Benchmark,
    class_names: Sequence[str],
    rng: np.random.Generator,
) -> weather.Weathered:
    if corruption == "fog":
        return weather.fog(xyz, reading, strength, rng)
    if corruption == "snow":
        return weather.snow(xyz, reading, *strength, rng)
    is_ground = np.isin(scan.labels, [class_names.index(name) for name in benchmark.ground])
    return weather.wet_ground(xyz, reading, is_ground, *strength)
