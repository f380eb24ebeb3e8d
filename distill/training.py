"""The training loop of distillation, probing and finetuning, which differ only in batches and loss."""

from __future__ import annotations

import inspect
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint_files import shortened
from ..device import cores_beside
from ..errors import StudentError
from ..progress import progress
from ..settings import Amount, Count, CountOrZero, PositiveAmount, Seed, Settings, Workers, at_least, below
from .interruption import Checkpoints, Signals, StoppedError
from .processes import first_on_its_own, gathered, num_processes, process_index, summed
from .schedule import cosine_of_epochs, reciprocal_sqrt, warmup_cosine
from .training_log import TrainingLog

Optimiser = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "cosine_epochs", "reciprocal_sqrt"]
Share = Annotated[float, at_least(0), below(1)]
Precision = Literal["float32", "bfloat16", "float16"]

LISTED_SAMPLES = 8  # in an error


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings, section="training"):
    """Optimiser, schedule and use of the machine. Defaults are those of ScaLR's pretraining, for sgd those of SLidR.

    Raises:
        StudentError: a value that cannot be used.
    """

    epochs: Count = 25
    batch_size: Count = 8  # frames per step, over all processes and accumulated batches
    optimiser: Optimiser = "adamw"
    momentum: Share = 0.9  # sgd: buffer = momentum * buffer + (1 - dampening) * gradient
    dampening: Share = 0.1
    learning_rate: Amount = 2e-3
    min_learning_rate: Amount = 1e-5  # cosine
    weight_decay: Amount = 0.03  # adamw: applied to the weights directly; sgd: added to the gradient
    schedule: Schedule = "cosine"
    warmup_steps: CountOrZero = 3500  # cosine and reciprocal_sqrt
    warmup_epochs: Amount | None = None  # replaces warmup_steps
    timescale_epochs: PositiveAmount = 0.45  # reciprocal_sqrt, as is the next
    cooldown_epochs: Amount = 2.0
    precision: Precision = "float32"  # of the forward pass; float16 scales the loss
    accumulate: Count = 1  # batches per step, computed one after the other if memory is short
    compile: bool = False  # compile the student's layers with torch.compile
    workers: Workers = 0  # processes that prepare samples; 0 prepares them in the training process
    activation_checkpointing: bool = False  # less memory for a second forward pass
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_learning_rate > self.learning_rate:
            raise StudentError(
                f"learning_rate {self.learning_rate} is below min_learning_rate {self.min_learning_rate}",
                where="training",
                fix="Use 0 <= min_learning_rate <= learning_rate.",
            )

    def learning_rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """The fraction of `learning_rate` that step `step`, counted from 0, has."""
        if self.schedule == "cosine_epochs":
            return cosine_of_epochs(step // steps_per_epoch, self.epochs)
        warmup = self.warmup_steps if self.warmup_epochs is None else self.warmup_epochs * steps_per_epoch
        common = {"warmup_steps": warmup, "total_steps": self.epochs * steps_per_epoch}
        if self.schedule == "cosine":
            least = self.min_learning_rate / self.learning_rate if self.learning_rate else 0.0
            return warmup_cosine(step, **common, least=least)
        return reciprocal_sqrt(
            step,
            **common,
            timescale_steps=self.timescale_epochs * steps_per_epoch,
            cooldown_steps=self.cooldown_epochs * steps_per_epoch,
        )


class Batch(ABC):
    """The interface of a batch for the training loop."""

    samples: Sequence[Any] = ()  # origin of each sample, for messages; may be empty

    @property
    @abstractmethod
    def num_points(self) -> int: ...

    @property
    def num_pairs(self) -> int:
        """The number of losses over which the batch's loss is a mean."""
        return self.num_points

    @abstractmethod
    def to(self, device: torch.device) -> Batch: ...


# Batch on the training device -> its mean loss; and (2, B), detached, or None: for each sample, the sum and the number
# of the losses that the mean is over.
Objective = Callable[[Batch], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True, kw_only=True)
class Observer:
    """What a training reports besides its loss.

    Attributes:
        folder: folder of `log.csv` and TensorBoard events; None writes no log.
        parts: names of the sources of samples, each with a loss column of its own.
        part_of: sample -> its index in `parts`.
        describe: sample -> its name in messages.
        evaluate: epoch -> more values for the log; called after each epoch in the first process.
        columns: names of these values.
    """

    folder: Path | None = None
    parts: Sequence[str] = ()
    part_of: Callable[[Any], int] = field(default=lambda sample: 0)
    describe: Callable[[Any], str] = str
    evaluate: Callable[[int], Mapping[str, float]] = field(default=lambda epoch: {})
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class TrainingResult:
    """Losses and waiting time of a training."""

    losses: list[float] = field(repr=False)  # of the steps since the start or the resumption
    data_wait: float  # fraction of the time in which no batch was ready


def train(
    objective: nn.Module,
    batches: Callable[[int, int], Iterable[Batch]],
    config: TrainingConfig,
    *,
    steps_per_epoch: int,
    device: torch.device,
    description: str,
    observer: Observer | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    learning_rate_scale: Callable[[str], float] = lambda name: 1.0,
) -> TrainingResult:
    """Minimise a loss over batches.

    Random draws of a step on the device depend only on the seed, the step and the process.

    Args:
        objective: an `Objective` on `device`; its parameters that require gradients are trained.
        batches: (epoch, first step) -> the epoch's batches, `config.accumulate` of them per step.
        config: optimiser and schedule.
        description: text of the progress bar.
        observer: receives log values and describes samples.
        checkpoints: writes the training state at intervals and when a signal asks for it.
        resume: continue from the checkpoint.
        learning_rate_scale: factor of a parameter's learning rate, by its name in the objective.

    Raises:
        StoppedError: a signal stopped the training; a checkpoint has been written.
        StudentError: a loss or gradient is not finite (the samples are named), or a checkpoint does not fit.
    """
    trainer = _Trainer(
        objective, config, steps_per_epoch, device, observer or Observer(), checkpoints, learning_rate_scale
    )
    if resume:
        trainer.load(checkpoints.load())
    return trainer.run(batches, description)


class _Trainer:
    def __init__(
        self,
        objective: nn.Module,
        config: TrainingConfig,
        steps_per_epoch: int,
        device: torch.device,
        observer: Observer,
        checkpoints: Checkpoints | None,
        learning_rate_scale: Callable[[str], float],
    ) -> None:
        self.config, self.steps_per_epoch, self.device = config, steps_per_epoch, device
        self.objective, self.observer, self.checkpoints = objective, observer, checkpoints
        self.parameters = [each for each in objective.parameters() if each.requires_grad]
        self.parallel = _in_parallel(objective) if num_processes() > 1 else None
        self.optimiser = _optimiser(_grouped_by_scale(objective, learning_rate_scale), config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.step = 0  # number of completed steps

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    def run(self, batches: Callable[[int, int], Iterable[Batch]], description: str) -> TrainingResult:
        losses, waited, began = [], 0.0, time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(cores_beside(self.config.workers))
            signals = stack.enter_context(Signals()) if self.checkpoints else Signals()
            log = self._open_log(stack)
            bar = stack.enter_context(progress(self.total_steps, description, "step", done=self.step))
            while self.step < self.total_steps:
                epoch, first = divmod(self.step, self.steps_per_epoch)
                start = time.perf_counter()
                for micro_batches in _grouped(batches(epoch, first), self.config.accumulate):
                    ready = time.perf_counter()
                    row = self._make_step(micro_batches)
                    now = time.perf_counter()
                    losses.append(row["loss"])
                    waited += ready - start
                    row["points_per_second"] = round(row.pop("points") / (now - start))
                    row["data_wait"] = round((ready - start) / (now - start), 4)
                    if self.step % self.steps_per_epoch == 0:
                        row |= self._evaluate(epoch)
                    if log is not None:
                        log.write({"step": self.step, "epoch": epoch} | row)
                    speed = f"{row['points_per_second']}"
                    bar.set_postfix(loss=f"{row['loss']:.3f}", points_per_s=speed, refresh=False)
                    bar.update()
                    self._act_on(signals)  # after the step's row is in the log
                    start = time.perf_counter()
        return TrainingResult(losses, waited / max(1e-9, time.perf_counter() - began))

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state that `_state` returned.

        Raises:
            StudentError: tensors do not fit.
        """
        try:
            self.objective.load_state_dict(state["objective"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"])
            self.step = state["epoch"] * self.steps_per_epoch + state["step_of_epoch"]
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise StudentError(
                f"the tensors of the checkpoint do not fit the student ({shortened(error)})",
                where=self.checkpoints.path,
                fix="Choose another --out, or remove the checkpoint to start again.",
            ) from None

    def _state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on.

        Sampler, learning rate and seeds of random draws follow from epoch and step, so no other state is needed, and
        another number of processes can continue.
        """
        epoch, step_of_epoch = divmod(self.step, self.steps_per_epoch)
        return {
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": epoch,
            "step_of_epoch": step_of_epoch,
            "seed": self.config.seed,
        }

    def _open_log(self, stack: ExitStack) -> TrainingLog | None:
        if self.observer.folder is None or process_index() > 0:
            return None
        columns = [*(f"loss_{part}" for part in self.observer.parts), *self.observer.columns]
        log = TrainingLog(self.observer.folder, columns, self.step)
        stack.callback(log.close)
        return log

    def _make_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One update of the parameters from several batches in each process, equal to one large batch."""
        torch.manual_seed(_seed_of_step(self.config.seed, self.step, process_index()))
        learning_rate = self.config.learning_rate * self.config.learning_rate_factor(self.step, self.steps_per_epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimiser.zero_grad(set_to_none=True)
        (num_pairs,) = summed([sum(batch.num_pairs for batch in batches)], self.device)
        local = _LocalSums(len(self.observer.parts))
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last or self.parallel is None else self.parallel.no_sync():
                loss, of_samples = self._loss(batch.to(self.device))
                share = batch.num_pairs / num_pairs
                # DDP averages gradients over processes, but each process holds only a fraction of the mean.
                self.scaler.scale(loss * (share * num_processes())).backward()
            local.add(batch, loss.item() * share, of_samples, self.observer.part_of)
        sums = summed(local.values, self.device)
        self._require_finite("loss", sums[0], local.offenders)
        self.scaler.unscale_(self.optimiser)
        norm = _gradient_norm(self.parameters)
        if not self.scaler.is_enabled():  # the scaler checks itself and skips such a step
            self._require_finite("gradient", norm, [sample for batch in batches for sample in batch.samples])
        row = {"loss": sums[0], "learning_rate": learning_rate, "gradient_norm": norm}
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        return row | self._of_parts(sums[2:]) | {"points": sums[1]}

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        precision = getattr(torch, self.config.precision)
        half = torch.autocast(self.device.type, precision) if precision != torch.float32 else nullcontext()
        with half:
            return (self.parallel or self.objective)(batch)

    def _of_parts(self, sums: Sequence[float]) -> dict[str, float]:
        """Loss columns of the parts that have samples in this step."""
        pairs = zip(sums[::2], sums[1::2], strict=True)
        return {
            f"loss_{name}": total / count
            for name, (total, count) in zip(self.observer.parts, pairs, strict=True)
            if count
        }

    def _require_finite(self, what: str, value: float, samples: Sequence[Any]) -> None:
        """Stop if a value is not finite. All processes have the same value, so all of them stop."""
        if math.isfinite(value):
            return
        names = gathered([self.observer.describe(sample) for sample in samples])
        listed = "; ".join(names[:LISTED_SAMPLES]) + (" …" if len(names) > LISTED_SAMPLES else "")
        raise StudentError(
            f"the {what} of step {self.step + 1} is {value}{f'; samples: {listed}' if names else ''}",
            where="training",
            fix="Check the targets of these views, or, where all samples of a step are named, lower"
            " training.learning_rate."
            if names
            else "Give a lower learning rate, or check the student and the scans that it learns from.",
        )

    def _evaluate(self, epoch: int) -> dict[str, float]:
        if not self.observer.columns:
            return {}
        with first_on_its_own() as is_first:  # a probe is a training, too
            return dict(self.observer.evaluate(epoch)) if is_first else {}

    def _act_on(self, signals: Signals) -> None:
        """Write a checkpoint if one is due or requested. Processes agree on signals that only one of them received."""
        if self.checkpoints is None:
            return
        noted = [signals.stop, signals.save]
        signals.save = False
        stop, save = summed(noted, self.device)
        # Also after the last step: what follows may fail, for example on a full disk or in the validation.
        due = self.checkpoints.due or self.step == self.total_steps
        if process_index() == 0 and (stop or save or due):
            self.checkpoints.save(self._state())
        if stop:
            raise StoppedError(
                f"stopped by a signal after step {self.step} of {self.total_steps}",
                where=self.checkpoints.path,
                fix="Run the same command with --resume to continue.",
            )


def _in_parallel(objective: nn.Module) -> DistributedDataParallel:
    """DDP without broadcasts of buffers: batch norm statistics are equal in all processes."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.13
    return DistributedDataParallel(objective, **{name: False})


class _LocalSums:
    """The contribution of one process to a step: loss, points, and sum and number of losses of each part."""

    def __init__(self, num_parts: int) -> None:
        self.values = [0.0] * (2 + 2 * num_parts)
        self.offenders: list[Any] = []  # samples with a loss that is not finite

    def add(self, batch: Batch, loss: float, of_samples: torch.Tensor | None, part_of: Callable[[Any], int]) -> None:
        self.values[0] += loss
        self.values[1] += batch.num_points
        if of_samples is None or not batch.samples:
            return
        totals, counts = of_samples.tolist()
        for sample, total, count in zip(batch.samples, totals, counts, strict=True):
            if not math.isfinite(total):
                self.offenders.append(sample)
            if len(self.values) > 2:
                part = 2 + 2 * part_of(sample)
                self.values[part] += total
                self.values[part + 1] += count


def _grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _grouped_by_scale(objective: nn.Module, scale_of: Callable[[str], float]) -> list[dict[str, Any]]:
    """Parameter groups for the optimiser, one per factor of the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(scale_of(name), []).append(parameter)
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]


def _optimiser(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    common = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, **common, momentum=config.momentum, dampening=config.dampening)
    return torch.optim.AdamW(groups, **common)


def _seed_of_step(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    norms = [torch.linalg.vector_norm(each.grad) for each in parameters if each.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)).item() if norms else 0.0
