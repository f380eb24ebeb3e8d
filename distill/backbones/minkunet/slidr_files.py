"""Files of SLidR's MinkUNet: names and shapes of its tensors, and the voxels that its configuration speaks of.

SLidR numbers its layers along the U, and each of its batch norms is a child, "bn", of a module. Kernels are stored as
here, (K, C, D); only the head differs, which is "final" there, with a kernel (C, D) and a bias (1, D).
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
from .config import STAGES_DOWN, MinkUNetConfig
from .inputs import FEATURE_CHANNELS, MinkUNetInputs

DOWN = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
UP = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")
# What names begin with here, and in SLidR's files.
BEGINNINGS = {"stem.": "conv0p1s1.", "stem_norm.": "bn0.bn."}
for number, (down, up) in enumerate(zip(DOWN, UP, strict=True)):
    BEGINNINGS |= {f"down.{number}.conv.": f"{down}.", f"up.{number}.conv.": f"{up}."}
    BEGINNINGS |= {f"down.{number}.norm.": f"bn{number + 1}.bn.", f"up.{number}.norm.": f"bntr{number + 4}.bn."}
    BEGINNINGS |= {f"down.{number}.blocks.": f"block{number + 1}.", f"up.{number}.blocks.": f"block{number + 5}."}
NORM_OF_BLOCK = re.compile(r"(\.(?:norm[12]|downsample\.1)\.)(bn\.)?")
IMAGE_NETWORK = "model_images."  # beside the student in a checkpoint of pretraining


class SLidRFiles(OfficialFiles):
    """Pretrained and finetuned models of valeoai/SLidR and of those that kept its MinkUNet."""

    source = "SLidR"
    parts = (*BEGINNINGS.values(), "final.")

    def student_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {_own_name(name): value for name, value in tensors.items() if not name.startswith(IMAGE_NETWORK)}
        if "classif.weight" in found:
            found["classif.weight"] = found["classif.weight"].t()
        if "classif.bias" in found:
            found["classif.bias"] = found["classif.bias"].squeeze(0)
        return found

    def official_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        head, _ = head_among(tensors)
        if head != "linear":
            raise StudentError(
                f"a file of SLidR has no place for a head of the kind {head}",
                where="student",
                fix="Use a student with a linear head.",
            )
        found = {_official_name(name): value for name, value in tensors.items()}
        return found | {"final.kernel": found["final.kernel"].t(), "final.bias": found["final.bias"].unsqueeze(0)}

    def config(self, tensors: Mapping[str, torch.Tensor], path: Path, activation: str | None) -> MinkUNetConfig:
        if activation not in (None, "relu"):
            raise StudentError(
                f"--activation {activation} is not that of a MinkUNet",
                where=path,
                fix="Leave the option out: it is relu.",
            )
        stages = [f"{way}.{number}.blocks." for way in ("down", "up") for number in range(STAGES_DOWN)]
        blocks = [len({name.split(".")[3] for name in tensors if name.startswith(stage)}) for stage in stages]
        kernels = [tensors.get("stem.kernel"), *(tensors.get(f"{stage}0.conv2.kernel") for stage in stages)]
        head = tensors.get("classif.weight")
        if not all(isinstance(kernel, torch.Tensor) and kernel.ndim == 3 for kernel in kernels) or head is None:
            raise self.refused(path, "its stem, its head or a stage of its eight is missing")
        stem, *widths = (kernel.shape[2] for kernel in kernels)
        return MinkUNetConfig(
            stem_width=stem, widths=tuple(widths), blocks=tuple(blocks), head="linear", out_channels=len(head)
        )

    def inputs(self, tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any], path: Path) -> MinkUNetInputs:
        """Features by the channels that the stem reads; voxels as the file's configuration says, where it has one."""
        channels = tensors["stem.kernel"].shape[1]
        features = next((name for name, count in FEATURE_CHANNELS.items() if count == channels), None)
        if features is None:
            raise StudentError(
                f"it reads {channels} features of a voxel",
                where=path,
                fix="Use a model that reads 1, intensity, or 5: intensity, x, y, z and radius.",
            )
        said = content.get("config")
        said = said if isinstance(said, Mapping) else {}
        found = {"features": features}
        if "voxel_size" in said:
            found["voxel_size_m"] = said["voxel_size"]
        if "cylindrical_coordinates" in said:
            found["voxels"] = "cylindrical" if said["cylindrical_coordinates"] else "cartesian"
        try:
            return MinkUNetInputs(**found)
        except StudentError as error:
            raise error.inside(str(path)) from None

    def content(self, tensors: Mapping[str, torch.Tensor], inputs: MinkUNetInputs) -> dict[str, Any]:
        # SLidR's downstream code compares both with its own configuration.
        said = {"voxel_size": inputs.voxel_size_m, "cylindrical_coordinates": inputs.voxels == "cylindrical"}
        return {"model_points": tensors, "config": said}


def _official_name(name: str) -> str:
    if name.startswith("classif."):
        return {"classif.weight": "final.kernel", "classif.bias": "final.bias"}[name]
    own = next(own for own in BEGINNINGS if name.startswith(own))
    return BEGINNINGS[own] + NORM_OF_BLOCK.sub(r"\1bn.", name.removeprefix(own))


def _own_name(name: str) -> str:
    """The student's name of an official one; of any other, the name itself."""
    if name in ("final.kernel", "final.bias"):
        return "classif.weight" if name == "final.kernel" else "classif.bias"
    for own, official in BEGINNINGS.items():
        if name.startswith(official):
            return own + NORM_OF_BLOCK.sub(r"\1", name.removeprefix(official))
    return name
