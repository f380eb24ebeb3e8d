"""The official schedules of linear probing and finetuning: configs/downstream of valeoai/ScaLR, branches main (ScaLR)
and scalr_plus (ScaLR+).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..errors import StudentError

Published = Literal["scalr", "scalr_plus"]
Labels = Literal["100%", "10%", "1%"]  # share of the training set's labels


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a head or a whole model is trained on labels: AdamW, warm-up, cosine, loss cross-entropy + Lovász."""

    epochs: int
    warmup_epochs: float
    learning_rate: float
    min_learning_rate: float
    weight_decay: float
    batch_size: int = 8
    layer_decay: float = 1.0  # of the learning rate, from each layer to the one before
    stochastic_depth: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise StudentError(
                f"layer_decay is {self.layer_decay}", where="schedule", fix="Use a factor above 0, up to 1 (none)."
            )


def probing(published: Published, dataset: str) -> Schedule:
    """Of linear probing: 20 epochs, 50 on PandaSet."""
    return Schedule(
        epochs=50 if dataset.startswith("pandaset") else 20,
        warmup_epochs=2,
        learning_rate=1e-3,
        min_learning_rate=1e-5 if published == "scalr" else 0.0,
        weight_decay=3e-3,
    )


def finetuning(published: Published, dataset: str, labels: Labels) -> Schedule:
    """Of finetuning: longer where there are few labels; ScaLR+ with a twentieth of the learning rate.

    >>> finetuning("scalr", "nuscenes", "1%").epochs
    45
    """
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
    return schedule if published == "scalr" else replace(schedule, learning_rate=1e-4, layer_decay=0.99)


def changed(official: Schedule, values: dict[str, float | None]) -> tuple[Schedule, list[str]]:
    """The schedule with the values that are not None, and what differs from the official one, for the result card."""
    wanted = {name: value for name, value in values.items() if value is not None}
    schedule = replace(official, **wanted)
    departures = [
        f"{name} {value:g} instead of {getattr(official, name):g}"
        for name, value in wanted.items()
        if value != getattr(official, name)
    ]
    return schedule, departures


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse a value that is none of a Literal's.

    Raises:
        StudentError: it is another.
    """
    if value not in get_args(choices):
        raise StudentError(f"{value!r} is unknown", where=f"--{name}", fix=f"Use {', '.join(get_args(choices))}.")
