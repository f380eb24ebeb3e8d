"""Clouds that are turned, flipped, scaled, and lose a cuboid."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalr.distill.augmentation import AugmentConfig, augment, outside_cuboid
from scalr.errors import StudentError


def cloud(seed: int, count: int) -> np.ndarray:
    """(count, 3) float32."""
    return np.random.default_rng(seed).uniform([-8, -6, -2], [8, 6, 2], (count, 3)).astype(np.float32)


@given(st.integers(0, 2**32))
def test_augmentation_is_a_similarity_that_keeps_the_vertical(seed):
    xyz = cloud(1, 30).astype(np.float64)
    moved = augment(xyz, np.random.default_rng(seed))
    scale = np.linalg.norm(moved, axis=1) / np.linalg.norm(xyz, axis=1)
    assert np.ptp(scale) < 1e-9
    assert 0.9 <= scale[0] <= 1.1
    np.testing.assert_allclose(moved[:, 2], scale[0] * xyz[:, 2])
    transform = np.linalg.lstsq(xyz, moved, rcond=None)[0] / scale[0]
    np.testing.assert_allclose(transform @ transform.T, np.eye(3), atol=1e-9)


def test_augmentation_turns_by_any_angle_and_flips_two_times_in_three():
    xyz = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    rng = np.random.default_rng(0)
    moved = np.stack([augment(xyz, rng) for _ in range(3000)])
    assert moved.dtype == np.float32
    flipped = np.linalg.det(moved[:, :, :2]) < 0
    assert 0.63 < flipped.mean() < 0.70
    angles = np.arctan2(moved[:, 0, 1], moved[:, 0, 0])
    assert np.histogram(angles, 8, (-math.pi, math.pi))[0].min() > 300


def test_augmentation_switched_off_is_the_identity():
    xyz = cloud(0, 20)
    off = AugmentConfig(max_rotation_rad=0, flip_probability=0, max_scale_change=0)
    np.testing.assert_array_equal(augment(xyz, np.random.default_rng(0), off), xyz)


def test_each_axis_is_flipped_as_often():
    only_flips = AugmentConfig(max_rotation_rad=0, flip_probability=1, max_scale_change=0)
    rng = np.random.default_rng(0)
    moved = np.stack([augment(np.ones((1, 3)), rng, only_flips)[0] for _ in range(1000)])
    assert (moved[:, 0] * moved[:, 1] == -1).all()
    assert 0.45 < (moved[:, 0] == -1).mean() < 0.55


def test_either_axis_is_flipped_by_itself():
    config = AugmentConfig(max_rotation_rad=0, flips="each", flip_probability=0.7, max_scale_change=0)
    rng = np.random.default_rng(0)
    flipped = np.stack([augment(np.ones((1, 3)), rng, config)[0] for _ in range(2000)]) == -1
    assert not flipped[:, 2].any()
    x, y = flipped[:, 0], flipped[:, 1]
    for share, expected in ((x, 0.7), (y, 0.7), (x & y, 0.49)):
        assert abs(share.mean() - expected) < 0.04


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_a_cuboid_is_left_out(seed, largest_share):
    """All points of a box, that has the same share of the cloud's extent on each axis, and no others."""
    xyz = cloud(seed % 7, 300)
    kept = outside_cuboid(xyz, np.random.default_rng(seed), largest_share)
    dropped = xyz[~kept]
    if len(dropped):
        low, high = dropped.min(axis=0), dropped.max(axis=0)
        assert ((high - low) <= largest_share * np.ptp(xyz, axis=0)).all()
        assert not ((xyz[kept] >= low) & (xyz[kept] <= high)).all(axis=1).any()


def test_a_cuboid_may_be_as_large_as_is_allowed():
    """Along a line of points, shares of up to 0.4 around any point: half of that at the ends."""
    xyz, rng = np.linspace(0, 1, 1001)[:, None] * [1.0, -2.0, 3.0], np.random.default_rng(0)
    dropped = [1 - outside_cuboid(xyz, rng, 0.4).mean() for _ in range(1000)]
    assert 0.39 < max(dropped) <= 0.4
    assert 0.16 < np.mean(dropped) < 0.2  # 0.2 but for the ends
    assert outside_cuboid(xyz, rng, 0.0).all()


@pytest.mark.parametrize(
    "values",
    [
        {"flips": "both"},
        {"flip_probability": 1.5},
        {"max_scale_change": -0.1},
        {"max_scale_change": 1.0},
        {"max_rotation_rad": "pi"},
        {"max_rotation_rad": 3.2},
    ],
)
def test_augment_config_refuses(values):
    with pytest.raises(StudentError, match="cannot be used"):
        replace(AugmentConfig(), **values)
