"""Signals that end a command, held back while they would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP = (signal.SIGTERM, signal.SIGINT)  # sent by schedulers and users before they kill


@contextmanager
def deferring_stops() -> Iterator[None]:
    """Let SIGTERM and SIGINT wait for the end of the context, where they act as they would have before it."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in no other thread
        yield
        return
    noted: list[int] = []
    ours = [number for number in STOP if signal.getsignal(number) is not None]  # None: a handler of another language
    before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in dict.fromkeys(noted):
        signal.raise_signal(number)
