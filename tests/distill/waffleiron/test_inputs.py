"""Points to network inputs, against brute force."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scalr.distill.backbones.waffleiron.inputs import (
    Plane,
    WaffleIronInputs,
    at_most,
    nearest_to,
    voxel_representatives,
)
from scalr.distill.inputs import evaluation_input
from scalr.errors import StudentError
from scalr.extract.intensity import IntensityStatistics, intensity_statistics

SMALL = WaffleIronInputs(
    voxel_size_m=0.5,
    fov_min_m=(-8, -6, -2),
    fov_max_m=(8, 6, 2),
    planes=(Plane((0, 1), (32, 12)), Plane((0, 2), (16, 4)), Plane((1, 2), (24, 8))),
)
UNIT = IntensityStatistics(0.0, 1.0)

clouds = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 60), st.just(3)), elements=st.floats(-3, 3, width=32, allow_subnormal=False)
)
any_floats = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
wild_clouds = hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.just(3)), elements=any_floats)


def random_points(seed: int, count: int, config: WaffleIronInputs = SMALL) -> np.ndarray:
    """(count, 4) float32, inside the field of view."""
    rng = np.random.default_rng(seed)
    low, high = np.array(config.fov_min_m) + 0.01, np.array(config.fov_max_m) - 0.01
    return np.hstack([rng.uniform(low, high, (count, 3)), rng.uniform(0, 255, (count, 1))]).astype(np.float32)


def voxel_groups(xyz: np.ndarray, voxel_size_m: float) -> list[list[int]]:
    """Rows of each voxel, voxels in lexicographic order."""
    groups: dict[tuple, list[int]] = {}
    for row, voxel in enumerate(np.floor((xyz - xyz.min(axis=0)) / voxel_size_m)):
        groups.setdefault(tuple(voxel), []).append(row)
    return [groups[voxel] for voxel in sorted(groups)]


# Voxels


@given(clouds, st.sampled_from([0.1, 0.5, 2.0]))
def test_the_first_point_of_each_voxel(xyz, voxel_size_m):
    expected = [rows[0] for rows in voxel_groups(xyz, voxel_size_m)]
    assert voxel_representatives(xyz, voxel_size_m).tolist() == expected


@given(wild_clouds)
def test_voxels_of_points_that_are_absurdly_far(xyz):
    with np.errstate(over="ignore"):
        expected = [rows[0] for rows in voxel_groups(xyz, 0.1)]
        assert voxel_representatives(xyz, 0.1).tolist() == expected


def test_every_point_of_a_voxel_is_as_likely():
    """Whether it comes first or last among the scan's points: within five standard deviations."""
    xyz = np.zeros((5 * 2000, 3), np.float32)
    xyz[:, 0] = np.tile(np.arange(2000), 5)  # five points in each of 2,000 voxels
    drawn = voxel_representatives(xyz, 0.5, np.random.default_rng(0)) // 2000
    assert np.abs(np.bincount(drawn, minlength=5) - 400).max() < 5 * math.sqrt(2000 * 0.2 * 0.8)


def test_a_random_point_of_each_voxel_may_be_any_of_them():
    xyz = random_points(0, 40)[:, :3]
    groups = voxel_groups(xyz, 4.0)
    assert max(len(rows) for rows in groups) > 2
    rng = np.random.default_rng(0)
    draws = np.stack([voxel_representatives(xyz, 4.0, rng) for _ in range(400)])
    for column, rows in zip(draws.T, groups, strict=True):
        counts = [np.count_nonzero(column == row) for row in rows]
        assert sum(counts) == len(column)
        assert min(counts) > 0.4 * len(column) / len(rows)


def test_voxels_of_no_points():
    assert voxel_representatives(np.empty((0, 3), np.float32), 0.1).shape == (0,)


def test_the_largest_intensities_that_are_taken_stay_finite():
    points = random_points(0, 5)
    points[:, 3] = 1e10
    assert np.isfinite(evaluation_input(points, UNIT, SMALL)[0].features).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_refused(bad):
    points = random_points(0, 5)
    points[3, 1] = bad
    with pytest.raises(StudentError, match="1 of 5 points are not finite"):
        voxel_representatives(points[:, :3], 0.1)
    with pytest.raises(StudentError, match="1 of 5 points are not finite"):
        evaluation_input(points, UNIT, SMALL)


# Field of view, cut


def test_the_field_of_view_is_open_by_a_tenth_of_a_millimetre():
    x = np.array([-8, -7.9999, -7.9998, 0, 7.9998, 7.9999, 8, 9], np.float32)
    xyz = np.stack([x, np.zeros_like(x), np.zeros_like(x)], axis=1)
    assert SMALL.inside(xyz).tolist() == [False, False, True, True, True, False, False, False]
    assert not SMALL.inside(np.array([[0, 0, 2.5], [0, -7, 0]], np.float32)).any()


@given(clouds, st.integers(1, 70), st.integers(0, 2**16))
def test_the_points_nearest_to_a_centre(xyz, count, seed):
    centre = xyz[seed % len(xyz)]
    rows = nearest_to(xyz, centre, count)
    assert len(rows) == min(count, len(xyz))
    assert (np.diff(rows) > 0).all()
    distances = np.square(xyz - centre).sum(axis=1)
    assert sorted(distances[rows]) == sorted(distances)[: len(rows)]


def test_a_scan_is_cut_around_any_of_its_points():
    """Each of the ends of a line of points is kept as often as its nearness to a random one makes it."""
    xyz = np.arange(10.0)[:, None] * [1, 0, 0]
    rng = np.random.default_rng(0)
    kept = [at_most(1, xyz, rng).item() for _ in range(1000)]
    assert np.bincount(kept, minlength=10).min() > 60
    np.testing.assert_array_equal(at_most(10, xyz, rng), np.arange(10))


# Scans


def test_features_are_normalised_intensity_position_and_radius():
    points = random_points(0, 30)
    features = SMALL.prepare(points, intensity_statistics("nuscenes")).input.features
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[:, 0], (points[:, 3] - 18.742355) / 22.04632, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(features[:, 1:4], points[:, :3])
    np.testing.assert_allclose(features[:, 4], np.sqrt(np.square(points[:, :3]).sum(axis=1)), rtol=1e-6)


def test_neighbours_are_the_nearest_others():
    points = random_points(2, 100)
    distances = np.linalg.norm(points[:, None, :3] - points[None, :, :3], axis=2)
    np.fill_diagonal(distances, np.inf)
    expected = np.argsort(distances, axis=1)[:, :16]
    np.testing.assert_array_equal(SMALL.prepare(points, UNIT).input.neighbours, expected)


@pytest.mark.parametrize("count", [2, 5, 16, 17])
def test_neighbours_of_a_small_scan_repeat_what_is_there(count):
    neighbours = SMALL.prepare(random_points(3, count), UNIT).input.neighbours
    assert neighbours.shape == (count, 16)
    for row, others in enumerate(neighbours):
        assert set(others) == set(range(count)) - {row}
        np.testing.assert_array_equal(others, np.resize(others[: count - 1], 16))


def test_a_single_point_is_its_own_neighbour():
    assert (SMALL.prepare(random_points(3, 1), UNIT).input.neighbours == 0).all()


def test_points_that_coincide_are_neighbours_but_not_their_own():
    points = np.repeat(random_points(4, 2), 25, axis=0)
    neighbours = SMALL.prepare(points, UNIT).input.neighbours
    assert (neighbours != np.arange(50)[:, None]).all()
    assert (neighbours // 25 == np.arange(50)[:, None] // 25).all()
    assert all(len(set(others)) == 16 for others in neighbours)


def test_cells_are_counted_from_the_minimum_of_the_field_of_view():
    points = random_points(5, 200)
    cells = SMALL.prepare(points, UNIT).input.cells
    for plane, found in zip(SMALL.planes, cells, strict=True):
        for column, axis in enumerate(plane.axes):
            size = (SMALL.fov_max_m[axis] - SMALL.fov_min_m[axis]) / plane.shape[column]
            expected = [math.floor((float(x) - SMALL.fov_min_m[axis]) / size) for x in points[:, axis]]
            assert found[:, column].tolist() == expected


def test_scan_input_refuses_what_it_cannot_use():
    points = random_points(6, 20)
    with pytest.raises(StudentError, match="no point of the scan"):
        SMALL.prepare(points[:0], UNIT)
    with pytest.raises(StudentError, match=r"shape \(20, 3\)"):
        SMALL.prepare(points[:, :3], UNIT)
    points[4, 0] = 8.0
    with pytest.raises(StudentError, match="outside the field of view"):
        SMALL.prepare(points, UNIT)


def test_evaluation_reaches_every_raw_point_through_its_nearest_kept_point():
    points = random_points(7, 400)
    points[:40, :3] *= 3  # most of these leave the field of view
    scan, kept, nearest = evaluation_input(points, UNIT, SMALL)
    first = np.array([rows[0] for rows in voxel_groups(points[:, :3], 0.5)])
    np.testing.assert_array_equal(kept, first[SMALL.inside(points[first, :3])])
    assert len(kept) < 390
    np.testing.assert_array_equal(scan.features[:, 1:4], points[kept, :3])
    distances = np.linalg.norm(points[:, None, :3] - points[None, kept, :3], axis=2)
    np.testing.assert_array_equal(nearest, distances.argmin(axis=1))


def test_pandaset_has_larger_planes_of_the_same_cells():
    wide = WaffleIronInputs().for_dataset("pandaset_gt")
    assert [plane.shape for plane in wide.planes] == [(512, 512), (512, 32), (512, 32)]
    assert (wide.fov_min_m, wide.fov_max_m) == ((-128, -128, -8), (128, 128, 8))
    assert wide.for_dataset("pandaset_gt") == wide
    assert (
        WaffleIronInputs().for_dataset("pandaset_64")
        == WaffleIronInputs().for_dataset("pandaset_64", finetuning=True)
        == wide
    )
    finetuned = WaffleIronInputs().for_dataset("pandaset_gt", finetuning=True)
    assert [plane.shape for plane in finetuned.planes] == [(384, 384), (384, 32), (384, 32)]
    assert (finetuned.fov_min_m, finetuned.fov_max_m) == ((-96, -96, -8), (96, 96, 8))
    near = WaffleIronInputs(fov_min_m=(-50, -50, -8), fov_max_m=(50, 50, 8))
    shapes = [plane.shape for plane in near.for_dataset("pandaset_64").planes]
    assert shapes == [(656, 656), (656, 32), (656, 32)]  # of 655.36: no cell is larger than it was
    assert WaffleIronInputs().for_dataset("semantic_kitti") == WaffleIronInputs()


def test_evaluation_of_a_scan_that_is_all_outside():
    with pytest.raises(StudentError, match=r"no point of the scan is inside the field of view. Leave this scan out"):
        evaluation_input(random_points(7, 20) + np.float32(100), UNIT, SMALL)


# Batches


def corner_points(seed: int, corner: tuple[int, int, int]) -> np.ndarray:
    """Points within 2 m of a corner of the field of view, some in its last cells."""
    points = random_points(seed, 30)
    extent = np.subtract(SMALL.fov_max_m, SMALL.fov_min_m) / 2
    points[:, :3] = points[:, :3] / extent * 0.95 + np.array(corner) * (extent - 0.96)
    return points


@pytest.mark.parametrize("corner", [(-1, -1, -1), (1, 1, 1), (-1, 1, 1)])
def test_crops_hold_every_scan_where_it_lies(corner):
    scans = [SMALL.prepare(p, UNIT).input for p in (corner_points(0, corner), random_points(1, 3), random_points(2, 9))]
    batch = SMALL.pack(scans)
    for p, (plane, (height, width)) in enumerate(zip(SMALL.planes, batch.crop_shapes, strict=True)):
        assert height <= plane.shape[0]
        assert width <= plane.shape[1]
        for b, scan in enumerate(scans):
            rows = slice(batch.scan_offsets[b], batch.scan_offsets[b + 1])
            index = batch.cells[p, rows].numpy()
            assert (index // (height * width) == b).all()
            cropped = np.stack(np.divmod(index % (height * width), width), axis=1)
            origin = np.unique(scan.cells[p] - cropped, axis=0)
            assert len(origin) == 1
            _check_sides(cropped, origin[0], (height, width), plane.shape)


def _check_sides(cropped, origin, size, plane_shape):
    """Every side of a crop is the plane's border or a free margin."""
    assert (origin >= 0).all()
    assert (origin + size <= plane_shape).all()
    assert ((cropped.min(axis=0) >= 1) | (origin == 0)).all()
    assert ((cropped.max(axis=0) <= np.array(size) - 2) | (origin + size == plane_shape)).all()


def test_the_crop_is_as_small_as_the_largest_scan_allows():
    points = np.tile(np.array([[0.1, 0.1, 0.1, 1]], np.float32), (3, 1))
    assert SMALL.pack([SMALL.prepare(points, UNIT).input] * 2).crop_shapes == ((3, 3), (3, 3), (3, 3))


def test_packing_shifts_neighbours_and_keeps_order():
    scans = [SMALL.prepare(random_points(seed, count), UNIT).input for seed, count in ((0, 5), (1, 40), (2, 17))]
    batch = SMALL.pack(scans)
    assert (batch.num_scans, batch.num_points) == (3, 62)
    assert batch.scan_offsets.tolist() == [0, 5, 45, 62]
    for scan, low, high in zip(scans, batch.scan_offsets, batch.scan_offsets[1:], strict=False):
        np.testing.assert_array_equal(batch.features[low:high], scan.features)
        np.testing.assert_array_equal(batch.neighbours[low:high] - low, scan.neighbours)


def test_a_batch_moves_whole():
    batch = SMALL.pack([SMALL.prepare(random_points(0, 20), UNIT).input]).to("meta")
    tensors = (batch.features, batch.neighbours, batch.scan_offsets, batch.cells)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.cells.dtype == batch.neighbours.dtype == torch.int64


# Configuration


@pytest.mark.parametrize("config", [WaffleIronInputs(), SMALL])
def test_input_config_comes_back_from_json_and_yaml(config):
    assert WaffleIronInputs(**json.loads(json.dumps(asdict(config)))) == config
    assert WaffleIronInputs(**yaml.safe_load(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"voxel_size_m": 0}, "inputs.voxel_size_m"),
        ({"voxel_size_m": "0.1"}, "inputs.voxel_size_m"),
        ({"num_neighbours": 2.5}, "inputs.num_neighbours"),
        ({"num_neighbours": float("inf")}, "inputs.num_neighbours"),
        ({"max_points": -1}, "inputs.max_points"),
        ({"fov_min_m": (-64, -64)}, "inputs.fov_min_m"),
        ({"fov_min_m": (-64, -64, float("nan"))}, "inputs.fov_min_m"),
        ({"fov_min_m": (-64, -64, 8)}, "inputs.fov_max_m"),
        ({"fov_min_m": (-64, -64, 7.9998)}, "inputs.fov_max_m"),  # between faces kept clear by 1e-4 m is nothing
        ({"planes": ()}, "inputs.planes"),
        ({"planes": 3}, "inputs.planes"),
        ({"planes": ["xy"]}, "inputs.planes"),
        ({"planes": [{"axes": [0, 1]}]}, "inputs.planes"),
        ({"planes": [{"axes": [0, 3], "shape": [4, 4]}]}, "inputs.planes.axes"),
        ({"planes": [{"axes": [0, 1], "shape": [4, 0]}]}, "inputs.planes.shape"),
        ({"planes": [{"axes": [0, 1], "shape": "big"}]}, "inputs.planes.shape"),
    ],
)
def test_input_config_refuses(values, where):
    with pytest.raises(StudentError) as error:
        WaffleIronInputs(**values)
    assert error.value.where == where
