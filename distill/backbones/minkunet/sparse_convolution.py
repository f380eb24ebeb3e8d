"""Sparse convolutions over kernel maps: gather rows, one matrix product for each kernel offset, add to output rows.

The pairs are worked through in pieces, so that on a CPU what is gathered and multiplied stays in a core's cache.

Letters in shapes: M rows, P pairs, K kernel offsets, C channels in, D channels out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ...compiled import compiled, in_threads
from .kernel_maps import CENTRE, KernelMap

# Of a piece's gathered rows and products: on a CPU what fits a core's cache, else what its memory does not notice.
CPU_PIECE, DEVICE_PIECE = 2**23, 2**29


def convolve(x: torch.Tensor, kernel: torch.Tensor, pairs: KernelMap) -> torch.Tensor:
    """out[target] = sum over the pairs of x[source] @ kernel[offset]; under autocast in its type.

    Sums are in float32 at least.

    Args:
        x: (input rows, C).
        kernel: (K, C, D).
        pairs: which rows meet at which offset.

    Returns:
        (output rows, D).
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, kernel = x.to(dtype), kernel.to(dtype)
    return _Convolution.apply(x.contiguous(), kernel, pairs)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kernel: torch.Tensor, pairs: KernelMap) -> torch.Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.pairs = pairs
        kernels = kernel.unbind()
        out = _at_centre(x, kernel, pairs.num_targets, pairs)
        for piece in _pieces(pairs, kernel):
            rows = x.index_select(0, piece.source)
            products = x.new_empty(len(rows), kernel.shape[2])
            for k, of_rows, of_products in piece.groups(rows, products):
                torch.mm(of_rows, kernels[k], out=of_products)
            _add_rows(out, piece.target, products)
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        pairs, grad = ctx.pairs, grad.contiguous()
        transposed, grad_kernel = kernel.transpose(1, 2), torch.zeros_like(kernel)
        kernels, of_kernels = transposed.unbind(), grad_kernel.unbind()
        wants_grad_x = ctx.needs_input_grad[0]  # the first layer's input does not
        grad_x = _at_centre(grad, transposed, pairs.num_sources, pairs) if wants_grad_x else None
        if pairs.has_centre:
            torch.mm(x.t(), grad, out=of_kernels[CENTRE])
        for piece in _pieces(pairs, kernel):
            above, rows = grad.index_select(0, piece.target), x.index_select(0, piece.source)
            for k, of_above, of_rows in piece.groups(above, rows):
                of_kernels[k].addmm_(of_rows.t(), of_above)
                if wants_grad_x:
                    torch.mm(of_above, kernels[k], out=of_rows)
            if wants_grad_x:
                _add_rows(grad_x, piece.source, rows)
        return grad_x.to(x.dtype) if wants_grad_x else None, grad_kernel, None


class _Piece(NamedTuple):
    """Some of the pairs, one after the other."""

    source: torch.Tensor
    target: torch.Tensor
    offsets: list[int]  # kernel offset of each group
    counts: list[int]  # pairs of each group

    def groups(self, *values: torch.Tensor) -> Iterator[tuple]:
        """The offset of each group, and the rows of it of each of the tensors."""
        return zip(self.offsets, *(value.split(self.counts) for value in values), strict=True)


def _pieces(pairs: KernelMap, kernel: torch.Tensor) -> Iterator[_Piece]:
    """The pairs in pieces whose rows and products have about as many bytes as a piece may have."""
    size = CPU_PIECE if kernel.device.type == "cpu" else DEVICE_PIECE
    most = max(1, size // (sum(kernel.shape[1:]) * kernel.element_size()))
    start, stop, offsets, counts = 0, 0, [], []
    for k, remaining in enumerate(pairs.counts):
        while remaining:
            taken = min(remaining, most - (stop - start))
            offsets.append(k)
            counts.append(taken)
            stop, remaining = stop + taken, remaining - taken
            if stop - start == most:
                yield _Piece(pairs.source[start:stop], pairs.target[start:stop], offsets, counts)
                start, offsets, counts = stop, [], []
    if counts:
        yield _Piece(pairs.source[start:stop], pairs.target[start:stop], offsets, counts)


def _at_centre(x: torch.Tensor, kernel: torch.Tensor, rows: int, pairs: KernelMap) -> torch.Tensor:
    """(rows, D): what each row gives to itself; zero where it gives nothing."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (
        torch.mm(x, kernel[CENTRE]).to(dtype) if pairs.has_centre else x.new_zeros(rows, kernel.shape[2], dtype=dtype)
    )


def _add_rows(out: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """out[rows[i]] += values[i], on a CPU always in the same order."""
    values = values.to(out.dtype)
    if out.device.type == "cpu":
        in_threads(_add_columns, out.shape[1], out, rows, values)
    else:
        out.index_add_(0, rows, values)


@compiled
def _add_columns(start, stop, out, rows, values):
    for i in range(len(rows)):
        to, value = out[np.uint32(rows[i]), start:stop], values[i, start:stop]
        for c in range(len(value)):
            to[c] += value[c]


class SparseConvolution(nn.Module):
    """A kernel (K, C, D), drawn from MinkowskiEngine's distribution; without a bias.

    Args:
        channels_in, channels_out: C and D.
        offsets: K.
        transposed: whether it goes from coarse voxels to fine ones.
    """

    def __init__(self, channels_in: int, channels_out: int, offsets: int, *, transposed: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt((channels_out if transposed else channels_in) * offsets)
        self.kernel = nn.Parameter(torch.empty(offsets, channels_in, channels_out).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor, pairs: KernelMap) -> torch.Tensor:
        return convolve(x, self.kernel, pairs)


class PointwiseConvolution(nn.Module):
    """A kernel of one offset: a matrix (C, D), without a bias."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(channels_in)
        self.kernel = nn.Parameter(torch.empty(channels_in, channels_out).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kernel
