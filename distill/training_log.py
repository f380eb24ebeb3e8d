"""What one watches of a training: a row a step in `log.csv`, and the same in TensorBoard."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import StudentError

FIELDS = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "points_per_second", "data_wait")


class TrainingLog:
    """Appends to `log.csv` and to TensorBoard event files in the same folder.

    Args:
        folder: made where it is not there.
        more_fields: columns besides FIELDS; a row may leave them out.
        steps: that are kept of a log that is there, as a resumed training makes the others again.

    Raises:
        StudentError: the folder cannot be written.
    """

    def __init__(self, folder: Path, more_fields: Sequence[str] = (), steps: int = 0) -> None:
        # Imported here: a machine that only uses trained students need not have it.
        from torch.utils.tensorboard import SummaryWriter

        path, self._fields = folder / "log.csv", (*FIELDS, *more_fields)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [row for row in read_log(path) if int(row["step"]) <= steps] if steps else []
            aside = path.with_name(".log.csv")
            self._file = aside.open("w", newline="")
            self._rows = csv.DictWriter(self._file, self._fields, extrasaction="ignore")
            self._rows.writeheader()
            self._rows.writerows(kept)
            self._file.flush()
            os.replace(aside, path)
            self._tensorboard = SummaryWriter(str(folder), purge_step=steps + 1 if steps else None)
        except OSError as error:
            raise StudentError(
                f"the log cannot be written ({error.strerror})", where=folder, fix="Choose another --out."
            ) from None

    def write(self, row: Mapping[str, float]) -> None:
        self._rows.writerow(row)
        self._file.flush()  # so that a killed run keeps its curve
        for name, value in row.items():
            if name not in ("step", "epoch"):
                self._tensorboard.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a `log.csv`; those that are damaged, such as a last one that was cut off, are left out.

    Raises:
        StudentError: the file is there and cannot be read.
    """
    try:
        with path.open(newline="", errors="replace") as file:
            return [row for row in csv.DictReader(file) if _is_whole(row)]
    except FileNotFoundError:
        return []
    except (OSError, csv.Error) as error:
        raise StudentError(
            f"the log cannot be read ({error})", where=path, fix="Remove it: the run does not need it."
        ) from None


def _is_whole(row: Mapping[str, str | None]) -> bool:
    try:
        return int(row["step"]) > 0 and math.isfinite(float(row["loss"])) and None not in row.values()
    except (KeyError, ValueError, TypeError):
        return False
