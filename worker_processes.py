"""How processes that prepare scans are started."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

# Each worker imports its modules again. A worker forked from this process could deadlock once zarr has run here. One
# forked from a server would survive if this process is killed, and would die with the server at a signal to the group.
START_METHOD = "spawn"


def worker_context() -> BaseContext:
    """The multiprocessing context that starts workers."""
    return multiprocessing.get_context(START_METHOD)
