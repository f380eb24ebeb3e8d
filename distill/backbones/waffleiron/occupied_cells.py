"""Compiled loops for the CPU: cells of a plane, and depthwise 3x3 convolutions over listed cells.

A plane of 60,000 cells has points in a few thousand of them. Libraries convolve all cells. These loops visit only the
cells that matter, in a twentieth of the time.

Letters in shapes: M points, S source cells, T target cells, C channels. Taps are numbered row by row, 0 to 8.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

from ...compiled import compiled

NO_CELL = -1  # for a tap beyond the plane or in an empty cell


def depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, taps: torch.Tensor, back: torch.Tensor):
    """A depthwise 3x3 convolution with zero padding, from a list of source cells to a list of target cells.

    Args:
        x: (S, C), the source cells; all other cells of the plane are zero.
        weight: (C, 1, 3, 3), as in nn.Conv2d.
        bias: (C,).
        taps: (T, 9) int32, the source cell at each tap of each target, or NO_CELL.
        back: (S, 9) int32, the inverse table: the target cell at each tap of each source, or NO_CELL.

    Returns:
        (T, C).
    """
    return _Depthwise.apply(x.contiguous(), weight.flatten(1).t().contiguous(), bias, taps, back)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, taps, back):
        ctx.save_for_backward(x, weight, taps, back)
        out = x.new_empty(len(taps), x.shape[1])
        _in_threads(_convolve, len(taps), x, weight, bias, taps, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, taps, back = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        # A target's gradient flows to its tap k; seen from that source, the target lies at tap 8 - k.
        _in_threads(_convolve, len(back), grad, weight.flip(0), weight.new_zeros(x.shape[1]), back, grad_x)
        partial = _in_threads(_weight_gradient, len(taps), x, grad, taps)
        return grad_x, torch.from_numpy(sum(partial)), grad.sum(dim=0), None, None


def occupied_cells(index: torch.Tensor, shape: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
    """The cells that hold points, the cells around them, and the taps between the two.

    Args:
        index: (M,) int64, each point's cell in the (B, h, w) grid.
        shape: (B, h, w).

    Returns:
        cell_of_point (M,) int64, the number of each point's occupied cell; counts (S,) int64, points per occupied cell;
        to_reached (T, 9) int32, the occupied cell at each tap of each cell that a 3x3 convolution reaches;
        to_occupied (S, 9) int32, the reached cell at each tap of each occupied cell.
    """
    return tuple(torch.from_numpy(array) for array in _occupied_cells(index.numpy(), *shape))


@compiled
def _occupied_cells(index, scans, height, width):
    number = np.full(scans * height * width, NO_CELL, np.int32)
    cell_of_point = np.empty(len(index), np.int64)
    occupied = 0
    for point, cell in enumerate(index):
        if number[cell] == NO_CELL:
            number[cell] = occupied
            occupied += 1
        cell_of_point[point] = number[cell]
    counts = np.zeros(occupied, np.int64)
    cells = np.empty(occupied, np.int64)
    for point, cell in enumerate(index):
        counts[cell_of_point[point]] += 1
        cells[cell_of_point[point]] = cell
    reached_number = np.full(scans * height * width, NO_CELL, np.int32)
    reached_cells = np.empty(min(9 * occupied, len(number)), np.int64)
    to_occupied = np.full((occupied, 9), NO_CELL, np.int32)
    reached = 0
    for source in range(occupied):
        for tap in range(9):
            cell = _neighbour(cells[source], tap, height, width)
            if cell == NO_CELL:
                continue
            if reached_number[cell] == NO_CELL:
                reached_number[cell] = reached
                reached_cells[reached] = cell
                reached += 1
            to_occupied[source, tap] = reached_number[cell]
    to_reached = np.full((reached, 9), NO_CELL, np.int32)
    for target in range(reached):
        for tap in range(9):
            cell = _neighbour(reached_cells[target], tap, height, width)
            if cell != NO_CELL:
                to_reached[target, tap] = number[cell]
    return cell_of_point, counts, to_reached, to_occupied


@compiled
def _neighbour(cell, tap, height, width):
    """The cell at a tap of a cell, within the plane of the same scan."""
    row = cell // width % height + tap // 3 - 1
    column = cell % width + tap % 3 - 1
    if row < 0 or row >= height or column < 0 or column >= width:
        return NO_CELL
    return cell + (tap // 3 - 1) * width + tap % 3 - 1


@compiled
def _convolve(start, stop, x, weight, bias, taps, out):
    channels = x.shape[1]
    for target in range(start, stop):
        row = out[target]
        for c in range(channels):
            row[c] = bias[c]
        for tap in range(9):
            source = taps[target, tap]
            if source != NO_CELL:
                values, factors = x[source], weight[tap]
                for c in range(channels):
                    row[c] += values[c] * factors[c]


@compiled
def _weight_gradient(start, stop, x, grad, taps):
    """(9, C): the contribution of the targets from start to stop."""
    channels = x.shape[1]
    total = np.zeros((9, channels), x.dtype)
    for target in range(start, stop):
        upstream = grad[target]
        for tap in range(9):
            source = taps[target, tap]
            if source != NO_CELL:
                values, row = x[source], total[tap]
                for c in range(channels):
                    row[c] += values[c] * upstream[c]
    return total


def _in_threads(kernel: Callable, count: int, *tensors: torch.Tensor) -> list:
    """Run `kernel(start, stop, *arrays)` on parts of `range(count)`, in as many threads as torch has."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    threads = min(torch.get_num_threads(), max(1, count))
    bounds = [count * part // threads for part in range(threads + 1)]
    rest = [_pool(threads - 1).submit(kernel, *bounds[i : i + 2], *arrays) for i in range(1, threads)]
    return [kernel(*bounds[:2], *arrays), *(future.result() for future in rest)]


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="scalr-kernel")
