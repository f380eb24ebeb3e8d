"""Arrays that a process shares with the workers that it starts: all read the same memory.

Workers are spawned, so what they are sent is copied for each of them. Of a large store that would be most of a worker's
memory; sent as here, it is there once for all workers of a process, and gone with the last of them.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Mapping

import numpy as np

TOKEN_BYTES = 16  # at the beginning: tells the memory from another that has taken its number
ALIGNMENT = 8  # bytes

Layout = dict[str, tuple[str, int, int]]  # name -> dtype, first byte, length


class SharedArrays:
    """One-dimensional arrays by name, read-only.

    What a worker is sent of it is None where the memory cannot be shared: on other systems than Linux, where the system
    gives none, or in a process that does not see this one. The worker then has to read for itself what the arrays say.
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
    """The arrays of another process, by the path of its memory."""
    shared = SharedArrays.__new__(SharedArrays)
    try:
        shared._hold(os.open(path, os.O_RDONLY))
        memory = mmap.mmap(shared._descriptor, 0, access=mmap.ACCESS_READ)
        if memory[:TOKEN_BYTES] != token:
            return None
    except (OSError, ValueError):  # ValueError: an empty file, or none that can be mapped
        return None
    shared._token, shared._layout = token, layout
    shared.arrays = shared._arrays_in(memory)
    return shared
