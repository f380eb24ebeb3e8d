"""Access to files that other jobs may be changing, which distinguishes missing files from unreadable ones.

A file is reported as missing only if its folder could be read. Every other error of the file system (permissions, a
mount that is gone, an input/output error) is an `UnreadableError`: it says nothing about the content.
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
# Files that file browsers, file servers and editors leave behind.
LITTER = re.compile(r"\..*|@eaDir|Thumbs\.db|desktop\.ini|lost\+found|#.*#|.*~|.*\.(bak|orig|sw[a-p])", re.DOTALL)


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn errors of the file system for `path` into an UnreadableError; FileNotFoundError passes unchanged.

    Errors of libraries that decode file contents have no error number; they pass unchanged, too.
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
    """The broken link because of which `path` is missing, for example to storage that is not mounted; or None."""
    for each in (path, *path.parents):
        if os.path.lexists(each):
            return each if each.is_symlink() and not each.exists() else None
    return None


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableError: the file cannot be read now.
    """
    with readable(path):
        return path.read_bytes()


def size_of(path: Path | str) -> int | None:
    """The size of a file in bytes; None if it does not exist.

    Raises:
        UnreadableError: its folder cannot be read now.
    """
    try:
        with readable(path):
            return os.stat(path).st_size  # pathlib's would be slower than the system call, and a store has many files
    except FileNotFoundError:
        return None


def is_there(path: Path) -> bool:
    """Whether a file or folder exists; unlike `Path.exists`, it raises an error if that cannot be determined."""
    return size_of(path) is not None


def is_folder(path: Path) -> bool:
    """Whether a folder exists.

    Raises:
        UnreadableError: that cannot be determined now.
    """
    try:
        with readable(path):
            return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return False


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder; empty if the folder does not exist.

    Raises:
        UnreadableError: the folder cannot be listed now.
    """
    try:
        with readable(folder):
            return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def indexed_blocks(folder: Path) -> set[int]:
    """The numbers of the blocks whose index is in `folder`; files with other names do not belong to a store.

    Raises:
        UnreadableError: the folder cannot be listed now.
    """
    matches = (NUMBERED_INDEX.fullmatch(name) for name in names_in(folder))
    return {int(match[1]) for match in matches if match}


def is_litter(name: str) -> bool:
    """Whether a file was left by a file browser, file server or editor, and does not belong to a store."""
    return LITTER.fullmatch(name) is not None


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, in order; none if the folder does not exist.

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
