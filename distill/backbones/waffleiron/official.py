"""Files of the official ScaLR and WaffleIron code.

Their tensors have the same names as here, but linear layers are 1x1 convolutions. The files hold neither activation nor
planes nor field of view.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ....errors import StudentError
from ...heads import head_among
from ..backbone import OfficialFiles
from .config import WaffleIronConfig
from .inputs import POINT_FEATURES, WaffleIronInputs

PLUS = {"activation": "gelu", "stochastic_depth": 0.2}  # ScaLR+, recognised by its 2-layer head


class WaffleIronFiles(OfficialFiles):
    """Pretrained, probed, finetuned and supervised models of valeoai/ScaLR and valeoai/WaffleIron."""

    source = "ScaLR or WaffleIron"
    parts = ("embed.", "waffleiron.", "classif.")

    def student_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: _as_rows(name, value) for name, value in tensors.items()}

    def official_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: _as_convolution(name, value) for name, value in tensors.items()}

    def config(self, tensors: Mapping[str, torch.Tensor], path: Path, activation: str | None) -> WaffleIronConfig:
        layers = {int(found[1]) for name in tensors if (found := re.match(r"waffleiron\.spatial_mix\.(\d+)\.", name))}
        embedding, head = tensors.get("embed.conv1.weight"), head_among(tensors)
        if not layers or embedding is None or embedding.ndim != 2 or head is None:
            reason = "no WaffleIron in it" if not layers else "its embedding or head is missing"
            raise self.refused(path, reason)
        if embedding.shape[1] != POINT_FEATURES:
            raise StudentError(
                f"the model reads {embedding.shape[1]} input features per point",
                where=path,
                fix=f"Use a model that reads {POINT_FEATURES}: intensity, x, y, z and radius.",
            )
        kind, last = head
        norm = "batch" if "waffleiron.spatial_mix.0.norm.running_mean" in tensors else "layer"
        if activation is None and (kind, norm) == ("probe", "layer"):
            raise StudentError(
                "the activation is not recorded in the file, and its head fits both ScaLR (relu) and ScaLR+ (gelu)",
                where=path,
                fix="Pass --activation relu for a ScaLR model, --activation gelu for a ScaLR+ model.",
            )
        found = {
            "width": len(embedding),
            "depth": max(layers) + 1,
            "norm": norm,
            "head": kind,
            "out_channels": len(tensors[last]),
        }
        said = {} if activation is None else {"activation": activation}
        return WaffleIronConfig(**found | (PLUS if kind == "mlp" else {}) | said)

    def content(self, tensors: Mapping[str, torch.Tensor], inputs: WaffleIronInputs) -> dict[str, Any]:
        return {"model_point": tensors, "net": tensors}  # ScaLR reads the first, WaffleIron the second


def _as_rows(name: str, value: torch.Tensor) -> torch.Tensor:
    """The value in the shape used here: (out, in) for a 1x1 convolution, (C,) for the layer scale."""
    if name.endswith(".scale.weight"):
        return value.flatten()
    is_pointwise = value.ndim > 2 and value.shape[2:].numel() == 1
    return value.flatten(1) if is_pointwise else value


def _as_convolution(name: str, value: torch.Tensor) -> torch.Tensor:
    """The value in the official shape: Conv1d layers, and Conv2d layers over points and neighbours."""
    if name.endswith(".scale.weight"):
        return value[:, None, None]
    if value.ndim != 2:
        return value
    return value[:, :, None, None] if name.startswith("embed.conv2.") else value[:, :, None]
