"""Standard output that holds results only: output of libraries is redirected to standard error."""

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
    """Yield a stream to standard output, and redirect everything else that is written there to standard error.

    This includes Python's `print`, output of libraries in C, and processes that are started in the meantime.
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
    with suppress(AttributeError, OSError):  # no C library is found
        ctypes.CDLL(None).fflush(None)  # its buffer would be written to the restored descriptor
    os.dup2(kept, OUT)
