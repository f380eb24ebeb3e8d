from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from scalr.errors import DatasetError, ScalrError
from scalr.evaluate import weather
from scalr.evaluate.corrupted_copies import CorruptConfig, corrupt
from scalr.evaluate.corruption import (
    BENCHMARKS,
    ECHO_SHARE,
    FOG_BACKSCATTER,
    SNOWFALL,
    WATER_HEIGHT_M,
    RawScan,
    corrupted,
)
from scalr.evaluate.sensor_faults import beam_missing, cross_sensor, incomplete_echo, motion_blur, rings_of_turns
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.corruptions import CORRUPTIONS, MANIFEST, SEVERITIES
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.nuscenes import LABELS

NUSCENES = BENCHMARKS["nuscenes"]
STRENGTHS = {
    "fog": FOG_BACKSCATTER,
    "wet_ground": tuple(zip(WATER_HEIGHT_M, NUSCENES.noise_floor, strict=True)),
    "snow": SNOWFALL,
    "motion_blur": (0.2, 0.3, 0.4),
    "beam_missing": NUSCENES.missing,
    "crosstalk": (0.03, 0.06, 0.1),
    "incomplete_echo": ECHO_SHARE,
    "cross_sensor": NUSCENES.ring_step,
}
CAR, ROAD = LABELS.class_names.index("car"), LABELS.class_names.index("driveable_surface")


@pytest.fixture(scope="module")
def scan() -> RawScan:
    """20,000 points of 32 rings: a road, and above it cars and vegetation."""
    rng = np.random.default_rng(0)
    count = 20_000
    distance, azimuth = rng.uniform(2, 60, count), rng.uniform(-np.pi, np.pi, count)
    is_road = rng.random(count) < 0.5
    z = np.where(is_road, -1.8, rng.uniform(-1.5, 3, count))
    intensity = np.where(is_road, rng.uniform(5, 25, count), rng.uniform(5, 200, count))
    ring = rng.integers(0, 32, count)
    values = np.stack([distance * np.cos(azimuth), distance * np.sin(azimuth), z, intensity, ring], axis=1)
    labels = np.where(is_road, ROAD, np.where(rng.random(count) < 0.3, CAR, 15)).astype(np.uint8)
    raw = np.array([24, 17, 30], np.uint8)[np.select([labels == ROAD, labels == CAR], [0, 1], 2)]
    return RawScan(values.astype(np.float32), raw, labels, ring)


def apply(scan: RawScan, corruption: str, level: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return corrupted(scan, corruption, STRENGTHS[corruption][level], NUSCENES, LABELS.class_names, rng)


def untouched(scan: RawScan, values: np.ndarray) -> int:
    """How many points are bit for bit as they were."""
    before = {bytes(row) for row in scan.values}
    return sum(bytes(row) in before for row in values)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_heavier_leaves_less_as_it_was(scan, corruption):
    left = [untouched(scan, apply(scan, corruption, level, seed=3)[0]) for level in range(3)]
    if corruption == "motion_blur":  # moves every point
        assert left == [0, 0, 0]
        moved = [np.linalg.norm(apply(scan, corruption, n, seed=3)[0][:, :3] - scan.values[:, :3]) for n in range(3)]
        assert moved[0] < moved[1] < moved[2]
    elif corruption == "fog":  # dims every point
        lost = [(apply(scan, corruption, level, seed=3)[1] == NUSCENES.added["fog"]).mean() for level in range(3)]
        assert 0 < lost[0] < lost[1] < lost[2] < 1
    elif corruption == "snow":
        hit = [(apply(scan, corruption, level, seed=3)[1] == NUSCENES.added["snow"]).mean() for level in range(3)]
        assert 0.01 < hit[0] < hit[1] < hit[2] < 0.8
    elif corruption == "wet_ground":  # dims the whole road
        kept = [len(apply(scan, corruption, level, seed=3)[0]) for level in range(3)]
        assert kept[0] >= kept[1] > kept[2]
    else:
        assert len(scan.values) > left[0] > left[1] > left[2] > 0


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("level", range(3))
def test_a_copy_is_a_scan_with_a_label_a_point(scan, corruption, level):
    values, raw_labels = apply(scan, corruption, level)
    assert values.dtype == np.float32
    assert values.shape == (len(raw_labels), 5)
    assert np.isfinite(values).all()
    assert 0 <= values[:, 3].min() <= values[:, 3].max() <= 255
    assert set(np.unique(raw_labels)) <= {24, 17, 30, *NUSCENES.added.values()}
    again, _ = apply(scan, corruption, level)
    np.testing.assert_array_equal(values, again)


@pytest.mark.parametrize("corruption", ["fog", "snow"])
def test_what_the_air_returns_lies_on_the_beam_before_the_target(scan, corruption):
    values, raw_labels = apply(scan, corruption, 2, seed=3)
    assert len(values) == len(scan.values)
    before, after = (np.linalg.norm(each[:, :3], axis=1) for each in (scan.values, values))
    cosine = (values[:, :3] * scan.values[:, :3]).sum(axis=1) / before / after
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    made = raw_labels == NUSCENES.added[corruption]
    assert (after[made] < before[made] + 1e-4).all()
    np.testing.assert_array_equal(values[~made, :3], scan.values[~made, :3])
    assert (values[~made, 3] <= scan.values[~made, 3] + 1e-4).all()
    np.testing.assert_array_equal(raw_labels[~made], scan.raw_labels[~made])


def test_the_response_of_fog_is_its_integral():
    """At one range, the integral of Hahner et al. by a finer rule; and the peak never falls with range."""
    alpha, at = 0.02, 12.0
    times = np.linspace(0, 40e-9, 20_001)
    r = at - weather.LIGHT_SPEED * times / 2
    overlap = np.clip((r - 0.9) / 0.1, 0, 1)
    r = np.maximum(r, 0.9)
    exact = np.trapz(np.sin(np.pi * times / 40e-9) ** 2 * overlap / r**2 * np.exp(-2 * alpha * r), times)
    peak, peak_at = weather._fog_response(alpha)
    assert (np.diff(peak) >= 0).all()
    assert 3 < peak_at[-1] < 8  # the pulse is 6 m long, and the receiver sees from a metre on
    assert peak[120] >= exact
    index = int(peak_at[-1] * 10)
    alone = weather._fog_response(alpha)[0][index]
    assert peak[-1] == alone


def test_fresnel_at_both_ends():
    """Straight down, 2 % are reflected; at grazing incidence nothing enters the water."""
    assert weather.transmission(np.array([1.0]))[0] == pytest.approx(1 - (0.33 / 2.33) ** 2)
    assert weather.transmission(np.array([1e-6]))[0] == pytest.approx(0, abs=1e-4)


def test_wet_ground_dims_the_far_road_and_nothing_else(scan):
    values, raw_labels = apply(scan, "wet_ground", 1)
    before = {bytes(row[:3]): row[3] for row in scan.values}
    ratio = np.array([row[3] / before[bytes(row[:3])] for row in values])
    distance, road = np.linalg.norm(values[:, :3], axis=1), raw_labels == 24
    assert (ratio[~road] == 1).all()
    assert (~road).sum() == (scan.raw_labels != 24).sum()
    assert ratio[road].max() < 1
    assert ratio[road & (distance > 40)].mean() < 0.5 < ratio[road & (distance < 5)].mean()
    few = RawScan(*(each[:900] for each in (scan.values, scan.raw_labels, scan.labels, scan.ring)))
    np.testing.assert_array_equal(apply(few, "wet_ground", 2)[0], few.values)


def test_rings_that_go_missing_are_those_that_may(scan):
    stays = beam_missing(scan.ring, 24, range(2, 29), np.random.default_rng(0))
    lost = set(scan.ring[~stays].tolist())
    assert lost <= set(range(2, 29))
    assert 10 < len(lost) <= 24  # some are drawn twice
    assert not set(scan.ring[stays].tolist()) & lost


@pytest.mark.parametrize(("level", "lost"), [(0, 8), (1, 16), (2, 24)])
def test_another_sensor_lacks_these_rings_and_every_second_point(scan, level, lost):
    values, _ = apply(scan, "cross_sensor", level)
    rings = np.arange(1, 32, NUSCENES.ring_step[level]).astype(int)
    assert len(rings) == lost
    expected = scan.values[~np.isin(scan.ring, rings)][::2]
    np.testing.assert_array_equal(values, expected)
    assert len(cross_sensor(scan.ring, [])) == len(scan.ring) // 2


def test_echoes_of_vehicles_are_lost_by_their_share(scan):
    _, raw_labels = apply(scan, "incomplete_echo", 1)
    cars = (scan.raw_labels == 17).sum()
    assert (raw_labels == 17).sum() == cars - int(0.85 * cars)
    assert (raw_labels != 17).sum() == (scan.raw_labels != 17).sum()
    few = np.array([CAR] * 10 + [ROAD] * 50)
    assert incomplete_echo(few, 0.95, [CAR], np.random.default_rng(0)).all()


def test_crosstalk_hits_its_share(scan):
    values, raw_labels = apply(scan, "crosstalk", 0)
    hit = raw_labels == NUSCENES.added["crosstalk"]
    assert hit.sum() == int(0.03 * len(scan.values))
    np.testing.assert_array_equal(values[~hit], scan.values[~hit])
    offsets = values[hit, :3] - scan.values[hit, :3]
    assert offsets.std() == pytest.approx(3, rel=0.1)


def test_motion_blur_is_one_shift_and_a_small_jitter():
    xyz = np.zeros((5000, 3))
    moved = motion_blur(xyz, 0.2, np.random.default_rng(0))
    shift = moved.mean(axis=0)
    assert np.linalg.norm(shift) > 0.05
    np.testing.assert_allclose((moved - shift).std(axis=0), [0.02, 0.02, 0.01], rtol=0.1)
    assert np.abs(moved - shift).max() <= 0.6


def test_rings_are_counted_by_turns():
    """Three turns that begin ahead and go left, as in KITTI's files."""
    azimuth = np.tile(np.linspace(0.01, 2 * np.pi - 0.01, 100), 3)
    xyz = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros(300)], axis=1)
    assert rings_of_turns(xyz).tolist() == [0] * 100 + [1] * 100 + [2] * 100
    assert rings_of_turns(np.tile(xyz, (30, 1))).max() == 63


def test_the_real_scan_has_64_rings(real_data):
    dataset = open_dataset("semantic_kitti", real_data("semantickitti"), "00")
    rings = rings_of_turns(dataset.read_points(dataset.frames[0]))
    assert rings.max() == 63
    assert np.bincount(rings).min() > 200


@pytest.fixture
def config(simulated, tmp_path) -> CorruptConfig:
    return CorruptConfig(
        root=simulated("nuscenes"), out=tmp_path / "copies",
        motion_blur_m=(0.2, 0.3, 0.4), crosstalk_share=(0.03, 0.06, 0.1),
    )  # fmt: skip


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.bin")}


@pytest.mark.parametrize("dataset", ["nuscenes", "semantic_kitti"])
def test_readers_open_all_24_copies(config, simulated, dataset):
    config = replace(config, dataset=dataset, root=simulated(dataset))
    summary = corrupt(config)
    assert len(summary.made) == 24
    assert not summary.left_out
    clean = open_dataset(dataset, simulated(dataset), "val")
    for split in summary.made:
        copy = open_dataset(f"{dataset}_c", config.out, split)
        assert [frame.token for frame in copy.frames] == [frame.token for frame in clean.frames]
        for frame in copy.frames:
            assert len(copy.read_points(frame)) == len(copy.read_labels(frame))
    heavy = open_dataset(f"{dataset}_c", config.out, "fog/heavy")
    ignored = (heavy.read_labels(heavy.frames[0]) == IGNORE_LABEL).mean()
    assert ignored > (clean.read_labels(clean.frames[0]) == IGNORE_LABEL).mean()


def test_neither_processes_nor_interruptions_change_the_copies(config, tmp_path):
    some = replace(config, corruptions=("fog", "snow", "crosstalk"), severities=("light", "heavy"))
    corrupt(some)
    expected = content(some.out)
    corrupt(replace(some, out=tmp_path / "two", workers=2))
    assert content(tmp_path / "two") == expected
    victim = next((some.out / "snow/heavy").rglob("*.pcd.bin"))
    kept = next((some.out / "fog/heavy").rglob("*.pcd.bin"))
    victim.unlink()
    kept_at = kept.stat().st_mtime_ns
    corrupt(some)
    assert content(some.out) == expected
    assert kept.stat().st_mtime_ns == kept_at
    corrupt(replace(some, seed=1, out=tmp_path / "other"))
    assert content(tmp_path / "other") != expected


def test_strengths_that_are_not_published_are_not_made_up(config):
    summary = corrupt(replace(config, motion_blur_m=None, crosstalk_share=None))
    assert set(summary.left_out) == {f"{c}/{s}" for c in ("motion_blur", "crosstalk") for s in SEVERITIES[1:]}
    assert "--motion-blur-m" in summary.left_out["motion_blur/heavy"]
    assert len(summary.made) == 20
    assert not (config.out / "crosstalk/heavy").exists()


def test_copies_of_another_making_are_refused(config):
    some = replace(config, corruptions=("crosstalk",))
    corrupt(some)
    made = json.loads((config.out / MANIFEST).read_text())
    assert "not comparable" in made["note"]
    with pytest.raises(ScalrError, match="seed was 0 and is 1"):
        corrupt(replace(some, seed=1))
    with pytest.raises(ScalrError, match="copies of another making"):
        corrupt(replace(some, crosstalk_share=(0.03, 0.07, 0.1)))


def test_what_cannot_be_made_is_said(config, simulated, tmp_path):
    with pytest.raises(ScalrError, match="did you mean 'fog'"):
        replace(config, corruptions=("fogg",))
    with pytest.raises(ScalrError, match="no corruptions are known for semantic_poss"):
        replace(config, dataset="semantic_poss")
    with pytest.raises(ScalrError, match="--crosstalk-share"):
        replace(config, crosstalk_share=(0.03,))
    world = tmp_path / "world"
    shutil.copytree(simulated("semantic_kitti"), world)
    labels = next(world.glob("**/08/labels/*.label"))
    labels.write_bytes(labels.read_bytes()[:-8])
    with pytest.raises(DatasetError, match="labels for"):
        corrupt(replace(config, dataset="semantic_kitti", root=world))
