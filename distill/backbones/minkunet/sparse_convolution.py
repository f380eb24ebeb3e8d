"""Sparse convolutions over kernel maps: gather rows, one matrix product per kernel offset, add to output rows.

On a CPU, each thread has its own kernel offsets and its own sums. Pairs are processed in pieces, so that gathered rows
and products stay in a cache.

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
from .kernel_maps import CENTRE, KernelMap
from .threads import in_threads

# Bytes of a piece's gathered rows and products: on a CPU what fits its caches, else a small part of the memory.
CPU_PIECE, DEVICE_PIECE = 2**23, 2**29
THREAD_PRODUCTS = 2**23  # multiplications for which a thread is worthwhile

Pairs = KernelMap | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # or what convolves (M, C) with a kernel


def convolve(x: torch.Tensor, kernel: torch.Tensor, pairs: KernelMap) -> torch.Tensor:
    """out[target] = sum over pairs of x[source] @ kernel[offset], under autocast in its dtype.

    Sums have at least float32.

    Args:
        x: (input rows, C).
        kernel: (K, C, D).
        pairs: the pairs of rows for each offset.

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
        x, kernels = x.detach(), kernel.detach().unbind()

        def add(share: Sequence[_Piece], out: torch.Tensor) -> None:
            for piece in share:
                rows = x.index_select(0, piece.source)
                products = rows.new_empty(len(rows), out.shape[1])
                for k, of_rows, of_products in piece.groups(rows, products):
                    torch.mm(of_rows, kernels[k], out=of_products)
                _add_rows(out, piece.target, products)

        return _summed(add, _shares(pairs, kernel), _at_centre(x, kernels, pairs.num_targets, pairs)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, kernel = (value.detach() for value in ctx.saved_tensors)
        pairs, grad, kernels = ctx.pairs, grad.contiguous(), kernel.transpose(1, 2).unbind()
        grad_kernel = torch.zeros_like(kernel)
        of_kernels, needs_x = grad_kernel.unbind(), ctx.needs_input_grad[0]
        if pairs.has_centre:
            torch.mm(x.t(), grad, out=of_kernels[CENTRE])

        def add(share: Sequence[_Piece], grad_x: torch.Tensor) -> None:
            for piece in share:
                rows, above = x.index_select(0, piece.source), grad.index_select(0, piece.target)
                for k, of_rows, of_above in piece.groups(rows, above):
                    of_kernels[k].addmm_(of_rows.t(), of_above)
                    if needs_x:
                        torch.mm(of_above, kernels[k], out=of_rows)
                if needs_x:
                    _add_rows(grad_x, piece.source, rows)

        start = _at_centre(grad, kernels, pairs.num_sources, pairs) if needs_x else grad.new_empty(0)
        grad_x = _summed(add, _shares(pairs, kernel), start)
        return grad_x.to(x.dtype) if needs_x else None, grad_kernel, None


class _Piece(NamedTuple):
    """Some consecutive pairs."""

    source: torch.Tensor
    target: torch.Tensor
    offsets: list[int]  # kernel offset of each group
    counts: list[int]  # number of pairs of each group

    def groups(self, *values: torch.Tensor) -> Iterator[tuple]:
        """For each group: its offset, and its rows of each tensor."""
        return zip(self.offsets, *(value.split(self.counts) for value in values), strict=True)


def _shares(pairs: KernelMap, kernel: torch.Tensor) -> list[list[_Piece]]:
    """The pairs of each thread, in pieces. All pairs of an offset belong to one thread."""
    on_cpu, total = kernel.device.type == "cpu", sum(pairs.counts)
    threads = max(1, min(torch.get_num_threads(), total * kernel[0].numel() // THREAD_PRODUCTS)) if on_cpu else 1
    most = max(1, (CPU_PIECE if on_cpu else DEVICE_PIECE) // (sum(kernel.shape[1:]) * kernel.element_size()))
    shares: list[list[_Piece]] = [[] for _ in range(threads)]
    start = stop = thread = 0
    offsets: list[int] = []
    counts: list[int] = []

    def close() -> None:
        nonlocal start, offsets, counts
        if counts:
            shares[thread].append(_Piece(pairs.source[start:stop], pairs.target[start:stop], offsets, counts))
        start, offsets, counts = stop, [], []

    for k, remaining in enumerate(pairs.counts):
        if (stop + remaining // 2) * threads >= (thread + 1) * total and thread < threads - 1:
            close()
            thread += 1
        while remaining:
            taken = min(remaining, most - (stop - start))
            offsets.append(k)
            counts.append(taken)
            stop, remaining = stop + taken, remaining - taken
            if stop - start == most:
                close()
    close()
    return shares


def _summed(
    add: Callable[[Sequence[_Piece], torch.Tensor], None], shares: Sequence[Sequence[_Piece]], start: torch.Tensor
) -> torch.Tensor:
    """`start` plus the sums of all threads. The first thread adds to `start`, the others to sums of their own."""

    def of_thread(number: int) -> torch.Tensor:
        sums = torch.zeros_like(start) if number else start
        add(shares[number], sums)
        return sums

    total, *others = in_threads(of_thread, range(len(shares)))
    for other in others:
        total += other
    return total


def _at_centre(x: torch.Tensor, kernels: Sequence[torch.Tensor], rows: int, pairs: KernelMap) -> torch.Tensor:
    """(rows, D): the product of each row with the kernel's centre; zero if the map has no centre."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if pairs.has_centre:
        return torch.mm(x, kernels[CENTRE]).to(dtype)
    return x.new_zeros(rows, kernels[0].shape[1], dtype=dtype)


def _add_rows(out: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """out[rows[i]] += values[i], on a CPU in a fixed order."""
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
    """A convolution with a kernel (K, C, D), initialised as in MinkowskiEngine, without a bias.

    Args:
        channels_in, channels_out: C and D.
        offsets: K.
        transposed: whether it maps coarse voxels to fine ones.
    """

    def __init__(self, channels_in: int, channels_out: int, offsets: int, *, transposed: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt((channels_out if transposed else channels_in) * offsets)
        self.kernel = nn.Parameter(torch.empty(offsets, channels_in, channels_out).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        return convolve(x, self.kernel, pairs) if isinstance(pairs, KernelMap) else pairs(x, self.kernel)


class PointwiseConvolution(nn.Module):
    """A convolution with one offset: a matrix (C, D), without a bias."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(channels_in)
        self.kernel = nn.Parameter(torch.empty(channels_in, channels_out).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kernel
