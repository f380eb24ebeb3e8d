"""Select the patch tokens of a vision transformer that become the targets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from ...errors import TeacherError

Kind = Literal["x_prenorm", "x_norm", "maskclip"]
LIVE_TENSORS = 16  # size of a block's activations, in units of all its tokens in float32: MLP hidden layer, q, k, v …
GRAMMAR = "x_prenorm, x_norm, either with layers as in x_prenorm:5,11, or maskclip"


@dataclass(frozen=True)
class Feature:
    """Patch tokens of some blocks of a ViT.

    `x_prenorm` is a block's output, `x_norm` the same after the final norm, `maskclip` the last block's values after
    CLIP's projection. Layers count from 0, or from -1 backwards; several layers are concatenated in ascending order.

    >>> str(Feature.parse("x_norm:-1,5").resolved(depth=12))
    'x_norm:5,11'
    >>> str(Feature.parse("x_prenorm:11").resolved(depth=12))
    'x_prenorm'
    """

    kind: Kind = "x_prenorm"
    layers: tuple[int, ...] = (-1,)

    @classmethod
    def parse(cls, text: str) -> Feature:
        """Parse the form above.

        Raises:
            TeacherError: the text has another form.
        """
        kind, colon, layers = text.partition(":")
        try:
            numbers = tuple(int(layer) for layer in layers.split(",")) if colon else (-1,)
        except ValueError:
            raise _unknown(text) from None
        if kind not in get_args(Kind) or (kind == "maskclip" and colon):
            raise _unknown(text)
        return cls(kind, numbers)

    def resolved(self, depth: int) -> Feature:
        """Normalise the layers for a model of `depth` blocks: from 0, ascending; the last block alone is -1.

        Raises:
            TeacherError: a layer that the model lacks, or one that is given twice.
        """
        beyond = [layer for layer in self.layers if not -depth <= layer < depth]
        if beyond:
            raise TeacherError(
                f"layer {beyond[0]} does not exist in a model of {depth} layers",
                where="--feature",
                fix=f"Count from 0 to {depth - 1}, or from -1 to -{depth} backwards.",
            )
        layers = tuple(sorted(layer % depth for layer in self.layers))
        if twice := [layer for layer, following in itertools.pairwise(layers) if layer == following]:
            raise TeacherError(
                f"layer {twice[0]} of {depth} is given twice", where="--feature", fix="Name each layer once."
            )
        return Feature(self.kind, (-1,) if layers == (depth - 1,) else layers)

    def __str__(self) -> str:
        return self.kind if self.layers == (-1,) else f"{self.kind}:{','.join(map(str, self.layers))}"


def num_layers(feature: str) -> int:
    """The number of layers of a feature, as a store records it; 1 for networks other than ViTs.

    >>> num_layers("x_norm:5,11"), num_layers("x_norm")
    (2, 1)
    """
    return feature.partition(":")[2].count(",") + 1


class FeatureReader:
    """Computes a feature for each patch; class and register tokens are left out.

    Args:
        feature: the feature, resolved for the model.
        model: a ViT of timm.

    Attributes:
        dim: channels of the feature.
        activation, norm_eps: settings of the model's blocks, as recorded with the targets.
        live_tensors: approximate size of the activations, in units of the feature in float32.

    Raises:
        TeacherError: the model lacks a layer that the feature needs.
    """

    def __init__(self, feature: Feature, model: torch.nn.Module) -> None:
        self.feature, self.model, self.live_tensors = feature, model, LIVE_TENSORS
        if feature.kind == "maskclip":
            _check_clip(model)
            self.dim = model.head.out_features
        else:
            self.dim = model.embed_dim * len(feature.layers)
        if feature.kind == "x_norm" and isinstance(getattr(model, "norm", None), torch.nn.Identity | None):
            raise TeacherError(
                "x_norm does not exist, because the model pools its patch tokens before the final norm",
                where="--feature",
                fix="Use x_prenorm.",
            )
        last = model.blocks[-1]
        self.activation, self.norm_eps = type(getattr(last.mlp, "act", None)).__name__, getattr(last.norm1, "eps", 0.0)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) to features (B, dim, h, w)."""
        if self.feature.kind == "maskclip":
            return _maskclip(self.model, images)
        layers = [layer % len(self.model.blocks) for layer in self.feature.layers]
        return torch.cat(_outputs(self.model, images, layers, norm=self.feature.kind == "x_norm"), dim=1)


def _outputs(model: torch.nn.Module, images: torch.Tensor, layers: list[int], *, norm: bool) -> list[torch.Tensor]:
    """Patch tokens (B, D, h, w) of each layer; blocks after the last of these layers are not run."""
    return model.forward_intermediates(images, indices=layers, norm=norm, stop_early=True, intermediates_only=True)


def _maskclip(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """MaskCLIP (ECCV 2022; chongzhou96/MaskCLIP: `vit.py`, `maskclip_head.py`): the last block with its attention
    matrix replaced by the identity, final norm, visual projection, normalised.

    Popular reimplementations omit the residual and the MLP of that block, and so compute other features.
    """
    last = model.blocks[-1]
    (tokens,) = _outputs(model, images, [len(model.blocks) - 2], norm=False)
    tokens = tokens.permute(0, 2, 3, 1)
    qkv, width = last.attn.qkv, tokens.shape[-1]
    values = F.linear(last.norm1(tokens), qkv.weight[2 * width :], qkv.bias[2 * width :])
    tokens = tokens + last.ls1(last.attn.proj(values))
    tokens = tokens + last.ls2(last.mlp(last.norm2(tokens)))
    projected = model.head(model.norm(tokens))
    return F.normalize(projected, dim=-1).permute(0, 3, 1, 2)


def _check_clip(model: torch.nn.Module) -> None:
    head = getattr(model, "head", None)
    if isinstance(head, torch.nn.Linear) and type(model).__name__ == "VisionTransformer" and len(model.blocks) > 1:
        return
    raise TeacherError(
        "the feature maskclip needs a projection as in CLIP's image encoders, and the model has none",
        where="--feature",
        fix="Use x_prenorm; maskclip is for maskclip_vitb16 and for CLIP models of timm, such as"
        " timm:vit_large_patch14_clip_224.openai.",
    )


def _unknown(text: str) -> TeacherError:
    return TeacherError(f"unknown feature '{text}'", where="--feature", fix=f"Use {GRAMMAR}.")
