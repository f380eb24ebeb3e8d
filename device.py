"""The device that torch computes on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import ScalrError


def resolve_device(name: str) -> torch.device:
    """The torch device of a name. `auto` is the first GPU, or the CPU if there is none.

    Raises:
        ScalrError: torch cannot compute on this device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        numbers = torch.ones(2, 2, device=name)
        (numbers @ numbers).cpu()  # the device "meta" has shapes only
    except Exception as error:  # torch raises many types: missing backends, missing modules
        raise ScalrError(
            f"device '{name}' cannot be used here ({textwrap.shorten(str(error), 100, placeholder=' …')})",
            where="--device",
            fix="Use auto, cpu or cuda.",
        ) from None
    return numbers.device


@contextmanager
def cores_beside(workers: int) -> Iterator[None]:
    """Reserve one core for each loader worker while the context is open.

    torch then uses fewer threads. An operation waits for its slowest thread, and a thread that shares its core is slow.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
