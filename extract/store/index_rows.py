"""The index columns that reading views needs, in memory: for all views, and once for all workers of a process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from .shared_arrays import SharedArrays

BLOCKS, STOPS = "blocks", "stops"  # in addition to the columns: numbers of the blocks, and the end of each block's rows


class IndexRows:
    """Some columns of the indexes of some blocks, concatenated.

    Columns hold non-negative integers; each is kept in the smallest type that holds its values.
    """

    def __init__(self, blocks: Sequence[int], columns: Sequence[str], parts: Iterable[pa.Table]) -> None:
        """Collect the columns.

        Args:
            blocks: numbers of the blocks, ascending.
            columns: names of the columns, `block` among them.
            parts: tables with the rows of these blocks' indexes, in that order.
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
        """The arrays in shared memory, to be sent to workers."""
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
        """The range of a block's rows; None for other blocks."""
        blocks, stops = self._arrays[BLOCKS], self._arrays[STOPS]
        position = int(np.searchsorted(blocks, block))
        if position == len(blocks) or blocks[position] != block:
            return None
        return range(int(stops[position - 1]) if position else 0, int(stops[position]))


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to integers, with 0 for nulls, which optional columns have."""
    if column.null_count == len(column):
        return np.zeros(len(column), np.uint8)
    chunks = (column.fill_null(0) if column.null_count else column).chunks
    return _narrow(np.concatenate([_values(chunk) for chunk in chunks if len(chunk)]))


def _values(chunk: pa.Array) -> np.ndarray:
    """The values as `to_numpy` returns them; `to_numpy` imports pandas, which takes longer than everything else."""
    values = np.frombuffer(chunk.buffers()[1], np.dtype(str(chunk.type)))
    return values[chunk.offset : chunk.offset + len(chunk)]


def _narrow(column: np.ndarray) -> np.ndarray:
    """Convert to the smallest unsigned type that holds the values.

    >>> _narrow(np.array([900, 0])).dtype
    dtype('uint16')
    """
    return column.astype(np.min_scalar_type(int(column.max(initial=0))), copy=False)
