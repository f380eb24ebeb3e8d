"""Which tensors of a file are the teacher's: files as trainings write them."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from scalr.errors import TeacherError
from scalr.extract.teachers import registry
from scalr.extract.teachers.checkpoint import read_checkpoint
from scalr.extract.teachers.teacher import TeacherProvenance, load_teacher
from small_teachers import small_spec, small_teacher, targets_of

State = dict[str, torch.Tensor]
NAME = "dino_vits16"
HEAD = {"mlp.0.weight": torch.zeros(8, 32), "last_layer.weight_v": torch.zeros(4, 8)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(registry.TEACHERS, NAME, small_spec(NAME))


@pytest.fixture
def state() -> State:
    return small_teacher(NAME, (14, 14)).model.state_dict()


@pytest.fixture
def loaded(tmp_path):
    """Call with the content of a file for the provenance of a teacher with these weights."""

    def call(content: object) -> TeacherProvenance:
        torch.save(content, tmp_path / "w.pth")
        return load_teacher(NAME, image_size=(32, 48), weights=str(tmp_path / "w.pth")).provenance

    return call


def named(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def chunked(state: State) -> State:
    """As DINOv2 trains: two chunks of blocks, each block under its own number."""
    return {
        name.replace("blocks.", f"blocks.{int(name.split('.')[1]) // 2}.")
        if name.startswith("blocks.")
        else name: tensor
        for name, tensor in state.items()
    }


TRAININGS = {
    "dino": lambda state: {
        "student": {**named("module.backbone.", scaled(state)), **named("module.head.", HEAD)},
        "teacher": {**named("backbone.", state), **named("head.", HEAD)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "dino_loss": {"center": torch.zeros(1, 4)},
        "epoch": 100,
    },
    "dinov2": lambda state: {"teacher": {**named("backbone.", chunked(state)), **named("dino_head.", HEAD)}},
    "without a teacher": lambda state: {"student": named("module.", state), "teacher": {}},
    "lightning": lambda state: {
        "state_dict": {**named("teacher.", state), **named("student.", scaled(state))},
        "hyper_parameters": {"width": 32},
    },
    "mae": lambda state: {"model": state, "optimizer": {"x": torch.zeros(2)}, "scaler": {"_scale": torch.tensor(1.0)}},
    "dinov3": lambda state: {
        "model": {
            **named("student.backbone.", scaled(state)),
            **named("teacher.backbone.", compiled(state)),
            **named("model_ema.backbone.", state),
            **named("gram_teacher.backbone.", scaled(state)),
        }
    },
    "moco v3": lambda state: {
        "state_dict": {**named("module.base_encoder.", state), **named("module.momentum_encoder.", scaled(state))}
    },
    "distributed, compiled": lambda state: named("module._orig_mod.", state),
    "sharded": lambda state: named("backbone._fsdp_wrapped_module.", compiled(state)),
    "an encoder": lambda state: {"state_dict": named("encoder.", state) | {"decoder.blocks.0.weight": torch.ones(3)}},
    "a part of a larger model": lambda state: named("net.image.", state) | {"net.depth.layers.0.weight": torch.ones(3)},
    "nested": lambda state: {"model": {"module": {"backbone": state}}},
    "parameters": lambda state: {"state_dict": {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}},
    "patches by a linear layer": lambda state: {
        name: tensor.flatten(1) if name == "patch_embed.proj.weight" else tensor for name, tensor in state.items()
    },
    "double precision": lambda state: {name: tensor.double() for name, tensor in state.items()},
}


def compiled(state: State) -> State:
    """Each block by itself, as DINOv3 trains."""
    return {re.sub(r"^(blocks\.\d+\.)", r"\1_orig_mod.", name): tensor for name, tensor in state.items()}


def scaled(state: State) -> State:
    return {name: 2 * tensor for name, tensor in state.items()}


@pytest.mark.parametrize("training", TRAININGS)
def test_a_checkpoint_of_a_training_is_read_as_the_tensors_that_it_holds(loaded, state, training):
    assert loaded(TRAININGS[training](state)) == loaded(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_the_values_that_it_has(tmp_path, state, dtype):
    """Positions are resized in float32, so that a file and its copy in float32 give the same targets."""
    half = {name: tensor.to(dtype) for name, tensor in state.items()}
    teachers = []
    for kind, tensors in {"half": half, "float32": {name: tensor.float() for name, tensor in half.items()}}.items():
        torch.save(tensors, tmp_path / f"{kind}.pth")
        teachers.append(load_teacher(NAME, image_size=(32, 48), weights=str(tmp_path / f"{kind}.pth")))
    assert teachers[0].provenance == teachers[1].provenance
    assert torch.equal(targets_of(teachers[0]), targets_of(teachers[1]))


def test_what_is_beside_the_teacher_in_its_file_is_named_in_the_log(loaded, state, caplog):
    caplog.set_level(logging.INFO, "scalr")
    loaded({"teacher": {**named("backbone.", state), **named("head.", HEAD)}, "center": torch.zeros(1)})
    assert "w.pth: tensors whose names begin with 'teacher.backbone.' are loaded" in caplog.text
    line = next(line for line in caplog.messages if "ignored" in line)
    assert line.endswith(": 3 tensors ignored: teacher.head.mlp.0.weight, teacher.head.last_layer.weight_v, center")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: {"model": state, "model_ema": scaled(state)}, "models .model.cls_token, model_ema.cls_token"),
        (lambda state: {"model": state, "state_dict": state}, "models .model.cls_token, state_dict.cls_token"),
        (lambda _: {"epoch": torch.tensor(3), "model": {name: torch.zeros(1) for name in "ab"}}, "2 unexpected: a, b"),
        (lambda state: named("a.", state) | named("b.", state), r"several models \(a\.cls_token, b\.cls_token\)"),
        (lambda state: {**state, **named("_orig_mod.", scaled(state))}, "the file holds the tensor 'cls_token'"),
        (lambda state: {**state, "model": {"x.w": state["norm.bias"]}, "model.x.w": state["norm.bias"]}, "'model.x.w'"),
        (lambda state: {"student": state, "teacher": state | {"patch_embed.proj.weight": None}}, r"\(1 missing: patch"),
        (lambda state: {"a": {"b": {"c": {"d": {"e": state}}}}}, "the file has no named tensors"),
        (lambda state: {name: tensor.to("meta") for name, tensor in state.items()}, "the file has no named tensors"),
        (lambda state: {3: state["cls_token"]}, "the file has no named tensors"),
        (lambda state: state | {"norm.weight": torch.ones(32).to_sparse()}, r"\(1 missing: norm\.weight\)"),
    ],
)  # fmt: skip
def test_a_file_in_which_no_teacher_or_several_are_is_refused_with_what_is_there(loaded, state, content, message):
    with pytest.raises(TeacherError, match=rf"w\.pth: .*{message}"):
        loaded(content(state))


def test_a_dictionary_that_holds_itself_is_read_to_no_end(tmp_path):
    endless = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match="the file has no named tensors"):
        read_checkpoint(tmp_path / "w.pth")
