"""Interruptions of a training: checkpoints, and the signals that request one."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..checkpoint_files import explained, first_line, written_aside
from ..deferred_signals import STOP
from ..errors import ScalrError, StudentError
from .processes import gathered, process_index
from .run_record import RunRecord

logger = logging.getLogger(__name__)

SAVE = signal.SIGUSR1  # schedulers can be configured to send it some time before the end
SIGNALS = (*STOP, SAVE)
SAME_KEYPRESS_SECONDS = 1
WORKER_GRACE_SECONDS = 30  # after SIGTERM; schedulers kill after about the same time
# A checkpoint file: torch's bytes, then this marker, then the SHA-256 of torch's bytes.
MARK = b"\nscalr-training "
END_BYTES = len(MARK) + hashlib.sha256().digest_size
CHUNK_BYTES = 2**20


class StoppedError(ScalrError):
    """A signal stopped the training, after a checkpoint was written."""

    exit_code = 128 + signal.SIGTERM
    of_all_processes = True


class Signals:
    """A context that records signals, for the training loop to act on after its step.

    Signals may arrive twice: a scheduler signals all processes, and torchrun passes on the signals that it receives.
    Only a second Ctrl-C of the user acts at once.
    """

    def __init__(self) -> None:
        self.save = self.stop = False

    def __enter__(self) -> Signals:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python handles signals in no other thread
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if number == SAVE:
            self.save = True
            return
        if not self.stop:
            self.stop, self._stopped_at = True, time.monotonic()
            if process_index() == 0:
                logger.warning("%s: a checkpoint is written after this step", signal.Signals(number).name)
        elif number == signal.SIGINT and time.monotonic() - self._stopped_at > SAME_KEYPRESS_SECONDS:
            raise KeyboardInterrupt


@contextmanager
def starting_workers() -> Iterator[None]:
    """Block signals while a loader's workers are started; each worker unblocks them once it has its own handlers.

    A worker inherits the blocked state. Without it, a signal would end a worker that is still importing.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # else the first worker starts it, which unblocks signals again
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_trainer(_: int = 0) -> None:
    """Ignore signals in a loader's workers, which schedulers and terminals send to all processes, since the trainer
    still needs their samples.
    """
    for number in (signal.SIGINT, SAVE):
        signal.signal(number, signal.SIG_IGN)
    # Not ignored for ever: a process that ends sends this signal to its workers and waits for them.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # `starting_workers` has blocked them


@dataclass
class Checkpoints:
    """The latest checkpoint of a training and the one before it; files are replaced by renaming.

    A file holds the SHA-256 of its bytes, so that a file that was cut off or altered is never used. The digest is
    computed while the file is written and takes about one second per gigabyte. At any moment at least one of the two
    files exists and is complete.

    Args:
        path: of the latest checkpoint.
        minutes: between two checkpoints.
        record: what the training depends on; the checkpoint of another training is refused.
    """

    path: Path
    minutes: float
    record: RunRecord
    _written: float = field(default_factory=time.monotonic, repr=False)
    _keeps_last: bool = field(default=True, repr=False)  # as the one before, when the next is written

    @property
    def before(self) -> Path:
        """Path of the checkpoint before the latest."""
        return _before(self.path)

    @property
    def due(self) -> bool:
        return time.monotonic() - self._written >= 60 * self.minutes

    def save(self, state: dict[str, Any]) -> None:
        """Write a state of tensors and plain values.

        Raises:
            StudentError: the file cannot be written; the latest checkpoint still exists.
        """
        _remove_leftovers(self.path)
        keep = self.before if self._keeps_last else None
        then = "then run the same command with --resume: what is there stays"
        aside = written_aside(self.path, StudentError, keep=keep, then=then)
        with aside as temporary, temporary.open("wb") as file:
            hashed = _Hashed(file)
            torch.save({"settings": self.record.settings, **state}, hashed)
            file.write(MARK + hashed.sha256.digest())
        self._written, self._keeps_last = time.monotonic(), True

    def remove(self) -> None:
        """Remove both checkpoints, when the training has finished."""
        _remove_leftovers(self.path)
        for each in checkpoints_at(self.path):
            each.unlink(missing_ok=True)

    def load(self) -> dict[str, Any]:
        """The state that `save` was given, on the CPU.

        If the latest file is damaged, all processes of the training use the one before, with a warning.

        Raises:
            StudentError: both files are damaged, or the checkpoint is another training's.
        """
        path = self._soundest()
        with explained(path, StudentError, missing="Start without --resume."):
            state = torch.load(path, map_location="cpu", weights_only=True)
        self.record.require_same(state["settings"], path)
        return state

    def _soundest(self) -> Path:
        """The latest file if it is undamaged, else the one before."""
        of_last = _damage_seen_by_any(self.path)
        if not of_last:
            return self.path
        of_before = _damage_seen_by_any(self.before)
        if of_before:
            raise StudentError(
                f"no checkpoint can be resumed: this one {of_last}, and the one before, {self.before.name},"
                f" {of_before}",
                where=self.path,
                fix="Remove both files to start again, or choose another --out.",
            )
        logger.warning("%s %s: continuing from the previous checkpoint, %s", self.path, of_last, self.before)
        self._keeps_last = False  # it would replace the undamaged one
        return self.before


def checkpoints_at(path: Path) -> list[Path]:
    """The existing files among the latest checkpoint, at `path`, and the one before."""
    return [each for each in (path, _before(path)) if each.exists()]


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}.before{path.suffix}")


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of processes that were killed while writing; each is as large as a checkpoint."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)


class _Hashed:
    """A file that torch writes to, with the SHA-256 of the written bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _damage_seen_by_any(path: Path) -> str:
    """The damage of a checkpoint that any of the processes sees; empty if none does."""
    return next(filter(None, gathered([_damage(path)])), "")


def _damage(path: Path) -> str:
    """The damage of a checkpoint's bytes; empty if there is none."""
    sha256 = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - END_BYTES
            while left > 0 and (data := file.read(min(left, CHUNK_BYTES))):
                sha256.update(data)
                left -= len(data)
            end = file.read()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({first_line(error)})"
    if not end.startswith(MARK):
        return "was cut off, or is not a checkpoint of a training"
    return "" if end == MARK + sha256.digest() else "is damaged (its content has another SHA-256 than it says)"
