"""The processes of one training: those that torchrun starts, or this process alone."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ..checkpoint_files import shortened
from ..device import resolve_device
from ..errors import ScalrError, StudentError
from ..folder_lock import locked

T = TypeVar("T")

# Time to wait for other processes, at the start and in every step: if one is lost, the others must free their GPUs.
PATIENCE = timedelta(minutes=10)
# Time to wait for the first process while it works alone, for example at a probe within a training.
PATIENCE_WITH_FIRST = timedelta(hours=4)


@contextmanager
def joined_processes(device_name: str) -> Iterator[torch.device]:
    """Join the other processes if torchrun has started several, and yield the device of this one.

    `auto` is one GPU per process, by its local rank, or the CPU.

    Raises:
        ScalrError: a device that torch does not have here, or another process that does not join or is lost.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield resolve_device(device_name)
        return
    if device_name in ("auto", "cuda") and torch.cuda.is_available():
        device_name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = resolve_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _meet("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        raise ScalrError(
            f"another process of this run ended, or no longer answers ({shortened(error)})",
            where=f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}",
            fix="Look in the log for the error of the process that ended first, then run the same command"
            " with --resume.",
        ) from None
    finally:
        dist.destroy_process_group()


def _meet(backend: str) -> None:
    try:
        dist.init_process_group(backend, timeout=PATIENCE, **_meeting_place())
    except RuntimeError as error:  # torch's DistError, or an error of gloo, which has no class
        raise ScalrError(
            f"the {os.environ['WORLD_SIZE']} processes of this run could not connect to each other"
            f" ({shortened(error)})",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            fix="Check that torchrun runs on all --nnodes nodes with one --rdzv-id and --rdzv-endpoint, and that nodes"
            " reach each other.",
        ) from None


def _meeting_place() -> dict[str, Any]:
    """The store in which processes exchange their addresses, a separate one for each start.

    torchrun's store outlives the processes. After a restart, a process could find the address of another process's
    predecessor there and wait for it (pytorch #167288).
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}  # the first process makes a new store
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=PATIENCE)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return {"store": dist.PrefixStore(agreed_name(store, rank, size), store), "rank": rank, "world_size": size}


def agreed_name(store: dist.Store, rank: int, size: int) -> str:
    """A name that all processes of this start share and that no earlier start had.

    Each process draws a number and publishes the numbers that it sees. A process that publishes this process's number
    has seen it, so it is running now. Once all processes publish the same numbers, none is a predecessor's.

    Raises:
        RuntimeError: another process did not join in time.
    """
    numbers, seen = ([f"scalr/{what}/{each}" for each in range(size)] for what in ("number", "seen"))
    store.set(numbers[rank], uuid.uuid4().hex)
    began = time.monotonic()
    while time.monotonic() - began < store.timeout.total_seconds():
        mine = b" ".join(store.multi_get(numbers))
        store.set(seen[rank], mine)
        if set(store.multi_get(seen)) == {mine}:
            return hashlib.sha256(mine).hexdigest()
        time.sleep(0.05)
    raise RuntimeError("another process did not come in time")


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether an error is of gloo, whose errors have no class but name the place in gloo."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


_alone = False


@contextmanager
def first_on_its_own() -> Iterator[bool]:
    """A context for work that the first process does alone, such as a training within the training.

    All processes enter it; it yields True in the first process. The others wait at the end, for hours if necessary.
    """
    global _alone
    if num_processes() == 1:
        yield True
        return
    everybody, is_first = dist.new_group(timeout=PATIENCE_WITH_FIRST, backend="gloo"), process_index() == 0
    _alone = is_first
    try:
        yield is_first
    finally:
        _alone = False
    dist.barrier(everybody)
    dist.destroy_process_group(everybody)


def num_processes() -> int:
    """Number of processes that train together; 1 in the first process within `first_on_its_own`."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


@contextmanager
def locked_by_first(folder: Path) -> Iterator[None]:
    """`folder_lock.locked` in the first process, on behalf of all: if it is refused, all processes stop.

    Raises:
        StudentError: another run uses the folder, or the folder cannot be written.
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
    """Sums of the values over all processes, in float64; equal in every process."""
    if num_processes() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def gathered(words: list[T]) -> list[T]:
    """The items of all processes, in one list; items must be picklable."""
    if num_processes() == 1:
        return words
    everybodys: list = [None] * num_processes()
    dist.all_gather_object(everybodys, words)
    return [word for words in everybodys for word in words]


class _SumOverProcesses(torch.autograd.Function):
    """A sum over processes. Its gradient is the sum of the gradients in all processes."""

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
    """torch's BatchNorm1d, with statistics over the rows of all processes that train together.

    torch.nn.SyncBatchNorm works on GPUs only. Processes may have different numbers of rows, with at least two in all.
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
