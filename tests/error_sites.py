"""Where the package makes its errors, read from its source: each place with the template of what it says."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import scalr

PACKAGE = Path(scalr.__file__).parent


@dataclass(frozen=True)
class ErrorSite:
    """One construction of a ScalrError.

    Args:
        module: path of the file, relative to the package.
        first_line, last_line: of the call.
        function: that makes it.
        template: what it says, with … in place of each value.
    """

    module: str
    first_line: int
    last_line: int
    function: str
    template: str

    def __str__(self) -> str:
        return f"{self.module}:{self.first_line} ({self.function})  {self.template}"


@cache
def error_sites() -> tuple[ErrorSite, ...]:
    """All of them: calls with `fix`. A function that is given texts to make an error of is one site."""
    stages = [file.parent for file in PACKAGE.glob("*/__init__.py")]
    files = sorted([*PACKAGE.glob("*.py"), *(file for stage in stages for file in stage.rglob("*.py"))])
    return tuple(site for file in files for site in _sites_of(file))


@cache
def site_at(file: str, line: int) -> ErrorSite | None:
    """The site that a line of a file belongs to."""
    of_file = [site for site in error_sites() if str(PACKAGE / site.module) == file]
    return next((site for site in of_file if site.first_line <= line <= site.last_line), None)


def _sites_of(file: Path) -> list[ErrorSite]:
    tree = ast.parse(file.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    sites = []
    for call in sorted(calls, key=lambda call: call.lineno):
        if any(keyword.arg == "fix" for keyword in call.keywords):
            around = [each.name for each in functions if each.lineno <= call.lineno <= each.end_lineno]
            if "_restore_error" not in around:
                module, template = file.relative_to(PACKAGE).as_posix(), re.sub(r"…+", "…", _template(call.args[0]))
                sites.append(ErrorSite(module, call.lineno, call.end_lineno, around[-1], template))
    return sites


def _template(what: ast.expr) -> str:
    """A text as it is written; a value is …"""
    if isinstance(what, ast.JoinedStr):
        return "".join(map(_template, what.values))
    return what.value if isinstance(what, ast.Constant) else "…"
