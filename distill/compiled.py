"""Loops that numba compiles, once per machine: the code is kept beside the module, or in the user's cache."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from numba import njit

# Only contraction: NaN and infinity must come through, so that training sees a loss that is not finite.
OPTIONS = {"nogil": True, "fastmath": {"contract"}}


def compiled(function: Callable) -> Callable:
    """The function, compiled when it is first called."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither folder can be written, as in some containers
        return njit(**OPTIONS)(function)


def in_threads(kernel: Callable, count: int, *tensors: torch.Tensor) -> list:
    """Run `kernel(start, stop, *arrays)` over ranges of `count`, as many at a time as torch has threads."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    threads = min(torch.get_num_threads(), max(1, count))
    bounds = [count * part // threads for part in range(threads + 1)]
    rest = [_pool(threads - 1).submit(kernel, *bounds[i : i + 2], *arrays) for i in range(1, threads)]
    return [kernel(*bounds[:2], *arrays), *(future.result() for future in rest)]


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="scalr-kernel")
