"""Convolutions over listed cells against torch's own on whole planes, and the tables that they walk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scalr.distill.backbones.waffleiron.occupied_cells import NO_CELL, depthwise, occupied_cells
from scalr.distill.compiled import compiled

shapes = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


@st.composite
def points_on_planes(draw):
    """(index of each point, (B, h, w))."""
    shape = draw(shapes)
    cells = st.integers(0, int(np.prod(shape)) - 1)
    return torch.from_numpy(draw(hnp.arrays(np.int64, st.integers(1, 30), elements=cells))), shape


def tables_on(index: torch.Tensor, shape: tuple[int, int, int]):
    """The tables, and the cells that their rows stand for: occupied (S,), reached (T,)."""
    cell_of_point, counts, to_reached, to_occupied = occupied_cells(index, shape)
    occupied = torch.empty(len(counts), dtype=torch.int64)
    occupied[cell_of_point] = index
    reached = torch.empty(len(to_reached), dtype=torch.int64)
    reached[to_occupied[:, 4].long()] = occupied  # the middle tap is the cell itself
    for tap in range(9):
        sources = to_occupied[:, tap].long()
        there = sources != NO_CELL
        reached[sources[there]] = occupied[there] + (tap // 3 - 1) * shape[2] + tap % 3 - 1
    return cell_of_point, counts, to_reached, to_occupied, occupied, reached


@given(points_on_planes())
def test_cells_are_those_with_points_and_those_around_them(case):
    index, shape = case
    cell_of_point, counts, _, _, occupied, reached = tables_on(index, shape)
    cells, expected_counts = torch.unique(index, return_counts=True)
    assert sorted(occupied.tolist()) == cells.tolist()
    assert dict(zip(occupied.tolist(), counts.tolist(), strict=True)) == dict(
        zip(cells.tolist(), expected_counts.tolist(), strict=True)
    )
    assert torch.equal(occupied[cell_of_point], index)
    plane = torch.zeros(shape).flatten().index_fill(0, cells, 1).view(shape)
    around = F.max_pool2d(plane, 3, stride=1, padding=1).flatten().nonzero().flatten()
    assert sorted(reached.tolist()) == around.tolist()


@given(points_on_planes(), st.integers(1, 5))
def test_two_convolutions_and_their_gradients_equal_those_on_whole_planes(case, threads):
    index, shape = case
    _, _, to_reached, to_occupied, occupied, _ = tables_on(index, shape)
    torch.manual_seed(0)
    x = torch.randn(len(occupied), 3, dtype=torch.float64)
    layers = [(torch.randn(3, 1, 3, 3), torch.randn(3)) for _ in range(2)]
    leaves = [value.double().requires_grad_() for layer in layers for value in layer]
    x.requires_grad_()

    plane = x.new_zeros(np.prod(shape), 3).index_copy(0, occupied, x).view(*shape, 3).permute(0, 3, 1, 2)
    whole = F.conv2d(plane, leaves[0], leaves[1], padding=1, groups=3).relu()
    whole = F.conv2d(whole, leaves[2], leaves[3], padding=1, groups=3)
    expected = whole.permute(0, 2, 3, 1).flatten(0, 2)[occupied]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = depthwise(x, leaves[0], leaves[1], to_reached, to_occupied).relu()
        found = depthwise(first, leaves[2], leaves[3], to_occupied, to_reached)
        upstream = torch.randn_like(expected)
        gradients = torch.autograd.grad(found, [x, *leaves], upstream)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients, torch.autograd.grad(expected, [x, *leaves], upstream), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_comes_through(bad):
    _, _, to_reached, to_occupied = occupied_cells(torch.tensor([0, 1]), (1, 2, 2))
    out = depthwise(torch.full((2, 4), bad), torch.ones(4, 1, 3, 3), torch.zeros(4), to_reached, to_occupied)
    assert not out.isfinite().any()


def test_compiled_code_needs_no_folder_to_be_kept_in(monkeypatch):
    def no_folder(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr("scalr.distill.compiled.njit", no_folder)
    assert compiled(len) is len
