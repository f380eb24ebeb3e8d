"""The numbers that modules name at their top, for tests that state them once more."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KINDS = (int, float, timedelta)


def numbers_in(folder: str) -> dict[str, dict[str, Any]]:
    """By module of a folder below the root: each constant that is a number, or a tuple or dict of numbers."""
    found = {}
    for path in sorted((ROOT / folder).glob("*.py")):
        module = ".".join(("scalr", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        names = [name for name in _names_at_the_top(ast.parse(path.read_bytes())) if name.isupper()]
        values = vars(importlib.import_module(module)) if names else {}
        if numbers := {name: values[name] for name in names if _is_of_numbers(values[name])}:
            found[module] = numbers
    return found


def _names_at_the_top(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets):
                yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def _is_of_numbers(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    return bool(values) and all(isinstance(each, KINDS) and not isinstance(each, bool) for each in values)
