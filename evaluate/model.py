"""Models that predict classes: a student with a head of BatchNorm and a linear layer instead of its own head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..checkpoint_files import sha256_of_file, tensors_digest
from ..distill.backbones.backbone import ScanInputs
from ..distill.checkpoint import load_student, save_student, student_provenance
from ..distill.heads import Head
from ..distill.student import Student
from ..errors import StudentError
from ..extract.datasets.frame import Dataset
from .origin import origin_of, teacher_summary
from .result import RECORD

MODEL = "model.safetensors"  # in the output folder of probing or finetuning


@dataclass(frozen=True, eq=False)
class Model:
    """A student with a head for classes, its class names and its provenance."""

    student: Student
    class_names: tuple[str, ...] | None  # None for a converted official file, which does not name them
    provenance: dict

    @property
    def training(self) -> dict:
        """The protocol of the training on labels that made it; empty if its file does not say it."""
        return self.provenance.get("finetuning") or self.provenance.get("probing") or {}

    @property
    def on_card(self) -> dict:
        """The entries of a result file that say what the model is."""
        return {
            "model": origin_of(self.student.config, self.provenance),
            "provenance": {**self.provenance, "teachers": teacher_summary(self.provenance)},
        }


def with_class_head(
    student: Student,
    num_classes: int,
    inputs: ScanInputs,
    *,
    head: Head = "probe",
    stochastic_depth: float = 0.0,
    bn_momentum: float | None = None,
    seed: int = 0,
) -> Student:
    """The student's backbone with a new head.

    Args:
        student: a student with any head.
        num_classes: number of outputs of the new head.
        inputs: how scans become the backbone's input.
        head: "probe", which starts with a linear layer of zeros, as in ScaLR's code; or "probe_linear", as in SLidR's.
        stochastic_depth: for backbones that have it.
        bn_momentum: for backbones that have it; None keeps the student's.
        seed: random seed of the head's weights.
    """
    config = replace(student.config, head=head, out_channels=num_classes)
    config = config.with_own(stochastic_depth=stochastic_depth, bn_momentum=bn_momentum)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Student(config, inputs)
    model.backbone.load_state_dict(student.backbone.state_dict())
    return model


def save_model(model: Student, path: Path, class_names: Sequence[str], provenance: dict) -> None:
    """Write a model to a temporary file and rename it into place.

    Raises:
        StudentError: the file cannot be written.
    """
    save_student(model, path, {"classes": list(class_names), **provenance})


def load_model(path: Path) -> Model:
    """Read a model of probing or finetuning, or a converted official model, in eval mode on the CPU.

    Raises:
        StudentError: the file is missing or damaged, or has a student without a head for classes.
    """
    student, provenance = load_student(path), student_provenance(path)
    if not student.config.tells_classes:
        raise StudentError(
            "a student without a head for classes",
            where=path,
            fix="Pass the model.safetensors of 'scalr evaluate probe' or 'scalr evaluate finetune'.",
        )
    classes = provenance.pop("classes", None)
    provenance.pop(RECORD, None)
    return Model(student, None if classes is None else tuple(classes), provenance | file_identity(path))


def require_classes(model: Model, dataset: Dataset, path: Path) -> None:
    """Refuse to score a model on other classes than it was trained for.

    Raises:
        StudentError: the class names differ or, if the model's file has no names, the numbers of classes.
    """
    theirs = tuple(dataset.class_names)
    same = model.student.config.out_channels == len(theirs) and model.class_names in (None, theirs)
    if not same:
        found = ", ".join(model.class_names) if model.class_names else f"{model.student.config.out_channels} classes"
        raise StudentError(
            f"it tells {found}; the dataset has {', '.join(theirs)}",
            where=path,
            fix="Train it for these classes: 'scalr evaluate probe' and 'finetune' take --dataset and --classes.",
        )


def student_identity(student: Student) -> dict:
    """The identity of a student, whatever its file: its configuration and a digest of its tensors, as plain values."""
    return {
        "tensors_sha256": tensors_digest(student.state_dict()),
        "config": asdict(student.config),
        "inputs": asdict(student.input_config),
    }


def file_identity(path: Path) -> dict[str, str]:
    """The identity of a file, for results: its path and digest."""
    return {"file": str(path), "sha256": sha256_of_file(path)}
