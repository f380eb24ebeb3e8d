"""timm, on machines where torch is a CPU build too."""

from __future__ import annotations

from types import ModuleType

import torch


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
