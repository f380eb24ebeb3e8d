from __future__ import annotations

import json
import shutil
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scalr.errors import DatasetError, ScalrError
from scalr.evaluate import corrupt as module
from scalr.evaluate.corrupt import CorruptConfig, corrupt
from scalr.evaluate.corruptions import BENCHMARKS, CORRUPT, Scan, Strength, levels_of
from scalr.evaluate.corruptions.fog import nearest_peak, soft_response
from scalr.evaluate.corruptions.ground import Line, cosine_of_incidence, weakest_returns
from scalr.evaluate.corruptions.scan import rings_by_turns
from scalr.evaluate.corruptions.snow import flakes_per_m2, size_slope_per_m
from scalr.evaluate.corruptions.strengths import Crosstalk, MotionBlur, WetGround
from scalr.evaluate.corruptions.wet_ground import film_gain, fresnel_reflectance
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.corruptions import CORRUPTIONS, MANIFEST, SEVERITIES
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.nuscenes import LABELS as NUSCENES_LABELS
from scalr.extract.datasets.scans import read_labelled_scan
from scalr.extract.datasets.semantic_kitti import LABELS as KITTI_LABELS

GIVEN = {"motion_blur_m": (0.2, 0.3, 0.4), "crosstalk_share": (0.03, 0.06, 0.1)}  # for tests: nothing is published
HEAVY = 2
names = pytest.mark.parametrize("name", BENCHMARKS)
corruptions = pytest.mark.parametrize("corruption", CORRUPTIONS)

# The generators of Robo3D, create/nuscenes_c and create/semantickitti_c: light, moderate, heavy; None where they have
# no value. The rings that another sensor lacks have a test of their own.
PUBLISHED_STRENGTHS = {
    "nuscenes": {
        "fog": [{"beta": 0.008}, {"beta": 0.05}, {"beta": 0.2}],
        "wet_ground": [
            {"water_height_m": 0.0002, "noise_floor": 0.2},
            {"water_height_m": 0.0010, "noise_floor": 0.3},
            {"water_height_m": 0.0012, "noise_floor": 0.7},
        ],
        "snow": [
            {"rate_mm_h": 0.5, "terminal_velocity_m_s": 2.0, "noise_floor": 0.7},
            {"rate_mm_h": 1.0, "terminal_velocity_m_s": 1.6, "noise_floor": 0.7},
            {"rate_mm_h": 2.5, "terminal_velocity_m_s": 1.6, "noise_floor": 0.7},
        ],
        "motion_blur": [{"std_m": 0.20}, None, None],
        "beam_missing": [{"draws": 8}, {"draws": 16}, {"draws": 24}],
        "crosstalk": [{"share": 0.03}, None, None],
        "incomplete_echo": [{"share": 0.75}, {"share": 0.85}, {"share": 0.95}],
    },
    "semantic_kitti": {
        "fog": [{"beta": 0.008}, {"beta": 0.05}, {"beta": 0.2}],
        "wet_ground": [
            {"water_height_m": 0.0002, "noise_floor": 0.3},
            {"water_height_m": 0.0010, "noise_floor": 0.3},
            {"water_height_m": 0.0012, "noise_floor": 0.7},
        ],
        "snow": [
            {"rate_mm_h": 0.5, "terminal_velocity_m_s": 2.0, "noise_floor": 0.7},
            {"rate_mm_h": 1.0, "terminal_velocity_m_s": 1.6, "noise_floor": 0.7},
            {"rate_mm_h": 2.5, "terminal_velocity_m_s": 1.6, "noise_floor": 0.7},
        ],
        "motion_blur": [{"std_m": 0.20}, {"std_m": 0.25}, {"std_m": 0.30}],
        "beam_missing": [{"draws": 16}, {"draws": 32}, {"draws": 48}],
        "crosstalk": [{"share": 0.006}, {"share": 0.008}, {"share": 0.010}],
        "incomplete_echo": [{"share": 0.75}, {"share": 0.85}, {"share": 0.95}],
    },
}
PUBLISHED_FACTS = {  # likewise; classes by their names
    "nuscenes": {
        "intensity_max": 255,
        "whole_intensities": True,
        "num_rings": 32,
        "losable_rings": (2, 28),
        "counted_from": 0,
        "made": {"fog": 41, "snow": 42, "crosstalk": 43},
        "ground": {"driveable_surface", "other_flat", "sidewalk"},
        "vehicles": {"bicycle", "bus", "car", "construction_vehicle", "motorcycle", "trailer", "truck"},
    },
    "semantic_kitti": {
        "intensity_max": 1,
        "whole_intensities": False,
        "num_rings": 64,
        "losable_rings": (4, 58),
        "counted_from": 5 / 255,
        "made": {"fog": 21, "snow": 22, "crosstalk": 23},
        "ground": {"road", "parking", "sidewalk", "other-ground"},
        "vehicles": {"car", "bicycle", "motorcycle", "truck", "other-vehicle"},
    },
}
FOG_ALPHAS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.06)  # [1/m], of the same generators
GROUND_BELOW_M = 1.8


def street(name: str, num_points: int = 20_000, seed: int = 0) -> Scan:
    """Half flat road 1.8 m below the lidar, then vehicles of every class, and walls; weak returns everywhere."""
    rng, benchmark = np.random.default_rng(seed), BENCHMARKS[name]
    range_m, azimuth = rng.uniform(2, 60, num_points), rng.uniform(-np.pi, np.pi, num_points)
    kind = rng.choice(3, num_points, p=(0.5, 0.2, 0.3))
    z = np.where(kind == 0, -1.8, rng.uniform(-1.5, 4, num_points))
    across = np.sqrt(np.maximum(range_m**2 - z**2, 0.1))
    reflectivity = np.where(kind == 0, rng.uniform(0.02, 0.1, num_points), rng.uniform(0, 1, num_points) ** 3)
    intensity = reflectivity * benchmark.intensity_max
    intensity = np.round(intensity) if benchmark.whole_intensities else np.round(intensity, 2)
    other = max(*benchmark.ground, *benchmark.vehicles) + 2
    labels = np.select([kind == 0, kind == 1], [benchmark.ground[0], rng.choice(benchmark.vehicles, num_points)], other)
    is_kitti = name == "semantic_kitti"
    return Scan(
        points=np.column_stack([across * np.cos(azimuth), across * np.sin(azimuth), z, intensity]).astype(np.float32),
        ring=rng.integers(0, benchmark.num_rings, num_points),
        labels=labels.astype(np.uint8),
        raw_labels=labels.astype(np.uint32) + 100 + (7 << 16) if is_kitti else labels.astype(np.uint8) + np.uint8(1),
    )


def scan_of(name: str, xyz: np.ndarray, reflectivity: np.ndarray, labels: np.ndarray) -> Scan:
    """Points with intensities of full scale times `reflectivity`; their rings are their rows, which tell lost ones."""
    intensity = reflectivity * BENCHMARKS[name].intensity_max
    return Scan(
        points=np.column_stack([xyz, intensity]).astype(np.float32),
        ring=np.arange(len(xyz)),
        labels=labels.astype(np.uint8),
        raw_labels=labels.astype(np.uint32) + 1,
    )


def targets_ahead(name: str, range_m: np.ndarray, reflectivity: np.ndarray) -> Scan:
    """Vehicles on the x axis."""
    xyz = np.asarray(range_m, np.float64)[:, None] * [1.0, 0.0, 0.0]
    return scan_of(name, xyz, reflectivity, np.full(len(xyz), BENCHMARKS[name].vehicles[0]))


def flat_ground(name: str, range_m: np.ndarray, reflectivity: np.ndarray) -> Scan:
    """Ground in every direction; all on one plane."""
    azimuth = 2.4 * np.arange(len(range_m))
    across = np.sqrt(range_m**2 - GROUND_BELOW_M**2)
    xyz = np.column_stack([across * np.cos(azimuth), across * np.sin(azimuth), np.full(len(range_m), -GROUND_BELOW_M)])
    return scan_of(name, xyz, reflectivity, np.full(len(xyz), BENCHMARKS[name].ground[0]))


def joined(*scans: Scan) -> Scan:
    fields = {f: np.concatenate([getattr(scan, f) for scan in scans]) for f in ("points", "labels", "raw_labels")}
    return Scan(**fields, ring=np.arange(len(fields["points"])))


def strength_of(name: str, corruption: str, level: int) -> Strength:
    given = GIVEN if name == "nuscenes" else {"motion_blur_m": None, "crosstalk_share": None}
    return levels_of(BENCHMARKS[name], **given)[corruption][level]


def applied(scan: Scan, name: str, corruption: str, level: int, seed: int = 3) -> Scan:
    strength = strength_of(name, corruption, level)
    return CORRUPT[corruption](scan, strength, BENCHMARKS[name], np.random.default_rng(seed))


def made(scan: Scan, name: str, corruption: str) -> np.ndarray:
    """(N,) the points that a corruption says it has made or moved."""
    return scan.raw_labels == BENCHMARKS[name].made[corruption]


def assert_same(ours: Scan, theirs: Scan) -> None:
    for field in ("points", "ring", "labels", "raw_labels"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


@names
@corruptions
@pytest.mark.parametrize("level", range(3))
def test_what_comes_out_is_a_scan(name, corruption, level):
    clean = street(name)
    before = {field: getattr(clean, field).copy() for field in ("points", "ring", "labels", "raw_labels")}
    scan = applied(clean, name, corruption, level)
    count = len(scan.points)
    assert 0 < count <= len(clean.points)
    assert scan.points.shape == (count, 4)
    assert scan.points.dtype == np.float32
    assert np.isfinite(scan.points).all()
    assert (scan.points[:, 3] >= 0).all()
    assert scan.points[:, 3].max() <= BENCHMARKS[name].intensity_max
    assert len(scan.ring) == len(scan.labels) == len(scan.raw_labels) == count
    assert scan.raw_labels.dtype == clean.raw_labels.dtype
    assert_same(scan, applied(clean, name, corruption, level))
    for field, values in before.items():
        np.testing.assert_array_equal(getattr(clean, field), values)


@names
@corruptions
def test_one_point_can_be_corrupted(name, corruption):
    one = street(name).take(np.array([0]))
    on_lost_ring = replace(one, ring=np.array([1]), labels=np.array([BENCHMARKS[name].vehicles[0]], np.uint8))
    for level in range(3):
        assert len(applied(on_lost_ring, name, corruption, level).points) == 1


@names
def test_heavier_is_worse(name):
    clean = street(name)
    levels = {corruption: [applied(clean, name, corruption, level) for level in range(3)] for corruption in CORRUPTIONS}
    for corruption in ("wet_ground", "beam_missing", "incomplete_echo", "cross_sensor"):
        light, moderate, heavy = (len(scan.points) for scan in levels[corruption])
        assert len(clean.points) >= light >= moderate > heavy, corruption
    for corruption in ("fog", "snow", "crosstalk"):
        light, moderate, heavy = (made(scan, name, corruption).mean() for scan in levels[corruption])
        assert 0 < light < moderate < heavy < 0.9, corruption
    for corruption in ("fog", "snow"):
        light, moderate, heavy = (scan.range_m.mean() for scan in levels[corruption])
        assert clean.range_m.mean() > light > moderate > heavy, corruption
    moved = [np.abs(scan.xyz - clean.xyz).mean() for scan in levels["motion_blur"]]
    assert moved == sorted(moved)
    road = BENCHMARKS[name].ground[0]
    dims = [scan.points[scan.labels == road, 3].sum() for scan in (clean, *levels["wet_ground"])]
    assert dims == sorted(dims, reverse=True)


@names
def test_strengths_are_the_published_ones(name):
    levels = BENCHMARKS[name].levels
    found = {
        corruption: [None if strength is None else asdict(strength) for strength in levels[corruption]]
        for corruption in CORRUPTIONS
        if corruption != "cross_sensor"
    }
    assert found == PUBLISHED_STRENGTHS[name]


@names
def test_what_is_known_of_a_benchmark_is_the_published(name):
    class_names = {"nuscenes": NUSCENES_LABELS, "semantic_kitti": KITTI_LABELS}[name].class_names
    expected = dict(PUBLISHED_FACTS[name])
    for group in ("ground", "vehicles"):
        assert {class_names[train_id] for train_id in getattr(BENCHMARKS[name], group)} == expected.pop(group)
    assert {fact: getattr(BENCHMARKS[name], fact) for fact in expected} == expected


# --- fog -------------------------------------------------------------------------------------------------------------


def summed_response(ranges: np.ndarray, alpha: float, steps: int) -> np.ndarray:
    """I(R) of the paper: a sum over a pulse of 2 tau_H, tau_H = 20 ns, and an overlap that grows from 0.9 m to 1 m."""
    time_s = (np.arange(steps) + 0.5) * 4e-8 / steps
    pulse = np.sin(np.pi * time_s / 4e-8) ** 2
    summed = []
    for at in ranges:
        r = at - 299_792_458 * time_s / 2
        seen = r > 0.9
        overlap = np.minimum(10 * (r[seen] - 0.9), 1)
        summed.append((pulse[seen] * np.exp(-2 * alpha * r[seen]) / r[seen] ** 2 * overlap).sum() * 4e-8 / steps)
    return np.array(summed)


@pytest.mark.parametrize("alpha", [0.0, 0.06])
def test_the_soft_response_is_the_papers_integral(alpha):
    """Against sums over a pulse of 20,000 steps; the table's peak against a search of all ranges before the target."""
    ranges = np.arange(0.0, 30, 0.7)
    np.testing.assert_allclose(
        soft_response(ranges, alpha), summed_response(ranges, alpha, 20_000), rtol=2e-3, atol=1e-13
    )
    for target_m in (0.5, 2.0, 3.0, 25.0, 500.0):
        grid = np.arange(int(min(target_m, 200) * 10 + 1e-6) + 1) * 0.1
        expected = soft_response(grid, alpha)
        response, peak_m = nearest_peak(np.array([target_m]), alpha)
        assert response[0] == pytest.approx(expected.max())
        assert soft_response(peak_m, alpha)[0] == pytest.approx(expected.max())
        assert peak_m[0] <= target_m


@names
@given(seed=st.integers(0, 200), level=st.integers(0, 2))
def test_fog_moves_points_along_their_beams_towards_the_lidar(name, seed, level):
    clean = street(name, 300)
    foggy = applied(clean, name, "fog", level, seed)
    moved = made(foggy, name, "fog")
    assert (foggy.range_m <= clean.range_m * (1 + 1e-6)).all()
    assert (foggy.range_m > 0).all()
    cosine = (foggy.xyz * clean.xyz).sum(axis=1) / foggy.range_m / clean.range_m
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    np.testing.assert_array_equal(foggy.points[~moved, :3], clean.points[~moved, :3])
    assert (foggy.points[~moved, 3] <= clean.points[~moved, 3]).all()
    np.testing.assert_array_equal(foggy.raw_labels[~moved], clean.raw_labels[~moved])
    assert (foggy.labels[moved] == IGNORE_LABEL).all()


@names
def test_targets_in_fog_are_attenuated_by_one_alpha(name):
    """By exp(-2 alpha R), alpha one of Robo3D's six for a whole scan; intensities of nuScenes stay whole numbers."""
    clean = targets_ahead(name, np.linspace(2, 10, 100), np.full(100, 0.8))
    off = 0.5001 if name == "nuscenes" else 1e-6
    found = []
    for seed in range(60):
        foggy = applied(clean, name, "fog", 0, seed)
        assert not made(foggy, name, "fog").any()
        if name == "nuscenes":
            assert (foggy.intensity % 1 == 0).all()
        fits = [
            alpha
            for alpha in FOG_ALPHAS
            if np.abs(foggy.intensity - clean.intensity * np.exp(-2 * alpha * clean.range_m)).max() <= off
        ]
        assert len(fits) == 1
        found += fits
    assert set(found) == set(FOG_ALPHAS)


@names
@pytest.mark.parametrize("level", range(3))
def test_a_beam_in_fog_returns_the_stronger_of_target_and_fog(name, level):
    """The paper's Algorithm 1, the fog's noise of 10 m included."""
    benchmark, beta = BENCHMARKS[name], (0.008, 0.05, 0.2)[level]
    range_m = np.tile(np.linspace(3, 80, 500), 3)
    clean = targets_ahead(name, range_m, np.repeat([0.0, 0.2, 0.8], 500))
    grid, shares = np.arange(3, 90) / 10, []
    for seed in range(4):
        foggy = applied(clean, name, "fog", level, seed)
        moved = made(foggy, name, "fog")
        fits = 0
        for alpha in FOG_ALPHAS:
            responses = np.maximum.accumulate(summed_response(grid, alpha, 1000))
            response = responses[np.minimum(range_m * 10 - 3 + 1e-6, len(grid) - 1).astype(int)]
            hard = clean.intensity * np.exp(-2 * alpha * range_m)
            hard = np.round(hard) if name == "nuscenes" else hard
            soft = np.minimum(clean.intensity * range_m**2 * beta * np.pi / 1e-6 * response, benchmark.intensity_max)
            clear = (np.abs(soft - hard) > 0.01 * hard) | (clean.intensity == 0)
            stronger = np.maximum(soft, hard)
            fits += np.allclose(foggy.intensity[clear], stronger[clear], rtol=2e-3) and np.array_equal(
                moved[clear], (soft > hard)[clear]
            )
        assert fits == 1
        peak_m = nearest_peak(range_m, max(FOG_ALPHAS))[1][moved]
        drawn_m = peak_m * range_m[moved] / foggy.range_m[moved]
        nearest_m = np.maximum(range_m[moved] - 10, peak_m)
        shares.extend((drawn_m - nearest_m) / (range_m[moved] + 10 - nearest_m))
    assert 0 <= min(shares) < max(shares) <= 1
    np.testing.assert_allclose(np.percentile(shares, [1, 25, 50, 75, 99]), [0.01, 0.25, 0.5, 0.75, 0.99], atol=0.03)


# --- wet ground and snow ---------------------------------------------------------------------------------------------


def test_fresnel_at_the_angles_that_one_knows():
    brewster = np.cos(np.arctan(1.33))
    across = np.sin(2 * np.arctan(1.33) - np.pi / 2) ** 2  # there, all that is reflected is polarised
    found = fresnel_reflectance(np.array([1.0, brewster, 1e-9]))
    np.testing.assert_allclose(found, [(0.33 / 2.33) ** 2, across / 2, 1], atol=1e-6)


def test_film_returns_less_the_flatter_the_beam_and_the_darker_the_ground():
    cosine = np.linspace(0.01, 1, 50)
    for reflectivity in (0.0, 0.1, 0.5):
        gain = film_gain(cosine, np.full(50, reflectivity))
        assert (np.diff(gain) > 0).all()
        assert 0 < gain[0] < gain[-1] < 1
    assert film_gain(cosine, np.full(50, 0.1))[-1] < film_gain(cosine, np.full(50, 0.5))[-1]


def test_incidence_is_that_on_the_plane_of_the_ground():
    rng = np.random.default_rng(0)
    xy = rng.uniform(-30, 30, (500, 2))
    for slope in ([0, 0], [0.05, 0], [-0.03, 0.2]):
        ground = np.column_stack([xy, -1.8 + xy @ slope])
        expected = 1.8 / np.sqrt(1 + np.dot(slope, slope)) / np.linalg.norm(ground, axis=1)
        np.testing.assert_allclose(cosine_of_incidence(ground), expected, rtol=1e-9)


@names
@pytest.mark.parametrize("level", range(3))
def test_wet_ground_touches_the_ground_alone(name, level):
    clean = street(name)
    ground = np.isin(clean.labels, BENCHMARKS[name].ground)
    wet = applied(clean, name, "wet_ground", level)
    still_ground = np.isin(wet.labels, BENCHMARKS[name].ground)
    assert_same(wet.take(~still_ground), clean.take(~ground))
    by_place = dict(zip(map(bytes, clean.points[:, :3]), clean.points[:, 3], strict=True))
    share = np.array([point[3] / by_place[bytes(point[:3])] for point in wet.points[still_ground]])
    assert share.max() < 1
    by_range = np.array_split(share[np.argsort(wet.range_m[still_ground])], 4)
    assert by_range[0].mean() > by_range[-1].mean()
    few = clean.take(np.arange(1500))
    assert_same(applied(few, name, "wet_ground", level), few)


def test_noise_is_the_weakest_ground_and_never_guessed_beyond():
    """The first percentile of all that is uniform from 2 + r / 10 to 102 + r / 10 is 3 + r / 10."""
    rng = np.random.default_rng(0)
    range_m = rng.permutation(np.linspace(5, 50, 50_000))
    intensity = 2 + 0.1 * range_m + 100 * rng.random(50_000)
    line = weakest_returns(range_m, intensity, 0.0)
    np.testing.assert_allclose(line.at(np.array([10.0, 40.0])), [4, 7], atol=0.4)
    np.testing.assert_allclose([line.nearest_m, line.farthest_m], [5.45, 49.55], atol=0.01)  # of 50 groups
    assert line.at(np.array([0.0, 200.0])).tolist() == line.at(np.array([line.nearest_m, line.farthest_m])).tolist()
    falling = Line.fit(np.array([10.0, 20.0]), np.array([5.0, -5.0]))
    assert falling.at(np.array([10.0, 15.0, 20.0])) == pytest.approx([5, 0, 0])


@pytest.mark.parametrize("counted_from", [0.0, 5 / 255])
def test_noise_is_judged_by_a_thousand_returns_above_a_bound(counted_from):
    range_m, at = np.linspace(5, 50, 1000), np.array([5.0, 30.0])
    intensity = np.full(1000, 0.5)
    silent = np.concatenate([intensity, np.full(3000, counted_from)])
    line = weakest_returns(np.tile(range_m, 4), silent, counted_from)
    np.testing.assert_allclose(line.at(at), 0.5)
    assert not weakest_returns(range_m[:999], intensity[:999], counted_from).at(at).any()


def film_by_sines(cosine: np.ndarray, reflectivity: np.ndarray) -> np.ndarray:
    """What a film of water returns, of Fresnel's formulas in sines and tangents; Lekner and Dorf's equation."""
    outside = np.arccos(cosine)
    inside = np.arcsin(np.sin(outside) / 1.33)
    across = np.sin(outside - inside) ** 2 / np.sin(outside + inside) ** 2
    along = np.tan(outside - inside) ** 2 / np.tan(outside + inside) ** 2
    return (1 - (across + along) / 2) ** 2 / (1.33**2 * (1 - 0.472 * reflectivity))


@names
@pytest.mark.parametrize("level", range(3))
def test_wet_ground_is_dimmed_by_a_film_that_covers_its_share(name, level):
    """Ground that is as bright as its cosine of incidence: all of it reflects a fifteenth of a perfect reflector."""
    range_m = np.concatenate([np.linspace(3, 30, 3000), np.full(5, 400.0)])
    cosine = np.maximum(1.8 / range_m, 0.01)  # never flatter
    clean = flat_ground(name, range_m, 0.9 * cosine)
    wet = applied(clean, name, "wet_ground", level)
    covered = (0.0002, 0.0010, 0.0012)[level] / 0.0012
    dimmed = clean.intensity * (1 - covered + covered * film_by_sines(cosine, np.full(len(cosine), 1 / 15)))
    np.testing.assert_allclose(wet.intensity, dimmed[wet.ring], rtol=1e-4)
    assert len(wet.ring) > 100


@names
@pytest.mark.parametrize("level", range(3))
def test_wet_ground_is_lost_below_its_share_of_the_weakest_dry_return(name, level):
    """At one range: the weakest dry return is that of the darkest ground; nothing else is judged by it."""
    bright = np.tile([0.1, 0.13, 0.18, 0.22, 0.4], 400)
    clean = flat_ground(name, np.full(2000, 4.0), bright)
    silent = flat_ground(name, np.full(1000, 4.0), np.zeros(1000))
    silent.points[:, 3] = 0.9 * BENCHMARKS[name].counted_from
    car = targets_ahead(name, np.full(3, 4.0), np.full(3, 0.001))
    wet = applied(joined(clean, silent, car), name, "wet_ground", level)
    covered = (0.0002, 0.0010, 0.0012)[level] / 0.0012
    floor = 0.1 * {"nuscenes": (0.2, 0.3, 0.7), "semantic_kitti": (0.3, 0.3, 0.7)}[name][level]
    mean = np.concatenate([clean.intensity, silent.intensity]).mean() / BENCHMARKS[name].intensity_max
    left = bright * (1 - covered + covered * film_by_sines(np.full(2000, 0.45), bright / mean / 15))
    kept = np.flatnonzero(left >= floor)
    assert (np.abs(left - floor) > 1e-3).all()
    np.testing.assert_array_equal(wet.ring[wet.ring < 2000], kept)
    np.testing.assert_array_equal(wet.ring[-3:], [3000, 3001, 3002])
    assert (len(kept) < 2000) == (level == HEAVY)


@names
def test_water_that_stands_above_the_texture_covers_no_more_than_everything(name):
    ground = flat_ground(name, np.linspace(3, 30, 1000), np.full(1000, 0.5))
    covered, deep = (
        CORRUPT["wet_ground"](ground, WetGround(water_height_m=height, noise_floor=0.1), BENCHMARKS[name], None)
        for height in (0.0012, 0.005)
    )
    assert_same(deep, covered)


@names
def test_a_scan_of_few_ground_points_stays_dry(name):
    ground = flat_ground(name, np.linspace(3, 30, 1000), np.full(1000, 0.5))
    assert (applied(ground, name, "wet_ground", 0).intensity < ground.intensity[0]).all()
    few = ground.take(np.arange(999))
    assert_same(applied(few, name, "wet_ground", 0), few)


@names
def test_wet_ground_is_never_brighter_than_full_scale(name):
    """A film makes a mirror that faces the lidar brighter, by more than a hundredth."""
    ground = flat_ground(name, np.linspace(1.81, 3, 1000), np.full(1000, 0.001))
    ground.points[0, 3] = BENCHMARKS[name].intensity_max
    assert film_by_sines(np.array([0.99]), np.array([1.0])) > 1.01
    wet = applied(ground, name, "wet_ground", HEAVY)
    assert wet.points[0, 3] == BENCHMARKS[name].intensity_max


def test_snow_is_as_dense_as_its_flux_says():
    """The share of a plane under flakes is flux / (density velocity), whatever their sizes."""
    light, moderate, heavy = (strength_of("nuscenes", "snow", level) for level in range(3))
    for strength in (light, moderate, heavy):
        diameters = np.random.default_rng(0).exponential(1 / size_slope_per_m(strength.rate_mm_h), 400_000)
        covered = flakes_per_m2(strength) * (np.pi / 4 * diameters**2).mean()
        flux_m_s = strength.rate_mm_h / 3.6e6
        assert covered == pytest.approx(flux_m_s / (0.1 * strength.terminal_velocity_m_s), rel=0.03)
    assert size_slope_per_m(1.0) == pytest.approx(2550)
    assert size_slope_per_m(2.5) == pytest.approx(2550 * 2.5**-0.48)  # Gunn and Marshall


class Flakes:
    """A generator that puts the same flakes into every beam: how far along it, and how large [m]."""

    def __init__(self, along: tuple[float, ...], diameters_m: tuple[float, ...] = ()) -> None:
        self.along, self.diameters_m = np.array(along), np.array(diameters_m)

    def poisson(self, mean):
        self.mean = mean
        return np.full(len(mean), len(self.along))

    def random(self, count):
        return np.tile(1 - self.along**2, count // max(len(self.along), 1))

    def exponential(self, scale, count):
        self.mean_diameter_m = scale
        return np.tile(self.diameters_m, count // max(len(self.along), 1))


def snowed(scan: Scan, name: str, flakes: Flakes, level: int = 0) -> Scan:
    return CORRUPT["snow"](scan, strength_of(name, "snow", level), BENCHMARKS[name], flakes)


@names
@pytest.mark.parametrize("level", range(3))
def test_snow_fills_the_area_that_a_beam_sweeps(name, level):
    """A beam of 0.003 rad sweeps 0.0015 R^2; its flakes are spread evenly over that, with exponential diameters."""
    none, range_m = Flakes(()), np.array([5.0, 20.0, 60.0])
    snowed(targets_ahead(name, range_m, np.full(3, 0.5)), name, none, level)
    strength = strength_of(name, "snow", level)
    np.testing.assert_allclose(none.mean, flakes_per_m2(strength) * 0.0015 * range_m**2, rtol=1e-6)
    assert none.mean_diameter_m == pytest.approx(1 / size_slope_per_m(strength.rate_mm_h))


@names
def test_a_flake_hides_its_share_of_a_beam_and_returns_it(name):
    """One flake halfway to targets at 20 m hides D / (0.003 * 10 m) of the beam, and returns 0.9 of what it hides."""
    full = BENCHMARKS[name].intensity_max
    reflectivity = np.array([0.1, 0.2, 0.4, 0.8])
    clean = targets_ahead(name, np.full(4, 20.0), reflectivity)
    snowy = snowed(clean, name, Flakes((0.5,), (0.2 * 0.003 * 10,)))
    assert made(snowy, name, "snow").tolist() == [True, True, False, False]  # 0.18 is more than 0.16, less than 0.32
    np.testing.assert_allclose(snowy.intensity / full, [0.18, 0.18, 0.32, 0.64], rtol=1e-5)
    np.testing.assert_allclose(snowy.range_m, [10, 10, 20, 20], rtol=1e-6)
    assert (snowy.labels == np.where([True, True, False, False], IGNORE_LABEL, clean.labels)).all()


@names
def test_flakes_of_a_beam_hide_its_target_together_and_the_strongest_is_seen(name):
    full = BENCHMARKS[name].intensity_max
    clean = targets_ahead(name, np.full(2, 20.0), np.array([0.4, 1.0]))
    three = Flakes((0.25, 0.5, 0.75), (0.1 * 0.003 * 5, 0.4 * 0.003 * 10, 0.3 * 0.003 * 15))
    snowy = snowed(clean, name, three)
    np.testing.assert_allclose(snowy.intensity / full, [0.36, 0.9 * 0.6 * 0.7], rtol=1e-5)
    np.testing.assert_allclose(snowy.range_m, [10, 20], rtol=1e-6)
    wall = snowed(clean, name, Flakes((0.5,), (1.0,)))  # as wide as the beam
    np.testing.assert_allclose(wall.intensity / full, [0.9, 0.9], rtol=1e-5)


@names
def test_flakes_within_a_metre_are_seen_in_part(name):
    """The receiver sees nothing of the beam up to 0.9 m, and half of it at 0.95 m; targets behind are hidden all the
    same.
    """
    full = BENCHMARKS[name].intensity_max
    clean = targets_ahead(name, np.full(1, 10.0), np.array([0.2]))
    for flake_m, expected in ((0.8, 0.1), (0.95, 0.225), (1.5, 0.45)):
        snowy = snowed(clean, name, Flakes((flake_m / 10,), (0.5 * 0.003 * flake_m,)))
        np.testing.assert_allclose(snowy.intensity / full, expected, rtol=1e-4)


@names
def test_what_snow_weakens_below_the_noise_is_lost(name):
    """Ground of 0.4 of full scale: neither target nor flake is heard below 0.28, unless the target was as weak before.

    By columns: a target that stays above, one that falls below, one that was below, one that the flake outshines.
    """
    benchmark = BENCHMARKS[name]
    ground = flat_ground(name, np.linspace(5, 50, 2000), np.full(2000, 0.4))
    silent = flat_ground(name, np.linspace(5, 50, 3000), np.full(3000, 0.0))
    silent.points[:, 3] = 0.9 * benchmark.counted_from
    for share, reflectivity, expected in (
        (0.3, [0.50, 0.35, 0.27, 0.1], [0.35, None, 0.189, 0.07]),  # a flake of 0.27 is not heard
        (0.4, [0.70, 0.50, 0.27, 0.30], [0.42, 0.36, 0.36, 0.36]),
    ):
        targets = targets_ahead(name, np.full(4, 20.0), np.array(reflectivity))
        scan = joined(targets, ground, silent)
        snowy = snowed(scan, name, Flakes((0.5,), (share * 0.003 * 10,)))
        found = dict(zip(snowy.ring.tolist(), (snowy.intensity / benchmark.intensity_max).tolist(), strict=True))
        assert [found.get(row) for row in range(4)] == [value and pytest.approx(value, rel=1e-5) for value in expected]


@names
@pytest.mark.parametrize("level", range(3))
def test_snow_scatters_before_the_target_and_weakens_it(name, level):
    clean = street(name)
    ids = replace(clean, ring=np.arange(len(clean.points)))  # so that lost points can be told
    snowy = applied(ids, name, "snow", level)
    before = clean.take(snowy.ring)
    scattered = made(snowy, name, "snow")
    assert scattered.any()
    assert (snowy.range_m[scattered] < before.range_m[scattered]).all()
    cosine = (snowy.xyz * before.xyz).sum(axis=1) / snowy.range_m / before.range_m
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    np.testing.assert_array_equal(snowy.points[~scattered, :3], before.points[~scattered, :3])
    weakened = snowy.points[~scattered, 3] < before.points[~scattered, 3]
    assert 0.05 < weakened.mean() < 1
    assert (snowy.points[~scattered, 3] <= before.points[~scattered, 3]).all()
    np.testing.assert_array_equal(snowy.raw_labels[~scattered], before.raw_labels[~scattered])
    assert (snowy.points[scattered, 3] <= 0.9 * BENCHMARKS[name].intensity_max).all()
    untouched = snowy.points[:, 3] == before.points[:, 3]
    assert untouched.sum() > 10


# --- what is moved, what is missing ----------------------------------------------------------------------------------


class Outliers:
    """A generator of normal numbers that are all as many standard deviations off."""

    def __init__(self, deviations: float) -> None:
        self.deviations = deviations

    def normal(self, mean, std, size):
        return np.broadcast_to(self.deviations * np.asarray(std), size)


@pytest.mark.parametrize("std_m", [0.2, 0.3])
def test_motion_blur_is_one_shift_and_a_jitter_that_is_cut_off(std_m):
    clean, strength = street("semantic_kitti"), MotionBlur(std_m=std_m)

    def moved(rng) -> np.ndarray:
        return CORRUPT["motion_blur"](clean, strength, BENCHMARKS["semantic_kitti"], rng).xyz - clean.xyz

    one, shifts = clean.take(np.array([0])), []
    for seed in range(300):
        shifted = CORRUPT["motion_blur"](one, strength, BENCHMARKS["semantic_kitti"], np.random.default_rng(seed))
        shifts.append((shifted.xyz - one.xyz)[0])
    np.testing.assert_allclose(np.cov(np.transpose(shifts)) / std_m**2, np.eye(3), atol=0.2)
    usual = moved(np.random.default_rng(0))
    np.testing.assert_allclose(usual.std(axis=0), np.array([0.1, 0.1, 0.05]) * std_m, rtol=0.05)
    assert np.abs(usual.mean(axis=0)).max() > 0.1 * std_m
    for deviations, jitter in ((10, (1, 1, 0.5)), (40, (3, 3, 2)), (100, (3, 3, 3))):
        expected = np.tile(std_m * (deviations + np.array(jitter)), (len(usual), 1))
        np.testing.assert_allclose(moved(Outliers(deviations)), expected, atol=1e-4)


@names
@pytest.mark.parametrize("level", range(3))
def test_crosstalk_takes_its_share_and_leaves_the_rest(name, level):
    clean = street(name)
    noisy = applied(clean, name, "crosstalk", level)
    hit = made(noisy, name, "crosstalk")
    assert hit.sum() == int(strength_of(name, "crosstalk", level).share * len(clean.points))
    assert_same(noisy.take(~hit), clean.take(~hit))
    np.testing.assert_array_equal(noisy.ring, clean.ring)
    noise = (noisy.xyz - clean.xyz)[hit]
    np.testing.assert_allclose(np.cov(noise.T) / 9, np.eye(3), atol=0.35)


@names
def test_crosstalk_adds_noise_to_intensities_of_its_own_and_cuts_them_off(name):
    """At half of full scale, where nuScenes' intensities are never cut off and SemanticKITTI's mostly are."""
    full = BENCHMARKS[name].intensity_max
    clean = targets_ahead(name, np.full(2000, 30.0), np.full(2000, 0.5))
    noisy = CORRUPT["crosstalk"](clean, Crosstalk(share=1.0), BENCHMARKS[name], np.random.default_rng(0))
    noise = noisy.intensity - full / 2
    of_place = noisy.xyz - clean.xyz
    assert np.abs([np.corrcoef(noise, axis)[0, 1] for axis in of_place.T]).max() < 0.1
    if name == "nuscenes":
        assert (noise.mean(), noise.std()) == (pytest.approx(0, abs=0.3), pytest.approx(3, rel=0.05))
    else:
        cut_off = 0.434  # a normal distribution's share below -0.5 / 3, and above 0.5 / 3
        for end in (0, 1):
            assert (noisy.intensity == end).mean() == pytest.approx(cut_off, abs=0.03)
    for count, share, hit in ((99, 0.01, 0), (199, 0.01, 1), (1999, 0.008, 15)):
        some = clean.take(np.arange(count))
        noisy = CORRUPT["crosstalk"](some, Crosstalk(share=share), BENCHMARKS[name], np.random.default_rng(0))
        assert made(noisy, name, "crosstalk").sum() == hit  # rounded down


@names
@pytest.mark.parametrize("level", range(3))
def test_missing_beams_are_those_that_may_be(name, level):
    clean, (first, last) = street(name), BENCHMARKS[name].losable_rings
    assert (first, last) == {"nuscenes": (2, 28), "semantic_kitti": (4, 58)}[name]
    draws = {"nuscenes": (8, 16, 24), "semantic_kitti": (16, 32, 48)}[name][level]
    found, numbers = set(), []
    for seed in range(20):
        left = applied(clean, name, "beam_missing", level, seed)
        lost = set(clean.ring.tolist()) - set(left.ring.tolist())
        assert 1 < len(lost) <= draws
        assert_same(left, clean.take(~np.isin(clean.ring, list(lost))))
        found |= lost
        numbers.append(len(lost))
    assert found == set(range(first, last + 1))
    assert min(numbers) < draws  # drawn with replacement


@names
@pytest.mark.parametrize("level", range(3))
def test_another_sensor_has_these_rings_and_every_second_point(name, level):
    clean, num_rings = street(name), BENCHMARKS[name].num_rings
    lost = list(range(1, num_rings, (4, 2)[level])) if level < HEAVY else [int(1 + 1.33 * n) for n in range(48)]
    lost = [ring for ring in lost if ring < num_rings]
    assert len(lost) == num_rings * (level + 1) // 4
    expected = clean.take(np.flatnonzero(~np.isin(clean.ring, lost))[::2])
    assert_same(applied(clean, name, "cross_sensor", level), expected)


@names
@given(seed=st.integers(0, 100), level=st.integers(0, 2), count=st.integers(0, 25))
def test_echoes_are_lost_of_vehicles_alone_and_by_their_share(name, seed, level, count):
    clean = street(name, 1000)
    first = BENCHMARKS[name].vehicles[0]
    rows = np.flatnonzero(clean.labels == first)
    clean = clean.take(np.delete(np.arange(1000), rows[count:]))
    left = applied(clean, name, "incomplete_echo", level, seed)
    share = (0.75, 0.85, 0.95)[level]
    for label in np.unique(clean.labels):
        number = (clean.labels == label).sum()
        lost = int(share * number) if label in BENCHMARKS[name].vehicles and number > 10 else 0
        assert (left.labels == label).sum() == number - lost
    stays = np.isin(clean.labels, BENCHMARKS[name].vehicles, invert=True)
    assert_same(left.take(np.isin(left.labels, BENCHMARKS[name].vehicles, invert=True)), clean.take(stays))


@given(
    counts=st.lists(st.integers(40, 80), min_size=1, max_size=70),
    gaps=arrays(np.bool_, 80, elements=st.booleans()),
)
def test_rings_are_counted_by_turns(counts, gaps):
    """Beam after beam from ahead round to the left; where the sky is, points are missing."""
    azimuth, expected = [], []
    for number, count in enumerate(counts):
        kept = gaps[:count].copy()
        kept[[0, -1]] = True
        turn = ((np.arange(count) + 0.5) / count * 2 * np.pi)[kept]
        azimuth.extend(turn)
        expected.extend([min(number, 63)] * len(turn))
    xyz = np.column_stack([np.cos(azimuth), np.sin(azimuth), np.zeros(len(azimuth))])
    np.testing.assert_array_equal(rings_by_turns(xyz, 64), expected)


def test_a_ring_ends_where_the_azimuth_falls_by_more_than_half_a_turn():
    """Azimuths go back a little where beams are not fired in order, or by much where points are missing."""
    rings = [[10, 170, 168, 350], [5, 100, 60, 300, 121, 250], [1, 2, 1, 359], [3, 340], [159.5]]
    azimuth = np.deg2rad(np.concatenate(rings))
    xyz = np.column_stack([20 * np.cos(azimuth), 20 * np.sin(azimuth), np.full(len(azimuth), -1.8)])
    expected = np.repeat(np.arange(5), [len(ring) for ring in rings])
    np.testing.assert_array_equal(rings_by_turns(xyz, 64), expected)
    np.testing.assert_array_equal(rings_by_turns(xyz, 3), np.minimum(expected, 2))


def test_a_real_scan_has_its_64_rings_from_the_top_down(real_data):
    dataset = open_dataset("semantic_kitti", real_data("semantickitti"), "00")
    xyz = dataset.read_points(dataset.frames[0])[:, :3].astype(np.float64)
    ring = rings_by_turns(xyz, 64)
    elevation = np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1]))
    middle = np.array([np.median(elevation[ring == number]) for number in range(64)])
    assert (np.diff(middle) < 0).all()


# --- whole sets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(simulated, tmp_path) -> CorruptConfig:
    """Some copies of the simulated nuScenes."""
    return CorruptConfig(
        root=simulated("nuscenes"),
        out=tmp_path / "copies",
        corruptions=("fog", "crosstalk", "beam_missing"),
        severities=("light", "heavy"),
        **GIVEN,
    )


def content(folder: Path) -> dict[str, bytes]:
    """Of every scan and label file."""
    files = [*folder.rglob("*.bin"), *folder.rglob("*.label")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.bin")}


@names
def test_readers_read_every_folder(name, simulated, tmp_path, monkeypatch):
    monkeypatch.delenv("NUSCENES", raising=False)
    given = GIVEN if name == "nuscenes" else {}
    summary = corrupt(CorruptConfig(root=simulated(name), out=tmp_path / "C", dataset=name, **given))
    assert summary.written == tuple(f"{corruption}/{severity}" for corruption in CORRUPTIONS for severity in SEVERITIES)
    assert summary.left_out == {}
    assert summary.scans_made == 48
    clean = open_dataset(name, simulated(name), "val")
    for folder in summary.written:
        dataset = open_dataset(f"{name}_c", tmp_path / "C", folder)
        assert [frame.token for frame in dataset.frames] == [frame.token for frame in clean.frames]
        for frame, clean_frame in zip(dataset.frames, clean.frames, strict=True):
            points, labels = read_labelled_scan(dataset, frame)
            before, before_labels = read_labelled_scan(clean, clean_frame)
            assert len(labels) <= len(before_labels)
            assert points.shape != before.shape or (points != before).any() or folder.startswith("beam_missing")
            if folder.startswith(("fog", "snow", "crosstalk")):
                assert (labels == IGNORE_LABEL).sum() > (before_labels == IGNORE_LABEL).sum()
    assert not list((tmp_path / "C").rglob(".*"))


def test_instances_and_rings_stay_in_the_files(simulated, tmp_path):
    chosen = {"out": tmp_path / "C", "corruptions": ("crosstalk",), "severities": ("light",), **GIVEN}
    for name, dtype, columns in (("nuscenes", np.uint8, 5), ("semantic_kitti", np.uint32, 4)):
        out = tmp_path / name
        corrupt(CorruptConfig(**{**chosen, "root": simulated(name), "dataset": name, "out": out}))
        clean = open_dataset(name, simulated(name), "val")
        copy = open_dataset(f"{name}_c", out, "crosstalk/light")
        for ours, theirs in zip(copy.frames, clean.frames, strict=True):
            raw, before = np.fromfile(out / ours.labels, dtype), np.fromfile(clean.root / theirs.labels, dtype)
            hit = raw == BENCHMARKS[name].made["crosstalk"]
            assert hit.any()
            np.testing.assert_array_equal(raw[~hit], before[~hit])
            values, clean_values = (
                np.fromfile(path, np.float32).reshape(-1, columns)
                for path in (out / ours.scan, clean.root / theirs.scan)
            )
            np.testing.assert_array_equal(values[~hit], clean_values[~hit])
            np.testing.assert_array_equal(values[:, 4:], clean_values[:, 4:])


def test_neither_processes_nor_order_nor_a_stop_change_anything(config, tmp_path):
    assert corrupt(config).scans_made == 12
    expected = content(config.out)
    others = replace(config, out=tmp_path / "two", workers=2)
    assert corrupt(others).scans_made == 12
    assert content(others.out) == expected
    for corruption in reversed(config.corruptions):
        for severity in reversed(config.severities):
            one = replace(config, out=tmp_path / "three", corruptions=(corruption,), severities=(severity,))
            corrupt(one)
    assert content(tmp_path / "three") == expected
    corrupt(replace(config, out=tmp_path / "four", seed=1))
    assert content(tmp_path / "four") != expected


@pytest.mark.parametrize("name", ["../../../../x.pcd.bin", "/tmp/x.pcd.bin"])
def test_the_name_of_a_scan_never_leads_out_of_the_folder(config, name):
    frame = open_dataset(config.dataset, config.root, config.split).frames[0]
    with pytest.raises(DatasetError, match="in the dataset's tables leads out of the folder"):
        list(module._jobs(config, [replace(frame, scan=name)], config.copies()[:1]))


def test_only_what_is_missing_is_made_again(config):
    corrupt(config)
    expected, before = content(config.out), times(config.out)
    scan = next((config.out / "fog/heavy").rglob("*.pcd.bin"))
    labels = next((config.out / "crosstalk/light").rglob("*_lidarseg.bin"))
    scan.unlink()
    labels.unlink()
    assert corrupt(config).scans_made == 2
    assert content(config.out) == expected
    redone = {path for path, time in times(config.out).items() if before[path] != time}
    assert {scan, labels} < redone
    assert len(redone) == 4  # a scan and its labels are made together
    assert corrupt(config).scans_made == 0


def test_a_stop_between_labels_and_scan_leaves_no_half_of_a_pair(config, monkeypatch):
    real, written = module.write_bytes, []

    def stopping(path, content):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path)
        real(path, content)

    monkeypatch.setattr(module, "write_bytes", stopping)
    with pytest.raises(KeyboardInterrupt):
        corrupt(config)
    monkeypatch.undo()
    assert written[1].name.endswith("_lidarseg.bin")  # after the manifest
    assert written[2].name.endswith(".pcd.bin")
    assert corrupt(config).scans_made == 11


def test_strengths_that_nobody_published_are_not_made_up(config):
    bare = replace(config, corruptions=CORRUPTIONS, severities=SEVERITIES, motion_blur_m=None, crosstalk_share=None)
    summary = corrupt(bare)
    assert set(summary.left_out) == {f"{name}/{s}" for name in ("motion_blur", "crosstalk") for s in SEVERITIES[1:]}
    assert "--motion-blur-m" in summary.left_out["motion_blur/heavy"]
    assert "--crosstalk-share" in summary.left_out["crosstalk/moderate"]
    assert not (config.out / "crosstalk/heavy").exists()
    then = corrupt(replace(bare, **GIVEN))  # what the summary advises
    assert then.left_out == {}
    assert then.scans_made == 8
    kitti = levels_of(BENCHMARKS["semantic_kitti"], None, None)
    assert None not in [strength for levels in kitti.values() for strength in levels]


def test_the_folder_says_how_it_was_made(config):
    corrupt(config)
    manifest = json.loads((config.out / MANIFEST).read_text())
    assert (manifest["dataset"], manifest["split"], manifest["seed"]) == ("nuscenes", "val", 0)
    assert manifest["comparable"] is False
    assert "not comparable with published" in manifest["note"]
    assert manifest["strengths"]["fog/heavy"] == {"beta": 0.2}
    corrupt(replace(config, corruptions=("cross_sensor",), severities=("light",)))
    manifest = json.loads((config.out / MANIFEST).read_text())
    assert manifest["strengths"]["cross_sensor/light"] == {"lost_rings": list(range(1, 32, 4))}
    assert len(manifest["strengths"]) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, and is 1"),
        ({"dataset": "semantic_kitti"}, "dataset was nuscenes, and is semantic_kitti"),
        ({"split": "train"}, "split was val, and is train"),
        ({"crosstalk_share": (0.03, 0.06, 0.2)}, 'crosstalk/heavy was {"share": 0.1}, and is {"share": 0.2}'),
    ],
)
def test_copies_made_otherwise_are_refused(config, simulated, changes, message):
    corrupt(config)
    before = content(config.out)
    if "dataset" in changes:
        changes = changes | {"root": simulated(changes["dataset"])}
    with pytest.raises(ScalrError) as caught:
        corrupt(replace(config, **changes))
    assert message in str(caught.value)
    assert content(config.out) == before


def test_robo3d_s_own_copies_are_not_touched(config):
    own = config.out / "fog/heavy/samples/LIDAR_TOP"
    own.mkdir(parents=True)
    with pytest.raises(ScalrError, match=r"fog/heavy and no corruptions\.json"):
        corrupt(config)
    assert list(own.iterdir()) == []
    assert not (config.out / MANIFEST).exists()
    (config.out / MANIFEST).write_text("{}")
    with pytest.raises(ScalrError, match="the file does not record how the copies were made"):
        corrupt(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corruptions": ("fogg",)}, "--corruption: 'fogg' is unknown, did you mean 'fog'?"),
        ({"severities": ("hevy",)}, "--severity: 'hevy' is unknown, did you mean 'heavy'?"),
        ({"dataset": "nuscene"}, "--dataset: 'nuscene' is unknown, did you mean 'nuscenes'?"),
        ({"corruptions": ()}, "--corruption: no value is given"),
        ({"motion_blur_m": (0.2, 0.3)}, "--motion-blur-m: (0.2, 0.3) cannot be used. Give a list of 3"),
        ({"motion_blur_m": (0.2, 0.3, float("nan"))}, "--motion-blur-m: (0.2, 0.3, nan)"),
        ({"motion_blur_m": (0.2, 0.3, float("inf"))}, "--motion-blur-m: (0.2, 0.3, inf)"),
        ({"crosstalk_share": (0.1, 0.2, 1.2)}, "--crosstalk-share: (0.1, 0.2, 1.2)"),
        ({"seed": -1}, "--seed: -1"),
        ({"workers": -1}, "--workers: -1"),
    ],
)
def test_settings_that_cannot_be(config, changes, message):
    with pytest.raises(ScalrError) as caught:
        replace(config, **changes)
    assert message in str(caught.value)


def test_bad_scans_are_said(config, simulated, tmp_path):
    world = Path(shutil.copytree(simulated("nuscenes"), tmp_path / "world"))
    dataset = open_dataset("nuscenes", world, "val")
    scan, labels = world / dataset.frames[1].scan, world / dataset.frames[1].labels
    whole = scan.read_bytes()
    values = np.frombuffer(whole, np.float32).reshape(-1, 5).copy()
    values[7, 4] = 32
    values.tofile(scan)
    for workers in (0, 1):
        with pytest.raises(DatasetError, match="the fifth value of a point is not a ring number in all rows"):
            corrupt(replace(config, root=world, workers=workers))
    scan.write_bytes(whole)
    some = labels.read_bytes()
    labels.write_bytes(some[:-1])
    with pytest.raises(DatasetError, match=r"\d+ labels, and the scan .* has \d+ points"):
        corrupt(replace(config, root=world))
    labels.unlink()
    with pytest.raises(DatasetError, match="the file is missing"):
        corrupt(replace(config, root=world))
    (world / "v1.0-trainval/lidarseg.json").write_text("[]")
    with pytest.raises(DatasetError, match="has no labels in lidarseg"):
        corrupt(replace(config, root=world))


def test_a_worker_that_dies_is_said(config, monkeypatch):
    def dies(pool, function, jobs):
        raise BrokenProcessPool("a child process terminated abruptly")

    monkeypatch.setattr(module.ProcessPoolExecutor, "map", dies)
    with pytest.raises(
        ScalrError,
        match="--workers: a worker process died, perhaps because memory ran"
        r" out\. Use fewer",
    ):
        corrupt(replace(config, workers=1))


def test_sequences_that_would_overwrite_each_other_are_refused(simulated, tmp_path):
    with pytest.raises(DatasetError, match="have the same numbers"):
        corrupt(
            CorruptConfig(root=simulated("semantic_kitti"), out=tmp_path / "C", dataset="semantic_kitti", split="00,08")
        )
    assert not (tmp_path / "C").exists()


def test_without_links_the_environment_names_the_tables(config, simulated, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    corrupt(config)
    assert not (config.out / "v1.0-trainval").exists()
    monkeypatch.setenv("NUSCENES", str(simulated("nuscenes")))
    assert len(open_dataset("nuscenes_c", config.out, "fog/light").frames) == 2
