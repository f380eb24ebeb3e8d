"""Gather the indexes of a store in one file per kind; gathered.py says what for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa

from ...errors import DamagedError, UnreadableError
from . import format as fmt
from .gathered import GatheredBlock, write_gathered
from .reader import FeatureStore

FEW_BLOCKS = 16  # so few indexes open as fast one by one
PART_BLOCKS = 256  # blocks in memory at once


def not_gathered(path: Path, kind: str) -> list[int]:
    """The committed blocks of a store whose index is not gathered yet; none if the store has few blocks."""
    store = FeatureStore(path)
    blocks, gathered = sorted(store.committed_blocks(kind)), store.gathered_indexes(kind)
    if len(blocks) <= FEW_BLOCKS:
        return []
    return [block for block in blocks if gathered is None or block not in gathered]


def gather(path: Path, kind: str, target: Path) -> None:
    """Write the gathered file of a kind: all undamaged indexes, in ascending order of the blocks.

    Raises:
        OSError: the file system refuses.
        UnreadableError: the indexes cannot be listed now.
    """
    store = FeatureStore(path)
    write_gathered(_parts(store, kind, sorted(store.committed_blocks(kind))), kind, target)


def agrees_with_indexes(store: FeatureStore, kind: str) -> bool:
    """Whether a gathered file is sound, and says the same of its blocks as the indexes that stand for them.

    Where a file system keeps no times of files, an index can pass for the one that it has replaced.

    Raises:
        UnreadableError: the indexes cannot be listed now.
    """
    gathered = store.gathered_indexes(kind)
    if gathered is None:
        return False
    blocks = sorted(block for block in store.committed_blocks(kind) if block in gathered)
    for first in range(0, len(blocks), PART_BLOCKS):
        part = blocks[first : first + PART_BLOCKS]
        rows = store.rows_of_each(kind, store.read_gathered(kind, part))
        if [*rows] != part:
            return False
        for block in part:
            own = _read_block(store, kind, block)
            if own is not None and (own[0] != gathered.entry(block) or not own[1].equals(rows[block])):
                return False
    return True


def _parts(store: FeatureStore, kind: str, blocks: list[int]) -> Iterator[tuple[list[GatheredBlock], pa.Table]]:
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(blocks), PART_BLOCKS):
            part = blocks[first : first + PART_BLOCKS]
            rows = store.rows_of_each(kind, store.read_gathered(kind, part))
            found = [(store.gathered_indexes(kind).entry(block), table) for block, table in rows.items()]
            others = pool.map(partial(_read_block, store, kind), [block for block in part if block not in rows])
            found = sorted([*found, *(each for each in others if each is not None)], key=lambda each: each[0].block)
            if found:
                yield [block for block, _ in found], pa.concat_tables([table for _, table in found])


def _read_block(store: FeatureStore, kind: str, block: int) -> tuple[GatheredBlock, pa.Table] | None:
    """Read a block's index; None if it is damaged or has another record, which its next reader reports."""
    index = fmt.index_path(store.path, kind, block)
    try:
        found = index.stat()  # first: an index that another job replaces now then differs from the recorded time
        metadata = fmt.read_metadata(index)
        if store.wrong_metadata(kind, block, metadata):
            return None
        rows = fmt.read_index(index, kind)
    except (FileNotFoundError, DamagedError, UnreadableError):
        return None
    files = {name: listed.bytes for name, listed in metadata.files.items()}
    noted = (len(rows), found.st_size, found.st_mtime_ns, metadata.record, files, metadata.skipped)
    return GatheredBlock(block, *noted), rows
