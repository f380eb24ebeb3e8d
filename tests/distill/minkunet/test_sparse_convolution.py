"""One sparse convolution: the analytic example, gradients, empty offsets, pieces, half precision, threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalr.distill.backbones.minkunet import sparse_convolution
from scalr.distill.backbones.minkunet.kernel_maps import CENTRE, KernelMap, occupied_voxels, packed, scan_maps
from scalr.distill.backbones.minkunet.sparse_convolution import PointwiseConvolution, SparseConvolution, convolve
from scalr.distill.backbones.minkunet.voxels import voxel_keys


def maps_of(points: np.ndarray) -> tuple[KernelMap, KernelMap]:
    """Of (N, 3) voxels, which may repeat: the kernel of 3 on the finest grid, and that of 2 to the next."""
    maps = scan_maps(occupied_voxels(voxel_keys(points)).keys)
    fine, coarse = maps.sizes[:2]
    return packed([maps.neighbours[0]], [fine], [fine]), packed([maps.children[0]], [fine], [coarse])


def drawn(seed: int, count: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 4, size=(count, 3))


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def by_definition(x: torch.Tensor, kernel: torch.Tensor, pairs: KernelMap) -> torch.Tensor:
    """Pair by pair."""
    out = [torch.zeros(kernel.shape[2], dtype=x.dtype) for _ in range(pairs.num_targets)]
    offsets = np.repeat(np.arange(len(pairs.counts)), pairs.counts).tolist()
    triples = list(zip(offsets, pairs.source.tolist(), pairs.target.tolist(), strict=True))
    triples += [(CENTRE, row, row) for row in range(len(x))] if pairs.has_centre else []
    for k, source, target in triples:
        out[target] = out[target] + x[source] @ kernel[k]
    return torch.stack(out)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_analytic_example_of_minkowski_engine(axis):
    """Features at 0, 1 and 2 on a line, and a kernel of two matrices along it."""
    points = np.zeros((3, 3), np.int64)
    points[:, axis] = [0, 1, 2]
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    matrices = torch.tensor([[[1.0, 2.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    neighbours, children = maps_of(points)
    # What lies one step ahead on the axis.
    kernel = torch.zeros(27, 2, 2)
    kernel[CENTRE], kernel[CENTRE + 3**axis] = matrices
    assert convolve(x, kernel, neighbours).tolist() == [[2, 2], [2, 3], [3, 3]]
    kernel = torch.zeros(8, 2, 2)
    kernel[0], kernel[2**axis] = matrices
    assert convolve(x, kernel, children).tolist() == [[2, 2], [3, 3]]
    # Back: each voxel reads the one that it is in, at its own place in it.
    back = convolve(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), kernel, children.swapped())
    assert back.tolist() == [[1, 2], [0, 1], [2, 1]]


@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 30), st.integers(1, 4))
def test_values_and_gradients_follow_from_the_definition_whatever_pieces_and_threads(seed, transposed, rows, threads):
    torch.manual_seed(seed)
    for pairs in maps_of(drawn(seed % 1000, count=12)):
        pairs = pairs.swapped() if transposed else pairs
        x = torch.randn(pairs.num_sources, 3, dtype=torch.float64, requires_grad=True)
        kernel = torch.randn(len(pairs.counts), 3, 2, dtype=torch.float64, requires_grad=True)
        expected = by_definition(x, kernel, pairs)
        upstream = torch.randn_like(expected)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sparse_convolution, "CPU_PIECE", rows * 5 * 8)
            patch.setattr(sparse_convolution, "THREAD_PRODUCTS", 1)
            with threads_of_torch(threads):
                found = convolve(x, kernel, pairs)
                gradients = torch.autograd.grad(found, (x, kernel), upstream)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, kernel), upstream))


def test_offsets_without_a_pair_take_no_part_and_have_no_gradient():
    neighbours, _ = maps_of(np.array([[0, 0, 0], [1, 0, 0], [9, 9, 9]]))
    assert sum(count > 0 for count in neighbours.counts) == 2
    x, kernel = torch.ones(3, 4), torch.full((27, 4, 4), torch.inf)
    used = [CENTRE - 1, CENTRE, CENTRE + 1]
    kernel[used] = 1.0
    kernel.requires_grad_()
    out = convolve(x, kernel, neighbours)
    out.sum().backward()
    assert out[:, 0].tolist() == [8, 8, 4]
    assert kernel.grad.flatten(1).any(dim=1).nonzero().flatten().tolist() == used


def test_a_single_voxel_meets_itself_alone():
    neighbours, children = maps_of(np.array([[-3, 5, -1]]))
    x, kernel = torch.randn(1, 4), torch.randn(27, 4, 4)
    torch.testing.assert_close(convolve(x, kernel, neighbours), x @ kernel[CENTRE])
    # -3 is the upper one of -4 and -3, 5 that of 4 and 5, -1 that of -2 and -1.
    torch.testing.assert_close(convolve(x, kernel[:8], children), x @ kernel[7])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_comes_through(bad):
    neighbours, _ = maps_of(np.array([[0, 0, 0], [1, 0, 0]]))
    assert not convolve(torch.tensor([[bad], [1.0]]), torch.ones(27, 1, 3), neighbours).isfinite().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_type_and_adds_up_in_single_precision(dtype):
    torch.manual_seed(0)
    for pairs in maps_of(drawn(0, count=200)):
        x = torch.randn(pairs.num_sources, 16, requires_grad=True)
        kernel = torch.randn(len(pairs.counts), 16, 8, requires_grad=True)
        expected = convolve(x, kernel, pairs)
        with torch.autocast("cpu", dtype):
            found = convolve(x, kernel, pairs)
        assert found.dtype == dtype
        upstream = torch.randn_like(expected)
        gradients = torch.autograd.grad(found, (x, kernel), upstream.to(dtype))
        exact = torch.autograd.grad(expected, (x, kernel), upstream)
        assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2
        for a, b in zip((found, *gradients), (expected, *exact), strict=True):
            assert (a - b).norm() < 0.01 * b.norm()


def test_several_threads_may_convolve_at_the_same_time_each_with_helpers(monkeypatch):
    torch.manual_seed(0)
    neighbours, _ = maps_of(drawn(1, count=300))
    inputs = [torch.randn(neighbours.num_sources, 8) for _ in range(4)]
    kernel = torch.randn(27, 8, 5)
    expected = [convolve(x, kernel, neighbours) for x in inputs]
    monkeypatch.setattr(sparse_convolution, "THREAD_PRODUCTS", 1)
    with threads_of_torch(3), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: convolve(x, kernel, neighbours), inputs * 5))
        with torch.inference_mode():
            found.append(convolve(inputs[0], kernel, neighbours))
    for each, wanted in zip(found, [*expected * 5, expected[0]], strict=True):
        torch.testing.assert_close(each, wanted)


def test_kernels_are_drawn_as_minkowski_engine_draws_them():
    torch.manual_seed(0)
    for kernel, bound in (
        (SparseConvolution(4, 50, 27).kernel, (4 * 27) ** -0.5),
        (SparseConvolution(50, 16, 8, transposed=True).kernel, (16 * 8) ** -0.5),
        (PointwiseConvolution(9, 200).kernel, 9**-0.5),
    ):
        assert 0.99 * bound < kernel.abs().max() < bound
        assert abs(kernel.mean()) < 0.05 * bound
        assert abs(kernel.std() - bound / 3**0.5) < 0.05 * bound
