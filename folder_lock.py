"""One run in one folder: a lock that holds on shared storage, and not longer than its process.

A run that begins puts a claim, a file with a name of its own, into the folder, and lists the folder after that. It
holds the lock if no other claim is of a process that lives; else it takes its claim back. Of two claims, whichever was
written last, its run sees the other one: file systems that several machines share keep creating a file and then listing
its folder in order, whereas advisory locks (flock) are missing on some and kept to one machine on others. A claim is
never taken over, only removed when its process is gone, so that nothing can be taken over twice.

Whether the process of a claim lives is asked of the system on the same machine. Elsewhere a claim is touched every few
seconds while its process lives; whoever sees no touch for a minute goes on.
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

CLAIM = ".running."  # how the name of a claim begins
BEAT_SECONDS = 10.0  # between two touches
GONE_AFTER_SECONDS = 60.0  # without a touch
ATTEMPTS = 8  # where several begin at the same moment


@dataclass(frozen=True)
class Claim:
    """What a claim's file says: which process made it, and whether it holds the folder already."""

    host: str
    pid: int
    started: str | None  # when, as the system counts: another process may get the same number later
    machine: str | None  # the boot and the process namespace in which the number means something
    holds: bool = False

    @property
    def is_of_this_machine(self) -> bool:
        return self.machine is not None and self.machine == _machine()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


_held: dict[Path, Lock] = {}  # by folder, of this process


class Lock:
    """A claim to a folder, touched while its process lives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / f"{CLAIM}{uuid.uuid4().hex}"
        self._claim = Claim(socket.gethostname(), os.getpid(), _start_of(os.getpid()), _machine())
        self._ended = threading.Event()
        self._write(self._claim)
        self._beat = threading.Thread(target=self._keep_touching, name="folder lock", daemon=True)
        self._beat.start()

    def rival(self) -> Claim | None:
        """The claim of another process that lives."""
        others = (path for path in self.folder.glob(f"{CLAIM}*") if path != self._path)
        return next((claim for path in others if (claim := _living(path)) is not None), None)

    def hold(self) -> None:
        """Say that there was no rival."""
        self._write(replace(self._claim, holds=True))
        _held[self.folder.resolve()] = self

    def require(self) -> None:
        """Refuse to go on where this process was stopped for so long that another run took it for gone.

        Raises:
            StudentError: it did.
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
        aside = self._path.with_name(f".{self._path.name}")  # others read whole claims
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
            with suppress(OSError):  # storage may be away for a while; `require` tells whether the claim is still there
                os.utime(self._path)


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Hold a folder for one run. Folders that are missing are made, and removed if nothing is written into them.

    Raises:
        StudentError: another run is at work in it, or it cannot be written.
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
    """Refuse to write a file into a folder that this process held and has lost: see `Lock.require`.

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
        time.sleep(random.uniform(0.02, 0.5))  # both have seen each other: the one that comes back first goes on
    raise StudentError(
        f"another run writes to this folder: {rival}", where=folder, fix="Choose another --out, or wait until it ends."
    )


def _living(path: Path) -> Claim | None:
    """The claim in a file if its process lives; else the file is removed."""
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
    """Whether a claim is touched within the time after which its process counts as gone."""
    logger.info("%s: waiting up to %.0f s to see whether %s still runs", path, GONE_AFTER_SECONDS, claim)
    first, until = _touched_at(path), time.monotonic() + GONE_AFTER_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, BEAT_SECONDS / 2))
        now = _touched_at(path)
        if now != first:
            return now is not None
    return False


def _touched_at(path: Path) -> int | None:
    """When [ns], by the file server's clock; None where the file is gone."""
    try:
        with path.open("rb") as file:  # opened anew: network file systems may answer `stat` from memory
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    except OSError:  # cannot be read now: nothing says that its process is gone
        return time.monotonic_ns()


def _runs(claim: Claim) -> bool:
    """Whether a process of this machine still runs."""
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, which /proc may hide
        return _start_of(claim.pid) in (claim.started, None)
    return _start_of(claim.pid) == claim.started


def _start_of(pid: int) -> str | None:
    """When a process was started, in the clock ticks of Linux; None for one that has ended, and elsewhere."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]  # Z, X: ended, but its parent has not asked for its exit code


def _machine() -> str | None:
    """Where process numbers mean the same: a boot of a Linux and a process namespace of it; None elsewhere."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
