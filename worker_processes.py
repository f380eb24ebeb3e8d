"""Processes that prepare scans for this one."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

# Each imports what it needs anew. One that is forked from this process could deadlock once zarr has run in it; one that
# is forked from a server outlives a process that is killed, and is lost with the server at a signal to the whole group.
START_METHOD = "spawn"


def worker_context() -> BaseContext:
    """How worker processes start."""
    return multiprocessing.get_context(START_METHOD)
