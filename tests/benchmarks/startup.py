"""How soon commands answer: whole processes from a warm cache, what they import, and when they say a first line.

    python tests/benchmarks/startup.py [path of a scalr, to compare another checkout's]

Prints for each command the shortest of three runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 3
HEAVY = ("torch", "timm", "zarr", "numba", "scipy", "pyarrow", "pandas", "matplotlib", "distributed")
TEACHER = ("--teacher", "dinov2_vits14", "--weights", "random", "--image-size", "28x56")


def made(scalr: str, folder: Path) -> dict[str, list[str]]:
    """The commands, and what they need."""
    world, store, student = folder / "world", folder / "s.zarr", folder / "run/student.safetensors"
    small = [word for value in ("width=8", "depth=3") for word in ("--set", f"student.{value}")]
    probe = ["evaluate", "probe", "--student", student, "--root", world, "--epochs", "1", "--warmup-epochs", "0"]
    distil = ["distill", "--cache", store, *small, "--set", "training.epochs=1", "--set", "training.warmup_steps=0"]
    synth = ["synth", "--train-scenes", "1", "--val-scenes", "1", "--keyframes", "1"]
    for arguments in (
        [*synth, "--out", world],
        ["extract", *TEACHER, "--root", world, "--out", store],
        [*distil, "--out", folder / "run"],
        [*probe, "--fast", "--out", folder / "probe"],
    ):
        subprocess.run([scalr, *map(str, arguments)], check=True, capture_output=True)
    commands = {
        "--help": ["--help"],
        "extract --list-teachers": ["extract", "--list-teachers"],
        "completion bash": ["completion", "bash"],
        "completing a teacher": [],
        "inspect": ["inspect", store],
        "check": ["check", "--root", world],
        "evaluate report": ["evaluate", "report", folder / "probe"],
        "synth": [*synth, "--out", folder / "new"],
        "extract --dry-run": ["extract", *TEACHER, "--root", world, "--out", store, "--dry-run"],
        "verify": ["verify", store],
        "distill": [*distil, "--out", folder / "again"],
        "evaluate probe": [*probe, "--fast", "--out", folder / "again"],
    }
    return {name: [str(word) for word in words] for name, words in commands.items()}


def timed(scalr: str, name: str, words: list[str]) -> tuple[float, float]:
    """Seconds until a first line is there, and until the process is done."""
    completing = {"_SCALR_COMPLETE": "bash_complete", "COMP_WORDS": "scalr extract --teacher dino", "COMP_CWORD": "3"}
    environment = os.environ | (completing if name == "completing a teacher" else {})
    began = time.perf_counter()
    process = subprocess.Popen([scalr, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    process.stdout.readline()
    first = time.perf_counter() - began
    process.communicate()
    return first, time.perf_counter() - began


def imports(scalr: str, words: list[str]) -> tuple[float, list[str]]:
    """Seconds of all imports, and the heavy packages among them."""
    python = Path(scalr).with_name("python")
    done = subprocess.run([python, "-X", "importtime", scalr, *words], capture_output=True, text=True)
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)", done.stderr)
    return sum(int(row[0]) for row in rows) / 1e6, [name for name in HEAVY if name in {row[1] for row in rows}]


def main(scalr: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{'':<26}{'first line':>12}{'whole':>9}{'imports':>10}  heavy packages")
        for command, words in made(scalr, folder).items():
            runs = []
            for number in range(RUNS):
                fresh = [word.replace(f"{folder}/again", f"{folder}/{command}-{number}") for word in words]
                fresh = [word.replace(f"{folder}/new", f"{folder}/{command}-{number}") for word in fresh]
                runs.append(timed(scalr, command, fresh))
            first, whole = (min(run[index] for run in runs) for index in (0, 1))
            seconds, heavy = imports(scalr, words)
            print(f"{command:<26}{first:>10.2f} s{whole:>7.2f} s{seconds:>8.2f} s  {', '.join(heavy)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(sys.executable).with_name("scalr")))
