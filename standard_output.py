"""Standard output for results alone: what libraries write there goes to standard error."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TextIO

OUT, ERROR = 1, 2  # descriptors


@contextmanager
def results_alone() -> Iterator[TextIO]:
    """Yield a stream to standard output; all else that is written there meanwhile goes to standard error.

    That holds for prints of Python, for what libraries in C write, and for processes that are started meanwhile.
    """
    results = sys.stdout
    results.flush()
    with ExitStack() as stack:
        with suppress(OSError):  # one of the two is closed
            kept = os.dup(OUT)
            stack.callback(os.close, kept)
            os.dup2(ERROR, OUT)
            stack.callback(_restore, kept)
            if _is_on(results, OUT):
                form = {"encoding": results.encoding, "errors": results.errors, "closefd": False}
                results = stack.enter_context(open(kept, "w", **form))
        stack.enter_context(redirect_stdout(sys.stderr))
        yield results


def _is_on(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except OSError:  # a stream in memory, as in tests
        return False


def _restore(kept: int) -> None:
    with suppress(AttributeError, OSError):  # no C library to ask
        ctypes.CDLL(None).fflush(None)  # what it holds back would come out on the restored descriptor
    os.dup2(kept, OUT)
