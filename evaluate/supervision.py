"""Training on labels: a head on a frozen backbone, or a whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..distill.interruption import Checkpoints
from ..distill.sampling import EpochLoader
from ..distill.training import Observer, TrainingConfig, train
from ..distill.waffleiron import Student
from ..errors import StudentError
from ..extract.datasets.frame import Dataset
from .labelled_scans import AugmentedScans, LabelledBatch, LabelledCollate
from .schedules import Schedule
from .segmentation_losses import segmentation_loss

CHECKPOINT = "checkpoint.pt"


class SupervisedObjective(nn.Module):
    """The loss of a model on labelled scans.

    Args:
        model: with a head for classes.
        frozen: leave the backbone as it is, batch norms in eval mode, and train the head (linear probing).
    """

    def __init__(self, model: Student, *, frozen: bool) -> None:
        super().__init__()
        self.model, self.frozen = model, frozen
        model.requires_grad_(not frozen).train(not frozen)
        model.classif.requires_grad_(True).train()

    def forward(self, batch: LabelledBatch) -> tuple[torch.Tensor, None]:
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            tokens = self.model.tokens(batch.inputs)
        return segmentation_loss(self.model.project(tokens), batch.labels), None


def training_config(schedule: Schedule, *, workers: int, seed: int) -> TrainingConfig:
    """The schedule for the training loop."""
    return TrainingConfig(
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        min_learning_rate=schedule.min_learning_rate,
        weight_decay=schedule.weight_decay,
        warmup_epochs=schedule.warmup_epochs,
        workers=workers,
        seed=seed,
    )


def train_on_labels(
    objective: SupervisedObjective,
    dataset: Dataset,
    training: TrainingConfig,
    device: torch.device,
    *,
    description: str,
    log_folder: Path,
    checkpoints: Checkpoints,
    resume: bool,
    learning_rate_scale: Callable[[str], float] = lambda name: 1.0,
) -> list[float]:
    """Train on augmented scans; losses of the steps made now.

    Args:
        learning_rate_scale: of a parameter of the objective, by its name.

    Raises:
        ScalrError: a scan or label file that cannot be used, a loss that is not finite, or a signal to stop.
    """
    inputs = objective.model.input_config
    loader = EpochLoader(
        [AugmentedScans(dataset, inputs, training.seed)],
        LabelledCollate(inputs),
        batch_size=training.batch_size,
        seed=training.seed,
        workers=training.workers,
        device=device,
    )
    with loader:
        return train(
            objective,
            loader,
            training,
            steps_per_epoch=loader.num_steps,
            device=device,
            description=description,
            observer=Observer(folder=log_folder),
            checkpoints=checkpoints,
            resume=resume,
            learning_rate_scale=learning_rate_scale,
        ).losses


def is_finished(out: Path, *, resume: bool) -> bool:
    """Whether a run that is started again has its result already.

    Raises:
        StudentError: a result, or an interrupted run, is there, and `resume` does not say that it is wanted.
    """
    for name, what in (("result.json", "a result is there already"), (CHECKPOINT, "an interrupted run is here")):
        if (out / name).exists() and not resume:
            raise StudentError(what, where=out, fix="Go on with --resume, or choose another --out.")
    return (out / "result.json").exists()


def require_new(out: Path) -> None:
    """Refuse a folder that has a result.

    Raises:
        StudentError: it has.
    """
    if (out / "result.json").exists():
        raise StudentError("a result is there already", where=out, fix="Choose another --out.")
