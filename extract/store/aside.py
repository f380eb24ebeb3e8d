"""What is taken out of a store is kept in its folder `aside`, from which it can come back; nobody else looks there.

aside/000017.scans.0/group/             a block's scans and all its targets, as they stood in blocks/000017/
aside/000017.scans.0/index/NAME.parquet the files that made them count
aside/000017.NAME.0/…                   one teacher's targets of a block, likewise
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
        """Move indexes, and then the group that they made count, here; gives where, None where there was nothing.

        Raises:
            StoreError: the file system refuses.
        """
        group = fmt.group_path(self.store, kind, block)
        there = [path for path in indexes if is_there(path)]
        if not there and not is_there(group):
            return None
        with _said(group):
            entry = self._new_entry(f"{fmt.block_name(block)}.{kind}")
            for path in there:  # first: from now on the group does not count
                (entry / "index").mkdir(exist_ok=True)
                move(path, entry / "index" / f"{path.parent.name}.parquet")
                fsync(path.parent)
            if is_there(group):
                move(group, entry / "group")
                fsync(group.parent)
            fsync(entry)
        return entry

    def take_file(self, path: Path) -> Path | None:
        """Move a file, or a folder, that describes the store here; gives where, None where there was none.

        Raises:
            StoreError: the file system refuses.
        """
        if not is_there(path):
            return None
        with _said(path):
            entry = self._new_entry(".".join(path.relative_to(self.store).parts))
            with suppress(FileNotFoundError):  # another run has just taken it
                move(path, entry / path.name)
            fsync(path.parent)
        return entry

    def give_back(self, kind: str, block: int) -> bool:
        """Move what was last taken of a block back into its place; says whether there was anything.

        Raises:
            StoreError: the file system refuses.
        """
        for entry in self._entries(kind, block):
            if is_there(entry / "group"):
                target = fmt.group_path(self.store, kind, block)
                with _said(target):
                    move(entry / "group", target)
                    fsync(target.parent)
                    for name in names_in(entry / "index"):  # last: now it counts
                        index = fmt.index_path(self.store, name.removesuffix(".parquet"), block)
                        index.parent.mkdir(parents=True, exist_ok=True)
                        move(entry / "index" / name, index)
                        fsync(index.parent)
                return True
        return False

    def give_back_targets(self, teacher: str, block: int) -> bool:
        """Move a teacher's targets that were taken with the scans of a block back into it, without an index."""
        for entry in self._entries(SCANS, block):
            source, target = entry / "group" / "targets" / teacher, fmt.group_path(self.store, teacher, block)
            if is_there(source) and not is_there(target):
                with _said(target):
                    move(source, target)
                    fsync(target.parent)
                return True
        return False

    def _entries(self, kind: str, block: int) -> list[Path]:
        """The last one first."""
        start = f"{fmt.block_name(block)}.{kind}."
        numbers = [name.removeprefix(start) for name in names_in(self.path) if name.startswith(start)]
        return [
            self.path / f"{start}{number}" for number in sorted(filter(str.isdigit, numbers), key=int, reverse=True)
        ]

    def _new_entry(self, name: str) -> Path:
        """A folder of a number that nobody has; another run may look for one at the same moment."""
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
    """What the file system refuses, said to people."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the folder cannot be moved to 'aside' ({error.strerror or error})",
            where=path,
            fix=f"{remedy(error, 'Check the storage there')}.",
        ) from None
