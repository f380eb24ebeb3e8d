"""The official schedules of linear probing and finetuning: configs/downstream of valeoai/ScaLR, branches main (ScaLR)
and scalr_plus (ScaLR+).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from ..errors import ScalrError
from ..settings import Amount, Count, Settings, above, at_least, below, up_to

Published = Literal["scalr", "scalr_plus"]
Labels = Literal["100%", "10%", "1%"]  # share of the training set's labels
LayerDecay = Annotated[float, above(0), up_to(1)]  # of the learning rate, from each layer to the one before


@dataclass(frozen=True, kw_only=True)
class Schedule(Settings, section="schedule"):
    """How a head or a whole model is trained on labels: AdamW, warm-up, cosine, loss cross-entropy + Lovász."""

    epochs: Count
    warmup_epochs: Amount
    learning_rate: Amount
    min_learning_rate: Amount
    weight_decay: Amount
    batch_size: Count = 8
    layer_decay: LayerDecay = 1.0
    stochastic_depth: Annotated[float, at_least(0), below(1)] = 0.0


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
    """The schedule with the values that are not None, and what differs from the official one, for the result card.

    Raises:
        ScalrError: a learning rate below the one that the schedule ends with.
    """
    wanted = {name: value for name, value in values.items() if value is not None}
    least = official.min_learning_rate
    if wanted.get("learning_rate", least) < least:
        raise ScalrError(
            f"{wanted['learning_rate']:g} is below the learning rate that the published schedule ends with",
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
