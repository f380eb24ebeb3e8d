"""The frames of each step: epochs, stores, batches, and their division over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import ScalrError, StudentError
from ..worker_processes import worker_context
from .interruption import leave_signals_to_the_trainer, starting_workers
from .processes import num_processes, process_index


class Draw(NamedTuple):
    """One frame to sample. Random choices of the sample depend only on these three numbers and the seed."""

    part: int  # number of the store's --cache option
    visit: int  # how many times all frames of the part have been drawn before
    frame: int


class EpochBatches(Sampler[list[Draw]]):
    """The draws of an epoch, in batches: those of all processes together, and those of one process.

    An epoch has as many draws as all parts have frames. Without weights, each frame is drawn once. With weights, a part
    is drawn in proportion to its weight, and all its frames are drawn before one is repeated; if an epoch ends before
    that, the next one continues with the remaining frames. An incomplete last batch is dropped, unless it is the only
    one.

    Each process gets its fraction of a batch, divided again into the batches over which gradients are accumulated. The
    complete batches do not depend on this division.

    Args:
        part_sizes: number of frames of each part.
        batch_size: frames per step, over all processes and accumulated batches.
        seed: seed of the order.
        part_weights: weight of each part; None makes all frames equally likely.
        accumulate: number of batches that each process computes per step, one after the other.

    Raises:
        StudentError: a batch cannot give every process and accumulated batch a frame, or the number of weights is not
            the number of parts.
    """

    def __init__(
        self,
        part_sizes: Sequence[int],
        batch_size: int,
        seed: int,
        part_weights: Sequence[float] | None = None,
        accumulate: int = 1,
    ) -> None:
        self.part_sizes, self.num_frames, self.seed = part_sizes, sum(part_sizes), seed
        self.batch_size, self.accumulate = min(batch_size, self.num_frames), accumulate
        self.draws_of_part = _shares(self.num_frames, part_sizes, part_weights)
        self.epoch, self.first_step = 0, 0
        self.shares = num_processes() * accumulate
        if self.batch_size < self.shares:
            raise StudentError(
                f"a batch of {self.batch_size} frames cannot be shared by {num_processes()} processes that accumulate"
                f" {accumulate} batches each",
                where="training.batch_size",
                fix="Start fewer processes, or lower training.accumulate.",
            )

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return self.num_frames // self.batch_size

    def __len__(self) -> int:
        return (self.num_steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        mine = range(process_index() * self.accumulate, (process_index() + 1) * self.accumulate)
        for batch in self.whole_batches():
            yield from (batch[len(batch) * n // self.shares : len(batch) * (n + 1) // self.shares] for n in mine)

    def whole_batches(self) -> Iterator[list[Draw]]:
        """The draws of each step, of all processes together."""
        draws = np.concatenate([self._draws(part) for part in range(len(self.part_sizes))])
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(draws))
        for step in range(self.first_step, self.num_steps):
            batch = draws[order[step * self.batch_size : (step + 1) * self.batch_size]]
            yield [Draw(*draw) for draw in batch.tolist()]

    def _draws(self, part: int) -> np.ndarray:
        """(N, 3): the draws of a part in this epoch, each row a `Draw`."""
        count, size = self.draws_of_part[part], self.part_sizes[part]
        first, last = self.epoch * count, (self.epoch + 1) * count
        draws = [np.empty((0, 3), dtype=np.int64)]
        for visit in range(first // size, -(-last // size)):
            frames = np.random.default_rng([self.seed, visit, part]).permutation(size)
            frames = frames[max(0, first - visit * size) : last - visit * size]
            draws.append(np.stack([np.full_like(frames, part), np.full_like(frames, visit), frames], axis=1))
        return np.concatenate(draws)


class EpochLoader:
    """A DataLoader over `EpochBatches`: called with an epoch and a first step, it returns the batches from there on.

    As a context, it ends its workers on exit.

    Args:
        parts: datasets indexed by (visit, frame).
        collate: samples -> batch.
        workers: number of processes that prepare samples; 0 prepares them in this process.
        device: the device that the batches are for; for a GPU they are made in pinned memory.
        batch_size, seed, part_weights, accumulate: see `EpochBatches`.
    """

    def __init__(
        self,
        parts: Sequence[Dataset],
        collate: Callable[[list], Any],
        *,
        batch_size: int,
        seed: int,
        workers: int,
        device: torch.device,
        part_weights: Sequence[float] | None = None,
        accumulate: int = 1,
    ) -> None:
        self._batches = EpochBatches([len(part) for part in parts], batch_size, seed, part_weights, accumulate)
        self._loader = DataLoader(
            _Parts(parts),
            batch_sampler=self._batches,
            collate_fn=_ErrorsAside(collate),
            num_workers=workers,
            multiprocessing_context=worker_context() if workers else None,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_signals_to_the_trainer,
        )

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return self._batches.num_steps

    def __enter__(self) -> EpochLoader:
        return self

    def __exit__(self, *_: object) -> None:
        # The traceback of an error can keep the loader alive; its workers would then delay the end of the process.
        if self._loader._iterator is not None:
            self._loader._iterator._shutdown_workers()

    def __call__(self, epoch: int, first_step: int = 0) -> Iterator:
        """The epoch's batches of this process from `first_step` on, `accumulate` of them per step.

        Raises:
            ScalrError: a sample could not be made.
        """
        self._batches.epoch, self._batches.first_step = epoch, first_step
        with starting_workers():
            batches = iter(self._loader)
        for batch in batches:
            if isinstance(batch, ScalrError):
                raise batch
            yield batch


class _Parts(Dataset):
    """Samples by draw. An error is returned as a sample: raised in a worker, it would arrive as a traceback.

    The method `name_of` of a part describes a frame in messages.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = parts

    def __getitem__(self, draw: Draw) -> Any | ScalrError:
        try:
            return self.parts[draw.part][draw.visit, draw.frame]
        except ScalrError as error:
            return error.inside(self.parts[draw.part].name_of(draw.frame))


class _ErrorsAside:
    """Collates samples, or returns the first error of a sample or of the collation. A class, to be picklable."""

    def __init__(self, collate: Callable[[list], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence) -> Any | ScalrError:
        error = next((sample for sample in samples if isinstance(sample, ScalrError)), None)
        try:
            return error or self.collate(samples)
        except ScalrError as refused:
            return refused


def _shares(num_draws: int, sizes: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """The number of an epoch's draws for each part: whole numbers, by the largest remainders."""
    if weights is None:
        return list(sizes)
    if len(weights) != len(sizes) or not all(weight > 0 for weight in weights):
        raise StudentError(
            f"the weights {list(weights)} do not fit {len(sizes)} stores",
            where="sampling.store_weights",
            fix="Give one positive number for each --cache, in their order.",
        )
    exact = num_draws * np.asarray(weights, dtype=np.float64) / sum(weights)
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: num_draws - shares.sum()]] += 1
    return shares.tolist()
