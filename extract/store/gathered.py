"""All indexes of a kind gathered in one file, so that a reader of a large store opens one file instead of thousands.

gathered/scans.parquet has the concatenated rows of the indexes in index/scans, and for each index its size and time of
change. It never decides what is committed. A block's rows are taken from it only if the block's own index still has
that size and time, and the record that the store has now. All other blocks are read from their own indexes, and so are
all blocks if the file is missing or damaged.
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

# Keys of the file's metadata; each value is JSON, with one entry per block in the order of the rows:
BLOCKS_KEY = b"scalr.blocks"  # number, rows, size and time of change of its index, position among the records
LISTED_KEY = b"scalr.files"  # path in the block's group -> bytes
SKIPPED_KEY = b"scalr.skipped"  # number of a block that lacks frames -> frame ID -> reason
RECORDS_KEY = b"scalr.records"  # the records that the indexes repeat, each once
KEYS = (BLOCKS_KEY, LISTED_KEY, SKIPPED_KEY, RECORDS_KEY)
SIGNATURE_KEY = b"scalr.sha256"  # digest of the other values, concatenated


@dataclass(frozen=True)
class GatheredBlock:
    """The entry of a block's index in a gathered file, besides its rows."""

    block: int
    rows: int
    bytes: int  # size of the index
    mtime_ns: int  # time of the index's last change
    record: dict  # attributes of the source or teacher
    files: dict[str, int]  # path in the group -> bytes
    skipped: dict[str, str]  # scans only: ID of a frame that could not be used -> reason


class GatheredIndexes:
    """A gathered file for reading, limited to blocks whose own indexes have not changed since they were gathered."""

    def __init__(self, store: Path, kind: str, metadata: dict[bytes, bytes], identity: tuple[int, ...]) -> None:
        self._store, self._kind, self._identity = store, kind, identity
        self._noted = json.loads(metadata[BLOCKS_KEY])
        self._records = json.loads(metadata[RECORDS_KEY])
        self._skipped = json.loads(metadata[SKIPPED_KEY])
        self._listed = metadata[LISTED_KEY]  # by far the largest value, and not always needed
        self._stop_rows = np.cumsum(self._noted["rows"], dtype=np.int64)
        self._positions = {block: position for position, block in enumerate(self._noted["block"])}

    def __contains__(self, block: int) -> bool:
        return block in self._positions

    def keep_what_stands(self, record_of: Callable[[int], dict | None]) -> None:
        """Drop blocks whose own index is gone or has changed, or has another record than `record_of` returns."""
        standing = _sizes_and_times(self._store / "index" / self._kind)
        self._positions = {
            block: position
            for block, position in self._positions.items()
            if standing.get(block) == self._size_and_time(position)
            and self._records[self._noted["record"][position]] == record_of(block)
        }

    def still_stands(self, block: int) -> bool:
        """Whether the index of a block has still not changed."""
        try:
            found = os.stat(fmt.index_path(self._store, self._kind, block))
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == self._size_and_time(self._positions[block])

    def read(self, blocks: Sequence[int], columns: Sequence[str] | None = None) -> list[tuple[list[int], pa.Table]]:
        """Read the rows of some blocks, with all or some columns.

        Args:
            blocks: numbers of the blocks, ascending.
            columns: names of the columns; None takes all.

        Returns:
            Parts of the blocks in their order, with the rows of each part.

        Raises:
            Exception: any error from damaged content, or from a file that was replaced meanwhile.
        """
        parts = []
        with fmt.gathered_path(self._store, self._kind).open("rb") as opened:  # arrow accepts only paths in UTF-8
            if _identity(opened.fileno()) != self._identity:
                raise ValueError("another file has taken its place")
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
            for number, inside in self._by_row_group(blocks, ends).items():
                table = fmt.read_columns(file, self._kind, columns, [number] if number < len(ends) else [])
                parts.append((inside, self._rows_among(table, ends[number - 1] if number else 0, inside)))
        return parts

    def _by_row_group(self, blocks: Sequence[int], ends: np.ndarray) -> dict[int, list[int]]:
        """Group blocks by the row group of their rows; the rows of a block are never in two row groups."""
        groups = np.searchsorted(ends, self._stop_rows[[self._positions[block] for block in blocks]]).tolist()
        inside: dict[int, list[int]] = {}
        for block, group in zip(blocks, groups, strict=True):
            inside.setdefault(group, []).append(block)
        return inside

    def _rows_among(self, table: pa.Table, first: int, blocks: list[int]) -> pa.Table:
        """Select the rows of some blocks from a table that begins at row `first` of the file."""
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
        """The files of a block's group: path in the group -> bytes."""
        return self._files[self._positions[block]]

    def skipped(self, block: int) -> dict[str, str]:
        """The frames that are missing from a committed block: frame ID -> reason."""
        return self._skipped.get(str(block), {})

    def entry(self, block: int) -> GatheredBlock:
        """The entry of a block."""
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
    """Open the gathered indexes of a kind; None if there is no usable file."""
    path = fmt.gathered_path(store, kind)
    try:
        with path.open("rb") as opened:
            metadata = pq.ParquetFile(opened).metadata.metadata
            if metadata[SIGNATURE_KEY] != _signature(metadata):
                raise ValueError("its metadata have been altered")
            return GatheredIndexes(store, kind, metadata, _identity(opened.fileno()))
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged content can raise any error in arrow; the indexes themselves remain
        logger.debug("%s cannot be used (%s): each index is read by itself", path, error)
        return None


def write_gathered(parts: Iterable[tuple[list[GatheredBlock], pa.Table]], kind: str, path: Path) -> None:
    """Write a gathered file part by part, so that only one part is in memory.

    Args:
        parts: for each part its blocks, ascending, and their rows (format.schema_of).
        kind: kind of the indexes.
        path: path of the new file.
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
    """Size and time of each index in a folder, by block; empty if it cannot be listed, which is reported elsewhere."""
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
