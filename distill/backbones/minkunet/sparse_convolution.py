"""Sparse convolutions over kernel maps: gather rows, one matrix product for each kernel offset, add to output rows.

On a CPU each thread has output rows of its own. Pairs are worked through in pieces, so that what is gathered and
multiplied stays in a cache.

Letters in shapes: M rows, P pairs, K kernel offsets, C channels in, D channels out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ...compiled import compiled
from .kernel_maps import CENTRE, KernelMap, Part
from .threads import in_threads

# Bytes of a piece's gathered rows and products: on a CPU what fits its caches, else what its memory does not notice.
CPU_PIECE, DEVICE_PIECE = 2**23, 2**29
Pairs = KernelMap | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # or what convolves (M, C) with a kernel
THREAD_PRODUCTS = 2**23  # multiplications that are worth a thread


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
        kernels = kernel.detach().unbind()
        out = _sums(pairs.num_targets, kernel.shape[2], pairs, x)

        def add(part: Part) -> None:
            if pairs.has_centre:
                _multiply(x[part.rows], kernels[CENTRE], out[part.rows])
            for piece in _pieces(part, kernel):
                rows = x.index_select(0, piece.source)
                products = rows.new_empty(len(rows), out.shape[1])
                for k, of_rows, of_products in piece.groups(rows, products):
                    torch.mm(of_rows, kernels[k], out=of_products)
                _add_rows(out, piece.target, products)

        in_threads(add, _parts(pairs, kernel))
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        pairs, grad = ctx.pairs, grad.contiguous()
        x, kernels = x.detach(), kernel.detach().transpose(1, 2).unbind()
        needs_x = ctx.needs_input_grad[0]
        grad_x = _sums(pairs.num_sources, kernel.shape[1], pairs, x) if needs_x else None

        def add(part: Part) -> torch.Tensor:
            grad_kernel = torch.zeros_like(kernel)
            of_kernels = grad_kernel.unbind()
            if pairs.has_centre:
                torch.mm(x[part.rows].t(), grad[part.rows], out=of_kernels[CENTRE])
                if needs_x:
                    _multiply(grad[part.rows], kernels[CENTRE], grad_x[part.rows])
                part = part.mirrored()  # so that parts have no row of x in common
            for piece in _pieces(part, kernel):
                rows, above = x.index_select(0, piece.source), grad.index_select(0, piece.target)
                for k, of_rows, of_above in piece.groups(rows, above):
                    of_kernels[k].addmm_(of_rows.t(), of_above)
                    if needs_x:
                        torch.mm(of_above, kernels[k], out=of_rows)
                if needs_x:
                    _add_rows(grad_x, piece.source, rows)
            return grad_kernel

        first, *others = in_threads(add, _parts(pairs, kernel))
        for other in others:
            first += other
        return grad_x.to(x.dtype) if needs_x else None, first, None


class _Piece(NamedTuple):
    """Some of the pairs, one after the other."""

    source: torch.Tensor
    target: torch.Tensor
    offsets: list[int]  # kernel offset of each group
    counts: list[int]  # pairs of each group

    def groups(self, *values: torch.Tensor) -> Iterator[tuple]:
        """The offset of each group, and the rows of it of each of the tensors."""
        return zip(self.offsets, *(value.split(self.counts) for value in values), strict=True)


def _parts(pairs: KernelMap, kernel: torch.Tensor) -> Sequence[Part]:
    """The pairs as threads share them."""
    if kernel.device.type != "cpu":
        return pairs.parts(1)
    joined = len(pairs.source) + pairs.num_targets * pairs.has_centre
    worth = joined * kernel[0].numel() // THREAD_PRODUCTS
    return pairs.parts(max(1, min(torch.get_num_threads(), worth)))


def _pieces(part: Part, kernel: torch.Tensor) -> Iterator[_Piece]:
    """The pairs in pieces whose rows and products have about as many bytes as a piece may have."""
    size = CPU_PIECE if kernel.device.type == "cpu" else DEVICE_PIECE
    most = max(1, size // (sum(kernel.shape[1:]) * kernel.element_size()))
    start, stop, offsets, counts = 0, 0, [], []
    for k, remaining in zip(part.offsets, part.counts, strict=True):
        while remaining:
            taken = min(remaining, most - (stop - start))
            offsets.append(k)
            counts.append(taken)
            stop, remaining = stop + taken, remaining - taken
            if stop - start == most:
                yield _Piece(part.source[start:stop], part.target[start:stop], offsets, counts)
                start, offsets, counts = stop, [], []
    if counts:
        yield _Piece(part.source[start:stop], part.target[start:stop], offsets, counts)


def _sums(rows: int, channels: int, pairs: KernelMap, like: torch.Tensor) -> torch.Tensor:
    """(rows, channels) of zeros; of anything where the centre's products, which come first, fill all rows."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return (like.new_empty if pairs.has_centre else like.new_zeros)(rows, channels, dtype=dtype)


def _multiply(rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> None:
    if out.dtype == rows.dtype:
        torch.mm(rows, matrix, out=out)
    else:
        out.copy_(torch.mm(rows, matrix))


def _add_rows(out: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """out[rows[i]] += values[i], on a CPU always in the same order."""
    values = values.to(out.dtype)
    if out.device.type == "cpu":
        _add(out.numpy(), rows.numpy(), values.numpy())
    else:
        out.index_add_(0, rows, values)


@compiled
def _add(out, rows, values):
    for i in range(len(rows)):
        row = np.uint32(rows[i])
        for c in range(values.shape[1]):
            out[row, c] += values[i, c]


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

    def forward(self, x: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        return convolve(x, self.kernel, pairs) if isinstance(pairs, KernelMap) else pairs(x, self.kernel)


class PointwiseConvolution(nn.Module):
    """A kernel of one offset: a matrix (C, D), without a bias."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(channels_in)
        self.kernel = nn.Parameter(torch.empty(channels_in, channels_out).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kernel
