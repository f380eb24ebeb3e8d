"""The recipes that come with the package: YAML files, one per published setting; `distill/recipe.py` fills dataclasses.

A file says what differs from the defaults, or from the recipe that its first key, `base`, names.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from ...errors import StudentError, did_you_mean


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in resources.files(__package__).iterdir()
        if path.name.endswith(".yaml")
    )


def read_recipe(name: str) -> dict[str, dict]:
    """The values of a recipe by section, those of its base included.

    Raises:
        StudentError: unknown recipe, or a file that is no recipe.
    """
    if name in recipe_names():
        text = (resources.files(__package__) / f"{name}.yaml").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise StudentError(
            f"no recipe '{name}'{did_you_mean(name, recipe_names())}",
            where="--recipe",
            fix=f"Use one of: {', '.join(recipe_names())}, or the path of a YAML file.",
        )
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise StudentError(f"not valid YAML ({error})", where=name, fix="Correct that line.") from None
    if not isinstance(values, dict):
        values = {str(values)[:40]: None}
    base = values.pop("base", None)
    for section, options in values.items():
        if not isinstance(options, dict):
            raise StudentError(
                f"'{section}' is no section with lines of key: value",
                where=name,
                fix="Copy the shape of a bundled recipe.",
            )
    if base is None:
        return values
    if base not in recipe_names() or base == name:
        raise StudentError(
            f"base {base!r} is no bundled recipe{did_you_mean(str(base), recipe_names())}",
            where=name,
            fix=f"Use one of: {', '.join(recipe_names())}.",
        )
    inherited = read_recipe(base)
    return inherited | {section: inherited.get(section, {}) | options for section, options in values.items()}
