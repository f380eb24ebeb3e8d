"""The published schedules of linear probing and finetuning.

ScaLR and ScaLR+: configs/downstream of valeoai/ScaLR, branches main and scalr_plus. SLidR, by whose schedule the paper
measures MinkUNet: config/semseg_nuscenes.yaml and semseg_kitti.yaml of valeoai/SLidR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from ..errors import ScalrError
from ..settings import Amount, Count, PositiveAmount, Settings, above, at_least, below, up_to

Published = Literal["scalr", "scalr_plus", "slidr"]
Labels = Literal["100%", "10%", "1%"]  # fraction of the training set's labels
ClassHead = Literal["probe", "probe_linear"]  # BatchNorm and a linear layer of zeros, or a linear layer only
LayerDecay = Annotated[float, above(0), up_to(1)]  # learning-rate factor from each layer to the one before


@dataclass(frozen=True, kw_only=True)
class Schedule(Settings, section="schedule"):
    """The training of a head or of a complete model on labels; the loss is cross-entropy + Lovász-softmax."""

    epochs: Count
    warmup_epochs: Amount
    learning_rate: Amount
    min_learning_rate: Amount
    weight_decay: Amount
    batch_size: Count = 8
    optimiser: Literal["adamw", "sgd"] = "adamw"
    decay: Literal["cosine", "cosine_epochs"] = "cosine"  # learning rate by step, or by epoch without a warm-up
    head: ClassHead = "probe"
    head_factor: PositiveAmount = 1.0  # learning rate of the head / learning rate of the last layer before it
    layer_decay: LayerDecay = 1.0
    stochastic_depth: Annotated[float, at_least(0), below(1)] = 0.0
    bn_momentum: Annotated[float, above(0), up_to(1)] | None = None  # for backbones that have it; None: unchanged


# Common to all of SLidR's trainings on labels.
OF_SLIDR = {
    "epochs": 100,
    "warmup_epochs": 0,
    "min_learning_rate": 0.0,
    "weight_decay": 1e-4,
    "batch_size": 16,
    "optimiser": "sgd",
    "decay": "cosine_epochs",
    "head": "probe_linear",
}


def probing(published: Published, dataset: str) -> Schedule:
    """The schedule of linear probing: 20 epochs, 50 on PandaSet; SLidR: 100."""
    if published == "slidr":
        return Schedule(**OF_SLIDR, learning_rate=0.05)
    return Schedule(
        epochs=50 if dataset.startswith("pandaset") else 20,
        warmup_epochs=2,
        learning_rate=1e-3,
        min_learning_rate=1e-5 if published == "scalr" else 0.0,
        weight_decay=3e-3,
    )


def finetuning(published: Published, dataset: str, labels: Labels, *, from_scratch: bool = False) -> Schedule:
    """The schedule of finetuning: more epochs with few labels; ScaLR+ has a twentieth of the learning rate.

    Smaller learning rates of earlier layers preserve pretrained weights, so new weights have no layer decay.

    >>> finetuning("scalr", "nuscenes", "1%").epochs
    45
    """
    if published == "slidr":
        return _finetuning_of_slidr(dataset, from_scratch)
    schedule = Schedule(
        epochs=25,
        warmup_epochs=2,
        learning_rate=2e-3,
        min_learning_rate=0.0,
        weight_decay=0.0,
        layer_decay=0.99,
        stochastic_depth=0.2,
    )
    if labels != "100%":
        schedule = replace(schedule, epochs=45, warmup_epochs=4, layer_decay=0.95)
    elif dataset == "semantic_kitti" and published == "scalr":
        schedule = replace(schedule, epochs=10, warmup_epochs=1)
    if published == "scalr_plus":
        schedule = replace(schedule, learning_rate=1e-4, layer_decay=0.99)
    return replace(schedule, layer_decay=1.0) if from_scratch else schedule


def _finetuning_of_slidr(dataset: str, from_scratch: bool) -> Schedule:
    """The head learns at 2.0, the rest at 0.02 or 0.05; new weights at 0.05 everywhere (issue 11 of valeoai/SLidR)."""
    schedule = Schedule(**OF_SLIDR, learning_rate=0.02, head_factor=100, bn_momentum=0.02)
    if dataset == "semantic_kitti":
        schedule = replace(schedule, learning_rate=0.05, head_factor=40, batch_size=10)
    return replace(schedule, learning_rate=0.05, head_factor=1.0) if from_scratch else schedule


def changed(official: Schedule, values: dict[str, float | None]) -> tuple[Schedule, list[str]]:
    """The schedule with the values that are not None, and its deviations from the official one, for the result file.

    Raises:
        ScalrError: a learning rate below the final one of the schedule, or a warm-up in a schedule without one.
    """
    wanted = {name: value for name, value in values.items() if value is not None}
    if official.decay == "cosine_epochs" and wanted.get("warmup_epochs"):
        raise ScalrError(
            f"{wanted['warmup_epochs']:g} warm-up epochs are given, and the schedule slidr has no warm-up",
            where="--warmup-epochs",
            fix="Leave out --warmup-epochs.",
        )
    least = official.min_learning_rate
    if wanted.get("learning_rate", least) < least:
        raise ScalrError(
            f"{wanted['learning_rate']:g} is below the final learning rate of the published schedule",
            where="--learning-rate",
            fix=f"Give at least {least:g}.",
        )
    schedule = replace(official, **wanted)
    departures = [
        f"{name} {value:g}, not {getattr(official, name):g}"
        for name, value in wanted.items()
        if value != getattr(official, name)
    ]
    return schedule, departures
