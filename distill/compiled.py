"""Loops that numba compiles, once per machine: the code is kept beside the module, or in the user's cache."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit

# Only contraction: NaN and infinity must come through, so that training sees a loss that is not finite.
OPTIONS = {"nogil": True, "fastmath": {"contract"}}


def compiled(function: Callable) -> Callable:
    """The function, compiled when it is first called."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither folder can be written, as in some containers
        return njit(**OPTIONS)(function)
