"""One self-contained HTML page of a run: numbers, pictures, what it took. No external requests."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5d6673; --paper: #fff; --line: #d8dde3; --bar: #2f7d6b;
  --other: #b9c2cc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --dim: #9aa4b0; --paper: #14171a; --line: #333a42;
  --bar: #58b79f; --other: #56606b; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.dim { color: var(--dim); } .numbers { display: flex; flex-wrap: wrap; gap: 2.5rem; margin: 1.5rem 0; }
.numbers b { display: block; font-size: 2.2rem; line-height: 1.1; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
td.value, th.value { text-align: right; } td.bars { width: 40%; }
td.bars i { display: block; height: .45rem; margin: 2px 0; border-radius: 2px; background: var(--bar); }
td.bars i + i { background: var(--other); }
img { max-width: 100%; border-radius: 4px; background: #fff; } figure { margin: 0; }
figcaption { color: var(--dim); font-size: .9rem; } code { font-size: .9em; }
"""


@dataclass(frozen=True)
class Number:
    """A figure to be seen first."""

    value: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A part of the page; `body` is HTML."""

    title: str
    body: str


def write_report(path: Path, title: str, summary: str, numbers: Sequence[Number], sections: Sequence[Section]) -> None:
    """Write the page; `summary` is plain text."""
    figures = "".join(f"<div><b>{html.escape(n.value)}</b>{html.escape(n.meaning)}</div>" for n in numbers)
    parts = "".join(f"<h2>{html.escape(section.title)}</h2>{section.body}" for section in sections)
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f'<p class="dim">{html.escape(summary)}</p><div class="numbers">{figures}</div>{parts}</html>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table: first column text, the others right-aligned values."""
    head = _row("th", header)
    return f'<div class="scroll"><table>{head}{"".join(_row("td", row) for row in rows)}</table></div>'


def class_table(class_names: Sequence[str], points: Sequence[int], iou: Sequence[float], other: Sequence[float]) -> str:
    """IoU by class of a student (first bar) beside another's (second bar); '–' where a class is absent."""
    rows = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="value">{count:,}</td><td class="value">{percent(ours)}</td>'
        f'<td class="value">{percent(theirs)}</td><td class="bars">{_bar(ours)}{_bar(theirs)}</td></tr>'
        for name, count, ours, theirs in zip(class_names, points, iou, other, strict=True)
    )
    head = (
        '<tr><th>class</th><th class="value">points</th><th class="value">distilled</th>'
        '<th class="value">undistilled</th><th></th></tr>'
    )
    return f'<div class="scroll"><table>{head}{rows}</table></div>'


def percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"


def overlay_figure(image: np.ndarray, pixel: np.ndarray, depth_m: np.ndarray) -> Figure:
    """The image (H, W, 3) with each pair's pixel (R, 2) coloured by its depth (R,)."""
    figure = Figure(figsize=(8, 7 * image.shape[0] / image.shape[1]), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(image)
    dots = axes.scatter(
        pixel[:, 1] + 0.5, pixel[:, 0] + 0.5, c=depth_m, s=1.5, cmap="turbo", norm=matplotlib.colors.LogNorm(2, 80)
    )
    bar = figure.colorbar(dots, ax=axes, label="depth [m]", ticks=[2, 5, 10, 20, 40, 80], format="%d")
    bar.minorticks_off()
    axes.set_axis_off()
    return figure


def loss_figure(losses: Sequence[float]) -> Figure:
    """The similarity loss of every step, and its running mean."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.add_subplot()
    window = max(1, len(losses) // 25)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(np.arange(1, len(losses) + 1), losses, color="#b9c2cc", linewidth=0.8)
    axes.plot(np.arange(len(smooth)) + window, smooth, color="#2f7d6b", linewidth=2)
    axes.set(xlabel="step", ylabel="similarity loss")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def picture(figure: Figure, caption: str) -> str:
    """A figure as HTML, its PNG inlined."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _row(cell: str, values: Sequence[str]) -> str:
    first, *rest = (html.escape(value) for value in values)
    return f"<tr><{cell}>{first}</{cell}>" + "".join(f'<{cell} class="value">{v}</{cell}>' for v in rest) + "</tr>"


def _bar(value: float) -> str:
    return f'<i style="width:{0 if math.isnan(value) else 100 * value:.1f}%"></i>'
