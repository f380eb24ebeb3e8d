"""Runs side by side, with what the papers report, and in what the runs are of another setting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from .published import Published, nearest, published_for
from .result import read_result


def compare(folders: Sequence[Path]) -> str:
    """A table in Markdown for each setting among the runs: their figures, and the published ones.

    Of each paper, the row that comes nearest to a run is shown. Below the table stands for each run in what it is not
    of the setting of each row shown; a row that is of no run's setting says so, too.

    Raises:
        StudentError: a folder without a result.
    """
    runs = [(folder, read_result(folder)) for folder in folders]
    by_setting = sorted(runs, key=lambda run: _setting_of(run[1]))
    groups = [list(group) for _, group in groupby(by_setting, key=lambda run: _setting_of(run[1]))]
    return "\n\n".join(_table(group) for group in groups)


def _setting_of(result: dict) -> str:
    return result["setting"] or result["title"]


def _table(runs: Sequence[tuple[Path, dict]]) -> str:
    results = [result for _, result in runs]
    published = _shown(results)
    columns = list(dict.fromkeys(name for result in results for name in result["figures"]))
    notes: list[str] = []
    rows = []
    for folder, result in runs:
        figures = {name: None if value is None else 100 * value for name, value in result["figures"].items()}
        interval = " to ".join(f"{100 * value:.1f}" for value in result["interval_95"] or [])
        rows.append(_row(f"{folder}{_marks(notes, _of_run(result, published))}", columns, figures, interval))
    for row in published:
        matched = any(not _otherwise(result, row) for result in results)
        name = f"{row.name}, {'published' if matched else 'published for another setting'}"
        rows.append(_row(f"{name}{_marks(notes, _of_source(row))}", columns, row.figures, ""))
    head = [f"| run | {' | '.join(columns)} | 95 % interval |", "|---" * (len(columns) + 2) + "|"]
    below = ["", *(f"({number}) {note}" for number, note in enumerate(notes, start=1))] if notes else []
    return "\n".join([f"## {_setting_of(results[0])}", "", *head, *rows, *below])


def _marks(notes: list[str], more: Sequence[str]) -> str:
    """Add to the notes below a table; the numbers of what was added."""
    notes += more
    return "".join(f" ({number})" for number in range(len(notes) - len(more) + 1, len(notes) + 1))


def _shown(results: Sequence[dict]) -> list[Published]:
    """Of each paper, the rows of a run's setting as far as they say it, or the nearest; and others of their setting."""
    rows = published_for(results[0]["setting"])
    settings = []
    for who in dict.fromkeys(row.who for row in rows):
        theirs = [row for row in rows if row.who == who]
        for result in results:
            found = result["model"], result["protocol"]
            fitting = [row for row in theirs if not row.differences(*found).of_run] or [nearest(theirs, *found)]
            settings += [(row.who, row.model, row.protocol) for row in fitting]
    return [row for row in rows if (row.who, row.model, row.protocol) in settings]


def _of_run(result: dict, published: Sequence[Published]) -> list[str]:
    """In what a run is not of the setting of each row; its departures, where nothing is published."""
    if not published:
        return [f"not as published: {'; '.join(result['departures'])}"] if result["departures"] else []
    otherwise = {row.name: _otherwise(result, row) for row in published}
    return [f"differs from {name} in {found}" for name, found in otherwise.items() if found]


def _of_source(row: Published) -> list[str]:
    unsaid = row.differences({}, {}).unsaid
    return [f"not said there: {', '.join(unsaid)}"] if unsaid else []


def _otherwise(result: dict, row: Published) -> str:
    """Empty where the run is of the row's setting, as far as the source says it."""
    return row.otherwise(result["model"], result["protocol"], result["departures_of_protocol"])


def _row(name: str, columns: Sequence[str], figures: dict[str, float | None], interval: str) -> str:
    values = ["–" if figures.get(column) is None else f"{figures[column]:.2f}" for column in columns]
    return f"| {name} | {' | '.join(values)} | {interval or '–'} |"
