"""The log of a training: one row per step in `log.csv`, and the same values for TensorBoard."""

from __future__ import annotations

import csv
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StudentError, remedy

FIELDS = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "points_per_second", "data_wait")


class TrainingLog:
    """Appends to `log.csv` and to TensorBoard event files in the same folder.

    Args:
        folder: created if it does not exist.
        more_fields: columns besides FIELDS; rows may leave them out.
        steps: number of steps to keep of an existing log; a resumed training makes the later ones again.

    Raises:
        StudentError: the folder cannot be written.
    """

    def __init__(self, folder: Path, more_fields: Sequence[str] = (), steps: int = 0) -> None:
        self._folder, path, self._fields = folder, folder / "log.csv", (*FIELDS, *more_fields)
        with self._errors_said():
            folder.mkdir(parents=True, exist_ok=True)
            kept = [row for row in read_log(path) if int(row["step"]) <= steps] if steps else []
            aside = path.with_name(".log.csv")
            self._file = aside.open("w", newline="")
            self._rows = csv.DictWriter(self._file, self._fields, extrasaction="ignore")
            self._rows.writeheader()
            self._rows.writerows(kept)
            self._file.flush()
            os.replace(aside, path)
            self._events = _Events(folder, purge_step=steps + 1 if steps else None)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row and flush it, so that a killed run keeps its curve.

        Raises:
            StudentError: the row cannot be written, for example on a full disk.
        """
        with self._errors_said():
            self._rows.writerow(row)
            self._file.flush()
            self._events.write(
                row["step"], {name: value for name, value in row.items() if name not in ("step", "epoch")}
            )

    def close(self) -> None:
        for each in (self._file, self._events):
            with suppress(OSError):  # rows have been flushed before; a failure was an error then
                each.close()

    @contextmanager
    def _errors_said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StudentError(
                f"the log cannot be written ({error.strerror})",
                where=self._folder,
                fix=f"{remedy(error, 'Make room there')}, or choose another --out.",
            ) from None


class _Events:
    """A file of events for TensorBoard.

    TensorBoard's own writers work in a thread, which on a full disk ends with a traceback.

    Args:
        purge_step: events of earlier files are valid up to this step; None if there are no earlier files.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        # Imported here, because machines that only use trained students need not have tensorboard.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("xb"))
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=self._summary(value=values))

    def close(self) -> None:
        self._records.close()

    def _add(self, **content: object) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a `log.csv`, without damaged ones such as a last row that was cut off; empty if there is no file.

    Raises:
        StudentError: the file exists and cannot be read.
    """
    try:
        with path.open(newline="", errors="replace") as file:
            return [row for row in csv.DictReader(file) if _is_whole(row)]
    except FileNotFoundError:
        return []
    except (OSError, csv.Error) as error:
        raise StudentError(
            f"the log cannot be read ({error})",
            where=path,
            fix="Remove the log: the run does not need it.",
        ) from None


def _is_whole(row: Mapping[str, str | None]) -> bool:
    try:
        return int(row["step"]) > 0 and math.isfinite(float(row["loss"])) and None not in row.values()
    except (KeyError, ValueError, TypeError):
        return False
