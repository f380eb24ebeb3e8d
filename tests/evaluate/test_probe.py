from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import load_student, save_student
from scalr.distill.heads import probe_head
from scalr.distill.inputs import evaluation_input
from scalr.distill.student import Student
from scalr.errors import DatasetError, ScalrError, StudentError
from scalr.evaluate import probe as module
from scalr.evaluate import supervision
from scalr.evaluate.model import load_model, with_class_head
from scalr.evaluate.probe import (
    FeatureBatch,
    FeatureBatches,
    HeadObjective,
    ProbeConfig,
    QuickProbe,
    frozen_features,
    probe,
)
from scalr.evaluate.scoring import score
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from standardised import standardisation_of, vectors_of


@pytest.fixture(scope="module")
def student_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(Student(WaffleIronConfig(width=8, depth=3, out_channels=4)), path, {"recipe": "none"})
    return path


@pytest.mark.parametrize("fast", [False, True])
def test_every_labelled_point_is_scored_and_the_student_stays(
    student_file, synthetic_world, tmp_path, monkeypatch, fast
):
    students = []

    def load(path):
        students.append(real_load(path))
        return students[-1]

    real_load = supervision.load_student
    monkeypatch.setattr(supervision, "load_student", load)
    config = ProbeConfig(
        student=student_file, root=synthetic_world, out=tmp_path, fast=fast, epochs=3, warmup_epochs=1, batch_size=2
    )
    result = probe(config)
    dataset = open_dataset("nuscenes", synthetic_world, "val")
    labels = np.concatenate([dataset.read_labels(frame) for frame in dataset.frames])
    np.testing.assert_array_equal(
        result.scores.confusion.sum(axis=1), np.bincount(labels[labels != IGNORE_LABEL], minlength=16)
    )
    assert result.losses[-1] < result.losses[0]
    before, after = real_load(student_file).state_dict(), students[0].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["miou"] == result.scores.miou
    assert "epochs 3, not 20" in written["departures"]
    assert any("fast" in departure for departure in written["departures"]) is fast
    model = load_model(tmp_path / "model.safetensors")
    assert model.class_names == dataset.class_names
    backbone = {name: value for name, value in model.student.state_dict().items() if not name.startswith("classif.")}
    assert all(torch.equal(before[name], value) for name, value in backbone.items())  # running means among them
    again = score(model.student, dataset, torch.device("cpu"))
    np.testing.assert_array_equal(again.confusion, result.scores.confusion)


def test_predictions_go_to_every_raw_point_by_the_nearest_kept_one(student_file, synthetic_world):
    """A head of random weights, against the same head on `Student.extract`."""
    student = load_student(student_file)
    dataset = open_dataset("nuscenes", synthetic_world, "val")
    model = with_class_head(student, 16, student.input_config).eval()
    torch.manual_seed(1)
    head = torch.nn.Linear(8, 16)
    model.classif[1].load_state_dict(head.state_dict())
    expected = np.zeros((16, 16), dtype=np.int64)
    for frame in dataset.frames:
        labels = dataset.read_labels(frame)
        features = student.extract(dataset.read_points(frame)) / (1 + 1e-5) ** 0.5  # as the head's new batch norm does
        guesses = head(features).argmax(dim=1).numpy()
        for label, guess in zip(labels, guesses, strict=True):
            if label != IGNORE_LABEL:
                expected[label, guess] += 1
    np.testing.assert_array_equal(score(model, dataset, torch.device("cpu")).confusion, expected)


def test_the_head_starts_at_zero():
    assert not probe_head(8, 16)(torch.randn(20, 8)).any()


def test_a_head_learns_the_statistics_of_its_features():
    torch.manual_seed(0)
    head, tokens = probe_head(8, 4), 3 + torch.randn(500, 8)
    HeadObjective(head.eval())(FeatureBatch(tokens, torch.randint(0, 4, (500,))))
    torch.testing.assert_close(head[0].running_mean, 0.1 * tokens.mean(dim=0))


def test_labels_of_another_length_are_said(student_file, synthetic_world, tmp_path):
    world = Path(shutil.copytree(synthetic_world, tmp_path / "world"))
    labels = world / open_dataset("nuscenes", world, "train").frames[0].labels
    labels.write_bytes(labels.read_bytes()[:-5])
    with pytest.raises(DatasetError, match="labels, and the scan") as caught:
        probe(ProbeConfig(student=student_file, root=world, out=tmp_path / "out", epochs=1))
    token = open_dataset("nuscenes", world, "train").frames[0].token
    assert caught.value.where == f"nuscenes split train frame {token}: {labels}"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_labelled_point_is_said_before_anything_is_trained(
    student_file, synthetic_world, tmp_path, split
):
    world = Path(shutil.copytree(synthetic_world, tmp_path / "world"))
    frames = open_dataset("nuscenes", world, split).frames
    for frame in frames:
        path = world / frame.labels
        path.write_bytes(bytes(path.stat().st_size))  # noise, which is not scored
    message = f"world: no point of split {split} of nuscenes has a label of its 16 classes. Check the label files"
    with pytest.raises(DatasetError, match=message):
        probe(ProbeConfig(student=student_file, root=world, out=tmp_path / "out", epochs=1))
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match=message):
        QuickProbe("nuscenes", world)
    # The first labelled point is enough, wherever it is.
    last = world / frames[-1].labels
    last.write_bytes(bytes(last.stat().st_size - 1) + b"\x11")
    QuickProbe("nuscenes", world)


@pytest.mark.parametrize("num_frames", [0, -3, 2.5])
def test_a_quick_probe_of_no_frames_is_refused(synthetic_world, num_frames):
    with pytest.raises(ScalrError, match=f"--eval-frames: {num_frames} cannot be used"):
        QuickProbe("nuscenes", synthetic_world, num_frames)


def test_a_world_without_lidarseg_is_said(student_file, synthetic_world, tmp_path):
    world = Path(shutil.copytree(synthetic_world, tmp_path / "world"))
    (world / "v1.0-trainval/lidarseg.json").unlink()
    with pytest.raises(DatasetError, match=r"has no labels in lidarseg\.json"):
        probe(ProbeConfig(student=student_file, root=world, out=tmp_path / "out", epochs=1))


def test_a_quick_probe_leaves_the_student_in_training_as_it_is(student_file, synthetic_world):
    student = load_student(student_file).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    quick_probe = QuickProbe("nuscenes", synthetic_world, num_frames=1)
    assert [len(dataset.frames) for dataset in (quick_probe.training_set, quick_probe.validation_set)] == [1, 1]
    miou = quick_probe(student)
    assert 0 < miou < 1
    assert quick_probe(student) == miou
    student.standardisation = standardisation_of("centre", vectors_of(4, 0))  # of targets: a probe reads features
    assert quick_probe(student) == miou
    student.standardisation = None
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_features_that_are_computed_once_have_the_labels_of_their_points(student_file, synthetic_world):
    student, dataset = load_student(student_file), open_dataset("nuscenes", synthetic_world, "val")
    tokens, labels = frozen_features(
        with_class_head(student, 4, student.input_config).eval(), dataset, torch.device("cpu")
    )
    first = 0
    for frame in dataset.frames:
        points = dataset.read_points(frame)
        _, kept, _ = evaluation_input(points, dataset.intensity, student.input_config)
        rows = slice(first, first + len(kept))
        assert labels[rows].tolist() == dataset.read_labels(frame)[kept].tolist()
        torch.testing.assert_close(tokens[rows], student.extract(points)[kept])
        first += len(kept)
    assert len(tokens) == len(labels) == first


def test_batches_of_features_are_shuffled_anew_and_go_on_where_they_stopped(monkeypatch):
    monkeypatch.setattr(module, "FAST_BATCH_POINTS", 10)
    batches = FeatureBatches(torch.arange(45.0)[:, None], torch.arange(45), seed=0)
    assert batches.num_steps == 5
    orders = {}
    for epoch in range(2):
        parts = list(batches(epoch))
        assert [part.num_points for part in parts] == [9] * 5
        assert all(torch.equal(part.tokens[:, 0].long(), part.labels) for part in parts)
        orders[epoch] = torch.cat([part.labels for part in parts]).tolist()
        assert sorted(orders[epoch]) == list(range(45))
        assert torch.equal(torch.cat([part.labels for part in batches(epoch, 3)]), torch.tensor(orders[epoch][27:]))
    assert orders[0] != orders[1]
    other = FeatureBatches(torch.arange(45.0)[:, None], torch.arange(45), seed=1)
    assert torch.cat([part.labels for part in other(0)]).tolist() != orders[0]


def test_a_quick_probe_takes_frames_from_all_over_a_split(monkeypatch):
    splits = []

    def open_dataset(name, root, split, need):
        splits.append((split, need))
        return SimpleNamespace(frames=list(range(10)), read_labels=lambda frame: np.zeros(1, np.uint8))

    monkeypatch.setattr(module, "open_dataset", open_dataset)
    quick_probe = QuickProbe("nuscenes", Path("world"), num_frames=4)
    assert quick_probe.training_set.frames == quick_probe.validation_set.frames == [0, 2, 5, 7]
    assert splits == [("train", "labels"), ("val", "labels")]
    assert QuickProbe("nuscenes", Path("world"), num_frames=100).training_set.frames == list(range(10))


def test_students_are_probed_as_far_as_pandaset_is_labelled(student_file):
    student = load_student(student_file)
    base = {"student": student_file, "root": student_file, "out": student_file}
    reach = {
        name: ProbeConfig(**base, dataset=name).new_model(student, 4).input_config.fov_max_m[0]
        for name in ("nuscenes", "semantic_kitti", "pandaset_64", "pandaset_gt")
    }
    assert reach == {"nuscenes": 64, "semantic_kitti": 64, "pandaset_64": 128, "pandaset_gt": 128}


def test_a_quick_probe_needs_labels(tmp_path, synthetic_world):
    with pytest.raises(DatasetError):
        QuickProbe("nuscenes", tmp_path / "nothing")


def test_fast_probing_by_several_processes_is_refused(student_file, synthetic_world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "num_processes", lambda: 2)
    config = ProbeConfig(student=student_file, root=synthetic_world, out=tmp_path / "out", fast=True)
    with pytest.raises(
        StudentError,
        match=r"--fast: --fast runs in one process only\. Start the command"
        " without torchrun",
    ):
        probe(config)


def test_fast_probing_has_nothing_to_augment(student_file, tmp_path):
    with pytest.raises(StudentError, match=r"--augmentation: --fast does not augment\. Leave out"):
        ProbeConfig(student=student_file, root=tmp_path, out=tmp_path, fast=True, augmentation="joint")
