"""Finetuning: a whole student trained on labels, all of them or few."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ..distill.checkpoint import load_student, student_provenance
from ..distill.inputs import inputs_for
from ..distill.interruption import Checkpoints
from ..distill.processes import joined_processes, process_index
from ..distill.training import Precision
from ..distill.waffleiron import Student
from ..extract.datasets import open_dataset
from .class_sets import with_classes
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
from .schedules import Labels, Recipe, Schedule, changed, check_choice, finetuning
from .scoring import Scores, score
from .supervision import CHECKPOINT, SupervisedObjective, is_finished, train_on_labels, training_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One finetuning; the fields are the options of `scalr evaluate finetune`. None takes the official value."""

    student: Path
    root: Path
    out: Path
    dataset: str = "nuscenes"
    labels: Labels = "100%"
    train_split: str = "train"
    val_split: str = "val"
    classes: str | None = None  # of domain generalisation, in place of the dataset's own
    from_scratch: bool = False  # the student's architecture with new weights: the supervised baseline
    recipe: Recipe = "scalr"
    epochs: int | None = None
    warmup_epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    layer_decay: float | None = None
    precision: Precision = "float32"
    activation_checkpointing: bool = False
    resume: bool = False
    checkpoint_minutes: float = 10.0
    workers: int = 0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, Recipe)
        check_choice("labels", self.labels, Labels)

    def schedule(self) -> tuple[Schedule, list[str]]:
        """The schedule, and what of it is not the official one.

        Layer-wise decay keeps what was learnt before: new weights go without it.
        """
        official = finetuning(self.recipe, self.dataset, self.labels)
        if self.from_scratch:
            official = replace(official, layer_decay=1.0)
        names = ("epochs", "warmup_epochs", "batch_size", "learning_rate", "layer_decay")
        return changed(official, {name: getattr(self, name) for name in names})

    @property
    def labelled_split(self) -> str:
        """Whose labels are learnt from: `train`, `train-10%`, `train-1%`."""
        return self.train_split if self.labels == "100%" else f"{self.train_split}-{self.labels}"


@dataclass(frozen=True)
class FinetuneResult:
    """Scores over every labelled raw point of the validation split, the losses of the training, the model's file.

    A run that was finished before has no losses.
    """

    scores: Scores
    losses: list[float] = field(repr=False)
    model: Path


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Train a student with a new head on labels, and score it on the validation split.

    Writes `log.csv`, now and then `checkpoint.pt`, and, last, `model.safetensors`, `result.md` and `result.json` into
    `config.out`. Where torchrun has started several processes, all call this.

    Raises:
        StoppedError: by a signal; the checkpoint is written.
        ScalrError: what is wrong with the student, the dataset or the output folder.
    """
    if is_finished(config.out, resume=config.resume):
        logger.info("%s: finished already", config.out)
        return FinetuneResult(scores_of(read_result(config.out)), [], config.out / MODEL)
    with joined_processes(config.device) as device:
        return _finetune(config, device)


def _finetune(config: FinetuneConfig, device: torch.device) -> FinetuneResult:
    training_set, validation_set = (
        with_classes(open_dataset(config.dataset, config.root, split, need="labels"), config.classes)
        for split in (config.labelled_split, config.val_split)
    )
    schedule, departures = config.schedule()
    student = _starting_point(config)
    model = with_class_head(
        student,
        len(training_set.class_names),
        inputs_for(config.dataset, student.input_config, finetuning=True),
        stochastic_depth=schedule.stochastic_depth,
    ).to(device)
    model.waffleiron.activation_checkpointing = config.activation_checkpointing
    logger.info("finetuning %s on %d frames", config.student, len(training_set.frames))
    protocol = {
        "schedule": asdict(schedule),
        "labels": config.labels,
        "starts_from": "new weights" if config.from_scratch else "the student",
        "seed": config.seed,
        **training_frames(training_set),
    }
    provenance = {"student": file_identity(config.student), "distillation": student_provenance(config.student)}
    checkpoints = Checkpoints(
        config.out / CHECKPOINT, config.checkpoint_minutes, {"finetuning": protocol | provenance["student"]}
    )
    training = replace(training_config(schedule, workers=config.workers, seed=config.seed), precision=config.precision)
    losses = train_on_labels(
        SupervisedObjective(model, frozen=False),
        training_set,
        training,
        device,
        description="finetune",
        log_folder=config.out,
        checkpoints=checkpoints,
        resume=checkpoints.path.exists(),
        learning_rate_scale=layer_scale(schedule.layer_decay, model.config.depth),
    )
    scores = score(model.eval(), validation_set, device, workers=config.workers)
    path = config.out / MODEL
    if process_index() == 0:
        save_model(model, path, training_set.class_names, {**provenance, "finetuning": protocol})
        card = card_of_scores(
            scores,
            title=f"{'Training from scratch' if config.from_scratch else 'Finetuning'} on {config.labels} of the labels"
            f" of {training_set.name}",
            setting=_setting(config),
            departures=departures,
            protocol={**scoring_protocol(scores, validation_set, model.input_config), **protocol},
            provenance={**provenance, "teachers": teacher_summary(provenance["distillation"])},
        )
        write_result(card, config.out)
        checkpoints.remove()
    return FinetuneResult(scores, losses, path)


def layer_scale(decay: float, depth: int) -> Callable[[str], float]:
    """The share of the learning rate of each parameter of a SupervisedObjective, by its name (BEiT's rule).

    The head has all of it, layer l of `depth` decay^(depth - l), counted from 0, and the embedding decay^(depth + 1).
    """

    def scale(name: str) -> float:
        layer = re.search(r"waffleiron\.(?:channel|spatial)_mix\.(\d+)\.", name)
        if layer:
            return decay ** (depth - int(layer[1]))
        return decay ** (depth + 1) if ".embed." in name else 1.0

    return scale


def _starting_point(config: FinetuneConfig) -> Student:
    student = load_student(config.student)
    if not config.from_scratch:
        return student
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Student(student.config, student.input_config)


def _setting(config: FinetuneConfig) -> str | None:
    if config.classes is not None:
        return None
    start = "scratch" if config.from_scratch else "finetune"
    return f"{start} {config.dataset} {config.labels}"
