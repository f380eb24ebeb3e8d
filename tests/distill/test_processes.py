"""Several processes train as one."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner, Result

from calls import calls_of
from in_children import (
    ROWS,
    Linear,
    batch_norm_of_one_process,
    batch_of_process,
    command_of_two,
    free_port,
    loss_and_gradients,
    one_of_two_is_on_its_own,
    steps_of_two,
    together,
)
from scalr.cli import main
from scalr.distill import processes
from scalr.distill.objective import DistillObjective, ObjectiveConfig
from scalr.distill.processes import locked_by_first
from scalr.distill.training import _Trainer
from scalr.errors import ScalrError, StudentError

RECIPE = ("student.width=8", "student.depth=3", "training.epochs=8", "training.batch_size=4", "training.warmup_steps=2",
          "training.learning_rate=1e-2", "inputs.num_neighbours=4")  # fmt: skip


def arguments(store: Path, out: Path) -> list[str]:
    overrides = [word for value in RECIPE for word in ("--set", value)]
    return ["-q", "distill", "--cache", str(store), "--out", str(out), "--device", "cpu", *overrides]


def scalr(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def torchrun_command(*words: str) -> list[str]:
    """The command line in two processes, as docs/distill.md says; options of torchrun may come first."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    verb = words.index("-q")
    return [*command, *words[:verb], "--no-python", str(Path(sys.executable).parent / "scalr"), *words[verb:]]


def assert_same_curve(out: Path, expected: list[tuple[float, ...]]) -> None:
    for ours, theirs in zip(curve(out), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)


def curve(out: Path) -> list[tuple[float, ...]]:
    """Loss, gradient norm and learning rate of every step."""
    names = ("loss", "gradient_norm", "learning_rate")
    return [tuple(float(row[name]) for name in names) for row in csv.DictReader((out / "log.csv").open())]


@pytest.fixture
def group(monkeypatch):
    """What torch is told of the group of processes: none is started, and four GPUs are there."""
    told = []
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *words, **options: told.append((words, options)))
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: told.append("left"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.append(device))
    monkeypatch.setattr(processes, "resolve_device", torch.device)
    variables = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "3"}
    for name, value in {**variables, "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    return told


WAITS = {"timeout": timedelta(minutes=10)}  # a process that is restarted must not hold the others up for hours


@pytest.mark.parametrize(("name", "device"), [("auto", "cuda:3"), ("cuda", "cuda:3"), ("cuda:1", "cuda:1")])
def test_each_process_has_the_gpu_of_its_place(group, name, device):
    with processes.joined_processes(name) as found:
        assert found == torch.device(device)
        assert group == [torch.device(device), (("nccl",), WAITS)]
    assert group[2:] == ["left"]


def test_without_gpus_processes_meet_on_the_cpu(group, monkeypatch):
    with processes.joined_processes("cpu") as found:
        assert (found, group) == (torch.device("cpu"), [(("gloo",), WAITS)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(processes, "resolve_device", lambda name: torch.device("cpu" if name == "auto" else name))
    with processes.joined_processes("auto") as found:
        assert found == torch.device("cpu")


def test_a_group_is_left_where_its_work_fails(group):
    with pytest.raises(RuntimeError, match="out of memory"), processes.joined_processes("cpu"):
        raise RuntimeError("out of memory")
    assert group[-1] == "left"


@pytest.mark.parametrize(
    "lost",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
        dist.DistBackendError("NCCL communicator was aborted"),
    ],
    ids=["gloo", "nccl"],
)
def test_a_lost_process_is_said_in_one_line(group, lost):
    with (
        pytest.raises(ScalrError, match=r"process 1 of 2: another process .* ended, .*(closed|aborted).*--resume"),
        processes.joined_processes("cpu"),
    ):
        raise lost
    assert group[-1] == "left"


def test_processes_that_do_not_meet_are_told_where(group, monkeypatch):
    calls_of(monkeypatch, processes.dist, "init_process_group", dist.DistStoreError("Timed out after 601 seconds"))
    with (
        pytest.raises(
            ScalrError, match=r"node1:29500: the 2 processes of this run could not connect to each other \(Timed out"
        ),
        processes.joined_processes("cpu"),
    ):
        raise AssertionError


def test_after_a_restart_nobody_takes_another_s_predecessor_for_it():
    """torchrun's store keeps what processes wrote that are gone; one comes later than the others, each time."""
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def name_of(rank: int, size: int = 3, seconds: float = 60) -> str:
        time.sleep(0.3 * (rank == 2))
        store = dist.TCPStore("localhost", server.port, is_master=False, timeout=timedelta(seconds=seconds))
        return processes.agreed_name(store, rank, size)

    with ThreadPoolExecutor(3) as pool:
        names = [set(pool.map(name_of, range(3))) for _ in range(3)]
    assert [len(each) for each in names] == [1, 1, 1]
    assert len(set.union(*names)) == 3
    with pytest.raises(RuntimeError, match="another process did not come in time"):
        name_of(0, seconds=0.2)


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "1"}, {"TORCHELASTIC_RUN_ID": None}])
def test_one_process_meets_nobody(group, monkeypatch, variables):
    """Not even where a batch system has set WORLD_SIZE for something else."""
    for name, value in variables.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with processes.joined_processes("cuda") as found:
        assert (found, group) == (torch.device("cuda"), [])


def test_alone_there_is_nothing_to_add_up():
    assert (processes.num_processes(), processes.process_index()) == (1, 0)
    values, words = [0.1, 2], ["a"]
    assert processes.summed(values, torch.device("cpu")) == values
    assert processes.gathered(words) == words


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(extract_tiny, tiny_dataset, tmp_path, monkeypatch, children):
    """Of four frames a step, one process has four, two have two each; batch norm and the loss's mean span them all."""
    tiny_dataset.frames = [*tiny_dataset.frames] * 2
    store = extract_tiny().path
    command = torchrun_command(*arguments(store, tmp_path / "together"))
    as_two = subprocess.run(command, capture_output=True, text=True)
    assert as_two.returncode == 0, as_two.stderr
    assert as_two.stdout.count("student.safetensors") == 1  # what all do is told once
    alone = scalr(*arguments(store, tmp_path / "alone"))
    assert alone.exit_code == 0, alone.output
    expected = curve(tmp_path / "alone")
    assert len(expected) == 8
    assert_same_curve(tmp_path / "together", expected)
    # Stopped after three steps by one process, and gone on with by two: the same samples in every step.
    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "_make_step", signalled_in(3, _Trainer._make_step))
        stopped = scalr(*arguments(store, tmp_path / "both"))
    assert stopped.exit_code == 143, stopped.output
    assert "after step 3 of 8" in stopped.stderr
    words = [*arguments(store, tmp_path / "both"), "--resume"]
    assert together(children, command_of_two, free_port(), words, tmp_path / "log") == [0, 0]
    assert_same_curve(tmp_path / "both", expected)


@pytest.mark.slow
def test_a_process_that_is_killed_costs_a_restart_of_minutes(extract_tiny, tiny_dataset, tmp_path):
    """Of torchrun, which starts all anew. The process that writes is the one that is killed, with its lock held."""
    tiny_dataset.frames = [*tiny_dataset.frames] * 2
    words = [*arguments(extract_tiny().path, tmp_path / "run"), "--set", "training.epochs=60", "--resume"]
    words += ["--checkpoint-minutes", "0"]
    began = time.monotonic()
    with (tmp_path / "stderr").open("w") as log:
        running = subprocess.Popen(torchrun_command("--max-restarts", "1", *words), stderr=log, stdout=log)
        while running.poll() is None and not (tmp_path / "run/checkpoint.before.pt").exists():
            time.sleep(0.05)
        first, *_ = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGKILL)
        assert running.wait() == 0, (tmp_path / "stderr").read_text()
    assert time.monotonic() - began < 600
    steps = [row["step"] for row in csv.DictReader((tmp_path / "run/log.csv").open())]
    assert steps == [str(step) for step in range(1, 61)]
    assert (tmp_path / "run/student.safetensors").exists()


def signalled_in(step: int, make_step: Callable) -> Callable:
    """A step of the trainer in which the process gets a signal."""

    def signalled(self: _Trainer, batches: list) -> object:
        if self.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_step(self, batches)

    return signalled


def test_negatives_are_those_of_a_process_and_means_are_over_all(tmp_path, children):
    """By the number of segments of each process, or of pairs where it is pairs that are compared."""
    counts = {"contrastive": (30, 42), "slidr": (5, 8), "st_slidr": (5, 8)}
    for loss in counts:
        (tmp_path / loss).mkdir()
    assert together(children, steps_of_two, tuple(counts), tmp_path) == [0, 0]
    for loss, numbers in counts.items():
        objective = DistillObjective(Linear(), ObjectiveConfig(loss=loss), (1.0,), 3)
        losses = [objective(batch_of_process(rank, loss))[0] for rank in range(2)]
        mean = sum(number * each for number, each in zip(numbers, losses, strict=True)) / sum(numbers)
        (gradient,) = torch.autograd.grad(mean, list(objective.parameters()))
        ((found, norm, _),) = curve(tmp_path / loss)
        assert (found, norm) == pytest.approx((mean.item(), gradient.norm().item()), rel=1e-4), loss


def test_more_processes_than_frames_are_refused(extract_tiny, tmp_path, children):
    words = [*arguments(extract_tiny().path, tmp_path / "run"), "--set", "training.batch_size=1"]
    assert together(children, command_of_two, free_port(), words, tmp_path / "log") == [1, 1]
    assert "a batch of 1 frames cannot be shared by 2 processes" in (tmp_path / "log0").read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("patience", "work"), [(600, 0), pytest.param(20, 30, marks=pytest.mark.slow, id="longer than a step may take")]
)
def test_a_probe_in_one_process_does_not_wait_for_the_others_but_they_for_it(tmp_path, children, patience, work):
    assert together(children, one_of_two_is_on_its_own, tmp_path, patience, work) == [0, 0]


def test_batch_norm_sees_the_rows_of_all_processes(tmp_path, children):
    assert together(children, batch_norm_of_one_process, tmp_path) == [0, 0]
    expected = loss_and_gradients(torch.nn.BatchNorm1d(5).double(), ROWS, ROWS.cos())
    ours = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([values[0] for values in ours]), expected[0])
    for number in (1, 2):  # each process has its own part of the parameters' gradients
        torch.testing.assert_close(ours[0][number] + ours[1][number], expected[number])
    for values in ours:
        torch.testing.assert_close(values[3:], expected[3:])


def test_all_processes_are_refused_where_the_first_one_is(tmp_path, monkeypatch):
    refusal = StudentError("another run writes to this folder", where=tmp_path, fix="Choose another --out.")
    monkeypatch.setattr(processes, "process_index", lambda: 1)
    monkeypatch.setattr(processes, "gathered", lambda mine: [*mine, refusal])
    with pytest.raises(StudentError, match="another run writes to this folder"), locked_by_first(tmp_path):
        raise AssertionError
    monkeypatch.setattr(processes, "gathered", lambda mine: mine)
    with locked_by_first(tmp_path):  # which the first process holds
        assert not list(tmp_path.iterdir())
