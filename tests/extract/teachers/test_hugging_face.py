"""Files with the names of Hugging Face's transformers: the same tensors give the same targets as in other layouts.

The names are those that transformers 5.24 writes for Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel, ViTModel,
ViTMAEForPreTraining, CLIPModel and SiglipModel.
"""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from scalr.errors import TeacherError
from scalr.extract.teachers import registry
from scalr.extract.teachers.registry import TeacherSpec
from scalr.extract.teachers.teacher import Teacher, load_teacher
from small_teachers import SMALL, small_spec, small_teacher, targets_of

State = dict[str, torch.Tensor]
DIM = SMALL["embed_dim"]
SIGLIP = "vit_base_patch16_siglip_gap_224"


def renamed(state: State, names: dict[str, str], attention: str) -> State:
    """With parts of names replaced; queries, keys and values apart: `attention` says where, and how they are called."""
    result = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            block, kind = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name).groups()
            layers = re.findall(r"\w+", attention.partition(":")[2])
            where = attention.partition(":")[0].format(block)
            result |= {f"{where}.{layer}.{kind}": part for layer, part in zip(layers, tensor.chunk(3), strict=True)}
            continue
        for ours, theirs in names.items():
            name = re.sub(ours, theirs, name)
        result[name] = tensor
    return result


OF_TOKENS = {"^cls_token": "embeddings.cls_token", "^pos_embed": "embeddings.position_embeddings"}
OF_DINOV2 = OF_TOKENS | {
    r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"^norm\.": "layernorm.",
    r"attn\.proj": "attention.output.dense",
    r"ls(\d)\.gamma": r"layer_scale\1.lambda1",
    "^blocks": "encoder.layer",
}
APART = "encoder.layer.{}.attention.attention: query key value"


def dinov2(state: State) -> State:
    return renamed(state, OF_DINOV2, APART) | {"embeddings.mask_token": torch.zeros(1, DIM)}


def dinov2_with_registers(state: State) -> State:
    position = torch.full((1, 1, DIM), 0.5)  # of the class token, which timm adds to it
    more = {
        "embeddings.register_tokens": state.pop("reg_token"),
        "embeddings.position_embeddings": torch.cat([position, state.pop("pos_embed")], dim=1),
        "embeddings.cls_token": state.pop("cls_token") - position,
    }
    return renamed(state, OF_DINOV2, APART) | more


def dinov2_giant(state: State) -> State:
    return renamed(state, {r"mlp\.fc1": "mlp.weights_in", r"mlp\.fc2": "mlp.weights_out"} | OF_DINOV2, APART)


def classifying_vit(state: State) -> State:
    names = OF_DINOV2 | {r"norm1\.": "layernorm_before.", r"norm2\.": "layernorm_after."}
    names |= {r"mlp\.fc1": "intermediate.dense", r"mlp\.fc2": "output.dense"}
    renamed_state = renamed(state, names, APART)
    beside = {"pooler.dense.weight": torch.zeros(DIM, DIM), "pooler.dense.bias": torch.zeros(DIM)}
    return renamed_state | beside


def mae(state: State) -> State:
    decoder = {"decoder.decoder_embed.weight": torch.zeros(8, DIM), "decoder.mask_token": torch.zeros(1, 1, 8)}
    decoder |= {"decoder.decoder_layers.0.attention.attention.query.weight": torch.zeros(8, 8)}
    vit = {f"vit.{name}": tensor for name, tensor in classifying_vit(state).items() if "pooler" not in name}
    return vit | decoder


def dinov3(state: State) -> State:
    gated = any("fc1_g" in name for name in state)
    mlp = (
        {"fc1_g": "gate_proj", "fc1_x": "up_proj", "fc2": "down_proj"}
        if gated
        else {"fc1": "up_proj", "fc2": "down_proj"}
    )
    names = {
        "^cls_token": "embeddings.cls_token",
        "^reg_token": "embeddings.register_tokens",
        r"^patch_embed\.proj": "embeddings.patch_embeddings",
        r"attn\.proj": "attention.o_proj",
        r"gamma_(\d)": r"layer_scale\1.lambda1",
        "^blocks": "layer",
    } | {rf"mlp\.{ours}\.": f"mlp.{theirs}." for ours, theirs in mlp.items()}
    biases = {
        f"layer.{block}.attention.{layer}.bias": torch.zeros(DIM)
        for block in range(SMALL["depth"])
        for layer in ("q_proj", "v_proj")
    }
    official = renamed(state, names, "layer.{}.attention: q_proj k_proj v_proj")
    return official | biases | {"embeddings.mask_token": torch.zeros(1, 1, DIM)}


OF_CLIP = {
    r"^patch_embed\.proj": "embeddings.patch_embedding",
    "^pos_embed": "embeddings.position_embedding.weight",
    r"^norm_pre\.": "pre_layrnorm.",
    r"^norm\.": "post_layernorm.",
    r"norm(\d)\.": r"layer_norm\1.",
    r"attn\.proj": "self_attn.out_proj",
    "^blocks": "encoder.layers",
    "^": "vision_model.",
}
OF_CLIPS_ATTENTION = "vision_model.encoder.layers.{}.self_attn: q_proj k_proj v_proj"
TEXT = {"text_model.embeddings.token_embedding.weight": torch.zeros(7, 8), "logit_scale": torch.tensor(4.6)}


def clip(state: State) -> State:
    projection = {"visual_projection.weight": state.pop("head.weight")}
    del state["head.bias"]
    projection["vision_model.embeddings.class_embedding"] = state.pop("cls_token").flatten()
    state["pos_embed"] = state["pos_embed"][0]
    return renamed(state, OF_CLIP, OF_CLIPS_ATTENTION) | projection | TEXT


def siglip(state: State) -> State:
    state["pos_embed"] = state["pos_embed"][0]
    pooling = {"vision_model.head.probe": torch.zeros(1, 1, DIM)}
    return renamed(state, OF_CLIP, OF_CLIPS_ATTENTION) | pooling | TEXT


LAYOUTS = {
    "DINOv2": ("dinov2_vits14", dinov2),
    "DINOv2 with registers": ("dinov2_vits14_reg", dinov2_with_registers),
    "DINOv2 of giant size": ("dinov2_vitg14", dinov2_giant),
    "DINOv3": ("dinov3_vits16", dinov3),
    "DINOv3 with gates": ("dinov3_vits16plus", dinov3),
    "DINO": ("dino_vits16", classifying_vit),
    "MAE": ("mae_vitb16", mae),
    "CLIP": ("maskclip_vitb16", clip),
    "SigLIP": ("siglip", siglip),
}


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Call with a layout for the teacher and the file of its weights, and with a function that changes its tensors."""

    def call(layout: str, change=lambda state: None) -> tuple[Teacher, str]:
        name, published = LAYOUTS[layout]
        spec = TeacherSpec(SIGLIP, 16, DIM, 1, "MIT", options=SMALL) if name == "siglip" else small_spec(name)
        monkeypatch.setitem(registry.TEACHERS, name, spec)
        side = 37 if name.startswith("dinov2") else 224 // spec.patch_size
        teacher = small_teacher(name, (side, side))
        if "head.bias" in teacher.model.state_dict():
            teacher.model.head.bias.data.zero_()  # CLIP's projection has none
        state = published(dict(teacher.model.state_dict()))
        change(state)
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "model.safetensors")
        return teacher, str(tmp_path / "model.safetensors")

    return call


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_names_of_hugging_face_are_read_as_those_of_timm(written, tmp_path, layout):
    teacher, file = written(layout)
    loaded = load_teacher(teacher.name, image_size=teacher.image_size, weights=file)
    torch.testing.assert_close(targets_of(loaded), targets_of(teacher), atol=1e-5, rtol=1e-5)
    if "registers" not in layout:  # whose class token is the sum of two
        save_file(teacher.model.state_dict(), tmp_path / "timm.safetensors")
        of_timm = load_teacher(
            teacher.name,
            image_size=(64, 96) if teacher.patch_size == 16 else (56, 84),
            weights=str(tmp_path / "timm.safetensors"),
        )
        assert loaded.provenance.weights_sha256 == of_timm.provenance.weights_sha256


BIAS, MLP_WEIGHT = r"blocks\.1\.attn\.qkv\.bias", "encoder.layer.2.output.dense.weight"
KEY_BIAS = "encoder.layer.1.attention.attention.key.bias"


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("DINO", lambda state: state.pop(KEY_BIAS), rf"1 missing: {BIAS}; 2 unexpected: encoder\.layer"),
        ("DINO", lambda state: state.update({KEY_BIAS: torch.zeros(5)}), rf"1 missing: {BIAS}; 3 unexpected"),
        ("DINO", lambda state: state.update(neck=torch.ones(3)), r"1 unexpected: neck\)"),
        ("DINO", lambda state: state.pop(MLP_WEIGHT), r"1 missing: blocks\.2\.mlp\.fc2\.weight\)"),
        ("DINOv3", lambda state: state["layer.1.attention.v_proj.bias"].fill_(0.1), "patch16_dinov3_qkvb, which"),
    ],
)  # fmt: skip
def test_what_a_file_of_hugging_face_lacks_or_has_beside_is_named(written, layout, change, message):
    teacher, file = written(layout, change)
    with pytest.raises(TeacherError, match=message):
        load_teacher(teacher.name, image_size=(32, 48), weights=file)
