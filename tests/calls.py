"""Calls of functions that a test puts others in the place of, to look at what is passed on."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


class SeenEnough(Exception):  # noqa: N818
    """Ends a command where a test has seen what it wanted."""


def calls_of(
    patch: pytest.MonkeyPatch, module: ModuleType, name: str, result: Any = None
) -> list[tuple[tuple, dict[str, Any]]]:
    """From now on a function of a module only gives `result`, or raises it; its calls end up in this list."""
    calls = []

    def called(*arguments: Any, **options: Any) -> Any:
        calls.append((arguments, options))
        if isinstance(result, Exception):
            raise result
        return result

    patch.setattr(module, name, called)
    return calls
