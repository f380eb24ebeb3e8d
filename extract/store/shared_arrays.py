"""Arrays in memory that a process shares with the workers that it starts.

Workers are spawned, so objects sent to them are copied for each worker. For a large store, these copies would be most
of a worker's memory. Shared arrays exist once for all workers of a process, and are freed with the last worker.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Mapping

import numpy as np

TOKEN_BYTES = 16  # random bytes at the beginning, which identify the memory if its number is used again
ALIGNMENT = 8  # bytes

Layout = dict[str, tuple[str, int, int]]  # name -> dtype, first byte, length


class SharedArrays:
    """One-dimensional arrays by name, read-only.

    A worker receives None if the memory cannot be shared: on systems other than Linux, if the system gives none, or in
    a process that does not see this one. The worker must then read the indexes itself.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._descriptor, self._token, self.arrays = None, os.urandom(TOKEN_BYTES), dict(arrays)
        self._layout, size = {}, TOKEN_BYTES
        for name, array in arrays.items():
            self._layout[name] = (array.dtype.str, size, len(array))
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        try:
            self._hold(os.memfd_create("scalr"))
            os.ftruncate(self._descriptor, size)
            memory = mmap.mmap(self._descriptor, 0)
        except (AttributeError, OSError):  # another system; one that allows no such memory, or no more of it
            self._descriptor = None
            return
        memory[:TOKEN_BYTES] = self._token
        for name, written in self._arrays_in(memory).items():
            written[:] = arrays[name]
        self.arrays = self._arrays_in(mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ))

    def __reduce__(self) -> tuple:
        if self._descriptor is None:
            return type(None), ()
        return _shared_by, (f"/proc/{os.getpid()}/fd/{self._descriptor}", self._token, self._layout)

    def _hold(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def _arrays_in(self, memory: mmap.mmap) -> dict[str, np.ndarray]:
        return {
            name: np.frombuffer(memory, dtype, length, first) for name, (dtype, first, length) in self._layout.items()
        }


def _shared_by(path: str, token: bytes, layout: Layout) -> SharedArrays | None:
    """Map the arrays of another process, given the path of its memory."""
    shared = SharedArrays.__new__(SharedArrays)
    try:
        shared._hold(os.open(path, os.O_RDONLY))
        memory = mmap.mmap(shared._descriptor, 0, access=mmap.ACCESS_READ)
        if memory[:TOKEN_BYTES] != token:
            return None
    except (OSError, ValueError):  # ValueError: an empty file, or one that cannot be mapped
        return None
    shared._token, shared._layout = token, layout
    shared.arrays = shared._arrays_in(memory)
    return shared
