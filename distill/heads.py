"""Heads on a backbone's features: what maps them to a teacher's space, or to classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from .processes import BatchNorm

# Of ScaLR and of ScaLR+; then those of models probed or finetuned for classes: BatchNorm and a linear layer that is
# zero, as ScaLR's code has it, or a linear layer alone, drawn as torch draws it, as SLidR's has it.
Head = Literal["linear", "mlp", "probe", "probe_linear"]
CLASS_HEADS = ("probe", "probe_linear")
HIDDEN = 2048  # channels between the two layers of the ScaLR+ head
LAST = {"linear": "classif.weight", "probe": "classif.1.weight", "mlp": "classif.2.weight"}  # weight of the last layer


def new_head(kind: Head, width: int, out_channels: int) -> nn.Module:
    """A head with initial weights, from (..., width) to (..., out_channels)."""
    if kind == "probe":
        return probe_head(width, out_channels)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, out_channels))
    return nn.Linear(width, out_channels)


def probe_head(width: int, num_classes: int) -> nn.Module:
    """The head of official probing and finetuning: tokens (M, width) -> logits (M, num_classes), all zero at first."""
    linear = nn.Linear(width, num_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(BatchNorm(width), linear)


def head_among(tensors: Mapping[str, torch.Tensor]) -> tuple[Head, str] | None:
    """Which head a student's tensors have, and the name of its last layer's weight; None where they have none."""
    return next(((kind, last) for kind, last in LAST.items() if last in tensors and tensors[last].ndim == 2), None)
