"""Runs beside the published results of their settings, and how each run differs from the nearest setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from .published import published_for
from .published_result import Published, nearest, reasons_not_comparable, rows_of_setting
from .result import read_result


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, and the published results that stand beside it.

    Attributes:
        folder: of the run, as it was given.
        result: its result file.
        beside: rows of its setting, or the nearest row; empty if nothing is published for what was measured.
        has_their_setting: whether `beside` are rows of its setting.
    """

    folder: Path
    result: dict[str, Any]
    beside: Sequence[Published]
    has_their_setting: bool

    @property
    def measured(self) -> str:
        """What was measured, by the name of its setting or, without one, its title."""
        return self.result["setting"] or self.result["title"]


def compare(folders: Sequence[Path]) -> str:
    """A table in Markdown for each thing that was measured: runs, then the published results of their setting.

    A run whose setting no source has is followed by the nearest row, and a note below the table says how the run
    differs from it. The last rows are what other papers report for the same evaluation.

    Raises:
        StudentError: a folder without a result.
    """
    runs = sorted(map(_placed, folders), key=lambda run: run.measured)
    return "\n\n".join(_table(list(group)) for _, group in groupby(runs, key=lambda run: run.measured))


def _placed(folder: Path) -> Run:
    result = read_result(folder)
    rows = published_for(result["setting"])
    setting = result["model"], result["protocol"]
    same = [] if result["departures_of_protocol"] else rows_of_setting(rows, *setting)
    closest = [nearest(rows, *setting)] if rows else []
    return Run(folder=folder, result=result, beside=same or closest, has_their_setting=bool(same))


def _table(runs: Sequence[Run]) -> str:
    columns = list(dict.fromkeys(name for run in runs for name in run.result["figures"]))
    notes: list[str] = []
    rows = []
    for _, group in groupby(sorted(runs, key=_place), key=_place):
        together = list(group)
        rows += [_row_of_run(run, columns, notes) for run in together]
        what = "the same setting" if together[0].has_their_setting else "the nearest setting"
        rows += [_row_of_source(row, what, columns, notes) for row in together[0].beside]
    rows += [_row_of_source(row, "another setting", columns, []) for row in _of_other_papers(runs)]
    head = [f"| run | {' | '.join(columns)} | 95 % interval |", "|---" * (len(columns) + 2) + "|"]
    below = ["", *(f"({number}) {note}" for number, note in enumerate(notes, start=1))] if notes else []
    return "\n".join([f"## {runs[0].measured}", "", *head, *rows, *below])


def _place(run: Run) -> tuple[bool, list[str]]:
    """Runs of one place in the table stand together, those that have a published setting first."""
    return not run.has_their_setting, [row.name for row in run.beside]


def _of_other_papers(runs: Sequence[Run]) -> list[Published]:
    """For each method that stands beside no run, the row nearest to the first run."""
    rows = published_for(runs[0].result["setting"])
    shown = {row.who for run in runs for row in run.beside}
    others = [row for row in rows if row.who not in shown]
    setting = runs[0].result["model"], runs[0].result["protocol"]
    return [
        nearest([row for row in others if row.who == who], *setting) for who in dict.fromkeys(row.who for row in others)
    ]


def _row_of_run(run: Run, columns: Sequence[str], notes: list[str]) -> str:
    figures = {name: None if value is None else 100 * value for name, value in run.result["figures"].items()}
    interval = " to ".join(f"{100 * value:.1f}" for value in run.result["interval_95"] or [])
    return _row(f"{run.folder}{_mark(notes, _note_on_run(run))}", columns, figures, interval)


def _note_on_run(run: Run) -> str:
    """Why and how the run is not of a published setting; empty if it is."""
    model, protocol = run.result["model"], run.result["protocol"]
    reasons = reasons_not_comparable(model, protocol)
    parts = [f"Not comparable with published results: {', '.join(reasons)}."] if reasons else []
    deviations = run.result["departures_of_protocol"]
    if not run.beside:
        parts.append("No result is published for this evaluation.")
        parts += [f"Deviations from the published protocol: {'; '.join(deviations)}."] if deviations else []
    elif not run.has_their_setting:
        row = run.beside[0]
        otherwise = row.otherwise(model, protocol, deviations)
        parts.append("No published result has this setting.")
        parts += [f"The run differs from {row.name} in {otherwise}."] if otherwise else []
    return " ".join(parts)


def _row_of_source(row: Published, what: str, columns: Sequence[str], notes: list[str]) -> str:
    note = f"The source does not say: {', '.join(row.unsaid)}." if row.unsaid else ""
    return _row(f"{row.name}, published for {what}{_mark(notes, note)}", columns, row.figures, "", row.std)


def _mark(notes: list[str], note: str) -> str:
    """Add a note below the table; its number. Without a note, nothing."""
    if not note:
        return ""
    if note not in notes:
        notes.append(note)
    return f" ({notes.index(note) + 1})"


def _row(
    name: str, columns: Sequence[str], figures: dict[str, float | None], interval: str, std: float | None = None
) -> str:
    values = ["–" if figures.get(column) is None else f"{figures[column]:.2f}" for column in columns]
    if std is not None:
        values = [
            f"{value} ± {std:.1f}" if column == "mIoU" else value for column, value in zip(columns, values, strict=True)
        ]
    return f"| {name} | {' | '.join(values)} | {interval or '–'} |"
