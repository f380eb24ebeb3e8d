"""Runs side by side, with what the papers report for the same setting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from .published import PUBLISHED
from .result import read_result


def compare(folders: Sequence[Path]) -> str:
    """A table in Markdown for each setting among the runs: their figures, and the published ones.

    A run that departs from the published protocol is marked, and the departures are listed below its table.

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
    setting = _setting_of(runs[0][1])
    published = PUBLISHED.get(setting, {})
    columns = list(dict.fromkeys(name for _, result in runs for name in result["figures"]))
    lines = [f"## {setting}", "", f"| run | {' | '.join(columns)} | 95 % interval |", "|---" * (len(columns) + 2) + "|"]
    notes = []
    for folder, result in runs:
        mark = ""
        if result["departures"]:
            notes.append("; ".join(result["departures"]))
            mark = f" ({len(notes)})"
        figures = {name: None if value is None else 100 * value for name, value in result["figures"].items()}
        interval = " to ".join(f"{100 * value:.1f}" for value in result["interval_95"] or [])
        lines.append(_row(f"{folder}{mark}", columns, figures, interval))
    lines += [_row(f"{who}, published", columns, figures, "") for who, figures in published.items()]
    if notes:
        lines += ["", *(f"({number}) not as published: {note}" for number, note in enumerate(notes, start=1))]
    return "\n".join(lines)


def _row(name: str, columns: Sequence[str], figures: dict[str, float | None], interval: str) -> str:
    values = ["–" if figures.get(column) is None else f"{figures[column]:.2f}" for column in columns]
    return f"| {name} | {' | '.join(values)} | {interval or '–'} |"
