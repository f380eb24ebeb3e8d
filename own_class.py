"""Classes of one's own, which a user names as `package.module:Class`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from .checkpoint_files import first_line
from .errors import ScalrError


def own_class(name: str, what: str, error: type[ScalrError], where: object) -> Any:
    """What a name stands for, from Python's path or the working folder, which worker processes then know too.

    Args:
        name: `package.module:Class`.
        what: it is, for errors.
        error: which kind of ScalrError.
        where: the option or setting that names it.

    Raises:
        ScalrError: of the type `error`, where the module cannot be imported or has no such class.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # the console script does not look where it is run
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as problem:  # the module runs when it is imported, and may raise anything
        raise error(
            f"the {what} cannot be imported ({first_line(problem)})",
            where=where,
            fix="Pass package.module:Class of an installed package, or of a module in this folder.",
        ) from problem
