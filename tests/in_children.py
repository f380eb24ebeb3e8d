"""What tests run in processes of their own, which cannot import test modules."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from moments import Meeting
from scalr.cli import main
from scalr.distill.dataset import DistillBatch
from scalr.distill.objective import DistillObjective, ObjectiveConfig
from scalr.distill.processes import BatchNorm, first_on_its_own, num_processes, process_index, summed
from scalr.distill.segments import SegmentTargets
from scalr.distill.training import Observer, TrainingConfig, train
from scalr.errors import StoreError
from scalr.evaluate.model import load_model
from scalr.evaluate.scoring import score
from scalr.extract.datasets import open_dataset
from scalr.extract.targets import EncodedTargets


def say_what_is_imported(path: Path) -> None:
    path.write_text(" ".join(sys.modules))


def together(children, target, *arguments: object) -> list[int]:
    """Run `target(rank, *arguments)` in two processes at once; gives their exit codes."""
    started = [children.Process(target=target, args=(rank, *arguments)) for rank in range(2)]
    for child in started:
        child.start()
    for child in started:
        child.join()
    return [child.exitcode for child in started]


def free_port() -> int:
    """Where two processes can meet."""
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]


def command_of_two(rank: int, port: int, words: list[str], log: Path) -> None:
    """`scalr` as torchrun starts it in each of two processes; what it prints goes to `log`, with its rank behind."""
    torch.set_num_threads(1)
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with Path(f"{log}{rank}").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main(words)


def command_in_shell(words: list[str], log: Path, watched: Path, largest_file: int | None, meeting: Meeting) -> None:
    """`scalr` as a shell starts it, in a group of its own; what it prints goes to `log` with .out and .err behind.

    Each change below `watched` is a moment. `largest_file` [bytes] is the limit on the size of files.
    """
    os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    meeting.at_changes_below(watched)
    main(words)


class Numbered(Dataset):
    """Samples that say which they are; frame 7 cannot be read."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def name_of(self, frame):
        return f"frame {frame}"

    def __getitem__(self, key):
        if key[1] == 7:
            raise StoreError("block 7 is gone", where="s.zarr", fix="Extract it again")
        return key


ROWS = torch.randn(11, 5, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
SHARES = (slice(0, 4), slice(4, 11))  # of two processes


def loss_and_gradients(norm: torch.nn.Module, rows: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of rows, weight and bias, and the running statistics, after one batch."""
    rows = rows.clone().requires_grad_()
    (norm(rows) * weights).sum().backward()
    statistics = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return [rows.grad, norm.weight.grad, norm.bias.grad, *statistics]


def one_of_two_is_on_its_own(rank: int, folder: Path, patience: float, work: float) -> None:
    """The first process adds up its own values while the second waits; then they add up together.

    It works for `work` seconds; otherwise processes wait for each other for `patience` seconds.
    """
    patience = timedelta(seconds=patience)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    cpu = torch.device("cpu")
    with first_on_its_own() as is_first:
        assert is_first == (rank == 0)
        if is_first:
            with first_on_its_own() as is_first_of_one:  # the probe's own training has epochs, too
                assert is_first_of_one
            assert (num_processes(), process_index(), summed([5.0], cpu)) == (1, 0, [5.0])
            time.sleep(work)
    assert (num_processes(), process_index(), summed([5.0], cpu)) == (2, rank, [10.0])
    dist.destroy_process_group()


def batch_norm_of_one_process(rank: int, folder: Path) -> None:
    """The same of one process's share of the rows, saved in `folder`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    share = SHARES[rank]
    torch.save(loss_and_gradients(BatchNorm(5).double(), ROWS[share], ROWS.cos()[share]), folder / f"{rank}.pt")
    dist.destroy_process_group()


class Linear(torch.nn.Module):
    """In the place of a student: batch norm would mix the processes' features."""

    standardisation = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(4, 3) + 0.1)

    def forward(self, inputs) -> torch.Tensor:
        return inputs.features @ self.weight


def batch_of_process(rank: int, loss: str) -> DistillBatch:
    """30 points and pairs of 5 segments of two samples, or 42 of 8; of the contrastive loss, the pairs alone."""
    generator = torch.Generator().manual_seed(rank)
    pairs, segments = ((30, 5), (42, 8))[rank]
    row = torch.arange(pairs) % segments
    of_segments = SegmentTargets(row, torch.arange(segments) % 2, *torch.randn(2, segments, 3, generator=generator))
    inputs = SimpleNamespace(features=torch.randn(pairs, 4, generator=generator), num_points=pairs, num_scans=2)
    inputs.to = lambda *_, **__: inputs
    return DistillBatch(
        inputs=inputs,
        point=None,
        sample=of_segments.sample[row],
        targets=(EncodedTargets(torch.randn(pairs, 3, generator=generator)),),
        samples=("a", "b"),
        segments=None if loss == "contrastive" else of_segments,
    )


def steps_of_two(rank: int, losses: tuple[str, ...], folder: Path) -> None:
    """One step of each loss in two processes; the first one's folder has the log, in a folder of each."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    config = TrainingConfig(epochs=1, optimiser="sgd", learning_rate=1e-2, schedule="cosine_epochs")
    for loss in losses:
        train(
            DistillObjective(Linear(), ObjectiveConfig(loss=loss), (1.0,), 3),
            lambda epoch, first, loss=loss: [batch_of_process(rank, loss)],
            config,
            steps_per_epoch=1,
            device=torch.device("cpu"),
            description="test",
            observer=Observer(folder=folder / loss),
        )
    dist.destroy_process_group()


def scores_of_a_share(rank: int, model: Path, root: Path, folder: Path) -> None:
    """The confusion matrices that one of two processes has in the end, saved in `folder`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    dataset = open_dataset("semantic_kitti", root, "00,08")
    dataset.frames = dataset.frames[:3]
    scores = score(load_model(model).student, dataset, torch.device("cpu"))
    np.save(folder / f"{rank}.npy", scores.confusions)
    dist.destroy_process_group()


def predict_in_child(options: dict, meeting: Meeting) -> None:
    """A prediction; each change of its folder is a moment."""
    from scalr.evaluate.predict import PredictConfig, predict  # here: no other child draws pictures

    meeting.at_changes_below(options["out"])
    predict(PredictConfig(**options))
    options["out"].with_suffix(".moments").write_text(str(meeting.passed))
