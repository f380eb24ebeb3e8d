"""Training that is killed and goes on: checkpoints, and the signals that ask for one."""

from __future__ import annotations

import logging
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoint_files import explained, written_aside
from ..errors import ScalrError, StudentError
from ..folder_lock import Lock
from .run_record import RunRecord

logger = logging.getLogger(__name__)

FORMAT = "scalr-training"
STOP = (signal.SIGTERM, signal.SIGINT)  # what schedulers and people send before they kill
SAVE = signal.SIGUSR1  # what schedulers can be told to send some time before the end
SAME_KEYPRESS_SECONDS = 1
WORKER_GRACE_SECONDS = 30  # after SIGTERM; schedulers kill about as late


class StoppedError(ScalrError):
    """A training that a signal ended after its checkpoint was written."""

    exit_code = 128 + signal.SIGTERM


class Signals:
    """Notes signals while used as a context, for the training loop to act on after its step.

    They may come twice: a scheduler signals all processes, and torchrun passes on what it gets itself. Only a person's
    second Ctrl-C acts at once.
    """

    def __init__(self) -> None:
        self.save = self.stop = False

    def __enter__(self) -> Signals:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            self._before = {number: signal.signal(number, self._note) for number in (*STOP, SAVE)}
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
            logger.warning("%s: a checkpoint is written after this step", signal.Signals(number).name)
        elif number == signal.SIGINT and time.monotonic() - self._stopped_at > SAME_KEYPRESS_SECONDS:
            raise KeyboardInterrupt


def leave_signals_to_the_trainer(_: int = 0) -> None:
    """In a loader's worker: schedulers and terminals signal all processes, but the trainer still needs its samples."""
    for number in (signal.SIGINT, SAVE):
        signal.signal(number, signal.SIG_IGN)
    # Not ignored for good: a process that ends waits for workers that it has sent this.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_SECONDS))


@dataclass
class Checkpoints:
    """Where a training is, in a file that is replaced as a whole: the last one written stays until the next is there.

    Args:
        path: of the file.
        minutes: between two of them.
        record: what the training depends on; the checkpoint of another one is refused.
        lock: of the folder; None in processes that do not write.
    """

    path: Path
    minutes: float
    record: RunRecord
    lock: Lock | None = None
    _written: float = field(default_factory=time.monotonic, repr=False)

    @property
    def due(self) -> bool:
        return time.monotonic() - self._written >= 60 * self.minutes

    def save(self, state: dict[str, Any]) -> None:
        """Write tensors and plain values.

        Raises:
            StudentError: the file cannot be written; the one before is still there.
        """
        if self.lock is not None:
            self.lock.require()
        self._remove_leftovers()
        with written_aside(self.path, StudentError) as temporary:
            torch.save({"format": FORMAT, "settings": self.record.settings, **state}, temporary)
        self._written = time.monotonic()

    def remove(self) -> None:
        """When the training is finished."""
        self._remove_leftovers()
        self.path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """What processes that were killed while they wrote have left beside the file: each as large as it is."""
        for leftover in self.path.parent.glob(f".{self.path.name}.*"):
            leftover.unlink(missing_ok=True)

    def load(self) -> dict[str, Any]:
        """What `save` was given, on the CPU.

        Raises:
            StudentError: a damaged file, or the checkpoint of another training.
        """
        with explained(self.path, StudentError, missing="Start without --resume."):
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise StudentError(
                "not a checkpoint of a training", where=self.path, fix="Choose another --out, or remove it."
            )
        self.record.require_same(state["settings"], self.path)
        return state
