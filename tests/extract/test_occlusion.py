from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalr.extract.datasets.synthetic import KITTI_RIG, NUSCENES_RIG, PANDAR64_RIG, PANDARGT_RIG, simulate_scene
from scalr.extract.occlusion import hidden_pairs
from scalr.extract.projection import Calibration, inverse_rigid, project
from scalr.extract.store import open_store
from simulated_truth import truly_hidden
from store_comparison import assert_same_store
from tiny import look_along_x

SHAPE = (200, 400)


def grid(rows: slice, columns: slice, depth_m: float) -> tuple[np.ndarray, np.ndarray]:
    """A surface at one depth, a pair every four pixels."""
    pixel = np.stack(np.mgrid[rows, columns], axis=-1).reshape(-1, 2)
    return pixel, np.full(len(pixel), depth_m)


def screen_before_a_wall() -> tuple[np.ndarray, np.ndarray]:
    """A wall at 30 m in the whole image and, interleaved with it, a screen at 10 m in the middle."""
    wall = grid(slice(0, 200, 4), slice(0, 400, 4), 30.0)
    screen = grid(slice(62, 140, 4), slice(102, 300, 4), 10.0)
    return np.concatenate([wall[0], screen[0]]), np.concatenate([wall[1], screen[1]])


def test_what_a_screen_covers_is_hidden_and_nothing_else():
    pixel, depth_m = screen_before_a_wall()
    found = hidden_pairs(pixel, depth_m, SHAPE)
    behind = (depth_m == 30) & (np.abs(pixel - [100, 200]) < [34, 94]).all(axis=1)
    beside = (depth_m == 30) & (np.abs(pixel - [100, 200]) > [42, 102]).any(axis=1)
    assert found[behind].all()
    assert not found[beside].any()
    assert not found[depth_m == 10].any()


@pytest.mark.parametrize("nearest_m", [2.0, 10.0, 40.0])
def test_a_tenth_and_half_a_metre_behind_is_not_hidden_yet(nearest_m):
    pixel, depth_m = screen_before_a_wall()
    behind = (depth_m == 30) & (np.abs(pixel - [100, 200]) < [34, 94]).all(axis=1)
    for factor, hidden in ((0.99, False), (1.01, True)):
        depths = np.where(depth_m == 30, factor * (1.1 * nearest_m + 0.5), nearest_m)
        assert (hidden_pairs(pixel, depths, SHAPE)[behind] == hidden).all()


@pytest.mark.parametrize("open_side", [(-1, 0), (1, 0), (0, -1), (0, 1), None])
def test_what_is_open_to_one_side_is_not_hidden(open_side):
    """A screen in front, of which all pairs to one side of the point, and beside it, are taken away."""
    (screen, _), point = grid(slice(62, 140, 4), slice(102, 300, 4), 10.0), np.array([100, 200])
    if open_side is not None:
        screen = screen[(screen - point) @ open_side < -1]
    rest, _ = grid(slice(0, 200, 4), slice(0, 400, 4), 30.0)
    rest = rest[(np.abs(rest - point) > [44, 104]).any(axis=1)]  # as dense as before, but nowhere near
    pixel = np.concatenate([[point], screen, rest])
    depth_m = np.concatenate([[30.0], np.full(len(screen), 10.0), np.full(len(rest), 30.0)])
    assert hidden_pairs(pixel, depth_m, SHAPE)[0] == (open_side is None)


def test_the_image_s_resolution_does_not_matter():
    pixel, depth_m = screen_before_a_wall()
    once, finer = hidden_pairs(pixel, depth_m, SHAPE), hidden_pairs(4 * pixel, depth_m, (800, 1600))
    np.testing.assert_array_equal(once, finer)


@given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_order_does_not_matter_and_the_nearest_is_never_hidden(count, seed):
    rng = np.random.default_rng(seed)
    pixel, depth_m = rng.integers(0, SHAPE, (count, 2)), rng.uniform(1, 80, count)
    found = hidden_pairs(pixel, depth_m, SHAPE)
    order = rng.permutation(count)
    np.testing.assert_array_equal(hidden_pairs(pixel[order], depth_m[order], SHAPE), found[order])
    assert not found[depth_m == depth_m.min(initial=np.inf)].any()


def test_ground_alone_hides_nothing():
    """As 32 beams see it: neighbouring rows are many metres apart."""
    calibration = look_along_x(400, 200, 285.0)
    elevation, azimuth = np.radians(np.meshgrid(np.linspace(-30, -1.5, 22), np.arange(-40, 40, 0.6)))
    distance = 1.8 / np.tan(-elevation)
    points = np.stack([distance * np.cos(azimuth), distance * np.sin(azimuth), np.full_like(distance, -1.8)], axis=-1)
    pairs = project(points.reshape(-1, 3), calibration, SHAPE)
    assert len(pairs.depth_m) > 500
    assert hidden_pairs(pairs.pixel, pairs.depth_m, SHAPE).mean() < 0.005


@pytest.mark.parametrize(
    ("rig", "recall", "precision"),
    [(NUSCENES_RIG, 0.5, 0.6), (KITTI_RIG, 0.3, 0.35), (PANDAR64_RIG, 0.6, 0.6), (PANDARGT_RIG, 0.45, 0.7)],
    ids=["nuscenes", "kitti", "pandar64", "pandargt"],
)
def test_against_the_simulator_s_truth(rig, recall, precision):
    hits, found, hidden = 0, 0, 0
    for name in ("scene-0001", "scene-0002"):
        scene = simulate_scene(name, seed=0, rig=rig)
        sweep = scene.sweep(0)
        world_from_lidar = scene.world_from_ego(scene.time_us(0)) @ rig.lidar.ego_from_lidar
        for camera in rig.cameras[:3]:
            truth = scene.render(camera.channel, 0)
            world_from_cam = scene.world_from_ego(scene.time_us(0, camera.channel)) @ camera.ego_from_cam
            cam_from_lidar = inverse_rigid(world_from_cam) @ world_from_lidar
            calibration = Calibration(cam_from_lidar=cam_from_lidar, intrinsics=camera.intrinsics)
            pairs = project(sweep.points, calibration, truth.depth.shape)
            ours, theirs = hidden_pairs(pairs.pixel, pairs.depth_m, truth.depth.shape), truly_hidden(pairs, truth)
            hits, found, hidden = hits + (ours & theirs).sum(), found + ours.sum(), hidden + theirs.sum()
    assert hits / hidden > recall
    assert hits / found > precision


def test_hidden_pairs_are_counted_and_dropped_if_asked(extract_tiny):
    """All else stays: points, order, targets; a second teacher finds the same pairs."""
    # With int8, targets would show that the statistics are of fewer pairs.
    kept, dropped = (
        extract_tiny(out=f"{name}.zarr", occlusion=name, encoding="point", dtype="float16") for name in ("keep", "drop")
    )
    assert kept.views["pairs_hidden"].to_pylist() == dropped.views["pairs_hidden"].to_pylist()
    assert sum(kept.views["pairs_hidden"].to_pylist()) > 0
    for row, count in enumerate(kept.views["pairs_hidden"].to_pylist()):
        ours, theirs = kept.read_view(row, "coordinates"), dropped.read_view(row, "coordinates")
        left = np.isin(ours.point_index, theirs.point_index)
        assert (~left).sum() == count
        np.testing.assert_array_equal(ours.points, theirs.points)
        for name in ("point_index", "pixel", "targets"):
            np.testing.assert_array_equal(getattr(ours, name)[left], getattr(theirs, name))
    options = {"occlusion": "drop", "encoding": "point", "dtype": "float16"}
    extract_tiny("doubled", out="drop.zarr", **options)
    both = extract_tiny("coordinates", "doubled", out="both.zarr", **options)
    assert_same_store(open_store(dropped.path), both)
