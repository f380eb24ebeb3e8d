"""Which module may import which, and what a command loads before it answers."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import scalr
from scalr.evaluate.result import result_of_scores, write_result
from scalr.evaluate.scores import Scores

PACKAGE = Path(scalr.__file__).parent
# Of the top level, all but the stages: tests, examples and environments are no modules of the package.
STAGES = ("extract", "distill", "evaluate")


@cache
def imports() -> dict[str, set[str]]:
    """Each module of the package with those that it imports: at its top, in functions, for types."""
    files = [*PACKAGE.glob("*.py"), *(file for stage in STAGES for file in (PACKAGE / stage).rglob("*.py"))]
    names = {_name(file): file for file in files}
    return {name: _imported_by(name, file, names) for name, file in names.items()}


def _name(file: Path) -> str:
    parts = ("scalr", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def _imported_by(name: str, file: Path, names: dict[str, Path]) -> set[str]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            # A name of a package is a module of it, or what the package itself has.
            found |= {f"{base}.{each.name}" if f"{base}.{each.name}" in names else base for each in node.names}
    return found & names.keys()


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {name: found - {name} for name, found in imports().items()}
    assert graph["scalr.extract.run"] > {"scalr.extract.executors", "scalr.extract.store"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


@pytest.mark.parametrize(
    ("floor", "above"),
    [
        ("extract", ("distill", "evaluate", "cli", "demo")),
        ("distill", ("evaluate", "cli", "demo", "extract.teachers", "extract.run", "extract.pipeline")),
        ("evaluate", ("cli", "demo", "extract.teachers", "extract.run", "extract.pipeline")),
    ],
)
def test_imports_point_backwards_along_the_arrow(floor, above):
    upwards = tuple(f"scalr.{name}" for name in above)
    of_floor = {name: found for name, found in imports().items() if name.startswith(f"scalr.{floor}")}
    assert len(of_floor) > 10
    assert [(name, each) for name, found in of_floor.items() for each in found if each.startswith(upwards)] == []


def test_timm_is_imported_in_one_place():
    """Which declares what PyPI's torchvision lacks beside a CPU build of torch; whoever imports timm first must."""
    others = [file for file in (PACKAGE / "extract").rglob("*.py") if file.name != "timm_import.py"]
    assert len(others) > 50
    assert [file for file in others if re.search(r"^\s*(from|import) timm\b", file.read_text(), re.MULTILINE)] == []


ANSWERED = """
import contextlib, io, json, logging, sys
from click.shell_completion import ShellComplete
from scalr.cli import main

def note(what):
    loaded[what] = sorted({"torch", "timm", "numba", "zarr", "numpy"} & sys.modules.keys())

def run(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*words], standalone_mode=False) in (None, 0), words
    note(" ".join(words[:2]))

loaded = {}
world, store, result, new = sys.argv[1:]
run("--help")
run("completion", "bash")
for *words, begun in (
    ["extract", "--teacher", "dinov2"], ["distill", "--recipe", "scalr"], ["check", "--dataset", "nu"]
):
    assert ShellComplete(main, {}, "scalr", "_SCALR_COMPLETE").get_completions(words, begun)
    note(f"completing {words[-1]}")
run("extract", "--list-teachers")
run("distill", "--list-recipes")
run("evaluate", "report", result)
run("inspect", store)
run("check", "--root", world)
run("synth", "--out", new, "--train-scenes", "1", "--val-scenes", "0", "--keyframes", "1")

class Line(Exception):
    pass

class FirstLine(logging.Handler):
    def emit(self, record):
        raise Line(record.getMessage())

logging.StreamHandler = FirstLine
for words in (
    ["extract", "--teacher", "dinov2_vits14", "--weights", "random", "--root", world, "--dry-run"],
    ["verify", store], ["distill", "--cache", store], ["evaluate", "probe", "--student", "s", "--root", world],
):
    try:
        main(words, standalone_mode=False)
    except Line as line:
        note(f"{' '.join(words[:2])}: {line}")

import scalr
opened = scalr.open_store(store)
view = opened.read_view(0)
assert len(opened.views) and len(view.points) and len(view.pixel)
note("points and pairs")
print(json.dumps(loaded))
"""


def test_commands_that_do_not_compute_load_no_torch(synthetic_world, extract_tiny, tmp_path):
    """Nor does what computes, until it has said that it is at work."""
    scores = Scores(("a", "b"), ("s",), np.ones((1, 2, 2), dtype=np.int64), 1, "0")
    write_result(result_of_scores(scores, title="t", protocol={}, provenance={}), tmp_path / "result")
    paths = (synthetic_world, extract_tiny().path, tmp_path / "result", tmp_path / "new")
    done = subprocess.run([sys.executable, "-c", ANSWERED, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    reading_points = loaded.pop("points and pairs")
    assert len(loaded) == 15
    assert {what: names for what, names in loaded.items() if not {*names} <= {"numpy"}} == {}
    assert [loaded[what] for what in ("--help", "completion bash", "completing --teacher")] == [[], [], []]
    assert reading_points == ["numpy", "zarr"]
    assert len([what for what in loaded if what.endswith(": loading PyTorch")]) == 4
