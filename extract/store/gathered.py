"""Indexes of a kind gathered in one file, so that a reader of a large store opens that one in place of thousands.

gathered/scans.parquet has the rows of the indexes in index/scans, one block after the other, and says of each index
what size and time of change it had. It never decides what counts. A block's rows are taken from it only where the
block's own index stands, with that size and time, and of the record that the store has now; all other blocks are read
from their own indexes, as all are where the file is missing or damaged.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import format as fmt
from .files import NUMBERED_INDEX

logger = logging.getLogger(__name__)

# Of the file's metadata, JSON each, with one value for each block in the order of the rows:
BLOCKS_KEY = b"scalr.blocks"  # number, rows, size and time of change of its index, position among the records
LISTED_KEY = b"scalr.files"  # path in the block's group -> bytes
SKIPPED_KEY = b"scalr.skipped"  # number of a block that lacks frames -> token -> why
RECORDS_KEY = b"scalr.records"  # those that the indexes repeat, each once
KEYS = (BLOCKS_KEY, LISTED_KEY, SKIPPED_KEY, RECORDS_KEY)
SIGNATURE_KEY = b"scalr.sha256"  # of the others, one after the other


@dataclass(frozen=True)
class GatheredBlock:
    """What is kept of a block's index besides its rows."""

    block: int
    rows: int
    bytes: int  # of the index
    mtime_ns: int  # likewise: when it was last changed
    record: dict  # of the source or teacher
    files: dict[str, int]  # path in the group -> bytes
    skipped: dict[str, str]  # scans only: token of a frame that could not be used -> why


class GatheredIndexes:
    """A gathered file, to read: those of its blocks whose own indexes are as they were when they were gathered."""

    def __init__(self, store: Path, kind: str, metadata: dict[bytes, bytes], identity: tuple[int, ...]) -> None:
        self._store, self._kind, self._identity = store, kind, identity
        self._noted = json.loads(metadata[BLOCKS_KEY])
        self._records = json.loads(metadata[RECORDS_KEY])
        self._skipped = json.loads(metadata[SKIPPED_KEY])
        self._listed = metadata[LISTED_KEY]  # by far the largest; not always asked for
        self._stop_rows = np.cumsum(self._noted["rows"], dtype=np.int64)
        self._positions = {block: position for position, block in enumerate(self._noted["block"])}

    def __contains__(self, block: int) -> bool:
        return block in self._positions

    def keep_what_stands(self, record_of: Callable[[int], dict | None]) -> None:
        """Leave out the blocks whose own index is gone, has changed, or is not of the record that `record_of` gives."""
        standing = _sizes_and_times(self._store / "index" / self._kind)
        self._positions = {
            block: position
            for block, position in self._positions.items()
            if standing.get(block) == self._size_and_time(position)
            and self._records[self._noted["record"][position]] == record_of(block)
        }

    def still_stands(self, block: int) -> bool:
        """Whether the index of one of its blocks has not changed until now."""
        try:
            found = os.stat(fmt.index_path(self._store, self._kind, block))
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == self._size_and_time(self._positions[block])

    def read(self, blocks: Sequence[int], columns: Sequence[str] | None = None) -> list[tuple[list[int], pa.Table]]:
        """The rows of some of its blocks: of all columns of their kind, or some.

        Args:
            blocks: in ascending order.
            columns: None takes all.

        Returns:
            These blocks in their order, in parts, and the rows of each part.

        Raises:
            Exception: whatever reading damaged content, or a file that another has replaced, ends with.
        """
        parts = []
        with fmt.gathered_path(self._store, self._kind).open("rb") as opened:  # arrow takes no path that is not UTF-8
            if _identity(opened.fileno()) != self._identity:
                raise ValueError("another file has taken its place")
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
            for number, inside in self._by_row_group(blocks, ends).items():
                table = fmt.read_columns(file, self._kind, columns, [number] if number < len(ends) else [])
                parts.append((inside, self._rows_among(table, ends[number - 1] if number else 0, inside)))
        return parts

    def _by_row_group(self, blocks: Sequence[int], ends: np.ndarray) -> dict[int, list[int]]:
        """The blocks whose rows are in each row group; those of a block are never in two."""
        groups = np.searchsorted(ends, self._stop_rows[[self._positions[block] for block in blocks]]).tolist()
        inside: dict[int, list[int]] = {}
        for block, group in zip(blocks, groups, strict=True):
            inside.setdefault(group, []).append(block)
        return inside

    def _rows_among(self, table: pa.Table, first: int, blocks: list[int]) -> pa.Table:
        """The rows of some blocks, of a table that begins with row `first` of the file."""
        counts = [self.rows(block) for block in blocks]
        if len(table) != sum(counts):
            stops = self._stop_rows[[self._positions[block] for block in blocks]]
            pairs = zip(stops, counts, strict=True)
            table = pa.concat_tables([table.slice(stop - count - first, count) for stop, count in pairs])
        if len(table) != sum(counts):
            raise ValueError("it has fewer rows than it says")
        return table

    def rows(self, block: int) -> int:
        return self._noted["rows"][self._positions[block]]

    def files(self, block: int) -> dict[str, int]:
        """Path in the block's group -> bytes."""
        return self._files[self._positions[block]]

    def skipped(self, block: int) -> dict[str, str]:
        """The frames that the block was committed without: token -> why."""
        return self._skipped.get(str(block), {})

    def entry(self, block: int) -> GatheredBlock:
        """What is kept of one of its blocks."""
        position = self._positions[block]
        record = self._records[self._noted["record"][position]]
        size_and_time = self._size_and_time(position)
        return GatheredBlock(block, self.rows(block), *size_and_time, record, self.files(block), self.skipped(block))

    @functools.cached_property
    def _files(self) -> list[dict[str, int]]:
        return json.loads(self._listed)

    def _size_and_time(self, position: int) -> tuple[int, int]:
        return self._noted["bytes"][position], self._noted["mtime_ns"][position]


def open_gathered(store: Path, kind: str) -> GatheredIndexes | None:
    """The gathered indexes of a kind; None where there are none that can be used."""
    path = fmt.gathered_path(store, kind)
    try:
        with path.open("rb") as opened:
            metadata = pq.ParquetFile(opened).metadata.metadata
            if metadata[SIGNATURE_KEY] != _signature(metadata):
                raise ValueError("its metadata have been altered")
            return GatheredIndexes(store, kind, metadata, _identity(opened.fileno()))
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever arrow makes of damaged content: the indexes themselves are there
        logger.debug("%s cannot be used (%s): each index is read by itself", path, error)
        return None


def write_gathered(parts: Iterable[tuple[list[GatheredBlock], pa.Table]], kind: str, path: Path) -> None:
    """Write a gathered file, part by part, so that no more than one part is in memory.

    Args:
        parts: some blocks in ascending order, and their rows (format.schema_of).
        kind: of the indexes.
        path: of the file.
    """
    noted: dict[str, list] = {name: [] for name in ("block", "rows", "bytes", "mtime_ns", "record")}
    records, files, skipped = {}, [], {}
    options = {"compression": "zstd", "write_page_checksum": True, "store_schema": False}
    with path.open("wb") as file, pq.ParquetWriter(file, fmt.schema_of(kind), **options) as writer:
        for blocks, table in parts:
            writer.write_table(table, row_group_size=max(1, len(table)))
            for each in blocks:
                digest = fmt.digest(each.record)
                records.setdefault(digest, each.record)
                for name in ("block", "rows", "bytes", "mtime_ns"):
                    noted[name].append(getattr(each, name))
                noted["record"].append(list(records).index(digest))
                files.append(each.files)
                if each.skipped:
                    skipped[each.block] = each.skipped
        values = zip(KEYS, (noted, files, skipped, list(records.values())), strict=True)
        metadata = {key: json.dumps(value, separators=(",", ":")).encode() for key, value in values}
        writer.add_key_value_metadata(metadata | {SIGNATURE_KEY: _signature(metadata)})


def _signature(metadata: dict[bytes, bytes]) -> bytes:
    digest = hashlib.sha256()
    for key in KEYS:
        digest.update(metadata[key])
    return digest.hexdigest().encode()


def _identity(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sizes_and_times(folder: Path) -> dict[int, tuple[int, int]]:
    """Of the indexes in a folder, by block; none where it cannot be listed, which others say."""
    return dict(_standing(folder))


def _standing(folder: Path) -> Iterator[tuple[int, tuple[int, int]]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if match := NUMBERED_INDEX.fullmatch(entry.name):
                    found = entry.stat()
                    yield int(match[1]), (found.st_size, found.st_mtime_ns)
    except OSError:
        return
