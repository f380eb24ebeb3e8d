"""Finetuning: all weights of a student are trained on labels, on all of them or on few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..distill.backbones.backbone import Backbone
from ..distill.backbones.calls import inputs_for, layer_of
from ..distill.interruption import Checkpoints
from ..distill.student import Student
from ..distill.training import Precision, TrainingConfig
from ..extract.datasets.frame import Dataset
from ..settings import PositiveAmount
from .model import with_class_head
from .origin import NEW_WEIGHTS
from .schedules import Labels, LayerDecay, Schedule, finetuning
from .supervision import SupervisedObjective, SupervisedResult, SupervisionConfig, learn, train_on_scans


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SupervisionConfig):
    """One finetuning; the fields are the options of `scalr evaluate finetune`."""

    kind: ClassVar[str] = "finetuning"
    of_schedule: ClassVar[tuple[str, ...]] = (*SupervisionConfig.of_schedule, "layer_decay", "head_factor")

    labels: Labels = "100%"
    from_scratch: bool = False  # the student's architecture with new weights: the supervised baseline
    layer_decay: LayerDecay | None = None
    head_factor: PositiveAmount | None = None
    precision: Precision = "float32"
    activation_checkpointing: bool = False

    @property
    def labelled_split(self) -> str:
        """`train`, `train-10%` or `train-1%`."""
        return self.train_split if self.labels == "100%" else f"{self.train_split}-{self.labels}"

    @property
    def title(self) -> str:
        return f"{'Training from scratch' if self.from_scratch else 'Finetuning'} with {self.labels} of the labels"

    @property
    def setting(self) -> str:
        return f"{'scratch' if self.from_scratch else 'finetune'} {self.dataset} {self.labels}{self.by_others}"

    @property
    def choices(self) -> dict[str, str]:
        starts_from = "new weights" if self.from_scratch else "the student"
        choices = {"labels": self.labels, "starts_from": starts_from, "augmentation": self.augmentation}
        return choices | {"precision": self.precision}

    @property
    def machine(self) -> dict[str, bool]:
        return {"activation_checkpointing": self.activation_checkpointing}

    @property
    def published_schedule(self) -> Schedule:
        return finetuning(self.schedule, self.dataset, self.labels, from_scratch=self.from_scratch)

    def started_from(self) -> dict:
        return NEW_WEIGHTS if self.from_scratch else super().started_from()

    def new_model(self, student: Student, num_classes: int) -> Student:
        if self.from_scratch:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                student = Student(student.config, student.input_config)
        inputs = inputs_for(student.input_config, self.dataset, finetuning=True)
        schedule, _ = self.chosen_schedule()
        of_backbone = {"stochastic_depth": schedule.stochastic_depth, "bn_momentum": schedule.bn_momentum}
        model = with_class_head(student, num_classes, inputs, head=schedule.head, seed=self.seed, **of_backbone)
        if self.activation_checkpointing:
            model.checkpoint_activations("--activation-checkpointing")
        return model

    def fit(
        self,
        model: Student,
        dataset: Dataset,
        training: TrainingConfig,
        device: torch.device,
        checkpoints: Checkpoints,
    ) -> list[float]:
        schedule, _ = self.chosen_schedule()
        return train_on_scans(
            SupervisedObjective(model, frozen=False),
            self.training_scans(dataset, model.input_config),
            replace(training, precision=self.precision),
            device,
            checkpoints,
            layer_scale(schedule.layer_decay, model.backbone, schedule.head_factor),
        )


def finetune(config: FinetuneConfig) -> SupervisedResult:
    """Train a student with a new head on labels, and score it: see `supervision.learn`."""
    return learn(config)


def layer_scale(decay: float, backbone: Backbone, head_factor: float = 1.0) -> Callable[[str], float]:
    """The learning-rate factor of each parameter of a SupervisedObjective, by its name (BEiT's rule).

    The head has `head_factor`, the backbone's last layer has `decay`, the layer before decay^2, and so on.
    """

    def scale(name: str) -> float:
        _, is_of_backbone, own = name.partition("model.backbone.")
        return decay ** (backbone.num_layers - layer_of(backbone, own)) if is_of_backbone else head_factor

    return scale
