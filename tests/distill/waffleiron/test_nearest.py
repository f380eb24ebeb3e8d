"""The k-d tree against the distances of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalr.distill.backbones.waffleiron.nearest import LEAF_POINTS, build_tree, nearest_of, nearest_others


@st.composite
def clouds(draw):
    """(N, 3): scattered over metres and millimetres, in lines, and with points that coincide."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    xyz = rng.normal(size=(draw(st.integers(1, 200)), 3)) * 10.0 ** rng.integers(-3, 3, size=(1, 3))
    xyz[:, draw(st.integers(0, 2))] *= draw(st.sampled_from([0, 1e-9, 1]))
    return xyz.round(draw(st.sampled_from([0, 1, 12]))).astype(draw(st.sampled_from([np.float32, np.float64])))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.square(a.astype(np.float64)[:, None] - b.astype(np.float64)).sum(axis=2)


@given(clouds(), st.integers(1, 20))
def test_neighbours_are_the_nearest_others_in_their_order(xyz, count):
    count = min(count, len(xyz) - 1)
    rows = nearest_others(build_tree(xyz), count)
    assert rows.shape == (len(xyz), count)
    distances = squared_distances(xyz, xyz)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_allclose(
        np.take_along_axis(distances, rows, axis=1), np.sort(distances, axis=1)[:, :count], rtol=1e-12
    )
    assert all(len(set(row)) == count for row in rows.tolist())


@given(clouds(), clouds())
def test_the_nearest_point_to_any_place(xyz, queries):
    rows = nearest_of(build_tree(xyz), queries)
    distances = squared_distances(queries, xyz)
    np.testing.assert_allclose(
        np.take_along_axis(distances, rows[:, None], axis=1)[:, 0], distances.min(axis=1), rtol=1e-12
    )


@given(clouds())
def test_the_tree_holds_every_point_once_and_its_boxes_hold_theirs(xyz):
    tree = build_tree(xyz)
    assert sorted(tree.row.tolist()) == list(range(len(xyz)))
    np.testing.assert_array_equal(tree.xyz, xyz[tree.row])
    for (start, stop), child, box in zip(tree.span, tree.child, tree.box, strict=True):
        inside = tree.xyz[start:stop]
        np.testing.assert_array_equal(np.concatenate([inside.min(axis=0), inside.max(axis=0)]), box)
        if child < 0:
            assert stop - start <= LEAF_POINTS or (inside == inside[0]).all()


@pytest.mark.parametrize("scale", [1e-40, 1e30])
def test_extreme_coordinates(scale):
    xyz = (np.random.default_rng(0).normal(size=(60, 3)) * scale).astype(np.float32)
    rows = nearest_others(build_tree(xyz), 5)
    assert all(len(set(row)) == 5 for row in rows.tolist())
