"""The arrays of a group: written piece by piece with a check, and opened only if all of their files exist."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import StoreError
from .files import readable, size_of

if TYPE_CHECKING:
    import zarr

# Chosen with tests/benchmarks/store_layout.py; docs/store_format.md has the measurements.
CHUNK_BYTES = 1 << 20  # of raw values: a view of nuScenes is a few chunks
SHARD_BYTES = 1 << 27  # of raw values: above 64 MB when compressed; a writer holds at most one shard of an array
COMPRESSION_LEVEL = 3
READ_BACK_CHUNKS = 8  # chunks that are read back at once


class ArrayWriter:
    """Writes an array along its first axis while rows arrive; at most one shard of it waits in memory.

    Args:
        path: path of the new array.
        columns: shape of the array without the first axis.
        dtype: type of the values.

    Attributes:
        rows: number of rows written.
    """

    def __init__(self, path: Path, columns: tuple[int, ...], dtype: np.dtype | str) -> None:
        self.path, self.columns, self.dtype, self.rows = path, columns, np.dtype(dtype), 0
        self._waiting: list[np.ndarray] = []
        self._array: zarr.Array | None = None
        _, (self._shard_rows, *_) = chunking((1 << 40, *columns), self.dtype.itemsize)

    def append(self, values: np.ndarray) -> None:
        """Add rows (n, *columns).

        Raises:
            StoreError: the values read back differ from those written.
        """
        while self._num_waiting + len(values) >= self._shard_rows:
            split = self._shard_rows - self._num_waiting
            self._waiting.append(values[:split])
            values = values[split:]
            self._write_waiting()
        if len(values):
            self._waiting.append(values)

    def finish(self) -> None:
        """Write the remaining rows, which completes the array.

        Raises:
            StoreError: as in `append`.
        """
        if self._waiting or self._array is None:
            self._write_waiting()

    @property
    def rows_to_come(self) -> int:
        """The number of rows once all added rows are written."""
        return self.rows + self._num_waiting

    @property
    def _num_waiting(self) -> int:
        return sum(map(len, self._waiting))

    def _write_waiting(self) -> None:
        values = np.concatenate([np.empty((0, *self.columns), self.dtype), *self._waiting])
        self._waiting.clear()
        if self._array is None:  # only the shard of an array with one shard may be smaller
            self._array = create_array(self.path, values.shape, self.dtype)
        else:
            self._array.resize((self.rows + len(values), *self.columns))
        self._array[self.rows :] = values
        self._compare(values)
        self.rows += len(values)

    def _compare(self, values: np.ndarray) -> None:
        """Read values back before they are committed, and compare them with those in memory."""
        import zarr

        read, step = zarr.open_array(self.path, mode="r"), READ_BACK_CHUNKS * self._array.chunks[0]
        for start in range(0, len(values), step):
            part = values[start : start + step]
            # Bytes are compared, since NaN then equals itself and float16 is fast.
            if read[self.rows + start : self.rows + start + len(part)].tobytes() != part.tobytes():
                raise StoreError(
                    "the values read back differ from the values written",
                    where=self.path,
                    fix="Check the disk, then run again.",
                )


def create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> zarr.Array:
    """Create an empty array; values that are never written read as `fill_value(dtype)`."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    chunk, shard = chunking(shape, dtype.itemsize)
    return zarr.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=chunk,
        shards=shard,
        fill_value=fill_value(dtype),
        config={"write_empty_chunks": True},  # a missing file never represents values
        compressors=[
            BloscCodec(
                cname="zstd",
                clevel=COMPRESSION_LEVEL,
                shuffle=shuffle_of(dtype),
                typesize=dtype.itemsize,
            ),
            Crc32cCodec(),
        ],
    )


def shuffle_of(dtype: np.dtype) -> str:
    """Blosc's shuffle mode: shuffled bits make int8 vectors larger and all other arrays smaller."""
    return "noshuffle" if dtype.itemsize == 1 else "bitshuffle"


def fill_value(dtype: np.dtype) -> float | int:
    """The value that zarr's readers return for a missing file, which is never valid data.

    Stored floats are finite, int8 vectors never use -128, and no index or pixel is the largest integer.
    """
    if dtype.kind == "f":
        return float("nan")
    return int(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max)


def open_array(path: Path) -> zarr.Array:
    """Open an array for reading, after checking that all of its files exist.

    Raises:
        FileNotFoundError: a file of the array is missing or empty; its path is the error's `filename`.
        UnreadableError: the array cannot be read now.
        Exception: any error that zarr raises for damaged metadata.
    """
    import zarr

    with readable(path):
        array = zarr.open_array(path, mode="r")
    for file in shard_files(array, path):
        if not size_of(file):
            raise FileNotFoundError(0, "missing or empty", str(file))
    return array


def shard_files(array: zarr.Array, path: Path) -> Iterator[Path]:
    """Yield the files that hold an array's values, derived from its shape."""
    counts = (-(-side // shard) for side, shard in zip(array.shape, array.shards or array.chunks, strict=True))
    for place in itertools.product(*map(range, counts)):
        yield path.joinpath("c", *map(str, place))


def chunking(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a chunk and of a shard; both have all columns, since a view reads complete rows."""
    row_bytes = itemsize * int(np.prod(shape[1:]))
    chunk_rows = max(1, CHUNK_BYTES // row_bytes)
    chunks_per_shard = max(1, SHARD_BYTES // CHUNK_BYTES)
    chunks_needed = max(1, -(-shape[0] // chunk_rows))
    shard_rows = chunk_rows * min(chunks_per_shard, chunks_needed)
    return (chunk_rows, *shape[1:]), (shard_rows, *shape[1:])
