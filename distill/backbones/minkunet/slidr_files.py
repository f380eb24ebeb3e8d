"""Files of SLidR's MinkUNet: names and shapes of tensors, and the voxels in the file's configuration.

SLidR numbers its layers along the U, and each batch norm is a child, "bn", of a module. Kernels have the same shape as
here, (K, C, D). Only the head differs: it is called "final" and has a kernel (C, D) and a bias (1, D). SLidR's code
takes one feature per voxel, raw intensity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ....checkpoint_files import listed
from ....errors import StudentError
from ...heads import head_among
from ..backbone import OfficialFiles
from .config import STAGES_DOWN, MinkUNetConfig
from .inputs import FEATURE_CHANNELS, MinkUNetInputs

DOWN = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
UP = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")
# Prefixes of names here, and in SLidR's files.
BEGINNINGS = {"stem.": "conv0p1s1.", "stem_norm.": "bn0.bn."}
for number, (down, up) in enumerate(zip(DOWN, UP, strict=True)):
    BEGINNINGS |= {f"down.{number}.conv.": f"{down}.", f"up.{number}.conv.": f"{up}."}
    BEGINNINGS |= {f"down.{number}.norm.": f"bn{number + 1}.bn.", f"up.{number}.norm.": f"bntr{number + 4}.bn."}
    BEGINNINGS |= {f"down.{number}.blocks.": f"block{number + 1}.", f"up.{number}.blocks.": f"block{number + 5}."}
HEAD = {"classif.weight": "final.kernel", "classif.bias": "final.bias"}
NORM_OF_BLOCK = re.compile(r"(\.(?:norm[12]|downsample\.1)\.)(bn\.)?")
IMAGE_NETWORK = "model_images."  # in a checkpoint of pretraining, beside the student


class SLidRFiles(OfficialFiles):
    """Pretrained and finetuned models of valeoai/SLidR, and of code that uses its MinkUNet."""

    source = "SLidR"
    parts = (*BEGINNINGS.values(), "final.")
    inputs_read = ("voxels", "voxel_size_m")

    def student_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            _own_name(name): _as_rows(name, value)
            for name, value in tensors.items()
            if not name.startswith(IMAGE_NETWORK)
        }

    def official_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "classif.weight" not in tensors:
            head, _ = head_among(tensors)
            raise StudentError(
                f"SLidR's file format cannot hold a head of the kind {head}",
                where="student",
                fix="Use a student with a linear head.",
            )
        return {_official_name(name): _as_kernel(name, value) for name, value in tensors.items()}

    def config(self, tensors: Mapping[str, torch.Tensor], path: Path, activation: str | None) -> MinkUNetConfig:
        if activation not in (None, "relu"):
            raise StudentError(
                f"--activation {activation} is not the activation of a MinkUNet",
                where=path,
                fix="Leave out --activation: a MinkUNet uses relu.",
            )
        stages = [f"{way}.{number}.blocks." for way in ("down", "up") for number in range(STAGES_DOWN)]
        blocks = [len({name.split(".")[3] for name in tensors if name.startswith(stage)}) for stage in stages]
        dimensions = {"stem.kernel": 3} | {f"{stage}0.conv2.kernel": 3 for stage in stages} | {"classif.weight": 2}
        misfits = {
            "missing": [_official_name(name) for name in dimensions if name not in tensors],
            "of another shape": [
                f"{_official_name(name)} {tuple(tensors[name].shape)}, not of {count} dimensions"
                for name, count in dimensions.items()
                if name in tensors and tensors[name].ndim != count
            ],
        }
        if any(misfits.values()):
            raise self.refused(path, listed(misfits))
        *kernels, head = (tensors[name] for name in dimensions)
        stem, *widths = (kernel.shape[2] for kernel in kernels)
        return MinkUNetConfig(
            stem_width=stem, widths=tuple(widths), blocks=tuple(blocks), head="linear", out_channels=len(head)
        )

    def inputs(self, tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Features by the number of the stem's input channels; voxels from the file's configuration, if it has one."""
        channels = tensors["stem.kernel"].shape[1]
        features = next((name for name, count in FEATURE_CHANNELS.items() if count == channels), None)
        if features is None:
            raise StudentError(
                f"the model reads {channels} input features per voxel",
                where=path,
                fix="Use a model that reads 1 (intensity) or 5 (intensity, x, y, z and radius).",
            )
        said = content.get("config")
        said = said if isinstance(said, Mapping) else {}
        found = {"features": features}
        if "voxel_size" in said:
            found["voxel_size_m"] = said["voxel_size"]
        if "cylindrical_coordinates" in said:
            is_cylindrical = said["cylindrical_coordinates"]
            # A value that is not a bool is passed on and refused.
            found["voxels"] = {"True": "cylindrical", "False": "cartesian"}.get(repr(is_cylindrical), is_cylindrical)
        return found

    def content(self, tensors: Mapping[str, torch.Tensor], inputs: MinkUNetInputs) -> dict[str, Any]:
        # SLidR's downstream code compares both with its own configuration.
        said = {"voxel_size": inputs.voxel_size_m, "cylindrical_coordinates": inputs.voxels == "cylindrical"}
        return {"model_points": tensors, "config": said}


def _official_name(name: str) -> str:
    """The official name of a student's tensor; other names are not changed."""
    for own, official in BEGINNINGS.items():
        if name.startswith(own):
            return official + NORM_OF_BLOCK.sub(r"\1bn.", name.removeprefix(own))
    return HEAD.get(name, name)


def _own_name(name: str) -> str:
    """The student's name of an official tensor; other names are not changed."""
    for own, official in BEGINNINGS.items():
        if name.startswith(official):
            return own + NORM_OF_BLOCK.sub(r"\1", name.removeprefix(official))
    return next((own for own, official in HEAD.items() if official == name), name)


def _as_rows(official_name: str, value: torch.Tensor) -> torch.Tensor:
    """The head's official (C, D) and (1, D) as (D, C) and (D,); other values are not changed."""
    if official_name == "final.kernel" and value.ndim == 2:
        return value.t()
    return value[0] if official_name == "final.bias" and value.ndim == 2 and len(value) == 1 else value


def _as_kernel(own_name: str, value: torch.Tensor) -> torch.Tensor:
    """The head's (D, C) and (D,) as the official (C, D) and (1, D); other values are not changed."""
    if own_name == "classif.weight" and value.ndim == 2:
        return value.t()
    return value[None] if own_name == "classif.bias" and value.ndim == 1 else value
