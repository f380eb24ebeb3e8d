"""Heads, which map a backbone's features to a teacher's space or to classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from .processes import BatchNorm

# linear: ScaLR. mlp: ScaLR+. For classes: probe, BatchNorm and a linear layer that starts at zero, as in ScaLR's code;
# probe_linear, a linear layer with torch's initialisation, as in SLidR's.
Head = Literal["linear", "mlp", "probe", "probe_linear"]
CLASS_HEADS = ("probe", "probe_linear")
HIDDEN = 2048  # channels between the two layers of the ScaLR+ head
LAST = {"linear": "classif.weight", "probe": "classif.1.weight", "mlp": "classif.2.weight"}  # the last layer's weight


def new_head(kind: Head, width: int, out_channels: int) -> nn.Module:
    """A head with initial weights, from (..., width) to (..., out_channels)."""
    if kind == "probe":
        return probe_head(width, out_channels)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, out_channels))
    return nn.Linear(width, out_channels)


def probe_head(width: int, num_classes: int) -> nn.Module:
    """The official head of probing and finetuning: features (M, width) -> logits (M, num_classes), initially zero."""
    linear = nn.Linear(width, num_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(BatchNorm(width), linear)


def head_among(tensors: Mapping[str, torch.Tensor]) -> tuple[Head, str] | None:
    """The head in a student's tensors and the name of its last layer's weight; None if there is no head."""
    return next(((kind, last) for kind, last in LAST.items() if last in tensors and tensors[last].ndim == 2), None)
