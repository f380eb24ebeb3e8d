"""Signals that wait until they do no harm."""

from __future__ import annotations

import signal
import threading

import pytest

from scalr.deferred_signals import STOP, deferring_stops


@pytest.mark.parametrize("number", STOP)
def test_a_signal_waits_and_then_acts_as_before(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append("acted"))
    try:
        with deferring_stops():
            signal.raise_signal(number)
            signal.raise_signal(number)
            seen.append("done")
        assert seen == ["done", "acted"]
        with pytest.raises(ZeroDivisionError), deferring_stops():
            1 / 0  # noqa: B018
        signal.raise_signal(number)
        assert seen == ["done", "acted", "acted"]
    finally:
        signal.signal(number, before)


def test_other_threads_have_no_signals_to_defer():
    entered = []

    def enter() -> None:
        with deferring_stops():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered
