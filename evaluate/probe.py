"""Linear probing: how much of the classes a linear layer reads off a frozen student."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from ..device import resolve_device
from ..distill.checkpoint import load_student, student_provenance
from ..distill.dataset import EpochLoader
from ..distill.inputs import (
    AugmentConfig,
    InputConfig,
    PackedBatch,
    ScanInput,
    augment,
    evaluation_input,
    inside_field_of_view,
    intensity_statistics,
    pack,
    scan_input,
    voxel_representatives,
)
from ..distill.training import TrainingConfig, train
from ..distill.waffleiron import Student
from ..errors import DatasetError, StudentError
from ..extract.datasets import open_dataset
from ..extract.datasets.frame import IGNORE_LABEL, Dataset, Frame
from .metrics import confusion_matrix, intersection_over_union, mean_iou
from .segmentation_losses import segmentation_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """One linear probing; the fields are the options of `scalr evaluate probe`, defaults of the official code."""

    student: Path
    root: Path
    out: Path
    dataset: str = "nuscenes"
    train_split: str = "train"
    val_split: str = "val"
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
class LabelledBatch:
    """Labelled scans packed: M points in all."""

    inputs: PackedBatch
    labels: torch.Tensor  # (M,) int64 train ids

    @property
    def num_points(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> LabelledBatch:
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))


class LabelledScans(TorchDataset):
    """Training scans, augmented as in distillation; all that is random is drawn from (seed, epoch, frame)."""

    def __init__(self, dataset: Dataset, inputs: InputConfig, seed: int) -> None:
        self.dataset, self.inputs, self.seed = dataset, inputs, seed

    def __len__(self) -> int:
        return len(self.dataset.frames)

    def __getitem__(self, key: tuple[int, int]) -> tuple[ScanInput, np.ndarray]:
        """Network input of M points and their (M,) labels, of `key` = (epoch, frame)."""
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        points, labels = read_labelled_scan(self.dataset, self.dataset.frames[index])
        kept = voxel_representatives(points[:, :3], self.inputs.voxel_size_m, rng)
        points, labels = points[kept], labels[kept]
        points[:, :3] = augment(points[:, :3], rng, AugmentConfig())
        inside = inside_field_of_view(points[:, :3], self.inputs)
        return scan_input(points[inside], intensity_statistics(self.dataset.name), self.inputs), labels[inside]


@dataclass(frozen=True)
class LabelledCollate:
    """Pack labelled scans into a batch."""

    inputs: InputConfig

    def __call__(self, samples: Sequence[tuple[ScanInput, np.ndarray]]) -> LabelledBatch:
        scans, labels = zip(*samples, strict=True)
        return LabelledBatch(pack(scans, self.inputs), torch.from_numpy(np.concatenate(labels).astype(np.int64)))


def probe(config: ProbeConfig) -> ProbeResult:
    """Train BatchNorm + a zero-initialised linear layer on a frozen student, and score it on the validation split.

    Writes `log.csv` and `result.json` into `config.out`.

    Raises:
        ScalrError: what is wrong with the student, the dataset or the output folder.
    """
    device = resolve_device(config.device)
    student = load_student(config.student).to(device).requires_grad_(False)
    training_set = open_dataset(config.dataset, config.root, config.train_split)
    validation_set = open_dataset(config.dataset, config.root, config.val_split)
    head = new_head(student.width, len(training_set.class_names)).to(device)
    losses = _train_head(student, head, training_set, config, device)
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


def new_head(width: int, num_classes: int) -> nn.Module:
    """The probe of the official code: (M, width) tokens -> (M, num_classes) logits, all zero at first."""
    linear = nn.Linear(width, num_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width), linear)


@torch.inference_mode()
def score(student: Student, head: nn.Module, dataset: Dataset, device: torch.device) -> np.ndarray:
    """The confusion matrix over every labelled raw point, each frame once.

    The scan is voxelised and cropped; every raw point takes the prediction of the nearest point kept.
    """
    num_classes = len(dataset.class_names)
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    for frame in tqdm(dataset.frames, desc="score", unit="frame", disable=None):
        points, labels = read_labelled_scan(dataset, frame)
        scan, _, nearest = evaluation_input(points, intensity_statistics(dataset.name), student.input_config)
        logits = head(student.tokens(pack([scan], student.input_config).to(device)))
        predictions = logits.argmax(dim=1).cpu().numpy()[nearest]
        confusion += confusion_matrix(labels, predictions, num_classes)
    return confusion


def read_labelled_scan(dataset: Dataset, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 4) and labels (N,).

    Raises:
        DatasetError: missing or broken files, or a label file of another length.
    """
    points, labels = dataset.read_points(frame), dataset.read_labels(frame)
    if len(points) != len(labels):
        raise DatasetError(
            f"{len(labels)} labels for the {len(points)} points of {frame.scan}",
            where=dataset.root / str(frame.labels),
            fix="Copy both files again from the dataset's archives.",
        )
    return points, labels


def _train_head(
    student: Student, head: nn.Module, dataset: Dataset, config: ProbeConfig, device: torch.device
) -> list[float]:
    loader = EpochLoader(
        LabelledScans(dataset, student.input_config, config.seed),
        LabelledCollate(student.input_config),
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
    )

    def batch_loss(batch: LabelledBatch) -> torch.Tensor:
        with torch.no_grad():
            tokens = student.tokens(batch.inputs)
        return segmentation_loss(head(tokens), batch.labels)

    logger.info("probing %s on %d frames", config.student, len(dataset.frames))
    return train(
        head.train().parameters(),
        loader,
        batch_loss,
        TrainingConfig(
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            min_learning_rate=config.min_learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_epochs * len(loader),
            workers=config.workers,
            seed=config.seed,
        ),
        steps_per_epoch=len(loader),
        device=device,
        log_folder=config.out,
        description="probe",
    )


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
