"""Trainings that are killed, stopped and gone on with: the weights are those of one that ran through."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import scalr
from distillation_in_child import EPOCHS, Moments, distill_in_child
from durable_moves import DurableMoves
from moments import Child
from scalr.distill import interruption
from scalr.distill.interruption import (
    Checkpoints,
    Signals,
    checkpoints_at,
    leave_signals_to_the_trainer,
    starting_workers,
)
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.distill.run_record import RunRecord
from scalr.distill.training import _Trainer
from scalr.errors import ScalrError, StudentError
from tiny import TinyDataset, extract_with, tiny_teachers

GROUP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}  # that terminals and schedulers send to all processes
STEPS = 3 * EPOCHS  # of six frames, two a batch: most moments are in the middle of an epoch


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def start(children, folder):
    """Call with a run's name to start, or to resume, the training there; gives the process and the run's folder."""
    (folder / "images").mkdir()
    store = extract_with(
        TinyDataset(folder / "images", num_frames=6), tiny_teachers(), folder / "s.zarr", teachers=("coordinates",)
    )

    def call(name: str, minutes: float = 0.0, moments: Moments = "steps", stops: tuple[int, ...] = ()) -> Child:
        return Child(children, distill_in_child, store.path, folder / name, minutes, moments, stops=stops)

    return call


@pytest.fixture(scope="module")
def whole(start, folder) -> Path:
    """The run that nothing interrupts."""
    assert start("whole", moments="changes").end() == 0
    return folder / "whole"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return scalr.load_student(folder / "student.safetensors").state_dict()


def assert_same_run(folder: Path, whole: Path) -> None:
    ours, theirs = weights(folder), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logs = [list(csv.DictReader((run / "log.csv").open())) for run in (folder, whole)]
    assert [(row["step"], row["loss"]) for row in logs[0]] == [(row["step"], row["loss"]) for row in logs[1]]
    assert [int(row["step"]) for row in logs[0]] == list(range(1, STEPS + 1))
    assert not [path.name for path in folder.iterdir() if "checkpoint" in path.name]


def kill_and_resume(start, folder: Path, whole: Path, kills: int) -> None:
    rng, moments = np.random.default_rng(0), int(whole.with_suffix(".moments").read_text())
    assert moments > 2 * STEPS  # each step writes a checkpoint
    name, of = 0, kills
    while kills:
        name += 1
        run = f"killed-{of}-{name}"
        while kills:
            child = start(run, moments="changes", stops=(int(rng.integers(moments)),))
            if not child.wait_for_a_moment():
                break
            child.kill()
            kills -= 1
        assert start(run).end() == 0
        assert_same_run(folder / run, whole)


def test_killed_at_any_moment_and_resumed(start, folder, whole):
    kill_and_resume(start, folder, whole, kills=1)


@pytest.mark.slow
def test_killed_twenty_times(start, folder, whole):
    kill_and_resume(start, folder, whole, kills=20)


def test_sigterm_saves_and_stops(start, folder, whole):
    """No checkpoint is due for hours: only the signal can have written it."""
    child, run = start("stopped", minutes=600, stops=(4,)), folder / "stopped"
    assert child.wait_for_a_moment()
    assert not (run / "checkpoint.pt").exists()
    os.kill(child.pid, signal.SIGTERM)
    child.go_on()
    assert child.end() == 143
    assert torch.load(run / "checkpoint.pt", weights_only=True)["epoch"] == 1
    assert start("stopped", minutes=600).end() == 0
    assert_same_run(run, whole)


def test_sigusr1_saves_and_goes_on(start, folder, whole):
    child, run = start("warned", minutes=600, stops=(5, 7)), folder / "warned"
    assert child.wait_for_a_moment()
    os.kill(child.pid, signal.SIGUSR1)
    child.go_on()
    assert child.wait_for_a_moment()
    assert (run / "checkpoint.pt").exists()
    child.go_on()
    assert child.end() == 0
    assert_same_run(run, whole)


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (signals.save, signals.stop) == (True, False)
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_comes_twice_is_one():
    """As under torchrun, which passes on what the scheduler has sent to all."""
    with Signals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert signals.stop


def test_a_second_ctrl_c_acts_at_once(monkeypatch):
    monkeypatch.setattr(interruption, "SAME_KEYPRESS_SECONDS", 0)
    with Signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_checkpoint_is_due_so_many_minutes_after_the_last(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", 10, RunRecord({}, {}))
    for start in (100.0, 800.0):
        now[0] = start
        checkpoints.save({})
        now[0] = start + 599
        assert not checkpoints.due
        now[0] = start + 600
        assert checkpoints.due


def test_a_loader_s_worker_outlives_the_signals_that_the_trainer_acts_on(monkeypatch):
    """Its trainer needs samples until the step is made; but a worker that nobody ends is gone a minute later."""
    handlers, alarms = {}, []
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(signal, "alarm", alarms.append)
    with starting_workers():
        leave_signals_to_the_trainer(3)
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & GROUP_SIGNALS
    assert handlers.pop(signal.SIGINT) == handlers.pop(signal.SIGUSR1) == signal.SIG_IGN
    handlers.pop(signal.SIGTERM)(signal.SIGTERM, None)
    assert not handlers
    assert len(alarms) == 1
    assert 10 <= alarms[0] <= 60


def test_a_worker_that_starts_gets_no_signal_before_it_can_obey(monkeypatch):
    """Its imports take seconds. The start of the tracker, which comes with the first worker, lets signals through."""

    def starts_tracker():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)

    monkeypatch.setattr(interruption.resource_tracker, "ensure_running", starts_tracker)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    says_pending = "import signal; input(); print(sorted(map(int, signal.sigpending())))"
    with starting_workers():
        worker = subprocess.Popen([sys.executable, "-c", says_pending], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    for number in GROUP_SIGNALS:
        worker.send_signal(number)
    said, _ = worker.communicate(b"\n", timeout=60)
    assert said.decode().strip() == str(sorted(map(int, GROUP_SIGNALS)))


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", 0, RunRecord({"recipe": 1}, {}))
    checkpoints.save({"step": 1})

    def killed_half_way(state, file):
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed_half_way)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save({"step": 2})
    (tmp_path / ".checkpoint.pt.1").write_bytes(b"left by a process that was killed")
    assert checkpoints.load()["step"] == 1
    checkpoints.save({"step": 3})
    assert checkpoints.load()["step"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "checkpoint.before.pt"}
    checkpoints.path.unlink()
    assert checkpoints.load()["step"] == 1  # the one before
    checkpoints.remove()
    assert not [*tmp_path.iterdir()]


def test_a_checkpoint_is_on_disk_before_it_has_its_name_and_one_is_always_there(tmp_path, monkeypatch):
    checkpoints, there = Checkpoints(tmp_path / "checkpoint.pt", 0, RunRecord({}, {})), []
    checkpoints.save({"step": 1})

    def seen(source, target, replace=os.replace):
        there.append([each.name for each in checkpoints_at(checkpoints.path)])
        replace(source, target)
        there.append([each.name for each in checkpoints_at(checkpoints.path)])

    monkeypatch.setattr(os, "replace", seen)
    moves = DurableMoves(monkeypatch)
    checkpoints.save({"step": 2})
    assert moves.targets == [checkpoints.before, checkpoints.path]
    assert not [each for each in moves.complaints if "came before .checkpoint" in each]
    last, before = checkpoints.path.name, checkpoints.before.name
    assert there == [[last], [before], [before], [last, before]]


def test_a_full_disk_keeps_the_run(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", 0, RunRecord({}, {}))
    checkpoints.save({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(
            StudentError, match=r"No space left.*Make room there, then run the same command with --resume"
        ):
            checkpoints.save({"step": 2})
    assert checkpoints.load()["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_sound_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", 0, RunRecord({}, {}))
    for step in (1, 2):
        checkpoints.save({"step": step})
    checkpoints.path.write_bytes(checkpoints.path.read_bytes()[:-1])
    assert checkpoints.load()["step"] == 1
    for step in (3, 4):
        checkpoints.save({"step": step})
        checkpoints.path.unlink()
        assert checkpoints.load()["step"] == 1
    for step in (5, 6):
        checkpoints.save({"step": step})
    checkpoints.path.unlink()
    assert checkpoints.load()["step"] == 5  # what was saved since is sound, and kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "was cut off"),
        (b"PK\x03\x04", "was cut off"),
        (b"another program's" * 99, "or is not a checkpoint of a training"),
        (None, "cannot be read"),
    ],
    ids=["empty", "cut off", "something else", "a folder"],
)
def test_what_is_no_checkpoint_is_said(tmp_path, content, message):
    path = tmp_path / "checkpoint.pt"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(StudentError, match=f"{message}.*, and the one before, checkpoint.before.pt, is missing"):
        Checkpoints(path, 0, RunRecord({}, {})).load()


def test_all_processes_take_the_checkpoint_that_all_can_read(tmp_path, monkeypatch):
    """One of them sees a damaged last one, as through a mount that lags behind: the others take the one before, too."""
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", 0, RunRecord({}, {}))
    for step in (1, 2):
        checkpoints.save({"step": step})
    of_another = iter(["was cut off", ""])
    monkeypatch.setattr(interruption, "gathered", lambda words: [*words, next(of_another)])
    assert checkpoints.load()["step"] == 1


def test_a_disk_that_is_full_when_the_student_is_written_costs_no_step(extract_tiny, tmp_path, monkeypatch):
    """No checkpoint is due for hours; the same command with --resume only writes the student."""
    small = ("student.width=8", "student.depth=3", "training.epochs=2", "training.batch_size=2")
    config = DistillConfig(
        caches=(extract_tiny().path,),
        out=tmp_path / "run",
        recipe=load_recipe("scalr_wi256", small),
        device="cpu",
        checkpoint_minutes=600,
    )
    whole = distill(replace(config, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr("scalr.distill.checkpoint.save_file", on_a_full_disk)
        with pytest.raises(StudentError, match=r"student\.safetensors: .*No space left.*Make room there"):
            distill(config)
        assert not (config.out / "student.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "_make_step", None)
        assert distill(replace(config, resume=True)).losses == whole.losses
    assert not checkpoints_at(config.out / "checkpoint.pt")
    ours, theirs = weights(config.out), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def on_a_full_disk(tensors: dict, path: Path, header: dict) -> None:
    path.write_bytes(b"half a student")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def interrupted(extract_tiny, tmp_path, monkeypatch):
    """Call with overrides to go on with a run that was stopped after its first step."""
    store = extract_tiny()

    def call(*overrides: str, resume: bool = True):
        small = ("student.width=8", "student.depth=3", "training.epochs=2", "training.batch_size=2")
        recipe = load_recipe("scalr_wi256", [*small, *overrides])
        config = DistillConfig(caches=(store.path,), out=tmp_path / "run", recipe=recipe, device="cpu", resume=resume)
        return distill(config)

    with monkeypatch.context() as patch:
        patch.setattr(Signals, "stop", property(lambda self: True, lambda self, value: None), raising=False)
        with pytest.raises(ScalrError, match="stopped by a signal after step 1 of 2"):
            call(resume=False)
    return call


@pytest.mark.parametrize("left", ["checkpoint.pt", "checkpoint.before.pt"])
def test_an_interrupted_run_is_not_begun_again_by_accident(interrupted, tmp_path, left):
    (tmp_path / "run/checkpoint.pt").rename(tmp_path / "run" / left)
    with pytest.raises(StudentError, match=r"an interrupted run is in this folder\. Continue it with --resume"):
        interrupted(resume=False)


def test_other_settings_do_not_go_on(interrupted):
    with pytest.raises(StudentError, match=r"recipe\.training\.learning_rate was 0\.002 and is 0\.001"):
        interrupted("training.learning_rate=1e-3")
    with pytest.raises(StudentError, match=r"recipe\.student\.width was 8 and is 16"):
        interrupted("student.width=16")


def test_another_machine_goes_on(interrupted, tmp_path):
    summary = interrupted("training.workers=1", "training.accumulate=2")
    assert len(summary.losses) == 2
    assert interrupted().losses == summary.losses  # what is finished stays so
    assert not (tmp_path / "run/checkpoint.pt").exists()


@pytest.mark.slow
def test_the_checkpoint_before_goes_on_to_the_same_weights(start, folder, whole, caplog):
    """The last one is damaged: the run loses a step, and makes it again."""
    child, run = start("damaged", stops=(7,)), folder / "damaged"
    assert child.wait_for_a_moment()
    child.kill()
    last = run / "checkpoint.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    assert start("damaged").end() == 0
    assert_same_run(run, whole)


def test_a_checkpoint_that_lacks_tensors_is_said(interrupted, tmp_path):
    path = tmp_path / "run/checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["objective"].popitem()
    Checkpoints(path, 0, RunRecord(state.pop("settings"), {})).save(state)
    with pytest.raises(
        StudentError,
        match="the tensors of the checkpoint do not fit the student"
        r" \(.*Missing key.*Choose another --out",
    ):
        interrupted()
