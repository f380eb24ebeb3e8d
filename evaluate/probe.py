"""Linear probing: how much of the classes a linear layer reads off a frozen student."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..distill.checkpoint import load_student, student_provenance
from ..distill.inputs import inputs_for
from ..distill.interruption import Checkpoints
from ..distill.processes import joined_processes, num_processes, process_index
from ..distill.training import Batch, Observer, TrainingConfig, train
from ..distill.waffleiron import Student
from ..errors import StudentError
from ..extract.datasets import open_dataset
from ..extract.datasets.frame import Dataset
from .class_sets import with_classes
from .labelled_scans import EvaluationScans
from .model import MODEL, file_identity, save_model, with_class_head
from .result import (
    card_of_scores,
    read_result,
    scores_of,
    scoring_protocol,
    teacher_summary,
    training_frames,
    write_result,
)
from .schedules import Recipe, Schedule, changed, check_choice, probing
from .scoring import Scores, score, tokens_of
from .segmentation_losses import segmentation_loss
from .supervision import CHECKPOINT, SupervisedObjective, is_finished, train_on_labels, training_config

logger = logging.getLogger(__name__)

FAST_BATCH_POINTS = 8192  # of a batch of `fast` probing, drawn from all scans
FAST = "fast: features computed once, of first points of voxels, without augmentation; batches of points of all scans"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """One linear probing; the fields are the options of `scalr evaluate probe`. None takes the official value."""

    student: Path
    root: Path
    out: Path
    dataset: str = "nuscenes"
    train_split: str = "train"
    val_split: str = "val"
    classes: str | None = None  # of domain generalisation, in place of the dataset's own
    fast: bool = False  # fit the head on features computed once, instead of on augmented scans
    recipe: Recipe = "scalr"
    epochs: int | None = None
    warmup_epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    resume: bool = False
    checkpoint_minutes: float = 10.0
    workers: int = 0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, Recipe)

    def schedule(self) -> tuple[Schedule, list[str]]:
        """The schedule, and what of it is not the official one."""
        names = ("epochs", "warmup_epochs", "batch_size", "learning_rate")
        return changed(probing(self.recipe, self.dataset), {name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class ProbeResult:
    """Scores over every labelled raw point of the validation split, the losses of the head's training, its file.

    A run that was finished before has no losses.
    """

    scores: Scores
    losses: list[float] = field(repr=False)
    model: Path


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


class HeadObjective(nn.Module):
    """The loss of a head on features that are there already."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head.train()

    def forward(self, batch: FeatureBatch) -> tuple[torch.Tensor, None]:
        return segmentation_loss(self.head(batch.tokens), batch.labels), None


def probe(config: ProbeConfig) -> ProbeResult:
    """Train BatchNorm + a zero-initialised linear layer on a frozen student, and score it on the validation split.

    Writes `log.csv`, `model.safetensors`, `result.md` and `result.json` into `config.out`. Where torchrun has started
    several processes, all call this.

    Raises:
        StoppedError: by a signal; the checkpoint is written.
        ScalrError: what is wrong with the student, the dataset or the output folder.
    """
    if is_finished(config.out, resume=config.resume):
        logger.info("%s: finished already", config.out)
        return ProbeResult(scores_of(read_result(config.out)), [], config.out / MODEL)
    with joined_processes(config.device) as device:
        if config.fast and num_processes() > 1:
            raise StudentError("fast probing is for one process", where="--fast", fix="Start it without torchrun.")
        return _probe(config, device)


def _probe(config: ProbeConfig, device: torch.device) -> ProbeResult:
    student = load_student(config.student)
    training_set, validation_set = (
        with_classes(open_dataset(config.dataset, config.root, split, need="labels"), config.classes)
        for split in (config.train_split, config.val_split)
    )
    logger.info("probing %s on %d frames", config.student, len(training_set.frames))
    schedule, departures = config.schedule()
    inputs = inputs_for(config.dataset, student.input_config)
    model = with_class_head(student, len(training_set.class_names), inputs).to(device)
    training = training_config(schedule, workers=config.workers, seed=config.seed)
    protocol = {"schedule": asdict(schedule), "seed": config.seed, **training_frames(training_set)}
    protocol["features"] = FAST if config.fast else "of augmented scans, anew each epoch"
    provenance = {"student": file_identity(config.student), "distillation": student_provenance(config.student)}
    if config.fast:
        losses = train_on_features(model, training_set, training, device, config.out)
    else:
        checkpoints = Checkpoints(
            config.out / CHECKPOINT, config.checkpoint_minutes, {"probing": protocol | provenance["student"]}
        )
        losses = train_on_labels(
            SupervisedObjective(model, frozen=True),
            training_set,
            training,
            device,
            description="probe",
            log_folder=config.out,
            checkpoints=checkpoints,
            resume=checkpoints.path.exists(),
        )
    scores = score(model.eval(), validation_set, device, workers=config.workers)
    path = config.out / MODEL
    if process_index() == 0:
        save_model(model, path, training_set.class_names, {**provenance, "probing": protocol})
        card = card_of_scores(
            scores,
            title=f"Linear probing on {training_set.name}",
            setting=f"probe {config.dataset}" if config.classes is None else None,
            departures=[*departures, *_unofficial_splits(config), *([FAST] if config.fast else [])],
            protocol={**scoring_protocol(scores, validation_set, inputs), **protocol},
            provenance={**provenance, "teachers": teacher_summary(provenance["distillation"])},
        )
        write_result(card, config.out)
        (config.out / CHECKPOINT).unlink(missing_ok=True)
    return ProbeResult(scores, losses, path)


class QuickProbe:
    """The fast probe on some frames of a dataset: how good the features of a student in training are.

    Raises:
        ScalrError: where this is made, if the dataset cannot be used or has no labels.
    """

    def __init__(self, dataset: str, root: Path, num_frames: int = 100) -> None:
        self.dataset = dataset
        self.training_set, self.validation_set = (
            _some_frames(open_dataset(dataset, root, split, need="labels"), num_frames) for split in ("train", "val")
        )
        self.training = TrainingConfig(
            epochs=10, learning_rate=0.1, min_learning_rate=1e-5, weight_decay=3e-3, warmup_epochs=1
        )

    def __call__(self, student: Student) -> float:
        """mIoU; the student stays as it is."""
        device = student.embed.conv1.weight.device
        inputs = inputs_for(self.dataset, student.input_config)
        model = with_class_head(copy.deepcopy(student), len(self.training_set.class_names), inputs).to(device)
        train_on_features(model, self.training_set, self.training, device)
        return score(model.eval(), self.validation_set, device).miou


def train_on_features(
    model: Student, dataset: Dataset, training: TrainingConfig, device: torch.device, log_folder: Path | None = None
) -> list[float]:
    """Train a model's head on what its frozen backbone gives once for each scan; the losses of all steps."""
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
    """Tokens (M, C) float32 and labels (M,) int64 of the kept points of all scans, as `score` sees them, on the CPU."""
    tokens, labels = [], []
    scans = EvaluationScans(dataset, model.input_config)
    with torch.no_grad():
        for scan, scan_tokens in tokens_of(model, scans, range(len(scans)), device, "features", workers):
            tokens.append(scan_tokens.cpu())
            labels.append(torch.from_numpy(scan.labels[scan.kept].astype(np.int64)))
    return torch.cat(tokens), torch.cat(labels)


def _some_frames(dataset: Dataset, count: int) -> Dataset:
    """The dataset cut down to frames spread evenly over it."""
    count = min(count, len(dataset.frames))
    dataset.frames = [dataset.frames[n * len(dataset.frames) // count] for n in range(count)]
    return dataset


def _unofficial_splits(config: ProbeConfig) -> list[str]:
    wanted = {"trained": (config.train_split, "train"), "scored": (config.val_split, "val")}
    return [f"{what} on split {split}" for what, (split, official) in wanted.items() if split != official]
