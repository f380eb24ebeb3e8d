"""Rename vision transformers of Hugging Face's transformers: DINOv2, DINOv3, ViT, MAE, CLIP and SigLIP.

DINOv2 and DINOv3 get the names of their makers' files, which timm converts; the others get timm's names. Queries, keys
and values, which are three layers in transformers, become one layer, as elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

State = Mapping[str, torch.Tensor]
PATCHES = r"embeddings\.patch_embeddings?(?:\.projection)?\.weight"
IN_A_BLOCK = re.compile(r"(?:model\.)?(?:encoder\.)?layers?\.(?P<block>\d+)\.(?P<layer>.+)\.(?P<kind>\w+)")
# Layers behind the patch tokens, or of the text encoder.
BESIDE = re.compile(
    r"(?:vision_model\.head|pooler|classifier|head|text_model|text_projection|logit_scale|logit_bias)(?:\.|$)"
)
NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.class_embedding": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
    "visual_projection.weight": "head.weight",
}
REGISTERS, DINOV2_REGISTERS, DINOV3_REGISTERS = "embeddings.register_tokens", "register_tokens", "storage_tokens"
LAYERS = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "embeddings.patch_embedding": "patch_embed.proj",
    "pre_layrnorm": "norm_pre",  # so spelt in transformers
    "layernorm": "norm",
    "post_layernorm": "norm",
    "norm": "norm",
}
LAYERS_OF_A_BLOCK = {
    "norm1": "norm1", "layernorm_before": "norm1", "layer_norm1": "norm1",
    "norm2": "norm2", "layernorm_after": "norm2", "layer_norm2": "norm2",
    "layer_scale1": "ls1", "layer_scale2": "ls2",
    "attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj", "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1", "intermediate.dense": "mlp.fc1", "mlp.up_proj": "mlp.fc1",
    "mlp.fc2": "mlp.fc2", "output.dense": "mlp.fc2", "mlp.down_proj": "mlp.fc2",
    "mlp.weights_in": "mlp.w12", "mlp.weights_out": "mlp.w3",
}  # fmt: skip
GATE = "mlp.gate_proj"  # only in DINOv3's MLPs with three layers
GATED = {GATE: "mlp.w1", "mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"}
QUERY_KEY_VALUE = (
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"),  # DINOv2, ViT
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),  # DINOv3, whose keys have no bias
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),  # CLIP, SigLIP
)
WITHOUT_KEY_BIAS = "attention.k_proj"
KINDS = {"lambda1": "gamma"}  # names of layer scales


def is_hugging_face(tensors: State) -> bool:
    """Whether a model has the names of Hugging Face's transformers."""
    return any(re.match(rf"(?:vision_model\.)?{PATCHES}$", name) for name in tensors)


def renamed(tensors: State) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Rename a model to its makers' or timm's names; also return the names of tensors that the feature does not need.

    Missing tensors remain missing and unknown ones keep their names, so that loading the result reports them.
    """
    beside = [name for name in tensors if BESIDE.match(name)]
    own = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items() if name not in beside}
    names = _names(own)
    result: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, tuple[str, torch.Tensor]]] = {}
    for name, tensor in own.items():
        found = IN_A_BLOCK.fullmatch(name)
        if found and any(found["layer"] in layers for layers in QUERY_KEY_VALUE):
            whole = f"blocks.{found['block']}.attn.qkv.{found['kind']}"
            parts.setdefault(whole, {})[found["layer"]] = (name, tensor)
            continue
        layer, kind = (found["layer"], found["kind"]) if found else name.rpartition(".")[::2]
        place = f"blocks.{found['block']}." if found else ""
        of_layer = f"{place}{names[layer]}.{KINDS.get(kind, kind)}" if layer in names else name
        new = names.get(name, of_layer)
        result[name if new in result else new] = tensor
    for whole, layers in parts.items():
        result |= _joined(whole, layers)
    return _completed(result), beside


def _names(tensors: State) -> dict[str, str]:
    """Map the names of tensors and layers in transformers to the new names."""
    is_dinov3 = "embeddings.patch_embeddings.weight" in tensors
    gated = any(f".{GATE}." in name for name in tensors)
    registers = {REGISTERS: DINOV3_REGISTERS if is_dinov3 else DINOV2_REGISTERS}
    return NAMES | registers | LAYERS | LAYERS_OF_A_BLOCK | (GATED if gated else {})


def _joined(whole: str, layers: dict[str, tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Concatenate queries, keys and values; leave them as they are if one is missing or their shapes do not fit."""
    for wanted in QUERY_KEY_VALUE:
        found = [layers[layer][1] for layer in wanted if layer in layers]
        if WITHOUT_KEY_BIAS in wanted and whole.endswith("bias") and {*layers} == {*wanted} - {WITHOUT_KEY_BIAS}:
            found.insert(1, torch.zeros_like(found[0]))
        if len(found) == len(wanted) and all(each.ndim and each.shape == found[0].shape for each in found):
            return {whole: torch.cat(found)}
    return dict(layers.values())


def _completed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add what other layouts have: leading dimensions of CLIP's embeddings, a bias of its projection, a mask token."""
    for name, dimensions in {"cls_token": 1, "pos_embed": 2}.items():
        if name in tensors and tensors[name].ndim == dimensions:
            tensors[name] = tensors[name].reshape(1, -1, tensors[name].shape[-1])
    if "head.weight" in tensors:
        tensors["head.bias"] = tensors["head.weight"].new_zeros(tensors["head.weight"].shape[:1])
    if {DINOV2_REGISTERS, "blocks.0.mlp.w12.weight"} & {*tensors}:
        tensors.setdefault("mask_token", torch.zeros(1))  # timm recognises DINOv2's names by it
    return tensors
