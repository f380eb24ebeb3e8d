"""The scenes of nuScenes' splits, from the devkit."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from ...errors import DatasetError


@functools.cache
def devkit_splits() -> dict[str, list[str]]:
    """Lists of scenes by split, from the devkit's `utils/splits.py`: train, val, test, mini_train, mini_val and more.

    They are parsed from the source: an import takes two seconds, since it loads the devkit's drawing libraries, and
    needs numpy 1.

    Raises:
        DatasetError: the devkit is not installed.
    """
    lists = [node for node in ast.parse(_source()).body if isinstance(node, ast.Assign)]
    splits: dict = {}
    exec(compile(ast.Module(lists, type_ignores=[]), "splits.py", "exec"), splits)
    return {name: list(value) for name, value in splits.items() if isinstance(value, list)}


def _source() -> str:
    installed = importlib.util.find_spec("nuscenes")
    # Python also finds any other folder with this name on its path.
    for folder in (installed and installed.submodule_search_locations) or ():
        file = Path(folder, "utils", "splits.py")
        if file.is_file():
            return file.read_text()
    raise DatasetError(
        "nuscenes-devkit is not installed, and its list of scenes is needed for nuScenes and simulated datasets",
        where="nuscenes-devkit",
        fix="Run 'pip install nuscenes-devkit', with numpy 2 'pip install --no-deps nuscenes-devkit'.",
    )
