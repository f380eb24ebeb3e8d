"""One self-contained HTML page about a run: scores, pictures, time and sizes. The page makes no external requests."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..checkpoint_files import write_bytes

INK_ON_LIGHT, INK_ON_DARK = "#1b1f24", "#e6e9ec"
WEBP_QUALITY = 85

# The page may use its own content only, and load nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5d6673; --paper: #fff; --line: #d8dde3; --bar: #2f7d6b;
  --other: #b9c2cc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --dim: #9aa4b0; --paper: #14171a; --line: #333a42;
  --bar: #58b79f; --other: #56606b; } }
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.dim { color: var(--dim); } .numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.5rem 0; }
.numbers b { display: block; font-size: 2.2rem; line-height: 1.1; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
td.value, th.value { text-align: right; } td.bars { width: 40%; min-width: 6rem; }
td.bars i { display: block; height: .45rem; margin: 2px 0; border-radius: 2px; background: var(--bar); }
td.bars i + i { background: var(--other); } code { font-size: .85em; overflow-wrap: anywhere; }
code span { display: inline-block; }
figure { margin: 0; } img { display: block; max-width: 100%; border-radius: 4px; }
img.paper { background: #fff; padding: .5rem; }
figcaption { color: var(--dim); font-size: .9rem; margin-top: .3rem; }
iframe { width: 100%; height: min(75vh, 44rem); border: 1px solid var(--line); border-radius: 4px; }
button { font: inherit; color: inherit; background: none; border: 1px solid var(--line); border-radius: 6px;
  padding: .3rem .7rem; cursor: pointer; } button:hover { border-color: var(--bar); }
@media (max-width: 40rem) { body { margin: 1rem auto; } td.bars { display: none; } iframe { height: 70vh; }
  td, th { padding-right: .5rem; font-size: .85rem; } }
"""


@dataclass(frozen=True)
class Number:
    """A measured value at the top of the page."""

    value: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A part of the page: title, explanation as plain text, and content as HTML."""

    title: str
    words: str
    body: str


def write_report(path: Path, title: str, summary: str, numbers: Sequence[Number], sections: Sequence[Section]) -> None:
    """Write the page; `summary` is plain text."""
    figures = "".join(f"<div><b>{html.escape(n.value)}</b>{html.escape(n.meaning)}</div>" for n in numbers)
    parts = "".join(
        f'<h2>{html.escape(section.title)}</h2><p class="dim">{html.escape(section.words)}</p>{section.body}'
        for section in sections
    )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f'<p class="dim">{html.escape(summary)}</p><div class="numbers">{figures}</div>{parts}</html>'
    )
    write_bytes(path, page.encode())


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, code: bool = False) -> str:
    """An HTML table: the first column is text, or code to be typed, the others are right-aligned values."""
    head, body = _row("th", header), "".join(_row("td", row, code=code) for row in rows)
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def class_table(class_names: Sequence[str], points: Sequence[int], iou: Sequence[float], other: Sequence[float]) -> str:
    """IoU by class of a student (first bar) and of another student (second bar); '–' for an absent class."""
    rows = "".join(
        f'<tr><td>{html.escape(name).replace("_", "_<wbr>")}</td><td class="value">{count:,}</td>'
        f'<td class="value">{percent(ours)}</td><td class="value">{percent(theirs)}</td>'
        f'<td class="bars">{_bar(ours)}{_bar(theirs)}</td></tr>'
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
    axes.plot(np.arange(1, len(losses) + 1), losses, color="#94a0ac", linewidth=0.8)
    axes.plot(np.arange(len(smooth)) + window, smooth, color="#2f9d85", linewidth=2)
    axes.set(xlabel="step", ylabel="similarity loss")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def drawing(draw: Callable[[], Figure], caption: str) -> str:
    """The figure that `draw` returns, as HTML for light and for dark paper."""
    light, dark = (_webp_on_paper(draw, ink) for ink in (INK_ON_LIGHT, INK_ON_DARK))
    source = f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
    return _figure(f'<picture>{source}<img alt="{html.escape(caption)}" src="{light}"></picture>', caption)


def photograph(path: Path, caption: str) -> str:
    """A picture from a file as HTML, on white paper."""
    with Image.open(path) as image, io.BytesIO() as buffer:
        image.convert("RGB").save(buffer, "webp", quality=WEBP_QUALITY)
        data = _data_uri("image/webp", buffer.getvalue())
    return _figure(f'<img class="paper" alt="{html.escape(caption)}" src="{data}">', caption)


def page_within(page: Path, caption: str) -> str:
    """A self-contained page as HTML, in a frame that can fill the screen."""
    source = html.escape(page.read_text(encoding="utf-8"))
    button = '<button type="button" onclick="this.previousElementSibling.requestFullscreen()">fill the screen</button>'
    frame = f'<iframe title="{html.escape(caption)}" allow="fullscreen" srcdoc="{source}"></iframe>'
    return _figure(frame + button, caption)


def _webp_on_paper(draw: Callable[[], Figure], ink: str) -> str:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context(dict.fromkeys(inked, ink)), io.BytesIO() as buffer:
        draw().savefig(buffer, format="webp", dpi=130, transparent=True, pil_kwargs={"quality": WEBP_QUALITY})
        return _data_uri("image/webp", buffer.getvalue())


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _row(cell: str, values: Sequence[str], *, code: bool = False) -> str:
    first, *rest = (html.escape(value) for value in values)
    others = "".join(f'<{cell} class="value">{value}</{cell}>' for value in rest)
    words = "".join(f"<span>{word}</span> " for word in first.split(" ")).rstrip()  # no line break within an option
    named = f"<code>{words}</code>" if code else f"<span>{first}</span>"
    return f"<tr><{cell}>{named}</{cell}>{others}</tr>"


def _bar(value: float) -> str:
    return f'<i style="width:{0 if math.isnan(value) else 100 * value:.1f}%"></i>'
