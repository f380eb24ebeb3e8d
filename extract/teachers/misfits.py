"""Errors of one line for weights that do not fit their teacher."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import torch

from ...checkpoint_files import listed
from ...errors import TeacherError
from .conversion import Fit, Skeleton
from .registry import TeacherSpec
from .timm_import import import_timm

# Layers behind the blocks, or for pretraining alone: a file may have them although the model does not. `fc.0` and
# `fc.2` are MoCo v2's. A ResNet's plain `fc` is a classifier: it reveals a supervised training with equal other names.
BESIDE_THE_FEATURE = re.compile(
    r"(head|head_dist|fc_norm|norm|attn_pool|pre_logits|mask_token|lm_head|fc\.[02])(\.|$)|decoder_"
)
CLASSIFIER_OF_RESNET = {"fc.weight", "fc.bias"}
PATCHES = ("patch_embed.proj.weight", "visual.conv1.weight")
BIASES = (".attn.qkv.bias", ".attn.q_bias", ".attn.v_bias")  # timm has most DINOv3 models with and without these


def check_patches(spec: TeacherSpec, origin: str, skeleton: Skeleton, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a patch embedding of another size, which timm would resample silently.

    Raises:
        TeacherError: the file has patches of another size.
    """
    expected = skeleton.tensors.get(PATCHES[0])
    for name, tensor in tensors.items():
        if expected is not None and name.endswith(PATCHES) and tensor.ndim == 4:
            found, side = tensor.shape[-1], expected.shape[-1]
            if found != side:
                raise does_not_fit(spec, origin, f"its patches have {found} pixels, not {side}")


def check_fit(spec: TeacherSpec, origin: str, fit: Fit, optional: Collection[str]) -> None:
    """Check that a file's tensors fill the model.

    Args:
        optional: tensors of the model that the feature does not need.

    Raises:
        TeacherError: the model would keep initial values, or the file has tensors that would change its features and
            that the model does not take; or a value is NaN or infinite.
    """
    kinds = {
        "missing": [name for name in fit.missing if name not in optional],
        "unexpected": [name for name in fit.unexpected if not BESIDE_THE_FEATURE.match(name)],
        "of another shape": [
            f"{name} {found}, not {expected}"
            for name, (found, expected) in fit.misshapen.items()
            if name not in optional
        ],
    }
    if any(kinds.values()):
        classifies = spec.network == "resnet" and set(kinds["unexpected"]) >= CLASSIFIER_OF_RESNET
        kind = "supervised or of MoCo v1, not of MoCo v2: " if classifies else ""
        raise does_not_fit(spec, origin, kind + listed(kinds), kinds["unexpected"])
    if fit.lost:
        lost = listed({"tensors that are not zero": fit.lost})
        raise does_not_fit(spec, origin, f"the model has no place for {lost}", fit.lost)
    broken = [name for name, tensor in fit.taken.items() if not tensor.isfinite().all()]
    if broken:
        raise TeacherError(
            f"the weights are damaged ({listed({'tensors hold NaN or infinite values': broken})})",
            where=origin,
            fix="Copy or download the file again; if you trained the model, use an earlier checkpoint.",
        )


def check_size(
    spec: TeacherSpec, origin: str, resized: Fit, own_size: tuple[int, int], optional: Collection[str]
) -> None:
    """Check that timm can resize the weights to another image size.

    Args:
        resized: the fit of weights that are complete at their own image size.
        own_size: (h, w) of that image size [px].

    Raises:
        TeacherError: timm does not resize a tensor that depends on the image size.
    """
    if resized.misshapen.keys() - optional:
        height, width = own_size
        raise TeacherError(
            f"timm cannot resize the position embeddings of {spec.timm_name}",
            where=origin,
            fix=f"Pass --image-size {height}x{width}, the size of the weights.",
        )


def does_not_fit(spec: TeacherSpec, origin: str, reason: str, unplaced: Sequence[str] = ()) -> TeacherError:
    """The error for weights of another model.

    Args:
        unplaced: tensors for which the model has no place, while another model may have one.
    """
    other = f"{spec.timm_name.partition('.')[0]}_qkvb"
    only_biases = unplaced and all(name.endswith(BIASES) for name in unplaced)
    return TeacherError(
        f"the weights do not fit {spec.timm_name} ({reason})",
        where=origin,
        fix=f"Pass --teacher timm:{other}, which has these biases."
        if only_biases and import_timm().is_model(other)
        else "Pass the official or timm checkpoint of the named teacher.",
    )
