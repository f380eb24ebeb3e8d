"""The bundled recipes: YAML files, one per published setting. `distill/recipe.py` turns them into dataclasses.

A file holds what differs from the defaults, or from the recipe that its first key, `base`, names.
"""

from __future__ import annotations

import itertools
import re
from importlib import resources
from typing import Any

import yaml

from ...checkpoint_files import shortened
from ...errors import StudentError, did_you_mean, remedy
from ...paths import expanded
from ...settings import shown
from ..backbones import DEFAULT

OF_BACKBONE = ("student", "inputs")  # sections


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does (YAML 1.1 needs 1.0e-3), and refuses duplicate keys."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        mapping = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in mapping.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return mapping


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def recipe_names() -> list[str]:
    """Names of the bundled recipes, sorted."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in resources.files(__package__).iterdir()
        if path.name.endswith(".yaml")
    )


def list_recipes() -> str:
    """A table for people: each bundled recipe, and the first sentence of the comment that begins its file."""
    names = recipe_names()
    width = 2 + max(map(len, names))
    return "\n".join(f"{name:<{width}}{_summary(_text_of(name).decode())}" for name in names)


def _summary(text: str) -> str:
    """The first sentence of the comment that begins a recipe."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")[0].rstrip(".")


def read_recipe(name: str) -> dict[str, dict]:
    """The values of a recipe by section, including those of its base.

    Raises:
        StudentError: unknown recipe, or a file that is not a recipe.
    """
    try:
        values = parsed(_text_of(name))
    except yaml.YAMLError as error:
        raise StudentError(
            f"the recipe is not valid YAML ({shortened(error)})", where=name, fix="Correct the line that is named."
        ) from None
    if not values:
        raise StudentError("the recipe has no section", where=name, fix="Copy the form of a bundled recipe.")
    if not isinstance(values, dict):
        raise _no_section(values, name)
    base = values.pop("base", None)
    for section, options in values.items():
        if not isinstance(options, dict) or not isinstance(section, str):
            raise _no_section(section, name)
    if base is None:
        return values
    if base not in recipe_names() or base == name:
        near = did_you_mean(base, recipe_names()) if isinstance(base, str) else ""
        raise StudentError(
            f"base {shown(base)} is not a bundled recipe{near}",
            where=name,
            fix=f"Use one of: {', '.join(recipe_names())}.",
        )
    return on_base(read_recipe(base), values)


def on_base(base: dict[str, dict], values: dict[str, dict]) -> dict[str, dict]:
    """The values of a base recipe, changed by other values.

    If these name another backbone, the sections `student` and `inputs` start from that backbone's defaults.
    """
    if values.get("student", {}).get("backbone", _backbone(base)) != _backbone(base):
        base = {section: options for section, options in base.items() if section not in OF_BACKBONE}
    return base | {section: base.get(section, {}) | options for section, options in values.items()}


def _backbone(values: dict[str, dict]) -> Any:
    return values.get("student", {}).get("backbone", DEFAULT)


def parsed(text: str | bytes) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: the text has no value.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # from impossible dates, numbers of thousands of digits, endless brackets
        raise yaml.YAMLError(shortened(error)) from None


def _no_section(found: Any, name: str) -> StudentError:
    return StudentError(
        f"{shown(found)} is not a section with lines of key: value",
        where=name,
        fix="Copy the form of a bundled recipe.",
    )


def _text_of(name: str) -> bytes:
    try:
        if name in recipe_names():
            return (resources.files(__package__) / f"{name}.yaml").read_bytes()
        if (path := expanded(name, StudentError)).is_file():
            return path.read_bytes()
    except OSError as error:
        raise StudentError(
            f"the recipe cannot be read ({error.strerror})",
            where=name,
            fix=f"{remedy(error, 'Check the storage there')}, or pass another file as --recipe.",
        ) from None
    raise StudentError(
        f"no recipe '{name}'{did_you_mean(name, recipe_names())}",
        where="--recipe",
        fix=f"Use one of: {', '.join(recipe_names())}, or the path of a YAML file.",
    )
