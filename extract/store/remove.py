"""Delete a teacher, or a split of a dataset, from a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import StoreError, remedy
from ...progress import progress
from . import format as fmt
from .commit import Scratch
from .contents import Source
from .files import files_below, is_there, names_in, size_of
from .format import SCANS
from .reader import FeatureStore, open_store
from .statistics_group import statistics_name
from .writer import StoreWriter

OWNER = "remove"  # names the scratch folder


@dataclass(frozen=True)
class Removal:
    """The parts of a store that are to be deleted.

    The index files are deleted first, so that no block is committed whose data are being deleted; the record is deleted
    last. So a reader finds a block completely or not at all, and an interrupted removal can be continued.
    """

    store: Path
    what: str
    indexes: list[Path]  # a folder of them, or files: in this order
    groups: list[Path]  # of blocks
    records: list[Path]

    @property
    def num_bytes(self) -> int:
        """The size of everything that is to be deleted.

        Raises:
            UnreadableError: a folder cannot be listed now.
        """
        return sum(size_of(file) or 0 for group in (*self.groups, *self.records) for file in files_below(group))

    def run(self) -> None:
        """Delete everything.

        Raises:
            StoreError: the file system refuses; the parts already deleted are no longer committed.
        """
        scratch = Scratch(self.store / fmt.TMP, OWNER)
        scratch.clear()
        paths = [*self.indexes, *self.groups, *self.records]
        with progress(len(paths), f"remove {self.what}", "folder") as bar:
            for path in paths:
                try:
                    scratch.discard(path)
                except OSError as error:
                    raise StoreError(
                        f"the file or folder cannot be deleted ({error.strerror or error})",
                        where=path,
                        fix=f"{remedy(error, 'Check the storage there')}, then run the same command again.",
                    ) from None
                bar.update()
        StoreWriter(open_store(self.store), OWNER).gather_indexes()  # what stays


def removal_of_teacher(store: FeatureStore, teacher: str) -> Removal:
    """Plan the removal of a teacher's targets in every split; scans and other teachers' targets remain.

    Raises:
        StoreError: the store has no such teacher.
    """
    if teacher not in (*store.teachers, *store.teachers_without_record()):
        raise StoreError(
            f"the store has no teacher '{teacher}' (it has: {', '.join(store.teachers) or 'none'})",
            where=store.path,
            fix="Pass --teacher with a teacher of the store.",
        )
    groups = [fmt.group_path(store.path, teacher, block) for block in _blocks_on_disk(store)]
    return Removal(
        store=store.path,
        what=f"teacher {teacher}",
        indexes=[store.path / "index" / teacher, fmt.gathered_path(store.path, teacher)],
        groups=[group for group in groups if is_there(group)],
        records=[store.path / "teachers" / teacher],
    )


def removal_of_split(store: FeatureStore, name: str) -> Removal:
    """Plan the removal of the scans of a dataset's split, and of all teachers' targets of them.

    Args:
        store: the store to delete from.
        name: DATASET/SPLIT, such as "nuscenes/train".

    Raises:
        StoreError: the store has no such split.
    """
    source = _source_named(store, name)
    blocks = [block for block in _blocks_on_disk(store) if block in source.blocks]
    kinds = sorted(store.indexed_kinds(), key=lambda kind: kind == SCANS)  # scans last: targets need them
    statistics = [store.path / statistics_name(teacher, store.folder_of(source).name) for teacher in store.teachers]
    return Removal(
        store=store.path,
        what=f"split {name}",
        indexes=[
            *(fmt.index_path(store.path, kind, block) for kind in kinds for block in source.blocks),
            *(fmt.gathered_path(store.path, kind) for kind in kinds),
        ],
        groups=[fmt.group_path(store.path, SCANS, block) for block in blocks],
        records=[*statistics, store.folder_of(source)],
    )


def _source_named(store: FeatureStore, name: str) -> Source:
    named = {f"{source.dataset}/{source.split}": source for source in store.sources}
    if name not in named:
        raise StoreError(
            f"the store has no split '{name}' (it has: {', '.join(named) or 'none'})",
            where=store.path,
            fix="Pass --split with a split of the store, as DATASET/SPLIT.",
        )
    return named[name]


def _blocks_on_disk(store: FeatureStore) -> list[int]:
    return [int(name) for name in names_in(store.path / "blocks") if name.isdigit()]
