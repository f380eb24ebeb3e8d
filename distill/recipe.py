"""A recipe: all settings of a distillation, in the dataclasses of the code that they configure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import yaml

from ..errors import StudentError, did_you_mean
from ..settings import Settings, shown
from .augmentation import AugmentConfig
from .backbones import DEFAULT, backbone_class, settings_of
from .backbones.backbone import BackboneConfig, ScanInputs
from .dataset import SamplingConfig
from .objective import ObjectiveConfig
from .recipes import on_base, parsed, read_recipe
from .training import TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Settings, section="recipe"):
    """All settings of a distillation; every field defaults to its dataclass.

    `student` and `inputs` have the classes of the backbone that `student` names, by default WaffleIron's.
    """

    student: BackboneConfig = dataclasses.field(default_factory=dict)
    inputs: ScanInputs = dataclasses.field(default_factory=dict)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    augmentation: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        for name, value in zip(("student", "inputs"), settings_of(self.student, self.inputs), strict=True):
            object.__setattr__(self, name, value)
        super().__post_init__()
        if self.student.tells_classes:  # a head for classes has seen labels
            fix = "Use linear or mlp: probing and finetuning make that head."
            raise self.student.refused("head", self.student.head, fix)


def sections(backbone: Any = DEFAULT) -> dict[str, type[Settings]]:
    """The class of each section of a recipe, for a backbone.

    Raises:
        StudentError: an unknown backbone.
    """
    common = {field.name: field.default_factory for field in dataclasses.fields(Recipe)}
    found = backbone_class(backbone)
    return common | {"student": found.Config, "inputs": found.Inputs}


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides, whose values are YAML.

    Args:
        name: one of `recipes.recipe_names()`, or the path of a YAML file.
        overrides: for example "training.epochs=10".

    >>> load_recipe("scalr_wi384", ["training.epochs=10"]).student.width
    384

    Raises:
        StudentError: unknown recipe, section or key, or an unusable value.
    """
    changed: dict[str, dict] = {}
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
            changed.setdefault(section, {})[option] = parsed(value)
        except yaml.YAMLError:
            raise StudentError(
                f"the value of {shown(override)} is not YAML", where="--set", fix="Quote the value for the shell."
            ) from None
    return _build(on_base(read_recipe(name), changed), where=name)


def recipe_values(recipe: Recipe) -> dict:
    """The resolved recipe as plain YAML and JSON values; tuples become lists."""
    return _plain(dataclasses.asdict(recipe))


def _build(values: dict[str, dict], where: str) -> Recipe:
    backbone = values.get("student", {}).get("backbone", DEFAULT)
    known = sections(backbone)
    for section, options in values.items():
        _check_key(section, known, where)
        of_backbone = f" of the backbone {backbone}" if section in ("student", "inputs") else ""
        for key in options:
            names = [field.name for field in dataclasses.fields(known[section])]
            _check_key(key, names, f"{where}, section {section}{of_backbone}")
    return Recipe(**values)


def _check_key(key: Any, choices: Iterable[str], where: str) -> None:
    if key not in choices:
        near = did_you_mean(key, choices) if isinstance(key, str) else ""
        raise StudentError(f"unknown key {shown(key)}{near}", where=where, fix=f"Use one of: {', '.join(choices)}.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
