"""Linear probing: how much of the classes a linear layer reads off a frozen student."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..device import resolve_device
from ..distill.checkpoint import load_student, student_provenance
from ..distill.inputs import evaluation_input, inputs_for, pack
from ..distill.sampling import EpochLoader
from ..distill.training import Batch, Observer, TrainingConfig, train
from ..distill.waffleiron import Student, probe_head
from ..errors import StudentError
from ..extract.datasets import open_dataset
from ..extract.datasets.frame import Dataset
from ..extract.datasets.labels import IGNORE_LABEL
from ..extract.datasets.scans import intensity_of, read_labelled_scan
from ..progress import progress
from .labelled_scans import AugmentedScans, LabelledBatch, LabelledCollate
from .metrics import confusion_matrix, intersection_over_union, mean_iou
from .segmentation_losses import segmentation_loss

logger = logging.getLogger(__name__)

FAST_BATCH_POINTS = 8192  # of a batch of `fast` probing, drawn from all scans


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """One linear probing; the fields are the options of `scalr evaluate probe`, defaults of the official code."""

    student: Path
    root: Path
    out: Path
    dataset: str = "nuscenes"
    train_split: str = "train"
    val_split: str = "val"
    fast: bool = False  # fit the head on features computed once, instead of on augmented scans
    epochs: int = 20
    warmup_epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-5
    weight_decay: float = 3e-3
    workers: int = 0
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class ProbeResult:
    """Scores over every labelled raw point of the validation split."""

    class_names: tuple[str, ...]
    miou: float
    iou: tuple[float, ...]  # by class; NaN where a class neither is there nor is predicted
    confusion: np.ndarray = field(repr=False)  # (classes, classes) int64, rows are labels
    losses: list[float] = field(repr=False)


@dataclass(frozen=True, eq=False)
class FeatureBatch(Batch):
    """Points with the frozen student's tokens, whatever scans they come from."""

    tokens: torch.Tensor  # (M, C) float32
    labels: torch.Tensor  # (M,) int64 train ids

    @property
    def num_points(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> FeatureBatch:
        return FeatureBatch(self.tokens.to(device), self.labels.to(device))


class FeatureBatches:
    """All points of a training set, shuffled anew each epoch and cut into batches."""

    def __init__(self, tokens: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        self.tokens, self.labels, self.seed = tokens, labels, seed

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.labels) // FAST_BATCH_POINTS)

    def __call__(self, epoch: int, first_step: int = 0) -> Iterator[FeatureBatch]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.labels))
        for rows in np.array_split(order, self.num_steps)[first_step:]:
            yield FeatureBatch(self.tokens[rows], self.labels[rows])


class ProbeObjective(nn.Module):
    """The loss of a head on a frozen student; `student` is None where the batches hold its tokens already."""

    def __init__(self, head: nn.Module, student: Student | None = None) -> None:
        super().__init__()
        self.head, self.student = head, student

    def forward(self, batch: LabelledBatch | FeatureBatch) -> tuple[torch.Tensor, None]:
        if self.student is None:
            return segmentation_loss(self.head(batch.tokens), batch.labels), None
        with torch.no_grad():
            tokens = self.student.tokens(batch.inputs)
        return segmentation_loss(self.head(tokens), batch.labels), None


def probe(config: ProbeConfig) -> ProbeResult:
    """Train BatchNorm + a zero-initialised linear layer on a frozen student, and score it on the validation split.

    Writes `log.csv` and `result.json` into `config.out`.

    Raises:
        ScalrError: what is wrong with the student, the dataset or the output folder.
    """
    device = resolve_device(config.device)
    student = load_student(config.student).to(device).requires_grad_(False)
    student.input_config = inputs_for(config.dataset, student.input_config)
    training_set, validation_set = (
        open_dataset(config.dataset, config.root, split, need="labels")
        for split in (config.train_split, config.val_split)
    )
    logger.info("probing %s on %d frames", config.student, len(training_set.frames))
    head = probe_head(student.width, len(training_set.class_names)).to(device)
    losses = _train_head(student, head, training_set, config, device, config.out)
    confusion = score(student, head.eval(), validation_set, device)
    result = ProbeResult(
        class_names=tuple(training_set.class_names),
        miou=mean_iou(confusion),
        iou=tuple(intersection_over_union(confusion).tolist()),
        confusion=confusion,
        losses=losses,
    )
    _write_result(result, config)
    return result


class QuickProbe:
    """The fast probe on some frames of a dataset: how good the features of a student in training are.

    Raises:
        ScalrError: where this is made, if the dataset cannot be used or has no labels.
    """

    def __init__(self, dataset: str, root: Path, num_frames: int = 100) -> None:
        self.config = ProbeConfig(
            student=Path(), root=root, out=Path(), dataset=dataset, fast=True, learning_rate=0.1, epochs=10
        )
        self.training_set, self.validation_set = (
            _some_frames(open_dataset(dataset, root, split, need="labels"), num_frames)
            for split in (self.config.train_split, self.config.val_split)
        )

    def __call__(self, student: Student) -> float:
        """mIoU; the student stays as it is."""
        device = student.embed.conv1.weight.device
        frozen = copy.deepcopy(student).eval().requires_grad_(False)
        frozen.input_config = inputs_for(self.config.dataset, frozen.input_config)
        head = probe_head(student.width, len(self.training_set.class_names)).to(device)
        _train_head(frozen, head, self.training_set, self.config, device, log_folder=None)
        return mean_iou(score(frozen, head.eval(), self.validation_set, device))


def score(student: Student, head: nn.Module, dataset: Dataset, device: torch.device) -> np.ndarray:
    """The confusion matrix over every labelled raw point, each frame once.

    The scan is voxelised and cropped; every raw point takes the prediction of the nearest point kept.
    """
    num_classes = len(dataset.class_names)
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    with torch.inference_mode():
        for tokens, labels, _, nearest in _frozen_tokens(student, dataset, device, "score"):
            predictions = head(tokens).argmax(dim=1).cpu().numpy()[nearest]
            confusion += confusion_matrix(labels, predictions, num_classes)
    return confusion


def frozen_features(student: Student, dataset: Dataset, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (M, C) float32 and labels (M,) int64 of the kept points of all scans, as `score` sees them, on the CPU."""
    tokens, labels = [], []
    with torch.no_grad():
        for scan_tokens, scan_labels, kept, _ in _frozen_tokens(student, dataset, device, "features"):
            tokens.append(scan_tokens.cpu())
            labels.append(torch.from_numpy(scan_labels[kept].astype(np.int64)))
    return torch.cat(tokens), torch.cat(labels)


def _frozen_tokens(
    student: Student, dataset: Dataset, device: torch.device, description: str
) -> Iterator[tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]]:
    """For each frame: tokens of the kept points, labels of the raw points, `kept` and `nearest` between the two."""
    statistics = intensity_of(dataset)
    with progress(len(dataset.frames), description, "frame") as bar:
        for frame in dataset.frames:
            points, labels = read_labelled_scan(dataset, frame)
            scan, kept, nearest = evaluation_input(points, statistics, student.input_config)
            yield student.tokens(pack([scan], student.input_config).to(device)), labels, kept, nearest
            bar.update()


def _train_head(
    student: Student,
    head: nn.Module,
    dataset: Dataset,
    config: ProbeConfig,
    device: torch.device,
    log_folder: Path | None,
) -> list[float]:
    if config.fast:
        batches: FeatureBatches | EpochLoader = FeatureBatches(*frozen_features(student, dataset, device), config.seed)
    else:
        batches = EpochLoader(
            [AugmentedScans(dataset, student.input_config, config.seed)],
            LabelledCollate(student.input_config),
            batch_size=config.batch_size,
            seed=config.seed,
            workers=config.workers,
            device=device,
        )
    training = TrainingConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        min_learning_rate=config.min_learning_rate,
        weight_decay=config.weight_decay,
        warmup_epochs=config.warmup_epochs,
        workers=config.workers,
        seed=config.seed,
    )
    with nullcontext() if config.fast else batches:
        return train(
            ProbeObjective(head.train(), None if config.fast else student),
            batches,
            training,
            steps_per_epoch=batches.num_steps,
            device=device,
            description="probe",
            observer=Observer(folder=log_folder),
        ).losses


def _some_frames(dataset: Dataset, count: int) -> Dataset:
    """The dataset cut down to frames spread evenly over it."""
    count = min(count, len(dataset.frames))
    dataset.frames = [dataset.frames[n * len(dataset.frames) // count] for n in range(count)]
    return dataset


def _write_result(result: ProbeResult, config: ProbeConfig) -> None:
    values = {
        "miou": result.miou,
        "iou": {name: None if np.isnan(iou) else iou for name, iou in zip(result.class_names, result.iou, strict=True)},
        "confusion": result.confusion.tolist(),
        "protocol": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()},
        "ignored_label": IGNORE_LABEL,
        "scored_points": "every labelled raw point, also outside the field of view",
        "student": student_provenance(config.student),
    }
    path = config.out / "result.json"
    temporary = path.with_name(f".result.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(values, indent=1))
        os.replace(temporary, path)
    except OSError as error:
        raise StudentError(
            f"the result cannot be written ({error.strerror})", where=path, fix="Choose another --out."
        ) from None
