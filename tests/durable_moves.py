"""What would be left of files that are moved into place, should the power fail at any moment."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest


class DurableMoves:
    """Watches fsync and rename in the main thread, where those of our own are made; zarr's are made in its threads.

    Files are told by their inodes, which they keep when they are moved.

    Attributes:
        targets: where something was moved to, in that order; what goes to `ignored` is being thrown away.
        complaints: moves of what had not been flushed since it was written, and moves before which the folder of the
            move before had not been flushed.
    """

    def __init__(self, patch: pytest.MonkeyPatch, ignored: Path | None = None) -> None:
        self.targets: list[Path] = []
        self.complaints: list[str] = []
        self._ignored, self._flushed, self._waiting = ignored, {}, None
        patch.setattr(os, "fsync", self._fsync_after(os.fsync))
        for name in ("rename", "replace"):
            patch.setattr(os, name, self._seen(getattr(os, name)))

    @property
    def unflushed_folder(self) -> Path | None:
        """The folder of the last move, if it has not been flushed since."""
        return self._waiting

    def _fsync_after(self, real):
        def call(descriptor):
            real(descriptor)
            status = os.fstat(descriptor)
            self._flushed[status.st_ino] = (status.st_size, status.st_mtime_ns)
            if self._waiting is not None and self._waiting.stat().st_ino == status.st_ino:
                self._waiting = None

        return call

    def _seen(self, real):
        def call(source, target):
            source, target = Path(source), Path(target)
            if threading.current_thread() is threading.main_thread() and not self._is_ignored(target):
                self._look_at(source, target)
            real(source, target)

        return call

    def _is_ignored(self, target: Path) -> bool:
        return self._ignored is not None and target.is_relative_to(self._ignored)

    def _look_at(self, source: Path, target: Path) -> None:
        if self._waiting is not None:
            self.complaints.append(f"{target} came before {self._waiting} was flushed")
        for path in [source, *source.rglob("*")]:
            status = path.stat()
            if self._flushed.get(status.st_ino) != (status.st_size, status.st_mtime_ns):
                self.complaints.append(f"{target} came before {path} was flushed")
        self.targets.append(target)
        self._waiting = target.parent
