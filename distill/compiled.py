"""Loops compiled by numba, once per machine: the result is cached beside the module or in the user's cache folder."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit

# Only contraction: NaN and infinity must be preserved, so that training notices a loss that is not finite.
OPTIONS = {"nogil": True, "fastmath": {"contract"}}


def compiled(function: Callable) -> Callable:
    """The function, compiled at its first call."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither cache folder is writable, as in some containers
        return njit(**OPTIONS)(function)
