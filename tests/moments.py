"""Moments in the life of a process that tests wait for, so that none hopes for one by sleeping.

A child that is at its moment says so, and waits until it is told to go on, or is killed.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")


class Child:
    """A process that runs `target(*arguments, Meeting)`."""

    def __init__(
        self, children: BaseContext, target: Callable, *arguments: object, stops: tuple[int, ...] = ()
    ) -> None:
        self._ours, theirs = children.Pipe()
        self.process: BaseProcess = children.Process(target=target, args=(*arguments, Meeting(theirs, stops)))
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for_a_moment(self) -> bool:
        """Whether it waits at a moment now; False where it has ended without reaching another."""
        wait([self._ours, self.process.sentinel])
        try:
            return self._ours.poll() and self._ours.recv() is not None
        except EOFError:
            return False

    def go_on(self) -> None:
        self._ours.send(None)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def end(self) -> int:
        """Its exit code."""
        self.process.join()
        return self.process.exitcode


class Meeting:
    """The child's end: counts what it comes across, and waits before those of the numbers `stops`."""

    def __init__(self, connection: Connection, stops: Sequence[int]) -> None:
        self._connection, self._stops, self._numbers = connection, stops, itertools.count()

    def pass_by(self) -> None:
        """Here is one more."""
        number = next(self._numbers)
        if number in self._stops:
            self._connection.send(number)
            self._connection.recv()

    def at_changes_below(self, folder: Path) -> Meeting:
        """From now on, each file or folder that is opened, made, renamed or removed below `folder` is one."""
        below = os.path.join(os.path.realpath(folder), "")

        def look(event: str, arguments: tuple) -> None:
            if event in CHANGES and isinstance(arguments[0], str | bytes | os.PathLike):
                path = os.fsdecode(arguments[0])
                if f"{path}/".startswith(below):
                    self.pass_by()

        sys.addaudithook(look)
        return self

    @property
    def passed(self) -> int:
        """How many there were."""
        return next(self._numbers)


@contextmanager
def passing_by_at_calls(owner: type, name: str, meeting: Meeting) -> Iterator[None]:
    """Each call of a method is a moment."""
    method = getattr(owner, name)

    def passed_by(*args: object, **options: object) -> object:
        meeting.pass_by()
        return method(*args, **options)

    setattr(owner, name, passed_by)
    try:
        yield
    finally:
        setattr(owner, name, method)
