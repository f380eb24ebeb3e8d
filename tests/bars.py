"""In place of a progress bar: what it was told."""

from __future__ import annotations

import pytest


class Bars(list):
    """The bars of a module, in the order that they were opened; each has what it says, and how far it has moved."""

    def __init__(self, patch: pytest.MonkeyPatch, module: object) -> None:
        super().__init__()
        patch.setattr(module, "progress", self._open)

    def _open(self, total: int, description: str, unit: str, **options: object) -> Bar:
        self.append(Bar((total, description, unit), options))
        return self[-1]


class Bar:
    def __init__(self, says: tuple[int, str, str], options: dict) -> None:
        self.says, self.options, self.moved, self.postfix = says, options, [], None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        self.moved.append(count)

    def set_postfix(self, **values: object) -> None:
        self.postfix = values
