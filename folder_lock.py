"""A lock that allows one run in a folder. It works on shared storage, and ends with its process.

A new run writes a claim, a file with a unique name, into the folder, and then lists the folder. It holds the lock if no
other claim belongs to a running process; otherwise it removes its claim. Of two runs, the one that wrote its claim last
sees the other claim: file systems that several machines share keep the order of creating a file and listing its folder.
Advisory locks (flock) are missing on some of them, and limited to one machine on others. A claim is never taken over,
only removed when its process has ended, so two runs cannot take over the same claim.

On the same machine, the system says whether the process of a claim is running. For other machines, a running process
updates the time of its claim every few seconds, and a claim that is not updated for a minute counts as ended.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .errors import StudentError, remedy

logger = logging.getLogger(__name__)

CLAIM = ".running."  # prefix of the names of claims
BEAT_SECONDS = 10.0  # between two updates of a claim's time
GONE_AFTER_SECONDS = 60.0  # without an update
ATTEMPTS = 8  # if several runs begin at the same moment


@dataclass(frozen=True)
class Claim:
    """The content of a claim's file: the process that made it, and whether this process holds the folder."""

    host: str
    pid: int
    started: str | None  # start time of the process: another process may get the same number later
    machine: str | None  # the boot and the process namespace in which the number is valid
    holds: bool = False

    @property
    def is_of_this_machine(self) -> bool:
        return self.machine is not None and self.machine == _machine()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


_held: dict[Path, Lock] = {}  # by folder, of this process


class Lock:
    """A claim to a folder, whose time is updated while its process runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / f"{CLAIM}{uuid.uuid4().hex}"
        self._claim = Claim(socket.gethostname(), os.getpid(), _start_of(os.getpid()), _machine())
        self._ended = threading.Event()
        self._write(self._claim)
        self._beat = threading.Thread(target=self._keep_touching, name="folder lock", daemon=True)
        self._beat.start()

    def rival(self) -> Claim | None:
        """The claim of another running process, or None."""
        others = (path for path in self.folder.glob(f"{CLAIM}*") if path != self._path)
        return next((claim for path in others if (claim := _living(path)) is not None), None)

    def hold(self) -> None:
        """Record in the claim that this process holds the folder."""
        self._write(replace(self._claim, holds=True))
        _held[self.folder.resolve()] = self

    def require(self) -> None:
        """Check that this process still holds the folder: it may have been suspended for long.

        Raises:
            StudentError: another run has removed the claim.
        """
        if not self._path.exists():
            raise StudentError(
                "another run has started in this folder, because this run did not respond for more than a minute",
                where=self.folder,
                fix="Choose another --out for one of them.",
            )

    def release(self) -> None:
        _held.pop(self.folder.resolve(), None)
        self._ended.set()
        self._beat.join()
        _remove(self._path)

    def _write(self, claim: Claim) -> None:
        aside = self._path.with_name(f".{self._path.name}")  # others must never read half a claim
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with aside.open("w") as file:
                json.dump(asdict(claim), file)
                file.flush()
                os.fsync(file.fileno())
            aside.chmod(0o644)  # others must be able to read it, whatever the umask
            os.replace(aside, self._path)
        except OSError as error:
            _remove(aside)
            raise StudentError(
                f"the lock cannot be written ({error.strerror})",
                where=self.folder,
                fix=f"{remedy(error, 'Check the storage there')}, or choose another --out.",
            ) from None

    def _keep_touching(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(
                OSError
            ):  # storage may be unavailable for a while; `require` checks whether the claim still exists
                os.utime(self._path)


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Hold a folder for one run. Missing folders are created, and removed at the end if they are empty.

    Raises:
        StudentError: another run is working in the folder, or the folder cannot be written.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        lock = _hold(folder)
        try:
            yield lock
        finally:
            lock.release()
    finally:
        with suppress(OSError):  # not empty
            for each in made:
                each.rmdir()


def require_held(path: Path) -> None:
    """Check, before a file is written, that this process has not lost the folder that it held: see `Lock.require`.

    Raises:
        StudentError: another run has begun there.
    """
    for folder in path.resolve().parents:
        if folder in _held:
            _held[folder].require()


def _hold(folder: Path) -> Lock:
    for _ in range(ATTEMPTS):
        lock = Lock(folder)
        try:
            rival = lock.rival()
            if rival is None:
                lock.hold()
                return lock
        except BaseException:
            lock.release()
            raise
        lock.release()
        if rival.holds:
            break
        time.sleep(random.uniform(0.02, 0.5))  # both have seen each other: the one that retries first gets the folder
    raise StudentError(
        f"another run writes to this folder: {rival}", where=folder, fix="Choose another --out, or wait until it ends."
    )


def _living(path: Path) -> Claim | None:
    """The claim in a file if its process is running; otherwise the file is removed."""
    try:
        claim = Claim(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        claim = Claim("an unknown machine", 0, None, None)
    if _runs(claim) if claim.is_of_this_machine else _is_touched(path, claim):
        return claim
    logger.info("%s has ended without removing %s, which is removed now", claim, path)
    _remove(path)
    return None


def _is_touched(path: Path, claim: Claim) -> bool:
    """Whether a claim is updated within the time after which its process counts as ended."""
    logger.info("%s: waiting up to %.0f s to see whether %s still runs", path, GONE_AFTER_SECONDS, claim)
    first, until = _touched_at(path), time.monotonic() + GONE_AFTER_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, BEAT_SECONDS / 2))
        now = _touched_at(path)
        if now != first:
            return now is not None
    return False


def _touched_at(path: Path) -> int | None:
    """Time of the last update [ns], by the file server's clock; None if the file does not exist."""
    try:
        with path.open("rb") as file:  # opened again: network file systems may answer `stat` from a cache
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    except OSError:  # unreadable now, so it is not known whether the process has ended
        return time.monotonic_ns()


def _runs(claim: Claim) -> bool:
    """Whether a process of this machine is still running."""
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process, which /proc may hide
        return _start_of(claim.pid) in (claim.started, None)
    return _start_of(claim.pid) == claim.started


def _start_of(pid: int) -> str | None:
    """Start time of a process, in clock ticks of Linux; None if it has ended, and on other systems."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]  # Z, X: ended, but its parent has not read its exit code


def _machine() -> str | None:
    """The scope in which process numbers are unique: a boot of Linux and a process namespace; None on other systems."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
