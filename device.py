"""Where the heavy work runs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import ScalrError


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU.

    Raises:
        ScalrError: a device on which torch cannot compute here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        numbers = torch.ones(2, 2, device=name)
        (numbers @ numbers).cpu()  # "meta" has shapes alone
    except Exception as error:  # torch has many: of what it was not built with, of modules that are not there
        raise ScalrError(
            f"device '{name}' cannot be used here ({textwrap.shorten(str(error), 100, placeholder=' …')})",
            where="--device",
            fix="Use auto, cpu or cuda.",
        ) from None
    return numbers.device


@contextmanager
def cores_beside(workers: int) -> Iterator[None]:
    """Leave each of the loader's workers a core for a while: an operation waits for the slowest of its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
