"""A recipe: all settings of a training, as the dataclasses of the code that they configure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import yaml

from ..errors import StudentError, did_you_mean
from .dataset import SamplingConfig
from .inputs import AugmentConfig, InputConfig
from .objective import ObjectiveConfig
from .recipes import read_recipe
from .training import TrainingConfig
from .waffleiron import WaffleIronConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole distillation setting; every field has the default of its dataclass."""

    student: WaffleIronConfig = dataclasses.field(default_factory=WaffleIronConfig)
    inputs: InputConfig = dataclasses.field(default_factory=InputConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    augmentation: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


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
                f"'{override}' is not section.key=value",
                where="--set",
                fix="Pass for example --set training.epochs=10.",
            )
        try:
            values.setdefault(section, {})[option] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise StudentError(
                f"the value of '{override}' is not YAML", where="--set", fix="Quote it for the shell."
            ) from None
    return _build(values, where=name)


def recipe_values(recipe: Recipe) -> dict:
    """The resolved recipe as plain YAML and JSON values, tuples as lists."""
    return _plain(dataclasses.asdict(recipe))


def _build(values: dict[str, dict], where: str) -> Recipe:
    sections = {}
    for section, options in values.items():
        _check_key(section, SECTIONS, where)
        config = SECTIONS[section]
        for key in options:
            _check_key(key, [field.name for field in dataclasses.fields(config)], f"{where}, section {section}")
        try:
            sections[section] = config(**{key: _number(value) for key, value in options.items()})
        except (TypeError, ValueError) as error:
            raise StudentError(
                f"a value of section '{section}' has the wrong type ({error})",
                where=where,
                fix="Give what docs/distill.md and docs/students.md list.",
            ) from None
    return Recipe(**sections)


def _check_key(key: str, choices: Iterable[str], where: str) -> None:
    if key not in choices:
        raise StudentError(
            f"unknown key '{key}'{did_you_mean(key, choices)}", where=where, fix=f"Use one of: {', '.join(choices)}."
        )


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3, without a dot, as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
