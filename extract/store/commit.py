"""Atomic commits on file systems that many jobs share: scratch folders, fsync, rename.

A folder is written in a scratch folder of its job, made durable, and renamed into place; a rename is atomic on local
disks, NFS and Lustre alike. Committed files are never overwritten, so if two jobs write the same thing by mistake, one
of two complete copies remains.
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

ATTEMPTS = 5  # retries if another run of the same part removes the scratch folder
MOVING = ".moving-"  # prefix of a copy that is to be renamed
MARKER = "in-use"  # the first file of a scratch folder: if it is gone, so is everything written before

T = TypeVar("T")


class ScratchTakenError(Exception):
    """Another run of the same part removed this job's scratch folder as the leftover of a killed job."""


class Scratch:
    """The place for uncommitted files of one job (`owner`): `root/owner/`."""

    def __init__(self, root: Path, owner: str) -> None:
        self.folder = root / owner

    def clear(self) -> int:
        """Remove the leftovers of this owner's earlier runs; return their number.

        Each folder is renamed before it is deleted. If its job is still alive, that job fails to move the folder into
        place and writes it again; files that it is committing are never deleted.
        """
        leftovers = list(self.folder.glob("*"))
        for leftover in leftovers:
            self.discard(leftover)
        return len(leftovers)

    def discard(self, path: Path) -> None:
        """Rename a file or folder, so that nobody finds it any more, then delete it."""
        trash = self.folder / f"trash-{uuid.uuid4().hex}"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            move(path, trash)
        except (FileNotFoundError, NotADirectoryError):  # the latter: what should be the folder above is a file
            return
        remove(trash)

    def attempt(self, write: Callable[[Path], T]) -> T:
        """Call `write` with a new scratch folder, and again if another run removed the folder meanwhile.

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
        """Return a new scratch folder; it is created on the first write, and the caller removes it at the end."""
        return ScratchFolder(self.folder / uuid.uuid4().hex)


class ScratchFolder:
    """A folder for files that are not committed yet."""

    def __init__(self, path: Path) -> None:
        self.path, self._made = path, False

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield the folder for writing.

        Raises:
            ScratchTakenError: another run removed the folder meanwhile.
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
                logger.warning(
                    "another run removed the temporary folder %s: is the same part running twice?", self.path.parent
                )
                raise ScratchTakenError from error
            if isinstance(error, OSError):
                fix = remedy(error, "Check the storage there")
                raise StoreError(
                    f"the file system refuses to write ({error.strerror or error})",
                    where=self.path.parent.parent.parent,
                    fix=f"{fix}, then run the same command again: committed blocks are kept.",
                ) from error
            raise

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def taken_away_again(folder: Path) -> StoreError:
    """The error after all retries."""
    return StoreError(
        f"another run removed the temporary folder of this part {ATTEMPTS} times",
        where=folder,
        fix="Run each part in one job at a time.",
    )


def move_folder(source: Path, target: Path, scratch: Path) -> bool:
    """Make a folder durable and move it into place, unless the target exists; return whether it was moved.

    Args:
        source: folder inside the scratch folder.
        target: its final path.
        scratch: the scratch folder.

    Raises:
        FileNotFoundError: the scratch folder was removed.
    """
    fsync_tree(source)
    # zarr creates missing folders, so a folder that was removed can exist again with half of its files. If the first
    # file still exists, all files written after it do; and nothing is written from here on.
    (scratch / MARKER).stat()
    try:
        move(source, target)  # fails if the target is a folder with files
    except OSError:
        if target.is_dir() and source.is_dir():
            return False
        raise
    fsync(target.parent)
    return True


def move(source: Path, target: Path) -> None:
    """Rename; if source and target are on different devices, copy, rename the copy, and remove the source.

    In a container, a folder of a lower layer is on another device than new files (EXDEV), although both look like one
    file system.
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
    """Delete a file or folder as far as possible, without errors."""
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
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot fsync folders
            raise
    finally:
        os.close(descriptor)
