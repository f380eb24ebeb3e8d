"""The code that docs/ shows."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def example(page: str, language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    return code


def indented(page: str, before: str) -> list[str]:
    """The lines of the first indented block after a text."""
    text = (DOCS / page).read_text()
    (block,) = re.findall(r"(?m)^(?:    .*\n)+", text[text.index(before) :])[:1]
    return [line.removeprefix("    ") for line in block.splitlines()]
