"""How long work shows where it is: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import io
import logging
import sys

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60
LINE = "{desc}: {n_fmt} of {total_fmt}{unit}s, {rate_fmt}{postfix}, {elapsed} elapsed, {remaining} remaining"


class _LogLines(tqdm):
    """tqdm whose display is a line in the log."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.n:
            logger.info("%s", self)
        return True


def progress(total: int, description: str, unit: str, done: int = 0) -> tqdm:
    """A progress display: `update(n)`, `set_postfix_str(text)`, used as a context; `done` of `total` were made earlier.

    On a terminal it is tqdm's bar; elsewhere (batch jobs, pipes) a line a minute with the same figures.
    """
    silent = not logger.isEnabledFor(logging.INFO)
    common = {"total": total, "initial": done, "desc": description, "unit": f" {unit}", "disable": silent}
    if sys.stderr.isatty():
        return tqdm(**common)
    # What tqdm writes besides (carriage returns, a last newline) goes nowhere.
    return _LogLines(**common, mininterval=SECONDS_BETWEEN_LINES, bar_format=LINE, file=io.StringIO())
