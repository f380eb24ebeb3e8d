"""Which figures `gpu.py` measures, and the tables of docs/performance.md that are made of them.

    python tests/benchmarks/gpu_figures.py gpu.json      # writes docs/gpu.json, and its tables into docs/performance.md

A figure is one measurement: a kind and its settings. An example of its key: "teacher dinov2_vitl14 bfloat16 64 eager".
`gpu.json` has, for each key, what was measured, or why it was not.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "performance.md"
RESULTS = DOCS / "gpu.json"  # of the run that the page has; none before the first
BEGIN, END = "<!-- tables of gpu.json -->\n", "<!-- end of gpu.json -->\n"
NOT_RUN = "not run yet"

PRECISIONS = ("float32", "bfloat16")
TEACHERS = {"dinov2_vits14": (12, 384), "dinov2_vitb14": (12, 768), "dinov2_vitl14": (24, 1024)}  # blocks, width
TEACHER_PRECISIONS = (*PRECISIONS, "float16")
IMAGES = (16, 64, 256)  # at once
WAFFLEIRONS = {"scalr_wi256": 256, "scalr_wi768": 768}  # recipes, and widths
STUDENTS = (*WAFFLEIRONS, "scalr_plus", "scalr_minkunet_vitl")
TASKS = ("step", "scan")
SOURCES = ("store", "dinov2_vits14", "dinov2_vitl14")  # of a step's targets: a store, or a teacher in memory
WORKERS = (0, 4, 8)
NUSCENES_IMAGES, NUSCENES_STEPS = 168_780, 87_900  # of its training set; of 25 epochs with batches of 8
DIM = 1024  # of the targets that students learn: a ViT-L's
# Of a relative difference: the output's, the gradients', where rounding decides which ReLUs and neighbours pass one on.
LIMITS = {"float32": (1e-4, 1e-2), "bfloat16": (5e-2, 5e-1)}

Figures = Mapping[str, Mapping[str, Any]]


class Figure(NamedTuple):
    """One measurement; on a data-centre GPU it takes about so many seconds."""

    kind: str
    settings: tuple[str | int, ...]
    about_s: float = 5

    @property
    def key(self) -> str:
        return " ".join(map(str, (self.kind, *self.settings)))


def figures() -> list[Figure]:
    """All of them, in the order they are measured: what torch compiles takes long, and comes last."""
    return [
        *(Figure("parity", (student,), 30) for student in STUDENTS),
        *(Figure("step", (student, precision, "eager")) for student in STUDENTS for precision in PRECISIONS),
        *(Figure("scan", (student, precision)) for student in STUDENTS for precision in PRECISIONS),
        *(Figure("beside", (task, student, precision), 10)
          for task in TASKS for student in WAFFLEIRONS for precision in PRECISIONS),
        *(Figure("teacher", (teacher, precision, images, "eager"))
          for teacher in TEACHERS for precision in TEACHER_PRECISIONS for images in IMAGES),
        *(Figure("targets", (source,), 15) for source in SOURCES),
        *(Figure("wait", (workers,), 30) for workers in WORKERS),
        *(Figure("profile", (student,), 10) for student in WAFFLEIRONS),
        *(Figure("teacher", (teacher, "bfloat16", IMAGES[-1], "compiled"), 30) for teacher in TEACHERS),
        *(Figure("step", (student, precision, "compiled"), 40)
          for precision in reversed(PRECISIONS) for student in WAFFLEIRONS),
        *(Figure("teacher", (teacher, precision, IMAGES[-1], "compiled"), 30)
          for precision in ("float32", "float16") for teacher in TEACHERS),
    ]  # fmt: skip


# Operations, as docs/costs.md counts them


def operations_of_image(teacher: str, tokens: int = 513) -> float:
    """Of one image of 224 x 448 through a ViT's blocks."""
    blocks, width = TEACHERS[teacher]
    return blocks * (12 * width**2 * 2 * tokens + 4 * tokens**2 * width)


def operations_of_step(student: str, points: int) -> float:
    """Of a WaffleIron's training step with so many points in its batch."""
    width = WAFFLEIRONS[student]
    return points * (684 * width**2 + 6 * width * DIM)


# Tables


def tables(results: Mapping[str, Any] | None) -> str:
    """The tables of docs/performance.md, in Markdown. `results` is None if `gpu.py` has not been run yet."""
    found = {} if results is None else results["figures"]
    parts = [_machine(results)]
    for title, rows in (
        ("**A teacher's forward passes**, images/s, 224 × 448", _teachers(found)),
        (f"**A training step**, batch of the recipe, targets of {DIM} dimensions", _steps(found)),
        ("**Evaluation of a complete scan**", _scans(found)),
        (
            "**Compared with the official WaffleIron**: forward and backward pass of 2 cameras; a complete scan",
            _beside(found),
        ),
        ("**A step of `scalr_wi256` in bfloat16, by where its targets come from**", _targets(found)),
        (
            "**Where a step's time goes**, bfloat16: the operations that take most of the GPU's time",
            _profiles(found),
        ),
        ("**Waiting for data**: `scalr_wi256` in bfloat16, from a simulated store", _waits(found)),
        ("**The same on the GPU as on a CPU in float64?** Relative differences of a training step", _parity(found)),
    ):
        parts.append(f"{title}\n\n{_markdown(rows)}")
    return "\n".join(parts)


def _machine(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return f"`make gpu`: {NOT_RUN}.\n"
    machine = results["machine"]
    return (
        f"Measured by `make gpu` on {machine['device']} with {machine['cores']} CPU cores, torch {machine['torch']}"
        f" (CUDA {machine['cuda']}), NumPy {machine['numpy']}, in {results['seconds'] / 60:.1f} minutes. A batch of"
        f" `scalr_wi256` has {machine['points_of_step']:,} points, a complete scan {machine['points_of_scan']:,}.\n"
    )


def _teachers(found: Figures) -> Iterator[Sequence[str]]:
    yield [
        "teacher",
        "precision",
        *(f"batch of {images}" for images in IMAGES),
        f"batch of {IMAGES[-1]}, compiled",
        "TFLOP/s",
        "nuScenes",
    ]
    for teacher in TEACHERS:
        for precision in TEACHER_PRECISIONS:
            settings = [(images, "eager") for images in IMAGES] + [(IMAGES[-1], "compiled")]
            keys = [Figure("teacher", (teacher, precision, *each)).key for each in settings]
            rates = [found[key]["images_per_second"] for key in keys if "images_per_second" in found.get(key, {})]
            fastest = max(rates, default=None)
            of_fastest = [NOT_RUN, NOT_RUN]
            if fastest is not None:
                of_fastest = [f"{fastest * operations_of_image(teacher) / 1e12:.0f}", _hours(NUSCENES_IMAGES / fastest)]
            yield [f"`{teacher}`", precision, *(_cell(found, key, _rate) for key in keys), *of_fastest]


def _steps(found: Figures) -> Iterator[Sequence[str]]:
    yield ["recipe", "precision", "time, memory", "TFLOP/s", "25 epochs of nuScenes", "compiled"]
    for student in STUDENTS:
        for precision in PRECISIONS:
            eager = Figure("step", (student, precision, "eager")).key
            compiled = Figure("step", (student, precision, "compiled")).key
            hours = _cell(found, eager, lambda figure: _hours(NUSCENES_STEPS * figure["seconds"]))
            cells = [_cell(found, eager, _time_and_memory), "–", hours, "–"]
            if student in WAFFLEIRONS:
                cells[1] = _cell(found, eager, partial(_tflops, student))
                cells[3] = _cell(found, compiled, _time_and_memory)
            yield [f"`{student}`", precision, *cells]


def _scans(found: Figures) -> Iterator[Sequence[str]]:
    yield ["recipe", *PRECISIONS]
    for student in STUDENTS:
        keys = [Figure("scan", (student, precision)).key for precision in PRECISIONS]
        yield [f"`{student}`", *(_cell(found, key, _time_and_memory) for key in keys)]


def _beside(found: Figures) -> Iterator[Sequence[str]]:
    yield ["", "precision", "scalr", "official", "ratio", "outputs differ by"]
    for task in TASKS:
        for student in WAFFLEIRONS:
            for precision in PRECISIONS:
                key = Figure("beside", (task, student, precision)).key
                cells = [_cell(found, key, each) for each in (_time_and_memory, _official, _ratio, _difference)]
                yield [f"`{student}`, {task}", precision, *cells]


def _targets(found: Figures) -> Iterator[Sequence[str]]:
    yield ["targets from", "time, memory"]
    for source in SOURCES:
        name = "a store" if source == "store" else f"`{source}` in memory"
        yield [name, _cell(found, Figure("targets", (source,)).key, _time_and_memory)]


def _profiles(found: Figures) -> Iterator[Sequence[str]]:
    yield ["recipe", "fractions of the time"]
    for student in WAFFLEIRONS:
        key = Figure("profile", (student,)).key
        yield [
            f"`{student}`",
            _cell(found, key, lambda figure: ", ".join(f"`{n}` {s:.0%}" for n, s in figure["shares"])),
        ]


def _waits(found: Figures) -> Iterator[Sequence[str]]:
    yield ["`training.workers`", "steps/s", "fraction of the time without a batch"]
    for workers in WORKERS:
        key = Figure("wait", (workers,)).key
        speed = _cell(found, key, lambda figure: f"{figure['steps_per_second']:.2f}")
        yield [str(workers), speed, _cell(found, key, lambda figure: f"{figure['share']:.1%}")]


def _parity(found: Figures) -> Iterator[Sequence[str]]:
    yield ["recipe", "precision", "output", "gradients", "allowed"]
    for student in STUDENTS:
        for precision in PRECISIONS:
            key = Figure("parity", (student,)).key
            cells = [_cell(found, key, lambda figure, n=n, p=precision: f"{figure[p][n]:.1e}") for n in range(2)]
            yield [f"`{student}`", precision, *cells, ", ".join(f"{limit:g}" for limit in LIMITS[precision])]


def _cell(found: Figures, key: str, text: Callable[[Mapping[str, Any]], str]) -> str:
    figure = found.get(key)
    if figure is None:
        return NOT_RUN
    return figure["not_measured"] if "not_measured" in figure else text(figure)


def _rate(figure: Mapping[str, Any]) -> str:
    return f"{figure['images_per_second']:,.0f}"


def _time_and_memory(figure: Mapping[str, Any], prefix: str = "") -> str:
    gigabytes = figure[f"{prefix}peak_gb"]
    memory = "" if gigabytes is None else f", {gigabytes:.2f} GB"
    return f"{1e3 * figure[f'{prefix}seconds']:.1f} ms{memory}"


def _tflops(student: str, figure: Mapping[str, Any]) -> str:
    return f"{operations_of_step(student, figure['points']) / figure['seconds'] / 1e12:.1f}"


def _official(figure: Mapping[str, Any]) -> str:
    if "official_not_measured" in figure:
        return figure["official_not_measured"]
    return _time_and_memory(figure, "official_")


def _ratio(figure: Mapping[str, Any]) -> str:
    if "official_not_measured" in figure:
        return "–"
    faster = f"{figure['official_seconds'] / figure['seconds']:.1f} times faster"
    return faster + (
        f", {figure['peak_gb'] / figure['official_peak_gb']:.2f} of the memory" if figure["peak_gb"] else ""
    )


def _difference(figure: Mapping[str, Any]) -> str:
    return f"{figure['difference']:.1e}" if "difference" in figure else "–"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} hours"


def _markdown(rows: Iterator[Sequence[str]]) -> str:
    head = next(rows)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# The page


def with_tables(page: str, results: Mapping[str, Any] | None) -> str:
    """The page with these tables between its two marks."""
    marked = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    assert len(marked.findall(page)) == 1
    return marked.sub(lambda _: f"{BEGIN}\n{tables(results)}\n{END}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tables of a run of gpu.py into docs/performance.md.")
    parser.add_argument("results", type=Path, help="what gpu.py wrote")
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    if results["quick"] or results["machine"]["cuda"] is None:
        parser.error(
            f"{options.results}: figures of --quick or of a CPU are no figures of a GPU. Run 'make gpu' on one."
        )
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(with_tables(PAGE.read_text(), results))


if __name__ == "__main__":
    main()
