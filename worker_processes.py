"""Processes that prepare scans for this one."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext


def worker_context(*modules: str) -> BaseContext:
    """How worker processes start: forked from a server that has imported `modules` and has done nothing else.

    They start at once and share the server's memory, where spawned ones would each import torch. Forked from this
    process itself they could deadlock, once zarr has run in it. The server imports what the first caller names.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context
