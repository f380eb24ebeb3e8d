"""The record of a run: the settings that its result depends on, in `config.yaml` from the beginning of the run.

A command that resumes a run, or reports it as finished, compares its own settings with the record. The record also has
the use of the machine. It may change between two starts; the log then says that the last bits may differ.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ..checkpoint_files import shortened, written_aside
from ..errors import StudentError, remedy
from ..json_text import sha256_of_values
from .processes import num_processes

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
MACHINE, DIGEST = "machine", "settings_sha256"  # entries of the file beside the settings
# In `machine`, because the targets of a repaired block may differ in their last bits: an unfinished run may continue
# with them, but a finished student was not trained on them.
TARGETS = "targets"
STATISTICS = "statistics"  # of the teachers, likewise; a run's checkpoint has those that it began with
LISTED_DIFFERENCES = 3
LONGEST_VALUE, LONGEST_DIGEST = 60, 12  # characters, in an error
SHA256 = re.compile(r"[0-9a-f]{64}")
BEGIN_ANEW = "Remove the file to start with the settings of this command, or choose another --out."
NOT_SET = "not set"
MACHINE_CHANGED = (
    "the run continues on another machine or with other processes (%s): results may differ in the last bits"
)
CHANGED = {
    TARGETS: "targets were extracted again since the run began (%s): the run continues with the new targets",
    STATISTICS: "statistics were computed again since the run began (%s): the run continues with those of"
    " its checkpoint, if any",
}


class RunRecord(NamedTuple):
    """What a run depends on, and what may change between its starts; plain JSON values."""

    settings: dict[str, Any]
    machine: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """The values as written: settings by name, machine, and a digest of the settings."""
        return {**self.settings, MACHINE: self.machine, DIGEST: sha256_of_values(self.settings)}

    def require_same(self, other: Mapping[str, Any], where: Path) -> None:
        """Refuse a file that was made with other settings.

        Args:
            other: the settings in the file.
            where: the file.

        Raises:
            StudentError: settings differ; it names the first ones with both values.
        """
        found = list(_differences(other, self.settings))
        if found:
            more = f"; and {len(found) - LISTED_DIFFERENCES} more" if len(found) > LISTED_DIFFERENCES else ""
            raise StudentError(
                f"the run was made with other settings: {'; '.join(found[:LISTED_DIFFERENCES])}{more}",
                where=where,
                fix="Use the settings that the run was started with, or choose another --out.",
            )

    def require_made_with(self, values: Any, where: Path) -> None:
        """Refuse a result whose record, `values`, is missing or has other settings.

        Raises:
            StudentError: the record is missing or differs.
        """
        theirs = record_of(values)
        if theirs is None:
            raise StudentError(
                "the file does not record the settings that it was made with", where=where, fix="Choose another --out."
            )
        require_kind(theirs.settings, self.settings["kind"], where)
        self.require_same(theirs.settings, where)
        ours, made_of = ({name: each.machine.get(name) for name in (TARGETS, STATISTICS)} for each in (self, theirs))
        RunRecord(ours, {}).require_same(made_of, where)

    def say_changes_of_machine(self, before: Mapping[str, Any]) -> None:
        """Log once how the use of the machine has changed, since sums are then computed in another order."""
        found: dict[str, list[str]] = {}
        for name in {**self.machine, **before}:
            of_name = _differences(before.get(name, NOT_SET), self.machine.get(name, NOT_SET), name)
            found.setdefault(CHANGED.get(name, MACHINE_CHANGED), []).extend(of_name)
        for message, differences in found.items():
            if differences:
                logger.warning(message, "; ".join(differences))


def require_kind(settings: Mapping[str, Any], kind: str, where: Path) -> None:
    """Refuse the settings of another command.

    Raises:
        StudentError: the settings are another command's.
    """
    if settings.get("kind") != kind:
        raise StudentError(
            f"this file is of a {_shown(settings.get('kind', NOT_SET))} run, not of a {kind} run",
            where=where,
            fix="Choose another --out.",
        )


def run_record(settings: Mapping[str, Any], device: torch.device, **machine: Any) -> RunRecord:
    """The record of a run on a device; `machine` has the other settings of the machine."""
    own = {
        "device": device.type,
        "processes": num_processes(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    return RunRecord(json.loads(json.dumps(settings)), {**own, **machine})


def write_record(folder: Path, record: RunRecord) -> None:
    """Write `config.yaml` into a run's folder.

    Raises:
        StudentError: the file cannot be written.
    """
    with written_aside(folder / CONFIG, StudentError) as temporary:
        temporary.write_text(yaml.safe_dump(record.values, sort_keys=False))


def read_record(folder: Path) -> RunRecord | None:
    """The record that `write_record` wrote; None if there is no such file.

    Raises:
        StudentError: the file cannot be read, was cut off, or was changed.
    """
    path = folder / CONFIG
    try:
        values = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
        raise StudentError(
            f"the run's configuration cannot be read ({shortened(error)})", where=path, fix=remedy(error, BEGIN_ANEW)
        ) from None
    record = record_of(values)
    if record is None:
        raise StudentError("the file was cut off or changed since the run wrote it", where=path, fix=BEGIN_ANEW)
    return record


def record_of(values: Any) -> RunRecord | None:
    """The record with these `values`; None if they are no record."""
    if not isinstance(values, Mapping) or not isinstance(values.get(MACHINE), Mapping):
        return None
    settings = {key: value for key, value in values.items() if key not in (MACHINE, DIGEST)}
    try:
        whole = sha256_of_values(settings) == values.get(DIGEST)
    except (TypeError, ValueError):  # values that JSON does not have, such as dates
        return None
    return RunRecord(settings, dict(values[MACHINE])) if whole else None


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Each difference, with the name of the value in nested settings."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**now, **before}:
            yield from _differences(before.get(key, NOT_SET), now.get(key, NOT_SET), f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(*pair, f"{name}[{number}]")
    elif before != now:
        yield f"{name} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    longest = LONGEST_DIGEST if SHA256.fullmatch(text) else LONGEST_VALUE
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
