"""Whole or not at all, on file systems that many jobs share: scratch folders, fsync, rename.

A folder is written in a scratch folder of its job, made durable, and renamed into place; a rename is atomic on local
disks, NFS and Lustre alike. Nothing that stands is ever overwritten, so two jobs that write the same thing by mistake
end with one of two whole copies.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ...errors import StoreError

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # to write something while another run of the same part clears the scratch folder away
MARKER = "in-use"  # the first file of a scratch folder: where it is gone, so is everything written before

T = TypeVar("T")


class ScratchTakenError(Exception):
    """Another run of the same part took our scratch folder for the leftover of a killed job."""


class Scratch:
    """Where one job (`owner`) keeps what it has not committed yet: `root/owner/`."""

    def __init__(self, root: Path, owner: str) -> None:
        self.folder = root / owner

    def clear(self) -> int:
        """Remove the leftovers of this owner's earlier runs; gives their number.

        Each is renamed first. Should its job be alive after all, it then fails to move it into place and writes
        it again, instead of having files deleted from under what it commits.
        """
        leftovers = list(self.folder.glob("*"))
        for leftover in leftovers:
            self.discard(leftover)
        return len(leftovers)

    def discard(self, path: Path) -> None:
        """Take a file or folder out of sight at once, then delete it."""
        trash = self.folder / f"trash-{uuid.uuid4().hex}"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(path, trash)
        except FileNotFoundError:
            return
        if trash.is_dir():
            shutil.rmtree(trash, ignore_errors=True)
        else:
            trash.unlink(missing_ok=True)

    def attempt(self, write: Callable[[Path], T]) -> T:
        """Call `write` with a new scratch folder, and again if another run took the folder away meanwhile.

        Raises:
            StoreError: the file system refuses (full, quota, read-only).
        """
        for _ in range(ATTEMPTS):
            try:
                with self._new_folder() as folder:
                    return write(folder)
            except ScratchTakenError:
                logger.warning("%s was cleared by another run: is the same part running twice?", self.folder)
        raise StoreError(
            f"its scratch folder was taken away {ATTEMPTS} times",
            where=self.folder,
            fix="Run each part once at a time.",
        )

    @contextmanager
    def _new_folder(self) -> Iterator[Path]:
        folder = self.folder / uuid.uuid4().hex
        made = False
        try:
            folder.mkdir(parents=True)
            (folder / MARKER).touch()
            made = True
            yield folder
        except Exception as error:
            if not (folder / MARKER).exists() and (made or isinstance(error, FileNotFoundError)):
                raise ScratchTakenError from error
            if isinstance(error, OSError):
                raise StoreError(
                    f"the file system refuses to write ({error.strerror or error})",
                    where=self.folder.parent.parent,
                    fix="Make room, then run the same command again: what is committed stays.",
                ) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def move_folder(source: Path, target: Path) -> bool:
    """Make a folder durable and move it into place, unless one stands there already; says whether it did.

    Args:
        source: directly inside a scratch folder.
        target: where it belongs, on the same file system.

    Raises:
        FileNotFoundError: the scratch folder was taken away.
    """
    fsync_tree(source)
    # zarr makes folders that are missing, so a folder that was taken away can be back with half of its files.
    # Where the first file still stands, all that were written after it do; and nothing is written from here on.
    (source.parent / MARKER).stat()
    try:
        os.rename(source, target)  # onto a folder that is not empty this fails
    except OSError:
        if target.is_dir() and source.is_dir():
            return False
        raise
    fsync(target.parent)
    return True


def move_file(source: Path, target: Path) -> None:
    """Make a file durable and move it into place."""
    fsync(source)
    os.replace(source, target)
    fsync(target.parent)


def fsync_tree(path: Path) -> None:
    for child in [*path.rglob("*"), path]:
        fsync(child)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems know no fsync of folders
            raise
    finally:
        os.close(descriptor)
