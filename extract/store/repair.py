"""Repair a store: move damaged parts to the folder `aside`, and restore records from the blocks."""

from __future__ import annotations

from pathlib import Path

from ...errors import DamagedError
from . import format as fmt
from .files import read_bytes
from .format import SCANS
from .reader import FeatureStore
from .verify import Damage, Findings
from .writer import StoreWriter


def repair_store(store: FeatureStore, found: Findings) -> list[Path]:
    """Remove damaged targets, and damaged scans with all their targets; `extract` computes them again.

    Damaged records and indexes are restored from the records in the blocks. Blocks that cannot be read completely now
    are left alone. Nothing is deleted: damaged parts are kept in the folder `aside`.

    Returns:
        The folders that hold the removed parts.

    Raises:
        StoreError: the file system refuses.
    """
    writer = StoreWriter(store, owner="repair")
    writer.clear_leftovers()
    kept = []
    for damage in found.damage:
        if damage.block is None:
            kept.append(_mend_record(writer, damage, found))
        elif damage.block not in found.closed:
            kept.append(_mend_block(writer, damage))
    wrong = [kind for kind in (SCANS, *store.teachers) if f"{fmt.GATHERED}/{kind}.parquet" in found.stray]
    writer.gather_indexes(anew=wrong)  # also repairs a copy that did not keep the times of files
    return [path for path in kept if path is not None]


def _mend_record(writer: StoreWriter, damage: Damage, found: Findings) -> Path | None:
    if damage.kind in found.records:
        return writer.rewrite_record(damage.kind, found.records[damage.kind])
    return writer.aside.take_file(writer.path / damage.kind)  # no block needs it


def _mend_block(writer: StoreWriter, damage: Damage) -> Path | None:
    index = _fitting_index(writer.path, damage.kind, damage.block)
    if index is None:
        return writer.set_aside(damage.kind, damage.block)
    return writer.rewrite_index(damage.kind, damage.block, index)


def _fitting_index(store: Path, kind: str, block: int) -> bytes | None:
    """If the two copies of an index differ, return the one that lists the group's files correctly; else None."""
    group = fmt.group_path(store, kind, block)
    copies = [fmt.index_path(store, kind, block), group / fmt.GROUP_INDEX]
    contents = [_content(path) for path in copies]
    if contents[0] == contents[1]:
        return None
    for path, content in zip(copies, contents, strict=True):
        if content is not None and _fits(path, kind, block, group):
            return content
    return None


def _content(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return None


def _fits(index: Path, kind: str, block: int, group: Path) -> bool:
    try:
        fmt.read_index(index, kind)
        metadata = fmt.read_metadata(index)
        return metadata.group == fmt.group_name(kind, block) and fmt.files_are_as_listed(group, metadata)
    except (FileNotFoundError, DamagedError):
        return False
