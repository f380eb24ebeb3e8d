from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import load_student, save_student
from scalr.distill.convert import convert, write_official
from scalr.distill.interruption import StoppedError
from scalr.distill.student import Student
from scalr.distill.training import Observer, TrainingConfig, _Trainer, train
from scalr.errors import DatasetError, ScalrError, StudentError
from scalr.evaluate import finetune as finetune_module
from scalr.evaluate import supervision
from scalr.evaluate.finetune import FinetuneConfig, finetune, layer_scale
from scalr.evaluate.labelled_scans import AugmentedScans
from scalr.evaluate.model import load_model, with_class_head
from scalr.evaluate.probe import FAST, ProbeConfig, probe
from scalr.evaluate.supervision import SupervisedObjective
from scalr.extract.datasets import open_dataset

DEPTH = 3


@pytest.fixture(scope="module")
def student_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(Student(WaffleIronConfig(width=8, depth=DEPTH, out_channels=4)), path, {"recipe": "none"})
    return path


@pytest.fixture
def config(student_file, simulated, tmp_path) -> FinetuneConfig:
    return FinetuneConfig(
        student=student_file, root=simulated("nuscenes"), out=tmp_path / "run", epochs=2, warmup_epochs=1, batch_size=1
    )


def test_the_whole_model_is_trained_and_scored(config):
    result = finetune(config)
    before, after = load_student(config.student).state_dict(), load_model(result.model).student.state_dict()
    changed = [name for name in before if name in after and not torch.equal(before[name], after[name])]
    assert {name.split(".")[0] for name in changed} == {"embed", "waffleiron"}
    written = json.loads((config.out / "result.json").read_text())
    assert written["figures"]["mIoU"] == result.scores.miou
    assert written["setting"] == "finetune nuscenes 100%"
    assert "epochs 2, not 25" in written["departures"]
    assert written["protocol"]["schedule"]["stochastic_depth"] == 0.2
    network = {"backbone": "waffleiron", "student": f"WI-{DEPTH}-8", "norm": "batch", "activation": "relu"}
    assert written["model"] == network | {"depth": DEPTH, "width": 8} | {
        "head": "linear", "stochastic_depth": 0.0, "labels": []
    }  # fmt: skip
    assert not (config.out / "checkpoint.pt").exists()
    text = (config.out / "result.md").read_text()
    for word in ("voxel_size_m", "training_frames_sha256", "ignored_label", "IoU by class", "epochs 2, not 25"):
        assert word in text
    with pytest.raises(StudentError, match="a finished run is in this folder"):
        finetune(config)
    again = finetune(replace(config, resume=True))  # as a batch job that is started once too often
    assert (again.losses, again.model) == ([], result.model)
    assert (again.scores.interval, again.scores.iou[3]) == (result.scores.interval, result.scores.iou[3])


def test_from_scratch_does_not_see_the_student(config, tmp_path):
    """Other students of one architecture make no difference to it."""
    other = Student(WaffleIronConfig(width=8, depth=DEPTH, out_channels=4))
    save_student(other, tmp_path / "other.safetensors", {})
    scratch = replace(config, from_scratch=True)
    first = finetune(scratch)
    second = finetune(replace(scratch, student=tmp_path / "other.safetensors", out=tmp_path / "second"))
    pretrained = finetune(replace(config, out=tmp_path / "third"))
    assert first.losses == second.losses
    assert first.losses != pretrained.losses
    written = json.loads((scratch.out / "result.json").read_text())
    assert written["protocol"]["schedule"]["layer_decay"] == 1
    assert (written["model"]["teachers"], written["model"]["pretrained on"]) == ([], [])
    assert written["provenance"]["teachers"] == {}  # whatever the student was distilled from
    assert any("differs from WaffleIron" in departure for departure in written["departures"])


def test_a_model_that_has_seen_labels_is_said_to_be_one_where_it_is_probed(config, tmp_path):
    finetuned = finetune(config).model
    again = ProbeConfig(student=finetuned, root=config.root, out=tmp_path / "again", epochs=1, fast=True)
    probe(again)
    written = json.loads((again.out / "result.json").read_text())
    seen = "finetuned on nuscenes train (2 frames) by the schedule of scalr with deviations: epochs 2, not 25"
    assert any(departure.startswith(f"the student has seen labels: {seen}") for departure in written["departures"])
    assert f"WI-{DEPTH}-8, of unknown pretraining; {seen}" in (again.out / "result.md").read_text()
    write_official(load_student(finetuned), tmp_path / "official.pth")
    convert(tmp_path / "official.pth", tmp_path / "converted.safetensors", None, "relu")
    probe(replace(again, student=tmp_path / "converted.safetensors", out=tmp_path / "converted"))
    (*_, unknown, _) = json.loads((tmp_path / "converted/result.json").read_text())["departures"]
    assert unknown == "the student has a head for classes: it has seen labels, and its file does not say which"


@pytest.mark.parametrize("schedule", ["scalr", pytest.param("slidr", marks=pytest.mark.slow)])
def test_stopped_and_resumed_gives_the_same_model(config, tmp_path, monkeypatch, schedule):
    config = replace(config, schedule=schedule, warmup_epochs=None)
    whole = finetune(config)
    stopped = replace(config, out=tmp_path / "stopped")

    class StopsAfterAStep(AugmentedScans):
        visits = 0

        def __getitem__(self, key):
            StopsAfterAStep.visits += 1
            if StopsAfterAStep.visits == 3:  # of four
                raise StoppedError("a signal", where="here", fix="Go on")
            return super().__getitem__(key)

    with monkeypatch.context() as patch:
        patch.setattr(supervision, "AugmentedScans", StopsAfterAStep)
        with pytest.raises(StoppedError):
            finetune(replace(stopped, checkpoint_minutes=0.0))
    with pytest.raises(StudentError, match="an interrupted run is in this folder"):
        finetune(stopped)
    resumed = finetune(replace(stopped, resume=True))
    assert resumed.losses == whole.losses[2:]
    expected, found = (load_model(result.model).student.state_dict() for result in (whole, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_disk_that_is_full_when_the_model_is_written_costs_no_step(config, monkeypatch):
    def on_a_full_disk(tensors, path, header):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("scalr.distill.checkpoint.save_file", on_a_full_disk)
        with pytest.raises(StudentError, match=r"model\.safetensors: .*No space left.*Make room there"):
            finetune(config)
    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "_make_step", None)
        resumed = finetune(replace(config, resume=True))
    assert resumed.losses == []
    assert len((config.out / "log.csv").read_text().splitlines()) > 1
    assert load_model(resumed.model).class_names


def test_another_setting_is_not_resumed(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(supervision, "AugmentedScans", _raising_after(2))
        with pytest.raises(StoppedError):
            finetune(replace(config, checkpoint_minutes=0.0))
    with pytest.raises(StudentError, match=r"learning_rate was 0\.002 and is 0\.001"):
        finetune(replace(config, resume=True, learning_rate=1e-3))


def _raising_after(samples: int):
    class Raising(AugmentedScans):
        visits = 0

        def __getitem__(self, key):
            Raising.visits += 1
            if Raising.visits > samples:
                raise StoppedError("a signal", where="here", fix="Go on")
            return super().__getitem__(key)

    return Raising


def test_the_model_is_made_as_the_official_code_makes_it(config):
    """Stochastic depth of 0.2, planes of finetuning, a head of zeros, and what the options say."""
    student = load_student(config.student)
    model = config.new_model(student, 16)
    assert (model.config.stochastic_depth, model.config.head, model.config.out_channels) == (0.2, "probe", 16)
    assert not model.classif[1].weight.any()
    assert not model.backbone.activation_checkpointing
    assert replace(config, activation_checkpointing=True).new_model(student, 16).backbone.activation_checkpointing
    reach = {name: replace(config, dataset=name).new_model(student, 16).input_config.fov_max_m[0] for name in REACH_M}
    assert reach == REACH_M


REACH_M = {"nuscenes": 64, "semantic_kitti": 64, "pandaset_64": 128, "pandaset_gt": 96}  # of configs/downstream


def test_new_weights_are_of_the_seed_alone(config):
    student = load_student(config.student)
    scratch = replace(config, from_scratch=True)

    def weights(seed: int) -> torch.Tensor:
        return replace(scratch, seed=seed).new_model(student, 4).backbone.embed.conv1.weight

    torch.manual_seed(5)
    first, then = weights(0), torch.rand(3)
    torch.manual_seed(6)
    assert torch.equal(weights(0), first)
    assert not torch.equal(torch.rand(3), then)  # for all others, the seed of before goes on
    assert not torch.equal(weights(1), first)


def test_every_option_reaches_the_training(config, monkeypatch):
    given = {}

    def train_on_scans(objective, scans, training, device, checkpoints, scale):
        given.update(objective=objective, training=training, scans=scans, scale=scale)
        return []

    monkeypatch.setattr(finetune_module, "train_on_scans", train_on_scans)
    model = config.new_model(load_student(config.student), 16)
    cpu, training = torch.device("cpu"), TrainingConfig(epochs=1)
    dataset = open_dataset("nuscenes", config.root, "train")
    changes = {"precision": "bfloat16", "layer_decay": 0.5, "head_factor": 3.0, "augmentation": "joint"}
    replace(config, **changes).fit(model, dataset, training, cpu, None)
    assert given["scans"].augmentation == "joint"
    assert given["training"] == replace(training, precision="bfloat16")
    assert not given["objective"].frozen
    assert given["scale"]("model.backbone.waffleiron.channel_mix.0.norm.weight") == 0.5**DEPTH
    assert given["scale"]("model.classif.1.weight") == 3
    config.fit(model, dataset, training, cpu, None)
    assert given["scans"].augmentation == "official"
    assert given["scale"]("model.classif.1.weight") == 1
    assert given["scale"]("model.backbone.embed.conv1.weight") == 0.99 ** (DEPTH + 1)  # nuScenes, all labels


def test_scans_are_drawn_with_the_seed_of_the_training(config, monkeypatch):
    loaders = []

    def loader(datasets, collate, **options):
        loaders.append((datasets, options))
        raise StoppedError("enough is known", where="here", fix="Go on")

    monkeypatch.setattr(supervision, "EpochLoader", loader)
    model = config.new_model(load_student(config.student), 4)
    training, cpu = TrainingConfig(epochs=1, batch_size=3, workers=2, seed=7), torch.device("cpu")
    scans = replace(config, seed=7).training_scans(open_dataset("nuscenes", config.root, "train"), model.input_config)
    with pytest.raises(StoppedError):
        supervision.train_on_scans(SupervisedObjective(model, frozen=True), scans, training, cpu, None)
    assert loaders == [([scans], {"batch_size": 3, "seed": 7, "workers": 2, "device": cpu})]
    assert scans.seed == 7


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_is_neither_trained_nor_in_training_mode(config, frozen):
    student = load_student(config.student)
    model = with_class_head(student, 4, student.input_config)
    objective = SupervisedObjective(model, frozen=frozen)
    trained = {
        name.removeprefix("model.").split(".")[0] for name, each in objective.named_parameters() if each.requires_grad
    }
    assert trained == ({"classif"} if frozen else {"backbone", "classif"})
    assert model.classif.training
    assert all(part.training is not frozen for part in (model.backbone, *model.backbone.modules()))


def test_what_is_not_as_published_is_told(config):
    official = replace(config, epochs=None, warmup_epochs=None, batch_size=None)
    probing = ProbeConfig(student=config.student, root=config.root, out=config.out)
    assert official.departures() == probing.departures() == []
    assert replace(probing, fast=True).departures() == [FAST]
    of_table_1 = replace(probing, train_split="slidr_train", val_split="slidr_val")
    assert of_table_1.departures() == []
    assert replace(of_table_1, val_split="val").departures() == ["trained on split slidr_train"]
    assert replace(of_table_1, train_split="train").departures() == ["scored on split slidr_val"]
    changes = {"train_split": "mini_train", "val_split": "train", "layer_decay": 0.9, "learning_rate": 1e-3}
    other = replace(official, augmentation="joint", **changes)
    assert other.departures() == [
        "learning_rate 0.001, not 0.002",
        "layer_decay 0.9, not 0.99",
        "trained on split mini_train",
        "scored on split train",
        "augmentation joint, not official",
    ]
    assert replace(probing, augmentation="joint").departures() == ["augmentation joint, not official"]
    assert replace(official, labels="1%").labelled_split == "train-1%"
    expected = {"labels": "100%", "starts_from": "the student", "augmentation": "official", "precision": "float32"}
    assert official.choices == expected
    of_probing = {augmentation: replace(probing, augmentation=augmentation) for augmentation in ("official", "joint")}
    assert all(each.choices["augmentation"] == augmentation for augmentation, each in of_probing.items())
    assert replace(probing, fast=True).choices["augmentation"] == "none"
    assert replace(official, from_scratch=True).choices["starts_from"] == "new weights"
    assert (official.schedule, official.labels, official.seed, official.precision) == ("scalr", "100%", 0, "float32")


def test_few_labels_are_the_official_subset(config, simulated, tmp_path):
    kitti = replace(config, root=simulated("semantic_kitti"), dataset="semantic_kitti", labels="1%")
    finetune(kitti)
    protocol = json.loads((kitti.out / "result.json").read_text())["protocol"]
    assert (protocol["training_split"], protocol["training_frames"]) == ("train-1%", 1)
    with pytest.raises(
        DatasetError, match=r"'train-1%' keeps every 100th scene of split 'train', which has 1 here\..*--labels"
    ):
        finetune(replace(config, labels="1%", out=tmp_path / "none"))


def test_scales_of_layers_are_those_of_beit():
    """param_groups_lrd of the official finetune.py, for depth 3: embedding 0, layers 1 to 3, head 4 of 4."""
    student = Student(WaffleIronConfig(width=8, depth=DEPTH))
    model = with_class_head(student, 4, student.input_config)
    scale = layer_scale(0.5, model.backbone)
    found = {}
    for name, _ in SupervisedObjective(model, frozen=False).named_parameters():
        part = name.removeprefix("model.").removeprefix("backbone.")
        key = part.split(".")[2] if part.startswith("waffleiron") else part.split(".")[0]
        found.setdefault(key, set()).add(scale(name))
    assert found == {"embed": {0.5**4}, "0": {0.5**3}, "1": {0.5**2}, "2": {0.5}, "classif": {1.0}}


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_a_scaled_parameter_moves_and_decays_by_its_share(weight_decay):
    """The first step of AdamW moves every parameter by its learning rate, and shrinks it by that times the decay."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slow, self.fast = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))

        def forward(self, batch):
            return (self.slow + self.fast).sum(), None

    class One(supervision.LabelledBatch):
        def __init__(self):
            pass

        num_points = 1

        def to(self, device):
            return self

    objective = Two()
    config = TrainingConfig(
        epochs=1, learning_rate=0.1, min_learning_rate=0.1, weight_decay=weight_decay, warmup_steps=0
    )
    train(
        objective,
        lambda epoch, first: [One()],
        config,
        steps_per_epoch=1,
        device=torch.device("cpu"),
        description="two",
        observer=Observer(),
        learning_rate_scale=lambda name: 0.25 if name == "slow" else 1.0,
    )
    assert 1 - objective.fast.item() == pytest.approx(0.1 * (1 + weight_decay), rel=1e-4)
    assert 1 - objective.slow.item() == pytest.approx(0.025 * (1 + weight_decay), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "scalar"}, "--schedule: 'scalar' cannot be used. Give one of scalr, scalr_plus, slidr"),
        ({"head_factor": 0.0}, "--head-factor: 0.0 cannot be used"),
        ({"labels": "2%"}, "--labels: '2%' cannot be used. Give one of 100%, 10%, 1%"),
        ({"augmentation": "none"}, "--augmentation: 'none' cannot be used. Give one of official, joint"),
        ({"layer_decay": 0.0}, "--layer-decay: 0.0 cannot be used"),
        (
            {"layer_decay": 99.0},
            "--layer-decay: 99.0 cannot be used. Give a number, above 0 and at most 1, or leave it out",
        ),
    ],
)
def test_choices_that_there_are_not_are_said(config, changes, message):
    with pytest.raises(ScalrError) as caught:
        replace(config, **changes)
    assert message in str(caught.value)


def test_an_interrupted_run_is_not_begun_again_by_accident(config):
    config.out.mkdir()
    (config.out / "checkpoint.pt").touch()
    with pytest.raises(StudentError, match=r"an interrupted run is in this folder\. Continue it with --resume"):
        finetune(config)
