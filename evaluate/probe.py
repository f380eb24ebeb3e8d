"""Linear probing: a linear layer is trained on a frozen student, and scored."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from ..distill.backbones.calls import inputs_for
from ..distill.interruption import Checkpoints
from ..distill.processes import num_processes
from ..distill.student import Student
from ..distill.training import Batch, Observer, TrainingConfig, train
from ..errors import StudentError
from ..extract.datasets import open_dataset
from ..extract.datasets.frame import Dataset
from ..settings import Count, checked
from .labelled_scans import EvaluationScans, require_labelled
from .model import with_class_head
from .schedules import Schedule, probing
from .scoring import score, tokens_of
from .segmentation_losses import segmentation_loss
from .supervision import SupervisedObjective, SupervisedResult, SupervisionConfig, learn, train_on_scans

FAST_BATCH_POINTS = 8192  # points of a batch in `fast` probing, drawn from all scans
FAST = "--fast (features computed once, at the first point of each voxel, without augmentation; batches mix all scans)"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(SupervisionConfig):
    """One linear probing; the fields are the options of `scalr evaluate probe`."""

    kind: ClassVar[str] = "probing"

    fast: bool = False  # fit the head on features computed once, instead of on augmented scans

    title: ClassVar[str] = "Linear probing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fast and self.augmentation != "official":
            raise StudentError(
                "--fast does not augment", where="--augmentation", fix="Leave out --augmentation, or --fast."
            )

    @property
    def setting(self) -> str:
        return f"probe {self.dataset}{self.by_others}"

    @property
    def choices(self) -> dict[str, str]:
        if self.fast:
            return {"features": FAST, "augmentation": "none"}
        return {"features": "of scans that are augmented again in each epoch", "augmentation": self.augmentation}

    @property
    def published_schedule(self) -> Schedule:
        return probing(self.schedule, self.dataset)

    def departures(self) -> list[str]:
        return [*super().departures(), *([FAST] if self.fast else [])]

    def new_model(self, student: Student, num_classes: int) -> Student:
        inputs, schedule = inputs_for(student.input_config, self.dataset), self.published_schedule
        return with_class_head(student, num_classes, inputs, head=schedule.head, seed=self.seed)

    def fit(
        self,
        model: Student,
        dataset: Dataset,
        training: TrainingConfig,
        device: torch.device,
        checkpoints: Checkpoints,
    ) -> list[float]:
        if not self.fast:
            objective = SupervisedObjective(model, frozen=True)
            scans = self.training_scans(dataset, model.input_config)
            return train_on_scans(objective, scans, training, device, checkpoints)
        if num_processes() > 1:
            raise StudentError(
                "--fast runs in one process only", where="--fast", fix="Start the command without torchrun."
            )
        return train_on_features(model, dataset, training, device, self.out)


@dataclass(frozen=True, eq=False)
class FeatureBatch(Batch):
    """Points of any scans, with their features from the frozen student."""

    tokens: torch.Tensor  # (M, C) float32
    labels: torch.Tensor  # (M,) int64 train ids

    @property
    def num_points(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> FeatureBatch:
        return FeatureBatch(self.tokens.to(device), self.labels.to(device))


class FeatureBatches:
    """All points of a training set, shuffled again in each epoch and cut into batches."""

    def __init__(self, tokens: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        self.tokens, self.labels, self.seed = tokens, labels, seed

    @property
    def num_steps(self) -> int:
        """Steps per epoch."""
        return -(-len(self.labels) // FAST_BATCH_POINTS)

    def __call__(self, epoch: int, first_step: int = 0) -> Iterator[FeatureBatch]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.labels))
        for rows in np.array_split(order, self.num_steps)[first_step:]:
            yield FeatureBatch(self.tokens[rows], self.labels[rows])


class HeadObjective(nn.Module):
    """The loss of a head on precomputed features."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head.train()

    def forward(self, batch: FeatureBatch) -> tuple[torch.Tensor, None]:
        return segmentation_loss(self.head(batch.tokens), batch.labels), None


def probe(config: ProbeConfig) -> SupervisedResult:
    """Train BatchNorm + a zero-initialised linear layer on a frozen student, and score it: see `supervision.learn`."""
    return learn(config)


class QuickProbe:
    """Fast probing on some frames of a dataset, to measure a student during its training.

    Raises:
        ScalrError: by the constructor, if the dataset cannot be used or no point of these frames is labelled.
    """

    def __init__(self, dataset: str, root: Path, num_frames: int = 100) -> None:
        self.dataset = dataset
        checked(num_frames, Count, "--eval-frames")
        self.training_set, self.validation_set = (
            _some_frames(open_dataset(dataset, root, split, need="labels"), num_frames) for split in ("train", "val")
        )
        for each in (self.training_set, self.validation_set):
            require_labelled(each)
        self.training = TrainingConfig(
            epochs=10, learning_rate=0.1, min_learning_rate=1e-5, weight_decay=3e-3, warmup_epochs=1
        )

    def __call__(self, student: Student) -> float:
        """The mIoU of a student, which is not changed."""
        device, inputs = student.device, inputs_for(student.input_config, self.dataset)
        model = with_class_head(copy.deepcopy(student), len(self.training_set.class_names), inputs).to(device)
        train_on_features(model, self.training_set, self.training, device)
        return score(model.eval(), self.validation_set, device).miou


def train_on_features(
    model: Student, dataset: Dataset, training: TrainingConfig, device: torch.device, log_folder: Path | None = None
) -> list[float]:
    """Train a model's head on features that its frozen backbone computes once; returns the losses of all steps."""
    model.requires_grad_(False).eval()
    batches = FeatureBatches(*frozen_features(model, dataset, device, training.workers), training.seed)
    return train(
        HeadObjective(model.classif.requires_grad_(True)),
        batches,
        training,
        steps_per_epoch=batches.num_steps,
        device=device,
        description="probe",
        observer=Observer(folder=log_folder),
    ).losses


def frozen_features(
    model: Student, dataset: Dataset, device: torch.device, workers: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (M, C) float32 and labels (M,) int64 of the kept points of all scans, read as for scoring, on CPU."""
    tokens, labels = [], []
    scans = EvaluationScans(dataset, model.input_config)
    tokens_of_scans = tokens_of(model, scans, range(len(scans)), device, "features", workers)
    with torch.no_grad(), closing(tokens_of_scans):  # its workers end with it
        for scan, scan_tokens in tokens_of_scans:
            tokens.append(scan_tokens.cpu())
            labels.append(torch.from_numpy(scan.labels[scan.scan.kept].astype(np.int64)))
    return torch.cat(tokens), torch.cat(labels)


def _some_frames(dataset: Dataset, count: int) -> Dataset:
    """The dataset with `count` frames only, spread evenly over it."""
    count = min(count, len(dataset.frames))
    dataset.frames = [dataset.frames[n * len(dataset.frames) // count] for n in range(count)]
    return dataset
