"""Models that predict classes: a student with a head of BatchNorm and a linear layer instead of its own head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..checkpoint_files import sha256_of_file, tensors_digest
from ..distill.backbones.backbone import ScanInputs
from ..distill.backbones.calls import packed
from ..distill.checkpoint import load_student, save_student, student_provenance
from ..distill.heads import Head
from ..distill.inputs import evaluation_input
from ..distill.student import Student
from ..errors import StudentError
from ..extract.datasets.frame import Dataset
from ..extract.intensity import IntensityStatistics, intensity_statistics
from ..paths import expanded
from .origin import origin_of, teacher_summary
from .result import RECORD

MODEL = "model.safetensors"  # in the output folder of probing or finetuning


@dataclass(frozen=True, eq=False)
class Model:
    """A student with a head for classes, and what its file says of it.

        model = scalr.load_model("runs/finetune/model.safetensors")
        classes = model.predict(points, dataset="nuscenes")  # (N,) uint8, indexes into model.class_names

    Attributes:
        student: in eval mode; `model.student.to("cuda")` moves the model to a GPU.
        class_names: by class index; None for a converted official file, which does not name them.
        provenance: what the model was trained on and how, plain JSON values.
    """

    student: Student
    class_names: tuple[str, ...] | None
    provenance: dict

    @property
    def trained_on(self) -> str | None:
        """The dataset whose labels the model was trained on; None if its file does not say."""
        return self.training.get("training_dataset")

    def predict(self, points: ArrayLike, dataset: str | IntensityStatistics | None = None) -> np.ndarray:
        """The class of each point of a raw scan, as 'scalr evaluate score' predicts it.

        Args:
            points: (N, 4) x y z [m] in the lidar frame and raw return intensity; numbers of any kind, all finite.
            dataset: the dataset whose lidar recorded the scan, by name, or the statistics of the lidar's intensity;
                None: the dataset that the model was trained on.

        Returns:
            (N,) uint8, indexes into `class_names`.

        Raises:
            ScalrError: a dataset without intensity statistics, or points that cannot be used.
        """
        return self._logits(points, dataset).argmax(dim=1).to(torch.uint8).cpu().numpy()

    def probabilities(self, points: ArrayLike, dataset: str | IntensityStatistics | None = None) -> np.ndarray:
        """The probability of each class for each point, (N, classes) float32; arguments and errors as of `predict`."""
        return self._logits(points, dataset).softmax(dim=1).cpu().numpy()

    @torch.inference_mode()
    def _logits(self, points: ArrayLike, dataset: str | IntensityStatistics | None) -> torch.Tensor:
        """(N, classes) float32, on the student's device."""
        student, inputs = self.student, self.student.input_config
        scan = evaluation_input(points, self._intensity(dataset), inputs)
        logits = student.project(student.tokens(packed(inputs, [scan]).to(student.device))).float()
        return logits[torch.from_numpy(scan.row).to(logits.device)]

    def _intensity(self, dataset: str | IntensityStatistics | None) -> IntensityStatistics:
        if isinstance(dataset, IntensityStatistics):
            return dataset
        if dataset is None and self.trained_on is None:
            raise StudentError(
                "the model's file does not say which dataset it was trained on",
                where="predict",
                fix="Pass dataset, the name of the dataset whose lidar recorded the scan, such as 'nuscenes'.",
            )
        return intensity_statistics(dataset or self.trained_on)

    @property
    def training(self) -> dict:
        """The protocol of the training on labels that made it; empty if its file does not say it."""
        return self.provenance.get("finetuning") or self.provenance.get("probing") or {}

    @property
    def for_result(self) -> dict:
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


def load_model(path: str | Path) -> Model:
    """Read a model of probing or finetuning, or a converted official model, in eval mode on the CPU.

    Its `predict` gives a class for each point of a raw scan.

    Raises:
        StudentError: the file is missing or damaged, or has a student without a head for classes.
    """
    path = expanded(path, StudentError)
    student, provenance = load_student(path), student_provenance(path)
    if not student.config.tells_classes:
        raise StudentError(
            "the student has no head for classes",
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
            f"the model predicts {found}; the dataset has {', '.join(theirs)}",
            where=path,
            fix="Train a model for the dataset's classes with 'scalr evaluate probe' or 'finetune'"
            " (--dataset, --classes).",
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
