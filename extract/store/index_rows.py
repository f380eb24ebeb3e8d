"""What reading views needs of the indexes of a kind, in memory: of all views, and once for all workers of a process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from .shared_arrays import SharedArrays

BLOCKS, STOPS = "blocks", "stops"  # beside the columns: numbers of the blocks, and where the rows of each end


class IndexRows:
    """Some columns of the indexes of some blocks, one block after the other.

    Columns hold integers that are not negative; each is kept as the smallest type that holds it.
    """

    def __init__(self, blocks: Sequence[int], columns: Sequence[str], parts: Iterable[pa.Table]) -> None:
        """
        Args:
            blocks: in ascending order.
            columns: `block` among them.
            parts: rows of the indexes of these blocks, in that order.
        """
        found: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.uint8)] for name in columns}
        for part in parts:
            for name in columns:
                found[name].append(_integers(part[name]))
        arrays = {name: np.concatenate(each) for name, each in found.items()}
        numbers = np.asarray(blocks, dtype=np.int64)
        stops = np.searchsorted(arrays["block"], numbers, side="right")
        self._arrays: Mapping[str, np.ndarray] = {BLOCKS: numbers, STOPS: stops, **arrays}
        self._shared: SharedArrays | None = None

    @classmethod
    def of_another_process(cls, shared: SharedArrays) -> IndexRows:
        rows = cls.__new__(cls)
        rows._arrays, rows._shared = shared.arrays, shared
        return rows

    def share(self) -> SharedArrays:
        """The same, to be sent to workers."""
        if self._shared is None:
            self._shared = SharedArrays(self._arrays)
            self._arrays = self._shared.arrays
        return self._shared

    @property
    def blocks(self) -> list[int]:
        return self._arrays[BLOCKS].tolist()

    def __getitem__(self, column: str) -> np.ndarray:
        return self._arrays[column]

    def of_block(self, block: int) -> range | None:
        """The numbers of a block's rows; None where it is none of these blocks."""
        blocks, stops = self._arrays[BLOCKS], self._arrays[STOPS]
        position = int(np.searchsorted(blocks, block))
        if position == len(blocks) or blocks[position] != block:
            return None
        return range(int(stops[position - 1]) if position else 0, int(stops[position]))


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    """0 in place of nulls, which optional columns have."""
    if column.null_count == len(column):
        return np.zeros(len(column), np.uint8)
    chunks = (column.fill_null(0) if column.null_count else column).chunks
    return _narrow(np.concatenate([_values(chunk) for chunk in chunks if len(chunk)]))


def _values(chunk: pa.Array) -> np.ndarray:
    """What `to_numpy` would give, which imports pandas first and so takes longer than all the rest."""
    values = np.frombuffer(chunk.buffers()[1], np.dtype(str(chunk.type)))
    return values[chunk.offset : chunk.offset + len(chunk)]


def _narrow(column: np.ndarray) -> np.ndarray:
    """
    >>> _narrow(np.array([900, 0])).dtype
    dtype('uint16')
    """
    return column.astype(np.min_scalar_type(int(column.max(initial=0))), copy=False)
