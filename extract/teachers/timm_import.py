"""timm, on machines where torch is a CPU build too."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType

import torch

logger = logging.getLogger(__name__)

_alone = threading.RLock()


def import_timm() -> ModuleType:
    """Import timm, which imports torchvision.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled operators do not load, and its
    Python part then fails to register fake kernels for two of them. We call neither, so declaring them is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm


@contextmanager
def quietly() -> Iterator[None]:
    """Work with timm, in one thread at a time: what it prints goes to the log, each line once.

    Standard output is for results alone, which may be JSON that a program reads.
    """
    with _alone, redirect_stdout(io.StringIO()) as printed:
        try:
            yield
        finally:
            for line in dict.fromkeys(printed.getvalue().splitlines()):
                logger.info("timm says: %s", line)
