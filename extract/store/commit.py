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

from ...errors import StoreError, remedy

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # to write something while another run of the same part clears the scratch folder away
MOVING = ".moving-"  # begins the name of a copy that is to be renamed
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
            move(path, trash)
        except (FileNotFoundError, NotADirectoryError):  # the latter: what should be the folder above is a file
            return
        remove(trash)

    def attempt(self, write: Callable[[Path], T]) -> T:
        """Call `write` with a new scratch folder, and again if another run took the folder away meanwhile.

        Raises:
            StoreError: the file system refuses (full, quota, read-only).
        """
        for _ in range(ATTEMPTS):
            scratch = self.new_folder()
            try:
                with scratch.writing() as folder:
                    return write(folder)
            except ScratchTakenError:
                continue
            finally:
                scratch.remove()
        raise taken_away_again(self.folder)

    def new_folder(self) -> ScratchFolder:
        """Not made before it is written to; to be removed in the end."""
        return ScratchFolder(self.folder / uuid.uuid4().hex)


class ScratchFolder:
    """What is written before it is committed."""

    def __init__(self, path: Path) -> None:
        self.path, self._made = path, False

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield the folder to write in.

        Raises:
            ScratchTakenError: another run took it away meanwhile.
            StoreError: the file system refuses (full, quota, read-only).
        """
        try:
            if not self._made:
                self.path.mkdir(parents=True)
                (self.path / MARKER).touch()
                self._made = True
            yield self.path
        except Exception as error:
            if not (self.path / MARKER).exists() and (self._made or isinstance(error, FileNotFoundError)):
                logger.warning("%s was cleared by another run: is the same part running twice?", self.path.parent)
                raise ScratchTakenError from error
            if isinstance(error, OSError):
                fix = remedy(error, "Check the storage there")
                raise StoreError(
                    f"the file system refuses to write ({error.strerror or error})",
                    where=self.path.parent.parent.parent,
                    fix=f"{fix}, then run the same command again: what is committed stays.",
                ) from error
            raise

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def taken_away_again(folder: Path) -> StoreError:
    """For those who gave up."""
    return StoreError(
        f"its scratch folder was taken away {ATTEMPTS} times", where=folder, fix="Run each part once at a time."
    )


def move_folder(source: Path, target: Path, scratch: Path) -> bool:
    """Make a folder durable and move it into place, unless one stands there already; says whether it did.

    Args:
        source: inside a scratch folder.
        target: where it belongs.
        scratch: that scratch folder.

    Raises:
        FileNotFoundError: the scratch folder was taken away.
    """
    fsync_tree(source)
    # zarr makes folders that are missing, so a folder that was taken away can be back with half of its files.
    # Where the first file still stands, all that were written after it do; and nothing is written from here on.
    (scratch / MARKER).stat()
    try:
        move(source, target)  # onto a folder that is not empty this fails
    except OSError:
        if target.is_dir() and source.is_dir():
            return False
        raise
    fsync(target.parent)
    return True


def move(source: Path, target: Path) -> None:
    """Rename; where source and target are on different devices, copy, rename the copy, and remove the source.

    In a container, a folder of a lower layer is on another device than all that is new (EXDEV), though it looks like
    one file system.
    """
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_name(f"{MOVING}{uuid.uuid4().hex}")
        try:
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, copy)
            fsync_tree(copy)
            os.rename(copy, target)
        except BaseException:
            remove(copy)
            raise
        remove(source)


def remove(path: Path) -> None:
    """Delete a file or folder as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
