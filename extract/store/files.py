"""Looking at files that others may be changing: what is there, what is not, and what cannot be looked at now.

"Not there" is only said where the folder above could be looked into. Every other refusal of the file system
(permissions, a mount that is gone, an input/output error) is an `UnreadableError`: it says nothing about the content.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import UnreadableError, remedy

NUMBERED_INDEX = re.compile(r"(\d{6,})\.parquet")
# What file browsers, file servers and editors leave behind.
LITTER = re.compile(r"\..*|@eaDir|Thumbs\.db|desktop\.ini|lost\+found|#.*#|.*~|.*\.(bak|orig|sw[a-p])", re.DOTALL)


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn what the file system refuses about `path` into an UnreadableError; FileNotFoundError is left alone.

    Errors of libraries that decode what was read have no error number; they are left alone, too.
    """
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    except FileNotFoundError:
        if link := _dangling_link(Path(path)):
            raise UnreadableError(
                "the link cannot be followed now: its target does not exist",
                where=link,
                fix="Check that the storage of its target is mounted; no damage is known.",
            ) from None
        raise
    except UnreadableError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise UnreadableError(
            f"the file cannot be read now ({error.strerror})",
            where=path,
            fix=f"{remedy(error, 'Check the storage there')}; no damage is known.",
        ) from None


def _dangling_link(path: Path) -> Path | None:
    """The link to storage that is not mounted, if `path` is missing for that reason."""
    for each in (path, *path.parents):
        if os.path.lexists(each):
            return each if each.is_symlink() and not each.exists() else None
    return None


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: it is not there.
        UnreadableError: it cannot be read now.
    """
    with readable(path):
        return path.read_bytes()


def size_of(path: Path | str) -> int | None:
    """Bytes of a file; None where there is no such file.

    Raises:
        UnreadableError: its folder cannot be looked into now.
    """
    try:
        with readable(path):
            return os.stat(path).st_size  # not of pathlib, which takes longer than the system: a store has many files
    except FileNotFoundError:
        return None


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; unlike `Path.exists`, it tells "not there" from "not to be seen"."""
    return size_of(path) is not None


def is_folder(path: Path) -> bool:
    """Whether there is such a folder.

    Raises:
        UnreadableError: it cannot be looked at now.
    """
    try:
        with readable(path):
            return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return False


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder; none where there is no such folder.

    Raises:
        UnreadableError: it cannot be listed now.
    """
    try:
        with readable(folder):
            return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def indexed_blocks(folder: Path) -> set[int]:
    """The numbers of the blocks whose index is in `folder`; files of other names are not a store's.

    Raises:
        UnreadableError: it cannot be listed now.
    """
    matches = (NUMBERED_INDEX.fullmatch(name) for name in names_in(folder))
    return {int(match[1]) for match in matches if match}


def is_litter(name: str) -> bool:
    """Whether a name in a folder is of no store's, but of those who browse or serve it."""
    return LITTER.fullmatch(name) is not None


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order; none where there is no such folder.

    Raises:
        UnreadableError: a folder cannot be listed now.
    """
    try:
        with readable(folder):
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path))
        else:
            yield Path(entry.path)
