"""Listens to every error that the package makes while tests run.

Each is to read well, and a run of the whole suite has to have provoked every one that the package can make: a message
that nothing provokes is one that nobody has read.
"""

from __future__ import annotations

import functools
import re
import sys

import pytest

from error_sites import error_sites, site_at
from scalr.errors import ScalrError

VERBS = (
    "Add|Check|Choose|Continue|Copy|Correct|Count|Download|Enlarge|Extract|Fill|Fix|Give|Install|Keep|Leave|Look|Make"
    "|Name|Pass|Put|Quote|Remove|Repeat|Restore|Resume|Run|See|Set|Start|Train|Unpack|Use|Write"
)
LONGEST = 1000  # characters of a message
CHOICES = ("keyword", "lf", "deselect", "ignore", "ignore_glob", "collectonly")  # options that leave tests out

seen: set[tuple[str, int]] = set()  # sites, as module and first line: plain values travel from xdist's workers
complaints: set[str] = set()


def complaints_about(error: ScalrError) -> list[str]:
    """What a message lacks."""
    found = [f"empty {name}" for name in ("where", "what", "fix") if not getattr(error, name).strip()]
    if not re.match(rf"({VERBS})\b", error.fix):
        found.append("its last part begins with no verb that says what to do")
    if error.what.strip("'\"") == error.where:
        found.append("what is wrong merely repeats where")
    if len(str(error)) > LONGEST:
        found.append(f"more than {LONGEST} characters")
    return found


def pytest_configure(config: pytest.Config) -> None:
    error_sites()  # read now, in one thread: Python 3.11 cannot parse in two that fail at once
    original = ScalrError.__init__

    @functools.wraps(original)
    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        caller = sys._getframe(1)  # the site itself: no kind of error has an __init__ of its own
        site = site_at(caller.f_code.co_filename, caller.f_lineno)
        if site is not None:
            seen.add((site.module, site.first_line))
            complaints.update(f"{site}: {each}: {str(self)[:LONGEST]}" for each in complaints_about(self))

    ScalrError.__init__ = init
    config.add_cleanup(lambda: setattr(ScalrError, "__init__", original))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """A worker of xdist is done and hands over what it saw."""
    output = getattr(node, "workeroutput", {})
    seen.update(map(tuple, output.get("error_sites", ())))
    complaints.update(output.get("error_complaints", ()))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"error_sites": sorted(seen), "error_complaints": sorted(complaints)}
    elif exitstatus == pytest.ExitCode.OK and (complaints or unprovoked(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    missing = unprovoked(config) if exitstatus == pytest.ExitCode.OK else []
    for title, lines in (("errors that read badly", sorted(complaints)), ("no test provokes these errors", missing)):
        if lines:
            terminalreporter.section(title)
            terminalreporter.write_line("\n".join(lines))


def unprovoked(config: pytest.Config) -> list[str]:
    """Sites that the whole suite did not reach; none where only a part of it was asked for."""
    in_full = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not in_full or config.option.markexpr != "not slow" or any(config.getoption(name, None) for name in CHOICES):
        return []
    return [str(site) for site in error_sites() if (site.module, site.first_line) not in seen]
