"""The scenes of nuScenes' splits, as the devkit has them."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path


@functools.cache
def devkit_splits() -> dict[str, list[str]]:
    """Lists of scenes by name, as in the devkit's `utils/splits.py`: train, val, test, mini_train, mini_val and others.

    Read from its source: importing it takes two seconds, for the devkit's drawing libraries come with it.
    """
    (folder,) = importlib.util.find_spec("nuscenes").submodule_search_locations
    source = Path(folder, "utils", "splits.py").read_text()
    lists = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    splits: dict = {}
    exec(compile(ast.Module(lists, type_ignores=[]), "splits.py", "exec"), splits)
    return {name: list(value) for name, value in splits.items() if isinstance(value, list)}
