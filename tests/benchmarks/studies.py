"""What the studies share: verbs as processes of their own, a few at a time, and tables of what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


def scalr(verb: str, *arguments: object) -> None:
    """Run a command on one thread; the study ends with what it says where it fails."""
    command = [sys.executable, "-c", "from scalr.cli import main; main()", "-q", *verb.split(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)


def at_once(jobs: int, function: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> None:
    """Call a function with each of the arguments, so many at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda each: function(*each), arguments))


def synth(world: Path, *options: object) -> None:
    """A simulated world, unless it is there."""
    if not world.exists():
        scalr("synth", "--out", world, *options)


def extract(store: Path, teachers: Mapping[str, Path], image_size: tuple[int, int], *options: object) -> None:
    """Put the targets of teachers, each with its file of weights, into a store; what is there stays."""
    of_teachers = [
        word for name, file in teachers.items() for word in ("--teacher", name, "--weights", f"{name}={file}")
    ]
    size = "x".join(map(str, image_size))
    scalr("extract", *of_teachers, "--image-size", size, "--out", store, *options)


def distil(
    run: Path, stores: Iterable[Path], seed: int, epochs: int, *options: object, overrides: Sequence[str] = ()
) -> None:
    """Train the demo's student on stores, or go on with its training."""
    sets = (f"training.seed={seed}", f"training.epochs={epochs}", "training.workers=0", *overrides)
    caches = [word for store in stores for word in ("--cache", store)]
    changes = [word for override in sets for word in ("--set", override)]
    scalr("distill", "--recipe", "demo", "--out", run, "--resume", *caches, *changes, *options)


def evaluate(verb: str, out: Path, result: str, *options: object) -> None:
    """One of the commands of evaluation, unless its result is there."""
    if not (out / result).exists():
        scalr(f"evaluate {verb}", "--out", out, *options)


def miou(out: Path) -> float:
    """What a probe came to, in %."""
    return 100 * json.loads((out / "result.json").read_text())["miou"]


def print_table(title: str, rows: Mapping[str, Sequence[float]], seeds: Sequence[int], digits: int = 1) -> None:
    """A row for each student, with its value for each seed."""
    print(f"\n{title}\n")
    print("| student | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | spread |")
    print("|---|" + "---:|" * (len(seeds) + 2))
    for name, values in rows.items():
        shown = [*values, np.mean(values), max(values) - min(values)]
        print(f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in shown) + " |")
