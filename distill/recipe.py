"""A recipe: all settings of a training, as the dataclasses of the code that they configure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import yaml

from ..errors import StudentError, did_you_mean
from ..settings import Settings, shown
from .dataset import SamplingConfig
from .inputs import AugmentConfig, InputConfig
from .objective import ObjectiveConfig
from .recipes import parsed, read_recipe
from .training import TrainingConfig
from .waffleiron import WaffleIronConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Settings, section="recipe"):
    """A whole distillation setting; every field has the default of its dataclass."""

    student: WaffleIronConfig = dataclasses.field(default_factory=WaffleIronConfig)
    inputs: InputConfig = dataclasses.field(default_factory=InputConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    augmentation: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student.head == "probe":  # which has seen labels
            raise self.student.refused("head", "probe", "Use linear or mlp: probing and finetuning make that head.")


SECTIONS = {field.name: field.default_factory for field in dataclasses.fields(Recipe)}


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides, values in YAML.

    Args:
        name: one of `recipes.recipe_names()`, or the path of a YAML file.
        overrides: such as "training.epochs=10".

    >>> load_recipe("scalr_wi384", ["training.epochs=10"]).student.width
    384

    Raises:
        StudentError: unknown recipe, section or key, or a value that does not fit.
    """
    values = read_recipe(name)
    for override in overrides:
        key, separator, value = override.partition("=")
        section, dot, option = key.partition(".")
        if not (separator and dot):
            raise StudentError(
                f"{shown(override)} is not section.key=value",
                where="--set",
                fix="Pass for example --set training.epochs=10.",
            )
        try:
            values.setdefault(section, {})[option] = parsed(value)
        except yaml.YAMLError:
            raise StudentError(
                f"the value of {shown(override)} is not YAML", where="--set", fix="Quote it for the shell."
            ) from None
    return _build(values, where=name)


def recipe_values(recipe: Recipe) -> dict:
    """The resolved recipe as plain YAML and JSON values, tuples as lists."""
    return _plain(dataclasses.asdict(recipe))


def _build(values: dict[str, dict], where: str) -> Recipe:
    for section, options in values.items():
        _check_key(section, SECTIONS, where)
        for key in options:
            names = [field.name for field in dataclasses.fields(SECTIONS[section])]
            _check_key(key, names, f"{where}, section {section}")
    return Recipe(**values)


def _check_key(key: Any, choices: Iterable[str], where: str) -> None:
    if key not in choices:
        near = did_you_mean(key, choices) if isinstance(key, str) else ""
        raise StudentError(f"unknown key {shown(key)}{near}", where=where, fix=f"Use one of: {', '.join(choices)}.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
