"""The processes of one training: those that torchrun starts, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ..device import resolve_device
from ..errors import StudentError
from ..folder_lock import locked

T = TypeVar("T")

# The others wait while one process runs the quick probe.
TIMEOUT = timedelta(hours=4)


@contextmanager
def joined_processes(device_name: str) -> Iterator[torch.device]:
    """Meet the other processes where torchrun has started several, and yield the device of this one.

    `auto` is a GPU each, by the process's place on its machine, or the CPU.

    Raises:
        ScalrError: a device that torch does not have here.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield resolve_device(device_name)
        return
    if device_name in ("auto", "cuda") and torch.cuda.is_available():
        device_name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = resolve_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


_alone = False


@contextmanager
def on_its_own() -> Iterator[None]:
    """For work that one process does while the others wait for it, such as a training within the training."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def num_processes() -> int:
    """Processes that train together; 1 within `on_its_own`."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


@contextmanager
def locked_by_first(folder: Path) -> Iterator[None]:
    """`folder_lock.locked` in the first process, for all of them: where it is refused, all are.

    Raises:
        StudentError: another run is at work in the folder, or it cannot be written.
    """
    with ExitStack() as stack:
        refusal = None
        if process_index() == 0:
            try:
                stack.enter_context(locked(folder))
            except StudentError as error:
                refusal = error
        refusals = gathered([refusal] if refusal else [])
        if refusals:
            raise refusals[0]
        yield


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """The values added up over all processes, in float64, the same in each of them."""
    if num_processes() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def gathered(words: list[T]) -> list[T]:
    """The words of all processes, or whatever can be sent."""
    if num_processes() == 1:
        return words
    everybodys: list = [None] * num_processes()
    dist.all_gather_object(everybodys, words)
    return [word for words in everybodys for word in words]


class _SumOverProcesses(torch.autograd.Function):
    """A sum that every process goes on with; its gradient is the sum of what it becomes in each of them."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()  # gradients may share memory
        dist.all_reduce(total)
        return total


class BatchNorm(nn.BatchNorm1d):
    """torch's own; while several processes train together, its statistics are those of the rows of all of them.

    (torch.nn.SyncBatchNorm does that on GPUs only.) The processes may have different numbers of rows, of which there
    must be two in all.
    """

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not self.training or num_processes() == 1:
            return super().forward(rows)
        x = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        count = x.new_full((1,), len(x))
        dist.all_reduce(count)
        mean = _SumOverProcesses.apply(x.sum(dim=0)) / count
        centred = x - mean
        variance = _SumOverProcesses.apply(centred.square().sum(dim=0)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        normalised = centred * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias, normalised, self.weight).to(rows.dtype)
