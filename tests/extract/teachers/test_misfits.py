"""Weights are loaded strictly: what is missing, left out or of no use is named, whatever strictness timm asks for."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from click.testing import CliRunner

from plain_vit import Plain, targets
from scalr.cli import main
from scalr.errors import TeacherError
from scalr.extract.teachers import registry
from scalr.extract.teachers.registry import TeacherSpec
from scalr.extract.teachers.teacher import Teacher, load_teacher
from scalr.extract.teachers.timm_import import import_timm
from small_teachers import SMALL, a_view, targets_of

State = dict[str, torch.Tensor]
SIGLIP, DINOV3 = "vit_base_patch16_siglip_gap_224", "vit_small_patch16_dinov3"
QKV = "blocks.1.attn.qkv.bias"


def state_of(timm_name: str, **options) -> State:
    """Random values, none of them zero, under the names of timm."""
    generator = torch.Generator().manual_seed(0)
    state = import_timm().create_model(timm_name, **SMALL, **options).state_dict()
    return {name: 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def official_dinov3(bias: torch.Tensor | None) -> State:
    """The layout of dinov3_vits16_pretrain_lvd1689m, with one bias that is not zero."""
    renames = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    official = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}
    for name, tensor in state_of(DINOV3).items():
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        official[name] = tensor
    biases = {f"blocks.{number}.attn.qkv.bias": torch.zeros(96) for number in range(3)}
    masks = {f"{name}_mask": torch.ones(96) for name in biases}
    return official | biases | masks | ({} if bias is None else {QKV: bias})


def bias_of(*parts: str) -> torch.Tensor:
    """For queries, keys and values: 0.4 in the named ones."""
    return torch.cat([torch.full((32,), 0.4 if part in parts else 0.0) for part in "qkv"])


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Call with a model of timm and the content of a file for a small teacher."""

    def call(timm_name: str, state: State, **options) -> Teacher:
        spec = TeacherSpec(timm_name, 16, SMALL["embed_dim"], 1, "MIT", options=SMALL)
        monkeypatch.setitem(registry.TEACHERS, "small", spec)
        torch.save(state, tmp_path / "w.pth")
        return load_teacher("small", image_size=(48, 80), weights=str(tmp_path / "w.pth"), **options)

    return call


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(names)}


@pytest.mark.parametrize(
    "name", ["pos_embed", "patch_embed.proj.bias", "blocks.1.norm1.weight", "blocks.2.", "norm.bias"]
)
@pytest.mark.parametrize("timm_name", ["vit_small_patch16_224", SIGLIP])
def test_a_tensor_that_the_file_lacks_is_named(load, timm_name, name):
    """Also of a SigLIP model, which timm loads without a look at what is missing."""
    with pytest.raises(TeacherError, match=rf"w\.pth: the weights do not fit {timm_name} \(\d+ missing: {name}"):
        load(timm_name, without(state_of(timm_name), name))


def test_a_file_of_which_nothing_fits_is_refused(load):
    state = {f"net_{name}": tensor for name, tensor in state_of(SIGLIP).items()}
    with pytest.raises(TeacherError, match=r"missing: pos_embed, .*; \d+ unexpected: net_pos_embed, net_patch_embed"):
        load(SIGLIP, state)


@pytest.mark.parametrize(
    "name", ["blocks.1.attn.q_norm.weight", "blocks.1.ls1.gamma", "norm_pre.weight", "neck.weight"]
)
@pytest.mark.parametrize("timm_name", ["vit_small_patch16_224", SIGLIP])
def test_a_tensor_that_the_model_has_no_place_for_is_named(load, timm_name, name):
    with pytest.raises(TeacherError, match=rf"\(1 unexpected: {name}\)"):
        load(timm_name, state_of(timm_name) | {name: torch.ones(32)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_tensor(load, value):
    state = state_of("vit_small_patch16_224")
    state["blocks.1.attn.proj.weight"][3, 5] = value
    with pytest.raises(TeacherError, match=r"w\.pth: .*damaged \(1 tensors hold NaN or .*: blocks\.1\.attn\.proj\.w"):
        load("vit_small_patch16_224", state)


def test_whole_numbers_are_no_weights(load):
    state = state_of("vit_small_patch16_224")
    with pytest.raises(TeacherError, match=r"1 of another shape: norm.bias \(32\) torch.int8, not \(32\)"):
        load("vit_small_patch16_224", state | {"norm.bias": torch.ones(32, dtype=torch.int8)})


def test_what_only_other_uses_of_a_model_need_is_ignored_and_named_in_the_log(load, caplog):
    """The attention pooling of a SigLIP, a classifier of ten classes, what MAE decodes with, a mask token."""
    caplog.set_level(logging.INFO, "scalr")
    state = state_of(SIGLIP)
    pooling = without(state_of("vit_base_patch16_siglip_224"), *state)
    assert len(pooling) > 10
    plain = load(SIGLIP, state)
    assert "ignored" not in caplog.text
    more = {"head.weight": torch.zeros(10, 32), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    assert load(SIGLIP, state | pooling | more).provenance == plain.provenance
    (line,) = [line for line in caplog.messages if "ignored" in line]
    assert f"w.pth for {SIGLIP}: {len(pooling) + 2} tensors ignored: attn_pool.latent, " in line


def test_a_classifier_may_be_missing_or_of_other_classes(load, caplog):
    """No feature but MaskCLIP's is made with it."""
    caplog.set_level(logging.INFO, "scalr")
    state = state_of("vit_small_patch16_224")
    few = {"head.weight": torch.ones(10, 32), "head.bias": torch.ones(10)}
    teachers = [load("vit_small_patch16_224", each) for each in (without(state, "head"), state | few)]
    assert caplog.messages[0].endswith(": 2 tensors missing (not needed): head.weight, head.bias")
    assert caplog.messages[1].endswith(": 2 tensors ignored: head.weight, head.bias")
    assert teachers[0].provenance == teachers[1].provenance
    whole = load("vit_small_patch16_224", state)
    assert all(torch.equal(targets_of(teacher), targets_of(whole)) for teacher in teachers)


def test_maskclip_needs_its_projection(load):
    state = state_of("vit_base_patch16_clip_224")
    with pytest.raises(TeacherError, match=r"\(2 missing: head.weight, head.bias\)"):
        load("vit_base_patch16_clip_224", without(state, "head"), feature="maskclip")


def test_biases_of_zero_in_a_dinov3_file_change_nothing_and_nothing_is_printed(load, capsys, caplog):
    caplog.set_level(logging.INFO, "scalr")
    teacher = load(DINOV3, official_dinov3(None))
    assert teacher.provenance == load(DINOV3, state_of(DINOV3)).provenance
    assert capsys.readouterr().out == ""
    (line,) = [line for line in caplog.messages if "ignored" in line]
    biases = "blocks.0.attn.qkv.bias and 2 like it, blocks.0.attn.qkv.bias_mask and 2 like it"
    assert line.endswith(f": 8 tensors ignored: mask_token, rope_embed.periods, {biases}")
    said = [line for line in caplog.messages if "timm says" in line]  # three blocks, at one image size
    assert said == ["timm says: `q_bias` is not an nn.Parameter"]


@pytest.mark.parametrize("parts", ["qkv", "q", "v"])
def test_biases_of_a_dinov3_file_that_are_not_zero_are_refused_with_the_model_that_has_them(load, parts):
    with pytest.raises(
        TeacherError,
        match=rf"no place for 1 tensors that are not zero: {QKV}\).*--teacher timm:{DINOV3}_qkvb, which has",
    ):
        load(DINOV3, official_dinov3(bias_of(*parts)))


def test_the_model_with_biases_reads_them(load):
    """Against plain operations, which read the official layout by themselves."""
    state = official_dinov3(bias_of("q", "v"))
    teacher = load(f"{DINOV3}_qkvb", state)
    plain_state = {name.replace("storage_tokens", "reg_token"): tensor for name, tensor in state.items()}
    expected = targets(plain_state, Plain(heads=2, eps=1e-5, rope=True), *a_view(), (48, 80), (2,))
    torch.testing.assert_close(targets_of(teacher), expected, atol=1e-4, rtol=1e-4)
    unbiased = load(f"{DINOV3}_qkvb", official_dinov3(None))
    assert unbiased.provenance.weights_sha256 != teacher.provenance.weights_sha256
    assert (targets_of(unbiased) - targets_of(teacher)).abs().max() > 0.01


def test_a_bias_for_keys_is_refused_by_all_since_timm_has_none(load):
    with pytest.raises(TeacherError, match=rf"do not fit {DINOV3}_qkvb \(.* zero: {QKV}\). Pass the official or timm"):
        load(f"{DINOV3}_qkvb", official_dinov3(bias_of("q", "k", "v")))


def test_only_json_is_on_standard_output_whatever_timm_prints(monkeypatch, synthetic_world, tmp_path):
    spec = TeacherSpec(DINOV3, 16, SMALL["embed_dim"], 1, "MIT", options=SMALL)
    monkeypatch.setitem(registry.TEACHERS, "dinov3_vits16", spec)
    weights, out = tmp_path / "w.pth", tmp_path / "s.zarr"
    torch.save(official_dinov3(None), weights)
    settings = ("--teacher", "dinov3_vits16", "--image-size", "32x64", "--batch-size", "2", "--encoding", "patch")
    commands = (
        ("extract", *settings, "--root", synthetic_world, "--out", out),
        ("verify", out, "--sample", "1"),
    )
    for command in commands:
        result = CliRunner().invoke(main, [*map(str, command), "--weights", str(weights), "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)
        assert "timm says: `q_bias` is not an nn.Parameter" in result.stderr


def test_biases_in_timms_layout_name_the_model_that_has_them(load):
    with pytest.raises(TeacherError, match=rf"6 unexpected: blocks.0.attn.q_bias, .*timm:{DINOV3}_qkvb, which has"):
        load(DINOV3, state_of(f"{DINOV3}_qkvb"))
    with pytest.raises(
        TeacherError, match=r"7 unexpected: .*Pass the official or timm checkpoint of the named teacher"
    ):
        load(DINOV3, state_of(f"{DINOV3}_qkvb") | {"neck.weight": torch.ones(3)})


def test_where_timm_cannot_resize_positions_the_image_size_is_named(monkeypatch, tmp_path):
    spec = TeacherSpec("cait_xxs24_224", 16, 32, 1, "MIT", options=SMALL | {"num_heads": 2})
    monkeypatch.setitem(registry.TEACHERS, "cait", spec)
    path = tmp_path / "w.pth"
    torch.save(state_of("cait_xxs24_224"), path)
    with pytest.raises(TeacherError, match=r"w\.pth: timm cannot resize .* cait_xxs24_224. Pass --image-size 224x224"):
        load_teacher("cait", image_size=(48, 80), weights=str(path))
    assert load_teacher("cait", image_size=(224, 224), weights=str(path)).provenance.weights == "file"
