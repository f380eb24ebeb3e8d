from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scalr.distill.voxels import one_of_each, voxel_keys

clouds = arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-50, 50, width=32))


def ranks(voxels: np.ndarray) -> np.ndarray:
    """Of each row among the distinct rows, in lexicographic order."""
    return np.unique(voxels, axis=0, return_inverse=True)[1].ravel()


def assert_keys_of(keys: np.ndarray, voxels: np.ndarray) -> None:
    assert keys.dtype == np.int64
    assert keys.min() >= 0
    np.testing.assert_array_equal(np.unique(keys, return_inverse=True)[1], ranks(voxels))


@given(xyz=clouds, size=st.sampled_from([0.1, 0.5, 4.0]), dtype=st.sampled_from([np.float32, np.float64]))
def test_keys_are_in_the_lexicographic_order_of_the_voxels(xyz, size, dtype):
    """Counted from the lowest coordinates, in the points' own precision."""
    xyz = xyz.astype(dtype)
    keys = voxel_keys(xyz, size)
    assert_keys_of(keys, np.floor((xyz - xyz.min(axis=0)) / dtype(size)).astype(np.int64))


@given(xyz=clouds, far=st.sampled_from([1e9, -3e9, 1e15]), size=st.sampled_from([0.1, 0.5]))
def test_so_they_are_where_a_stray_point_is_far_away(xyz, far, size):
    """There are more voxels than numbers then, so that only those that have points are counted."""
    xyz = np.vstack([xyz.astype(np.float64), [[far, 0, 0], [0, far, 0], [0, 0, far], [0.3, 0.3, 0.3]]])
    assert_keys_of(voxel_keys(xyz, size), np.floor((xyz - xyz.min(axis=0)) / size))


def test_keys_tell_every_voxel_of_a_box_from_every_other():
    """Of different lengths along its axes, its upper borders included."""
    voxels = np.stack(np.meshgrid(range(4), range(3), range(5), indexing="ij"), axis=-1).reshape(-1, 3)
    for stray in (np.empty((0, 3)), np.array([[2.0**32, 0, 0], [0, 2.0**32, 0]])):
        xyz = np.vstack([voxels, stray])[np.random.default_rng(0).permutation(len(voxels) + len(stray))]
        assert_keys_of(voxel_keys(xyz.astype(np.float64), 1.0), xyz)


def test_up_to_62_bits_voxels_are_numbered_and_ranked_above():
    """So that no product overflows."""
    for x, expected in ((2.0**31 - 2, (2**31 - 2) * 2**31 + 2**31 - 1), (2.0**31 - 1, 3)):
        assert voxel_keys(np.array([[0, 0, 0], [x, 2.0**31 - 1, 0]]), 1.0).tolist() == [0, expected]


@given(arrays(np.float64, (1, 3), elements=st.floats(-50, 50)))
def test_one_point_is_where_the_grid_starts(xyz):
    assert voxel_keys(xyz, 0.1).tolist() == [0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_points_have_no_keys(dtype):
    keys = voxel_keys(np.empty((0, 3), dtype), 0.1)
    assert (keys.shape, keys.dtype) == ((0,), np.int64)
    assert one_of_each(keys).tolist() == []


@given(st.lists(st.integers(0, 30) | st.integers(0, 2**62), min_size=1, max_size=200))
def test_the_first_row_of_each_key_in_the_order_of_the_keys(keys):
    rows = one_of_each(np.array(keys, np.int64))
    np.testing.assert_array_equal(rows, np.unique(keys, return_index=True)[1])
    assert rows.dtype == np.int64


@pytest.mark.parametrize("count", [7, 8, 9, 1000])
def test_keys_that_fall_on_each_other_in_the_table_are_told_apart(count):
    """Multiples of a power of two, many of which have one place in it."""
    for factor in (1, 2**40, 2**50 + 1):
        keys = np.repeat(np.arange(count) * (factor % 2**52), 2)
        np.testing.assert_array_equal(one_of_each(keys), np.arange(0, 2 * count, 2))


def test_every_row_of_a_key_is_as_likely_and_of_the_key():
    """Of four, three, two and one rows; a chi-square test at one in a thousand, of a fixed seed."""
    keys = np.repeat([5, 1, 3, 0], [4, 3, 2, 1])
    rng, drawn = np.random.default_rng(0), []
    for _ in range(3000):
        rows = one_of_each(keys, rng)
        assert keys[rows].tolist() == [0, 1, 3, 5]
        drawn.append(rows)
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    expected = 3000 / np.repeat([4, 3, 2, 1], [4, 3, 2, 1])
    assert ((counts - expected) ** 2 / expected).sum() < 22.5  # of six degrees of freedom


def test_draws_are_the_generator_s_one_a_row():
    """As many as there are rows, so that what is drawn after them does not depend on the voxels."""
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    one_of_each(np.array([4, 4, 2, 4, 9, 2]), first)
    second.random(6)
    assert first.random() == second.random()
