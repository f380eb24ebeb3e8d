"""Several processes train as one."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from spawned import ROWS, batch_norm_of_one_process, loss_and_gradients, one_of_two_is_on_its_own

RECIPE = ("student.width=8", "student.depth=3", "training.epochs=8", "training.batch_size=4", "training.warmup_steps=2",
          "training.learning_rate=1e-2", "inputs.num_neighbours=4")  # fmt: skip


def arguments(store: Path, out: Path) -> list[str]:
    overrides = [word for value in RECIPE for word in ("--set", value)]
    return ["-q", "distill", "--cache", str(store), "--out", str(out), "--device", "cpu", *overrides]


def scalr(store: Path, out: Path, processes: int, *options: str) -> subprocess.CompletedProcess:
    """Distil from the command line, as docs/distill.md says."""
    command = [str(Path(sys.executable).parent / "scalr"), *arguments(store, out), *options]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
                   "--no-python", *command]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True)


def scalr_stopped_after(step: int, store: Path, out: Path) -> subprocess.CompletedProcess:
    """The same in one process that gets a signal in that step."""
    script = f"""
import os, signal, sys
from scalr.distill import training
make_step = training._Trainer._make_step
def signalled(self, batches):
    if self.step == {step - 1}:
        os.kill(os.getpid(), signal.SIGTERM)
    return make_step(self, batches)
training._Trainer._make_step = signalled
from scalr.cli import main
main(sys.argv[1:])
"""
    return subprocess.run([sys.executable, "-c", script, *arguments(store, out)], capture_output=True, text=True)


def assert_same_curve(out: Path, expected: list[tuple[float, ...]]) -> None:
    for ours, theirs in zip(curve(out), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)


def curve(out: Path) -> list[tuple[float, ...]]:
    """Loss, gradient norm and learning rate of every step."""
    names = ("loss", "gradient_norm", "learning_rate")
    return [tuple(float(row[name]) for name in names) for row in csv.DictReader((out / "log.csv").open())]


def test_two_processes_are_one_with_twice_the_batch(extract_tiny, tiny_dataset, tmp_path):
    """Of four frames a step, one process has four, two have two each; batch norm and the loss's mean span them all."""
    tiny_dataset.frames = [*tiny_dataset.frames] * 2
    store = extract_tiny().path
    alone, together = scalr(store, tmp_path / "alone", 1), scalr(store, tmp_path / "together", 2)
    assert alone.returncode == 0, alone.stderr
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("student.safetensors") == 1  # what all do is told once
    expected = curve(tmp_path / "alone")
    assert len(expected) == 8
    assert_same_curve(tmp_path / "together", expected)
    # Stopped after three steps by one process, and gone on with by two: the same samples in every step.
    stopped = scalr_stopped_after(3, store, tmp_path / "both")
    assert stopped.returncode == 143, stopped.stderr
    assert "after step 3 of 8" in stopped.stderr
    resumed = scalr(store, tmp_path / "both", 2, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_curve(tmp_path / "both", expected)


def test_more_processes_than_frames_are_refused(extract_tiny, tmp_path):
    done = scalr(extract_tiny().path, tmp_path / "run", 2, "--set", "training.batch_size=1")
    assert done.returncode != 0
    assert "a batch of 1 frames cannot be shared by 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_probe_in_one_process_does_not_wait_for_the_others(tmp_path):
    mp.spawn(one_of_two_is_on_its_own, (tmp_path,), nprocs=2)


def test_batch_norm_sees_the_rows_of_all_processes(tmp_path):
    mp.spawn(batch_norm_of_one_process, (tmp_path,), nprocs=2)
    expected = loss_and_gradients(torch.nn.BatchNorm1d(5).double(), ROWS, ROWS.cos())
    ours = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([values[0] for values in ours]), expected[0])
    for number in (1, 2):  # each process has its own part of the parameters' gradients
        torch.testing.assert_close(ours[0][number] + ours[1][number], expected[number])
    for values in ours:
        torch.testing.assert_close(values[3:], expected[3:])
