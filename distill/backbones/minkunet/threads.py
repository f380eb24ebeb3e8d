"""Parallel work on the CPU: several threads, in each of which torch uses a single thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

T, R = TypeVar("T"), TypeVar("R")


def in_threads(action: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """The results of `action` for each part, computed in parallel. `action` must not need gradients.

    A matrix product in several threads ends with the slowest thread. For many consecutive products, it is faster to
    wait once, at the end.
    """
    if len(parts) == 1:
        return [action(parts[0])]
    inference = torch.is_inference_mode_enabled()  # a state of this thread only

    def quiet(part: T) -> R:
        with torch.inference_mode(inference), torch.no_grad():
            return action(part)

    return list(_pool(len(parts)).map(quiet, parts))


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    pool, all_there = ThreadPoolExecutor(threads, "scalr-convolution"), Barrier(threads)
    before = torch.get_num_threads()

    def start(_: int) -> None:
        torch.set_num_threads(1)
        all_there.wait()

    list(pool.map(start, range(threads)))
    torch.set_num_threads(before)  # for this thread and new ones
    return pool
