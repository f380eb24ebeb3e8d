"""Where the heavy work runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import ScalrError


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU.

    Raises:
        ScalrError: a device that torch does not have here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).split("\n")[0]
        raise ScalrError(
            f"no device '{name}' here ({reason})", where="--device", fix="Use auto, cpu or cuda."
        ) from None


@contextmanager
def cores_beside(workers: int) -> Iterator[None]:
    """Leave each of the loader's workers a core for a while: an operation waits for the slowest of its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
