"""Progress displays: a bar on a terminal, one line per minute in a log."""

from __future__ import annotations

import io
import logging
import sys

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60
LINE = "{desc}: {n_fmt} of {total_fmt}{unit}s, {rate_noinv_fmt}{postfix}, {elapsed} elapsed, {remaining} remaining"


class _LogLines(tqdm):
    """tqdm that writes a line to the log instead of drawing a bar."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.n:
            logger.info("%s", self)
        return True


def progress(total: int, description: str, unit: str, done: int = 0) -> tqdm:
    """A progress display, used as a context, with `update(n)` and `set_postfix_str(text)`.

    On a terminal it is tqdm's bar; in batch jobs and pipes, one line per minute with the same values. `done` of `total`
    units were finished by an earlier run.
    """
    silent = not logger.isEnabledFor(logging.INFO)
    common = {"total": total, "initial": done, "desc": description, "unit": f" {unit}", "disable": silent}
    if sys.stderr.isatty():
        return tqdm(**common)
    # What else tqdm writes (carriage returns, a last newline) is discarded.
    return _LogLines(**common, mininterval=SECONDS_BETWEEN_LINES, bar_format=LINE, file=io.StringIO())
