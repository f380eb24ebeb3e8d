"""Import timm, also beside a CPU build of torch."""

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

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch, its compiled operators do not load, and its
    Python part then fails to register fake kernels for two operators. scalr calls neither, so declaring them suffices.
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
    """A context for calls to timm, for one thread at a time: what timm prints goes to the log, each line once.

    Standard output is for results only, which may be JSON for another program.
    """
    with _alone, redirect_stdout(io.StringIO()) as printed:
        try:
            yield
        finally:
            for line in dict.fromkeys(printed.getvalue().splitlines()):
                logger.info("timm says: %s", line)
