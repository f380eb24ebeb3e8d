"""Loading a user's class, which is named as `package.module:Class`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from .checkpoint_files import first_line
from .errors import ScalrError


def own_class(name: str, what: str, error: type[ScalrError], where: object) -> Any:
    """Import the class that a name stands for, from Python's path or from the working folder.

    The working folder is added to `sys.path`, so that worker processes find the class too.

    Args:
        name: `package.module:Class`.
        what: what the class is, for errors.
        error: subclass of ScalrError to raise.
        where: the option or setting that names the class.

    Raises:
        ScalrError: of type `error`; the module cannot be imported or has no such class.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # the console script does not search the working folder
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as problem:  # importing runs the module, which may raise anything
        raise error(
            f"the {what} cannot be imported ({first_line(problem)})",
            where=where,
            fix="Pass package.module:Class of an installed package, or of a module in this folder.",
        ) from problem
