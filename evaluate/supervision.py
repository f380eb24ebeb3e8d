"""Training on labels: the common part of probing and finetuning, from a student to a model with a result file."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..counted import counted
from ..distill.backbones.backbone import ScanInputs
from ..distill.checkpoint import load_student, student_provenance
from ..distill.interruption import Checkpoints, checkpoints_at
from ..distill.processes import joined_processes, locked_by_first, process_index
from ..distill.run_record import CONFIG, RunRecord, read_record, require_kind, run_record, write_record
from ..distill.sampling import EpochLoader
from ..distill.student import Student
from ..distill.training import Observer, TrainingConfig, train
from ..errors import StudentError
from ..extract.datasets import open_dataset
from ..extract.datasets.frame import Dataset
from ..settings import Amount, Count, Seed, Settings, Workers
from .class_sets import with_classes
from .labelled_frames import labelled_frames
from .labelled_scans import Augmentation, AugmentedScans, LabelledBatch, LabelledCollate, require_labelled
from .metrics import MEAN_WITH, AbsentClasses
from .model import MODEL, file_identity, load_model, save_model, student_identity
from .origin import origin_of, teacher_summary
from .result import (
    RECORD,
    RESULT,
    read_result,
    result_of_scores,
    scores_of,
    scoring_protocol,
    write_result,
)
from .schedules import Published, Schedule, changed
from .scores import Scores
from .scoring import score
from .segmentation_losses import segmentation_loss

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
CONTINUE = "Continue it with --resume, or choose another --out."
SHOW_AGAIN = "Choose another --out, or pass --resume to show its result again."
# Splits for training and scoring; the second pair is the 600 and 100 scenes of the paper's Table 1.
OFFICIAL_SPLITS = (("train", "val"), ("slidr_train", "slidr_val"))


@dataclass(frozen=True, kw_only=True)
class SupervisionConfig(Settings, ABC):
    """One training on labels; the fields are options of the command line. None means the official value."""

    kind: ClassVar[str]
    of_schedule: ClassVar[tuple[str, ...]] = ("epochs", "warmup_epochs", "batch_size", "learning_rate")

    student: Path
    root: Path
    out: Path
    dataset: str = "nuscenes"
    train_split: str = "train"
    val_split: str = "val"
    classes: str | None = None  # class set of domain generalisation; None: the dataset's own classes
    schedule: Published = "scalr"  # published schedule
    augmentation: Augmentation = "official"
    absent_classes: AbsentClasses = "left-out"  # how the mIoU counts them
    epochs: Count | None = None
    warmup_epochs: Amount | None = None
    batch_size: Count | None = None
    learning_rate: Amount | None = None
    resume: bool = False
    checkpoint_minutes: Amount = 10.0
    workers: Workers = 0
    seed: Seed = 0
    device: str = "auto"

    @property
    def labelled_split(self) -> str:
        """The split that is trained on."""
        return self.train_split

    @property
    @abstractmethod
    def title(self) -> str:
        """What is measured, for people."""

    @property
    @abstractmethod
    def setting(self) -> str:
        """The name of the run's setting among the published results, for the dataset's own classes."""

    @property
    def by_others(self) -> str:
        """The end of `setting`: results by SLidR's protocol do not compare with results by ScaLR's."""
        return " by slidr" if self.schedule == "slidr" else ""

    @property
    @abstractmethod
    def choices(self) -> dict[str, str]:
        """Other choices that change the scores, for the result file."""

    def started_from(self) -> dict:
        """The provenance of the model's weights before the training."""
        return student_provenance(self.student)

    @property
    def machine(self) -> dict[str, bool]:
        """How the machine is used, besides its number of workers."""
        return {}

    @property
    @abstractmethod
    def published_schedule(self) -> Schedule: ...

    @abstractmethod
    def new_model(self, student: Student, num_classes: int) -> Student:
        """The student with a new head."""

    @abstractmethod
    def fit(
        self,
        model: Student,
        dataset: Dataset,
        training: TrainingConfig,
        device: torch.device,
        checkpoints: Checkpoints,
    ) -> list[float]:
        """Train the model; returns the losses of the steps of this run."""

    def training_scans(self, dataset: Dataset, inputs: ScanInputs) -> AugmentedScans:
        """The labelled scans to train on, sampled and augmented as in the schedule's code."""
        return AugmentedScans(dataset, inputs, self.seed, self.augmentation, self.schedule)

    def chosen_schedule(self) -> tuple[Schedule, list[str]]:
        """The schedule, and its deviations from the published one."""
        return changed(self.published_schedule, {name: getattr(self, name) for name in self.of_schedule})

    def departures(self) -> list[str]:
        """The deviations from the published protocol."""
        splits = (self.train_split, self.val_split)
        others = [
            f"{what} on split {split}"
            for what, split, official in zip(("trained", "scored"), splits, OFFICIAL_SPLITS[0], strict=True)
            if split != official and splits not in OFFICIAL_SPLITS
        ]
        moved = [] if self.augmentation == "official" else [f"augmentation {self.augmentation}, not official"]
        return [*self.chosen_schedule()[1], *others, *moved]


@dataclass(frozen=True)
class SupervisedResult:
    """Scores over every labelled raw point of the validation split, losses of the training, and the model's file.

    There are no losses if the run was already finished.
    """

    scores: Scores
    losses: list[float] = field(repr=False)
    model: Path


def learn(config: SupervisionConfig) -> SupervisedResult:
    """Train a model on labels, and score it on the validation split.

    Writes into `config.out`: `log.csv`; `checkpoint.pt` at intervals and after the last step; at the end
    `model.safetensors`, `result.md` and `result.json`. If torchrun started several processes, all call this function.

    Raises:
        StoppedError: a signal stopped the run; the checkpoint is written.
        ScalrError: the student, the dataset or the output folder cannot be used.
    """
    with joined_processes(config.device) as device, locked_by_first(config.out):
        if not config.resume:
            _require_nothing_begun(config.out)
        return _learn(config, device)


def _learn(config: SupervisionConfig, device: torch.device) -> SupervisedResult:
    student = load_student(config.student)
    training_set, validation_set = (
        with_classes(open_dataset(config.dataset, config.root, split, need="labels"), config.classes)
        for split in (config.labelled_split, config.val_split)
    )
    for each in (training_set, validation_set):
        require_labelled(each)
    schedule, _ = config.chosen_schedule()
    protocol = {
        "schedule_of": config.schedule,
        "schedule": _as_applied(schedule, student),
        "mean_over": MEAN_WITH[config.absent_classes],
        "seed": config.seed,
        **config.choices,
    }
    settings = {
        "kind": config.kind,
        "student": student_identity(student),
        "classes": list(training_set.class_names),
        "training": labelled_frames(training_set),
        "validation": labelled_frames(validation_set),
        **protocol,
    }
    record = run_record(settings, device, workers=config.workers, **config.machine)
    before = read_record(config.out) if config.resume else None
    if before is not None:
        require_kind(before.settings, config.kind, config.out / CONFIG)
        record.require_same(before.settings, config.out / CONFIG)
    checkpoints = Checkpoints(config.out / CHECKPOINT, config.checkpoint_minutes, record)
    if config.resume and (config.out / RESULT).exists():
        return _finished_before(config.out, record, checkpoints)
    if before is not None:
        record.say_changes_of_machine(before.machine)
    if process_index() == 0 and not checkpoints_at(checkpoints.path):  # a checkpoint may be of another run
        write_record(config.out, record)
    model = config.new_model(student, len(training_set.class_names)).to(device)
    provenance = {"student": file_identity(config.student), "distillation": config.started_from()}
    origin = origin_of(student.config, provenance["distillation"])
    logger.info("%s %s on %s", config.kind, config.student, counted(len(training_set.frames), "frame"))
    training = training_config(schedule, workers=config.workers, seed=config.seed)
    losses = config.fit(model, training_set, training, device, checkpoints)
    scores = score(model.eval(), validation_set, device, workers=config.workers)
    scores = replace(scores, mean_over=MEAN_WITH[config.absent_classes])
    if process_index() == 0:
        protocol |= {f"training_{name}": value for name, value in settings["training"].items()}
        setting = config.setting if config.classes is None else None
        of_training = {**protocol, "setting": setting, "departures": config.departures()}
        contents = {**provenance, config.kind: of_training, RECORD: record.values}
        save_model(model, config.out / MODEL, training_set.class_names, contents)
        result = result_of_scores(
            scores,
            title=f"{config.title} on {training_set.name}",
            setting=setting,
            departures=[*config.departures(), *absent_left_out(config.schedule, scores), *_labels_seen_before(origin)],
            model=origin,
            protocol={**scoring_protocol(scores, validation_set, model.input_config), **protocol},
            provenance={**provenance, "teachers": teacher_summary(provenance["distillation"])},
            record=record.values,
        )
        write_result(result, config.out)
        write_record(config.out, record)  # a resumed run may have used another machine or release
        checkpoints.remove()
    return SupervisedResult(scores, losses, config.out / MODEL)


def _as_applied(schedule: Schedule, student: Student) -> dict[str, Any]:
    """The schedule's values; None for settings that the student's backbone does not have."""
    own = asdict(student.config)
    lacking = [name for name in ("stochastic_depth", "bn_momentum") if name not in own]
    return asdict(schedule) | dict.fromkeys(lacking)


def _finished_before(out: Path, record: RunRecord, checkpoints: Checkpoints) -> SupervisedResult:
    """The existing result, after a check that its settings are the same."""
    result = read_result(out)
    record.require_made_with(result[RECORD], out / RESULT)
    record.require_made_with(_provenance_of_whole(out / MODEL).get(RECORD), out / MODEL)
    logger.info("%s: the run is finished already", out)
    if process_index() == 0:
        checkpoints.remove()  # if the run was killed before it removed them
    return SupervisedResult(scores_of(result), [], out / MODEL)


def _provenance_of_whole(path: Path) -> dict:
    """The provenance of a finished model, after a check that its file is undamaged."""
    try:
        load_model(path)
        return student_provenance(path)
    except StudentError as error:
        raise StudentError(
            f"the model of this finished run cannot be used: {error.what}",
            where=path,
            fix=f"Remove the {RESULT} beside it and run the same command with --resume: it trains again.",
        ) from None


def absent_left_out(schedule: str | None, scores: Scores) -> list[str]:
    """The deviation from SLidR's mean, if a class is absent; complete validation sets have all classes."""
    absent = [name for name, iou in zip(scores.class_names, scores.iou.tolist(), strict=True) if math.isnan(iou)]
    if schedule != "slidr" or scores.mean_over == MEAN_WITH["as-1"] or not absent:
        return []
    return [f"absent classes left out of the mIoU ({', '.join(absent)}), not counted as 1"]


def _labels_seen_before(origin: dict) -> list[str]:
    if "labels" not in origin:
        return ["the student has a head for classes: it has seen labels, and its file does not say which"]
    return [f"the student has seen labels: {training}" for training in origin["labels"]]


class SupervisedObjective(nn.Module):
    """The loss of a model on labelled scans.

    Args:
        model: a model with a head for classes.
        frozen: whether only the head is trained (linear probing); the backbone is then frozen, with batch norms in
            eval mode.
    """

    def __init__(self, model: Student, *, frozen: bool) -> None:
        super().__init__()
        self.model, self.frozen = model, frozen
        model.requires_grad_(not frozen).train(not frozen)
        model.classif.requires_grad_(True).train()

    def forward(self, batch: LabelledBatch) -> tuple[torch.Tensor, None]:
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            tokens = self.model.tokens(batch.inputs)
        return segmentation_loss(self.model.classif(tokens), batch.labels), None


def training_config(schedule: Schedule, *, workers: int, seed: int) -> TrainingConfig:
    """The schedule as configuration of the training loop."""
    return TrainingConfig(
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        optimiser=schedule.optimiser,
        schedule=schedule.decay,
        learning_rate=schedule.learning_rate,
        min_learning_rate=schedule.min_learning_rate,
        weight_decay=schedule.weight_decay,
        warmup_epochs=schedule.warmup_epochs,
        workers=workers,
        seed=seed,
    )


def train_on_scans(
    objective: SupervisedObjective,
    scans: AugmentedScans,
    training: TrainingConfig,
    device: torch.device,
    checkpoints: Checkpoints,
    learning_rate_scale: Callable[[str], float] = lambda name: 1.0,
) -> list[float]:
    """Train on augmented scans, starting from the checkpoint if one exists; returns the losses of this run's steps.

    Args:
        learning_rate_scale: learning-rate factor of a parameter of the objective, by its name.

    Raises:
        ScalrError: a scan or label file cannot be used, a loss is not finite, or a signal stopped the run.
    """
    loader = EpochLoader(
        [scans],
        LabelledCollate(scans.inputs),
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
            description="probe" if objective.frozen else "finetune",
            observer=Observer(folder=checkpoints.path.parent),
            checkpoints=checkpoints,
            resume=bool(checkpoints_at(checkpoints.path)),
            learning_rate_scale=learning_rate_scale,
        ).losses


def require_new(out: Path) -> None:
    """Refuse a folder that has a result.

    Raises:
        StudentError: the folder has one.
    """
    if (out / RESULT).exists():
        raise StudentError("a finished run is in this folder", where=out, fix="Choose another --out.")


def _require_nothing_begun(out: Path) -> None:
    """Refuse a folder that has a result, or an interrupted run.

    Raises:
        StudentError: the folder has one.
    """
    if (out / RESULT).exists():
        raise StudentError("a finished run is in this folder", where=out, fix=SHOW_AGAIN)
    if checkpoints_at(out / CHECKPOINT):
        raise StudentError("an interrupted run is in this folder", where=out, fix=CONTINUE)
