"""Evaluation of students with other backbones than WaffleIron: the same verbs, and the same promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scalr.distill.checkpoint import load_student, save_student
from scalr.distill.interruption import Signals, StoppedError
from scalr.distill.recipe import load_recipe
from scalr.distill.student import Student
from scalr.errors import StudentError
from scalr.evaluate.finetune import FinetuneConfig, finetune, layer_scale
from scalr.evaluate.model import load_model, with_class_head
from scalr.evaluate.probe import ProbeConfig, QuickProbe, probe
from scalr.evaluate.score import ScoreConfig, score_model
from scalr.evaluate.similarity import SimilarityConfig, similarity_maps
from scalr.evaluate.supervision import SupervisedObjective
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.scans import intensity_of, read_labelled_scan

ONES = "[1, 1, 1, 1, 1, 1, 1, 1]"
# What makes a small student of each, with the number of its layers.
BACKBONES = {
    "toy_backbone:Toy": (3, ("student.depth=2", "inputs.voxel_size_m=1")),
    "minkunet": (9, ("student.stem_width=4", "student.widths=[4, 4, 4, 4, 4, 4, 4, 8]", f"student.blocks={ONES}")),
}
SHORT = {"epochs": 2, "batch_size": 2, "warmup_epochs": 1, "device": "cpu"}


@pytest.fixture(params=BACKBONES)
def name(request) -> str:
    return request.param


@pytest.fixture
def student(name, tmp_path) -> Path:
    torch.manual_seed(0)
    recipe = load_recipe("scalr_wi256", [f"student.backbone={name}", *BACKBONES[name][1], "student.out_channels=6"])
    save_student(Student(recipe.student, recipe.inputs), tmp_path / "student.safetensors", {"recipe": "none"})
    return tmp_path / "student.safetensors"


def mean_iou(model: Path, world: Path) -> tuple[float, int]:
    """Over the labelled raw points of the validation split, by the definition; and the number of these points."""
    student, dataset = load_model(model).student, open_dataset("nuscenes", world, "val")
    labels, predictions = [], []
    for frame in dataset.frames:
        points, of_points = read_labelled_scan(dataset, frame)
        labels.append(of_points)
        features = student.extract(points, intensity_of(dataset))
        predictions.append(student.project(features).argmax(dim=1).numpy())
    labels, predictions = np.concatenate(labels), np.concatenate(predictions)
    labelled = labels != 255
    labels, predictions = labels[labelled], predictions[labelled]
    both = [np.sum((labels == k) & (predictions == k)) for k in range(16)]
    either = [np.sum((labels == k) | (predictions == k)) for k in range(16)]
    return np.mean([a / b for a, b in zip(both, either, strict=True) if b]), len(labels)


def test_a_probed_backbone_is_scored_at_every_raw_point_and_stays(student, synthetic_world, tmp_path):
    result = probe(ProbeConfig(student=student, root=synthetic_world, out=tmp_path / "probe", **SHORT))
    before, after = load_student(student), load_model(result.model).student
    assert all(map(torch.equal, before.backbone.state_dict().values(), after.backbone.state_dict().values()))
    miou, num_points = mean_iou(result.model, synthetic_world)
    assert result.scores.miou == pytest.approx(miou)
    assert result.scores.confusion.sum() == num_points
    scored = score_model(ScoreConfig(model=result.model, root=synthetic_world, out=tmp_path / "score", device="cpu"))
    assert scored.miou == result.scores.miou
    written, of_score = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("probe", "score"))
    assert of_score["setting"] == written["setting"] == "probe nuscenes"
    assert of_score["departures_of_protocol"] == written["departures_of_protocol"]
    assert written["model"]["backbone"] == before.config.backbone
    assert written["model"]["student"] == before.config.title
    assert written["protocol"]["inputs"]["voxel_size_m"] == before.input_config.voxel_size_m
    assert written["protocol"]["schedule"]["stochastic_depth"] is None  # which neither has
    assert not [each for each in written["departures"] if "inputs.planes" in each]  # which neither has, too


def test_a_finetuning_that_is_stopped_ends_with_the_same_weights(student, synthetic_world, tmp_path):
    options = {**SHORT, "batch_size": 1, "layer_decay": 0.5}  # the head is zero before its first steps
    config = FinetuneConfig(student=student, root=synthetic_world, out=tmp_path / "whole", **options)
    whole = finetune(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Signals, "stop", property(lambda self: True, lambda self, value: None), raising=False)
        with pytest.raises(StoppedError):
            finetune(replace(config, out=tmp_path / "stopped"))
    resumed = finetune(replace(config, out=tmp_path / "stopped", resume=True))
    first, second = (load_model(each.model).student.state_dict() for each in (whole, resumed))
    assert all(map(torch.equal, first.values(), second.values()))
    before = load_student(student).backbone
    changed = {name for name, value in before.named_parameters() if not torch.equal(value, first[name])}
    assert {before.layer_of(name) for name in changed} == set(range(before.num_layers))


def test_layers_learn_slower_the_earlier_they_are(student, name):
    """The head at full rate; each layer of the backbone at the decay of the one after it."""
    model = with_class_head(load_student(student), 16, load_student(student).input_config)
    scale, found = layer_scale(0.5, model.backbone), {}
    for parameter, _ in SupervisedObjective(model, frozen=False).named_parameters():
        own = parameter.removeprefix("model.backbone.")
        key = "head" if own == parameter else model.backbone.layer_of(own)
        found.setdefault(key, set()).add(scale(parameter))
    layers = BACKBONES[name][0]
    assert found == {"head": {1.0}} | {layer: {0.5 ** (layers - layer)} for layer in range(layers)}


def test_a_finetuning_asks_for_no_more_than_a_backbone_can(student, synthetic_world, tmp_path):
    config = FinetuneConfig(student=student, root=synthetic_world, out=tmp_path / "f", **SHORT)
    with pytest.raises(
        StudentError,
        match=r"--activation-checkpointing: \w+ does not support activation"
        " checkpointing",
    ):
        finetune(replace(config, activation_checkpointing=True))


def test_similarity_maps_show_every_point(student, synthetic_world, tmp_path):
    config = SimilarityConfig(student=student, root=synthetic_world, out=tmp_path / "maps", area_frames=1, device="cpu")
    result = similarity_maps(config)
    dataset = open_dataset("nuscenes", synthetic_world, "val")
    assert result.num_points == len(read_labelled_scan(dataset, dataset.frames[0])[0])
    assert result.areas.student.plain.shape == (16,)
    assert all(path.stat().st_size > 1000 for path in (result.top_view, result.perspective_view, result.page))


def test_the_quick_probe_leaves_a_student_in_training_as_it_is(student, synthetic_world):
    training = load_student(student).train()
    before = {name: value.clone() for name, value in training.state_dict().items()}
    miou = QuickProbe("nuscenes", synthetic_world, num_frames=1)(training)
    assert 0 <= miou <= 1
    assert training.training
    assert all(torch.equal(before[name], value) for name, value in training.state_dict().items())
