"""The folder `aside` of a store, which keeps what is removed so that it can be restored; readers ignore it.

aside/000017.scans.0/group/             a block's scans and all its targets, as they were in blocks/000017/
aside/000017.scans.0/index/NAME.parquet the index files with which they were committed
aside/000017.NAME.0/…                   one teacher's targets of a block, in the same form
aside/teachers.NAME.zarr.json.0         a record
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import StoreError, remedy
from . import format as fmt
from .commit import fsync, move
from .files import is_there, names_in
from .format import SCANS


class AsideFolder:
    """The folder `aside` of a store."""

    def __init__(self, store: Path) -> None:
        self.store, self.path = store, store / fmt.ASIDE

    def take(self, kind: str, block: int, indexes: Iterable[Path]) -> Path | None:
        """Move indexes, and then their group, here; return the new path, or None if there was nothing to move.

        Raises:
            StoreError: the file system refuses.
        """
        group = fmt.group_path(self.store, kind, block)
        there = [path for path in indexes if is_there(path)]
        if not there and not is_there(group):
            return None
        with _said(group):
            entry = self._new_entry(f"{fmt.block_name(block)}.{kind}")
            for path in there:  # first, so that the group is no longer committed
                (entry / "index").mkdir(exist_ok=True)
                move(path, entry / "index" / f"{path.parent.name}.parquet")
                fsync(path.parent)
            if is_there(group):
                move(group, entry / "group")
                fsync(group.parent)
            fsync(entry)
        return entry

    def take_file(self, path: Path) -> Path | None:
        """Move a file or folder that describes the store here; return the new path, or None if it did not exist.

        Raises:
            StoreError: the file system refuses.
        """
        if not is_there(path):
            return None
        with _said(path):
            entry = self._new_entry(".".join(path.relative_to(self.store).parts))
            with suppress(FileNotFoundError):  # another run has just moved it
                move(path, entry / path.name)
            fsync(path.parent)
        return entry

    def give_back(self, kind: str, block: int) -> bool:
        """Move the part of a block that was taken last back into its place; return whether there was one.

        Raises:
            StoreError: the file system refuses.
        """
        for entry in self._entries(kind, block):
            if is_there(entry / "group"):
                target = fmt.group_path(self.store, kind, block)
                with _said(target):
                    move(entry / "group", target)
                    fsync(target.parent)
                    for name in names_in(entry / "index"):  # last, since this commits the group
                        index = fmt.index_path(self.store, name.removesuffix(".parquet"), block)
                        index.parent.mkdir(parents=True, exist_ok=True)
                        move(entry / "index" / name, index)
                        fsync(index.parent)
                return True
        return False

    def give_back_targets(self, teacher: str, block: int) -> bool:
        """Move a teacher's targets that were taken with a block's scans back into the block, without an index."""
        for entry in self._entries(SCANS, block):
            source, target = entry / "group" / "targets" / teacher, fmt.group_path(self.store, teacher, block)
            if is_there(source) and not is_there(target):
                with _said(target):
                    move(source, target)
                    fsync(target.parent)
                return True
        return False

    def _entries(self, kind: str, block: int) -> list[Path]:
        """The entries of a block's scans or targets, the latest first."""
        start = f"{fmt.block_name(block)}.{kind}."
        numbers = [name.removeprefix(start) for name in names_in(self.path) if name.startswith(start)]
        return [
            self.path / f"{start}{number}" for number in sorted(filter(str.isdigit, numbers), key=int, reverse=True)
        ]

    def _new_entry(self, name: str) -> Path:
        """Create a folder with an unused number, also if another run does the same at this moment."""
        self.path.mkdir(exist_ok=True)
        number = 0
        while True:
            with suppress(FileExistsError):
                entry = self.path / f"{name}.{number}"
                entry.mkdir()
                return entry
            number += 1


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn errors of the file system into a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the folder cannot be moved to 'aside' ({error.strerror or error})",
            where=path,
            fix=f"{remedy(error, 'Check the storage there')}.",
        ) from None
