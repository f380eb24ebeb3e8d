"""The folder that predictions are written to: with which settings, and which scans are finished.

predict.json   the settings, written before the first scan
classes.json   index, name, id and colour of each class
scans.jsonl    one line for each finished scan, added when all its files are complete
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from ..checkpoint_files import shortened, write_bytes
from ..errors import ScalrError
from ..extract.intensity import IntensityStatistics
from ..json_text import json_text
from ..settings import CountOrZero, at_least, checked, up_to
from .scan_list import FINISHED, RECORD, FileState, ScanFile

CLASSES = "classes.json"
FORMAT = "scalr-predictions-1"
LEFTOVER = re.compile(r"\..+\.(label|npy|parquet|zarr|ply|png|html|json|jsonl)\.\d+")
START_AGAIN = "Choose another --out, or remove this folder."
Stamp = Annotated[int, at_least(-(2**63)), up_to(2**63 - 1)]


@dataclass(frozen=True)
class FinishedScan:
    """A scan whose files are complete, and the state of its own file when it was read."""

    scan: str  # path
    name: str
    state: tuple[Stamp, Stamp] | None
    points: CountOrZero
    by_class: tuple[CountOrZero, ...]


class PredictionFolder:
    """A folder, and what earlier runs left in it.

    Attributes:
        record: what `predict.json` says; None in a folder without a finished scan.

    Raises:
        ScalrError: other files are in the folder, or those of an earlier run are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        record = self._read_record()
        self._finished = {each.scan: each for each in self._read_finished()} if record else {}
        self.record = record if self._finished else None
        self._remove_leftovers()

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Refuse to mix results of different settings.

        Raises:
            ScalrError: a setting of the finished scans differs.
        """
        before = self.record["settings"] if self.record else {}
        for name, value in json.loads(json_text(settings)).items():
            if self.record and before.get(name) != value:
                raise ScalrError(
                    f"the results in this folder were made with {name} {before.get(name)}, and now {name} is {value}",
                    where=self.path,
                    fix="Use the same settings to continue, or choose another --out.",
                )

    def begin(self, record: Mapping[str, Any], legend: Sequence[dict]) -> None:
        """Before the first scan is finished, write what holds for all scans.

        Raises:
            ScalrError: the folder cannot be written.
        """
        if self.record is None:
            if legend:
                write_bytes(self.path / CLASSES, f"{json_text(legend, indent=2)}\n".encode())
            self.record = {"format": FORMAT, **record}
            write_bytes(self.path / RECORD, f"{json_text(self.record, indent=2)}\n".encode())

    def finished(self, scan: ScanFile, endings: tuple[str, ...]) -> FinishedScan | None:
        """What is known of a scan whose results are complete and whose file has not changed since."""
        known, state = self._finished.get(str(scan.path)), scan.state()
        if known is None or state is None or (known.name, known.state) != (scan.name, state):
            return None
        is_complete = all((self.path / f"{scan.name}{ending}").exists() for ending in endings)
        return known if is_complete else None

    def add(self, scan: ScanFile, state: FileState | None, points: int, by_class: list[int]) -> FinishedScan:
        """Note that the files of a scan are complete; `state` is that of its own file before it was read."""
        finished = FinishedScan(str(scan.path), scan.name, state, points, tuple(by_class))
        with (self.path / FINISHED).open("a") as file:
            file.write(f"{json.dumps(asdict(finished))}\n")
            file.flush()
            os.fsync(file.fileno())
        return finished

    def _read_record(self) -> dict | None:
        path = self.path / RECORD
        if not path.exists():
            # Names that begin with a dot are of the folder's lock.
            names = [each.name for each in self.path.iterdir()]
            others = [name for name in names if name != CLASSES and not name.startswith(".")]
            if others:
                raise ScalrError(
                    f"the folder has files that 'scalr predict' did not write ({others[0]})",
                    where=self.path,
                    fix="Choose a new folder as --out.",
                )
            return None
        try:
            record = json.loads(path.read_text())
            if record["format"] != FORMAT or not isinstance(record["settings"], dict):
                raise ValueError(f"its format is {record['format']!r}")
            Path(record["root"]), IntensityStatistics(**record["intensity"])
        except (ValueError, KeyError, TypeError) as error:
            raise ScalrError(
                f"the file is not a record of 'scalr predict' ({error})", where=path, fix=START_AGAIN
            ) from None
        return record

    def _remove_leftovers(self) -> None:
        """Remove files and zarr folders that a killed run was writing, under names of their own."""
        for parent, folders, names in os.walk(self.path):
            for name in filter(LEFTOVER.fullmatch, [*folders, *names]):
                path = Path(parent, name)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            folders[:] = [name for name in folders if not name.endswith(".zarr")]

    def _read_finished(self) -> list[FinishedScan]:
        """All finished scans; a last line that was cut when a run was killed is removed."""
        path = self.path / FINISHED
        content = path.read_bytes() if path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        if complete != content:
            write_bytes(path, complete)
        try:
            finished = [_finished_scan(json.loads(line)) for line in complete.decode().splitlines()]
            if len({len(each.by_class) for each in finished}) > 1:
                raise ValueError("scans have different numbers of classes")
        except (ValueError, TypeError, KeyError, ScalrError) as error:
            raise ScalrError(
                f"the file is not a list of finished scans ({shortened(error)})", where=path, fix=START_AGAIN
            ) from None
        return finished


def _finished_scan(values: Mapping[str, Any]) -> FinishedScan:
    kinds = get_type_hints(FinishedScan, include_extras=True)
    return FinishedScan(**{name: checked(values[name], kind, name) for name, kind in kinds.items()})
