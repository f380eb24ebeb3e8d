"""The one training loop: distillation and probing differ in their batches and their loss only."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ..device import cores_beside
from ..errors import StudentError
from ..progress import progress


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """AdamW with linear warm-up and cosine decay; the defaults are ScaLR's pretraining."""

    epochs: int = 25
    batch_size: int = 8
    learning_rate: float = 2e-3
    min_learning_rate: float = 1e-5
    weight_decay: float = 0.03
    warmup_steps: int = 3500
    workers: int = 0  # processes that prepare samples; 0 prepares them in the training process
    activation_checkpointing: bool = False  # of a student: less memory for a second forward pass
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "warmup_steps": 0, "workers": 0, "seed": 0}.items():
            if getattr(self, name) < least:
                raise StudentError(f"{name} is {getattr(self, name)}", where="training", fix=f"Use {least} or more.")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise StudentError(
                f"learning_rate is {self.learning_rate} and min_learning_rate {self.min_learning_rate}",
                where="training",
                fix="Use 0 <= min_learning_rate <= learning_rate.",
            )


class Batch(Protocol):
    """What the loop asks of a batch."""

    num_points: int

    def to(self, device: torch.device) -> Batch: ...


class TrainingLog:
    """Appends one row per step to `log.csv` and to TensorBoard event files in the same folder."""

    FIELDS = ("step", "epoch", "loss", "learning_rate", "points_per_second")

    def __init__(self, folder: Path) -> None:
        # Imported here: a machine that only uses trained students need not have it.
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "log.csv").open("w", newline="")
        self._rows = csv.DictWriter(self._file, self.FIELDS)
        self._rows.writeheader()
        self._tensorboard = SummaryWriter(str(folder))

    def write(self, row: dict[str, float]) -> None:
        self._rows.writerow(row)
        self._file.flush()  # so that a killed run keeps its curve
        for name in self.FIELDS[2:]:
            self._tensorboard.add_scalar(name, row[name], row["step"])

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int, least: float) -> float:
    """Linear warm-up from zero, then cosine decay to the fraction `least` of the peak."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return least + 0.5 * (1 - least) * (1 + math.cos(math.pi * min(1.0, progress)))


def train(
    parameters: Iterable[torch.nn.Parameter],
    batches: Callable[[int], Iterable[Batch]],
    batch_loss: Callable[[Batch], torch.Tensor],
    config: TrainingConfig,
    *,
    steps_per_epoch: int,
    device: torch.device,
    log_folder: Path,
    description: str,
) -> list[float]:
    """Minimise a loss over batches.

    Args:
        parameters: what is trained.
        batches: epoch -> that epoch's batches, `steps_per_epoch` of them.
        batch_loss: batch on `device` -> scalar.
        config: the schedule.
        log_folder: where `log.csv` and the TensorBoard events go.
        description: of the progress bar.

    Returns:
        The loss of every step.

    Raises:
        StudentError: the loss is not finite.
    """
    total_steps = config.epochs * steps_per_epoch
    optimiser = torch.optim.AdamW(list(parameters), lr=config.learning_rate, weight_decay=config.weight_decay)
    least = config.min_learning_rate / config.learning_rate if config.learning_rate else 0.0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, config.warmup_steps, total_steps, least)
    )
    log, losses = TrainingLog(log_folder), []
    try:
        with (
            cores_beside(config.workers),
            progress(total_steps, description, "step") as bar,
        ):
            for epoch in range(config.epochs):
                start = time.perf_counter()
                for batch in batches(epoch):
                    learning_rate = schedule.get_last_lr()[0]
                    losses.append(_step(batch_loss, batch.to(device), optimiser, len(losses)))
                    schedule.step()
                    now = time.perf_counter()
                    speed, start = batch.num_points / (now - start), now
                    log.write(
                        {
                            "step": len(losses),
                            "epoch": epoch,
                            "loss": losses[-1],
                            "learning_rate": learning_rate,
                            "points_per_second": round(speed),
                        }
                    )
                    bar.set_postfix(loss=f"{losses[-1]:.3f}", points_per_s=f"{speed:.0f}", refresh=False)
                    bar.update()
    finally:
        log.close()
    return losses


def _step(
    batch_loss: Callable[[Batch], torch.Tensor], batch: Batch, optimiser: torch.optim.Optimizer, step: int
) -> float:
    loss = batch_loss(batch)
    value = loss.item()
    if not math.isfinite(value):
        raise StudentError(
            f"the loss of step {step + 1} is {value}",
            where="training",
            fix="Lower training.learning_rate, or check the teacher's targets.",
        )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return value
