"""Each setting of a probing or finetuning changed alone where it is resumed: refused by name, or harmless."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import save_student
from scalr.distill.interruption import Signals, StoppedError
from scalr.distill.run_record import run_record, write_record
from scalr.distill.student import Student
from scalr.errors import ScalrError, StudentError
from scalr.evaluate.finetune import FinetuneConfig, finetune
from scalr.evaluate.model import load_model
from scalr.evaluate.probe import ProbeConfig, probe
from scalr.evaluate.result import RunResult, read_result, write_result
from scalr.evaluate.robustness import RobustnessConfig, robustness
from scalr.evaluate.score import ScoreConfig, score_model
from scalr.evaluate.similarity import SimilarityConfig, similarity_maps
from scalr.evaluate.supervision import SupervisionConfig
from scalr.evaluate.teacher import TeacherProbeConfig, probe_teacher
from scalr.evaluate.transfer import TransferConfig, transfer
from scalr.folder_lock import locked

COMMANDS: dict[str, tuple[type[SupervisionConfig], Callable]] = {
    "probe": (ProbeConfig, probe),
    "finetune": (FinetuneConfig, finetune),
}
# Of each field, another value than in `runs`, and the setting that the error names.
OTHERS = {
    "student": ("other.safetensors", "student.tensors_sha256"),
    "root": ("world", "training.labels_sha256"),
    "train_split": ("val", "training.split"),
    "val_split": ("train", "validation.split"),
    "classes": ("semantic_kitti_10", "classes"),
    "schedule": ("scalr_plus", "schedule.min_learning_rate"),
    "epochs": (3, "schedule.epochs"),
    "warmup_epochs": (0.5, "schedule.warmup_epochs"),
    "batch_size": (2, "schedule.batch_size"),
    "learning_rate": (0.1, "schedule.learning_rate"),
    "augmentation": ("joint", "augmentation"),
    "absent_classes": ("as-1", "mean_over"),
    "seed": (1, "seed"),
}
OTHERS_OF = {
    "probe": OTHERS | {"fast": (True, "features")},
    "finetune": OTHERS
    | {
        "schedule": ("scalr_plus", "schedule.learning_rate"),
        "from_scratch": (True, "schedule.layer_decay"),
        "layer_decay": (0.5, "schedule.layer_decay"),
        "head_factor": (2.0, "schedule.head_factor"),
        "precision": ("bfloat16", "precision"),
    },
}
# `dataset` has a test of its own; of `labels`, the simulated world has not enough.
ELSEWHERE = {"out", "resume", "dataset", "labels"}
HARMLESS = {"workers", "device", "checkpoint_minutes", "activation_checkpointing"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A student, and another one of the same architecture."""
    folder = tmp_path_factory.mktemp("resume")
    for seed, name in enumerate(("student", "other")):
        torch.manual_seed(seed)
        save_student(Student(WaffleIronConfig(width=8, depth=3, out_channels=4)), folder / f"{name}.safetensors", {})
    return folder


@pytest.fixture(scope="module")
def runs(folder, simulated) -> dict[str, SupervisionConfig]:
    """By command and state, a run that is finished, and one that was stopped after its first step."""
    configs = {}
    for command, (kind, run) in COMMANDS.items():
        common = {"student": folder / "student.safetensors", "root": simulated("nuscenes"), "epochs": 2}
        config = kind(**common, warmup_epochs=1, batch_size=1, device="cpu", out=folder / f"{command}-finished")
        run(config)
        configs[f"{command} finished"] = replace(config, resume=True)
        stopped = replace(config, out=folder / f"{command}-stopped")
        stop(run, stopped)
        configs[f"{command} stopped"] = replace(stopped, resume=True)
    return configs


def stop(run: Callable, config: SupervisionConfig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Signals, "stop", property(lambda self: True, lambda self, value: None), raising=False)
        with pytest.raises(StoppedError, match="after step 1 of"):
            run(config)


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_here(command):
    fields = {field.name for field in dataclasses.fields(COMMANDS[command][0])}
    assert fields - ELSEWHERE - HARMLESS == OTHERS_OF[command].keys()


@pytest.mark.parametrize("state", ["finished", "stopped"])
@pytest.mark.parametrize(
    ("command", "field"), [(command, field) for command in COMMANDS for field in OTHERS_OF[command]]
)
def test_another_setting_is_refused_by_name(folder, runs, simulated, tmp_path, command, state, field):
    config, (value, named) = runs[f"{command} {state}"], OTHERS_OF[command][field]
    if field == "student":
        value = folder / value
    elif field == "root":  # the same frames with other labels
        value = shutil.copytree(simulated("nuscenes"), tmp_path / value)
        for labels in (value / "lidarseg").rglob("*.bin"):
            labels.write_bytes(bytes([24]) * labels.stat().st_size)
    before = contents(config.out)
    with pytest.raises(StudentError, match=r"made with other settings: .* was ") as caught:
        COMMANDS[command][1](replace(config, **{field: value}))
    assert named in str(caught.value)
    assert contents(config.out) == before


@pytest.mark.parametrize("state", ["finished", "stopped"])
@pytest.mark.parametrize("command", COMMANDS)
def test_labels_that_are_not_there_are_said(runs, command, state):
    """So is a student."""
    config = runs[f"{command} {state}"]
    with pytest.raises(ScalrError, match="no student file exists here"):
        COMMANDS[command][1](replace(config, student=config.student.with_name("none.safetensors")))
    if command == "finetune":
        with pytest.raises(ScalrError, match="train-1%"):
            finetune(replace(config, labels="1%"))


@pytest.mark.parametrize("state", ["finished", "stopped"])
@pytest.mark.slow
def test_one_lidar_of_a_dataset_does_not_go_on_as_the_other(folder, simulated, tmp_path, state):
    root, student = simulated("pandaset"), folder / "student.safetensors"
    config = ProbeConfig(
        student=student, root=root, out=tmp_path / "run", dataset="pandaset_64", epochs=1, batch_size=1
    )
    stop(probe, config) if state == "stopped" else probe(replace(config, fast=True))
    other = replace(config, dataset="pandaset_gt", resume=True, fast=state == "finished")
    with pytest.raises(StudentError, match="dataset was pandaset_64 and is pandaset_gt"):
        probe(other)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_the_same_data_elsewhere_and_another_use_of_the_machine_go_on(runs, tmp_path, caplog, command, state):
    config = runs[f"{command} {state}"]
    out, root = shutil.copytree(config.out, tmp_path / "run"), tmp_path / "world"
    root.symlink_to(config.root, target_is_directory=True)
    student = shutil.copy(config.student, tmp_path / "renamed.safetensors")
    machine = {"activation_checkpointing": True} if command == "finetune" else {}
    with caplog.at_level(logging.WARNING, "scalr"):
        COMMANDS[command][1](
            replace(config, out=out, root=root, student=student, workers=1, checkpoint_minutes=0.0, **machine)
        )
    said = [line for line in caplog.messages if "workers was 0 and is 1" in line]
    assert len(said) == (state == "stopped")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_finished_model_that_was_cut_off_is_not_finished(runs, tmp_path, command):
    """Nor one that is not there. What the error says leads to a new one."""
    config = replace(runs[f"{command} finished"], out=tmp_path / "run")
    shutil.copytree(runs[f"{command} finished"].out, config.out)
    model = config.out / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    message = r"model\.safetensors: the model of this finished run cannot be used: {}.*Remove the result\.json"
    with pytest.raises(StudentError, match=message.format("the file cannot be read")):
        COMMANDS[command][1](config)
    model.unlink()
    with pytest.raises(StudentError, match=message.format("no student file exists here")):
        COMMANDS[command][1](config)
    (config.out / "result.json").unlink()
    COMMANDS[command][1](config)
    assert load_model(model).class_names


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_result_is_made_again_where_it_is_removed(runs, tmp_path, command):
    config = replace(runs[f"{command} finished"], out=tmp_path / "run")
    shutil.copytree(runs[f"{command} finished"].out, config.out)
    result = config.out / "result.json"
    result.write_bytes(result.read_bytes()[:-9])
    with pytest.raises(
        StudentError, match=r"the result file cannot be read .* Remove the file and run the evaluation again"
    ):
        COMMANDS[command][1](config)
    result.unlink()
    COMMANDS[command][1](replace(config, resume=False))
    assert read_result(config.out)["title"]


def test_another_run_s_model_is_not_the_finished_one(runs, tmp_path):
    config = replace(runs["probe finished"], out=tmp_path / "run")
    shutil.copytree(runs["probe finished"].out, config.out)
    other = probe(replace(config, out=tmp_path / "other", seed=1, epochs=1, warmup_epochs=0, fast=True))
    shutil.copy(other.model, config.out)
    with pytest.raises(StudentError, match=r"model\.safetensors: the run was made with other settings: .*seed was 1"):
        probe(config)


@pytest.mark.parametrize("kind", ["robustness", "finetuning"])
def test_another_kind_of_run_is_not_resumed(runs, tmp_path, kind):
    settings = run_record({"kind": kind}, torch.device("cpu"))
    if kind == "robustness":  # which has no configuration
        result = RunResult(title="t", figures={}, protocol={}, provenance={}, record=settings.values)
        write_result(result, tmp_path)
    else:
        write_record(tmp_path, settings)
    with pytest.raises(StudentError, match=f"this file is of a {kind} run, not of a probing run"):
        probe(replace(runs["probe finished"], out=tmp_path))


MANY = {"student": Path("s"), "model": Path("m"), "root": Path("r"), "clean_root": Path("c"), "cache": Path("c")}


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        *COMMANDS.values(),
        (RobustnessConfig, robustness),
        (ScoreConfig, score_model),
        (SimilarityConfig, similarity_maps),
        (TeacherProbeConfig, probe_teacher),
        (TransferConfig, transfer),
    ],
    ids=lambda value: value.__name__,
)
def test_a_folder_in_which_another_run_is_at_work_is_refused(tmp_path, kind, run):
    """Before anything else is looked at."""
    values = {name: value for name, value in MANY.items() if name in kind.__dataclass_fields__}
    with locked(tmp_path), pytest.raises(StudentError, match="another run writes to this folder: process"):
        run(kind(**values, out=tmp_path))
