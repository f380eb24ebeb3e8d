"""Do the tests notice? Changes the source in one place at a time, and runs the tests of the changed module.

    python tests/mutants.py --number 200 --seed 0       # drawn over extract/, distill/ and evaluate/
    python tests/mutants.py --module distill/losses.py  # all changes of one module

Changes are made in copies of the working tree, one for each process. A change that no test notices is printed: either
an assertion is missing, or the change makes no difference that a user could see.
"""

from __future__ import annotations

import argparse
import ast
import functools
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGES = ("extract", "distill", "evaluate")
# What these draw is looked at: streets of the simulated world, pictures, pages.
NOT_CHANGED = ("extract/datasets/synthetic/", "evaluate/pictures.py", "evaluate/report.py")
OF_ALL_MODULES = ("test_constants.py", "test_options.py")  # test files that say little of any one module
SLOWEST_S = 600  # of the tests of one module; a change that makes them wait for ever is noticed then
PRELOADED = ("torch", "zarr", "numba", "scipy.ndimage", "scipy.spatial", "pyarrow.parquet", "hypothesis", "pytest",
             "matplotlib.figure", "safetensors.torch", "distributed", "PIL.Image", "yaml", "tqdm")  # fmt: skip

COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
}  # fmt: skip
OPERATORS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip
FUNCTIONS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
    "sum": "mean",
    "mean": "sum",
    "argmin": "argmax",
    "argmax": "argmin",
    "amax": "amin",
    "minimum": "maximum",
    "sin": "cos",
    "maximum": "minimum",
    "cos": "sin",
    "sqrt": "abs",
    "exp": "abs",
    "log": "abs",
    "sorted": "list",
}


@dataclass(frozen=True)
class Change:
    """Bytes `start` to `stop` - 1 of a module, replaced."""

    module: str
    line: int
    start: int
    stop: int
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}  {_short(self.old)}  →  {_short(self.new)}"


def changes_of(module: str) -> list[Change]:
    """Every single change of a module, in the order of its lines."""
    source = (ROOT / module).read_bytes()
    starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + column

    def replaced(node: ast.AST, start: int, stop: int, new: str) -> Change:
        return Change(module, node.lineno, start, stop, source[start:stop].decode(), new)

    def whole(node: ast.AST, new: str) -> Change:
        return replaced(node, *_span(node, offset), new)

    def between(left: ast.AST, right: ast.AST, old: str, new: str) -> Iterator[Change]:
        start, stop = _span(left, offset)[1], _span(right, offset)[0]
        word = rf"\b{old}\b" if old[0].isalpha() else re.escape(old)
        if found := re.search(word.replace(" ", r"\s+").encode(), source[start:stop]):
            yield replaced(left, start + found.start(), start + found.end(), new)

    found: list[Change] = []
    for node in _computing(ast.parse(source)):
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                found += between(left, right, *COMPARISONS[type(op)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                found += between(left, right, *OPERATORS[type(op)])
            case ast.AugAssign(target=target, op=op, value=value) if type(op) in OPERATORS:
                found += between(target, value, *(f"{sign}=" for sign in OPERATORS[type(op)]))
            case ast.BoolOp(op=op, values=[left, right, *_]):
                found += between(left, right, *(("and", "or") if isinstance(op, ast.And) else ("or", "and")))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                found.append(whole(node, f"({ast.unparse(operand)})"))
            case ast.Constant(value=bool() as value):
                found.append(whole(node, str(not value)))
            case ast.Constant(value=int() as value):
                found.append(whole(node, str(value + 1)))
            case ast.Constant(value=float() as value) if math.isfinite(value):
                found.append(whole(node, repr(value * 2 or 1.0)))
            case ast.IfExp(test=test) | ast.If(test=test):
                found.append(whole(test, f"(not ({ast.unparse(test)}))"))
            case ast.Expr(value=ast.Call() | ast.Await()):
                found.append(whole(node, "pass"))
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in FUNCTIONS:
                stop = _span(node.func, offset)[1]
                found.append(replaced(node, stop - len(name), stop, FUNCTIONS[name]))
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg and keyword.arg != "strict":
                    kept = [each for each in node.keywords if each is not keyword]
                    found.append(whole(node, ast.unparse(ast.Call(node.func, node.args, kept))))
    return sorted(set(found), key=lambda change: (change.start, change.stop, change.new))


def _span(node: ast.AST, offset: Callable) -> tuple[int, int]:
    return offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute: no annotations, decorators, assertions, log lines, texts, and what errors say."""
    match node:
        case ast.Raise() | ast.Assert() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.keyword(arg="strict"):  # strict: as good as an assertion
            return
        case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))) | ast.Expr(value=ast.Constant()):
            return
        case ast.Call(keywords=keywords) if any(each.arg == "fix" for each in keywords):
            return
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="logger")))):
            return
    yield node
    left_out = {"annotation", "returns", "decorator_list", "type_params"}
    for name, value in ast.iter_fields(node):
        if name not in left_out:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _computing(child)


def modules() -> list[str]:
    """All that may be changed."""
    found = sorted(path.relative_to(ROOT).as_posix() for stage in STAGES for path in (ROOT / stage).rglob("*.py"))
    return [module for module in found if not module.startswith(NOT_CHANGED)]


def tests_of(module: str) -> list[str]:
    """The test files of a module: that of its name, then those of its stage that import it or its package."""
    path = Path(module)
    own = Path("tests", path.parent, f"test_{path.stem}.py")
    package = ".".join(("scalr", *path.parent.parts))
    names = rf"{package}\.{path.stem}\b|{package} import [^\n]*\b{path.stem}\b"
    if path.parent.name not in STAGES:  # the names of a package like extract.store are those of its modules
        names += rf"|from {package} import"
    in_stage = sorted((ROOT / "tests" / path.parts[0]).rglob("test_*.py"))
    importing = [file.relative_to(ROOT) for file in in_stage if re.search(names, file.read_text())]
    chosen = [own] * (ROOT / own).exists() + [file for file in importing if file != own]
    if all(file.name in OF_ALL_MODULES for file in chosen):
        folder = [file.relative_to(ROOT) for file in in_stage if file.parent == ROOT / "tests" / path.parent]
        chosen += [file for file in folder if file not in chosen]
    return [file.as_posix() for file in chosen]


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a change."""

    change: Change
    noticed: bool
    seconds: float
    said: str


def judge(folder: Path, number: int, change: Change, tests: Sequence[str]) -> Verdict:
    """Make a change in this process's own copy of the tree, run the tests, and take the change back.

    Raises:
        ValueError: the test that fails does so on the source as it is.
    """
    copy = _copy_of_this_process(folder)
    began = time.perf_counter()
    file = copy / change.module
    original, stat = file.read_bytes(), file.stat()
    file.write_bytes(original[: change.start] + change.new.encode() + original[change.stop :])
    os.utime(file, (stat.st_atime, stat.st_mtime + 2 + number))  # compiled modules are told apart by whole seconds
    try:
        passed, said = _run(copy, tests)
    finally:
        file.write_bytes(original)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if found := re.match(r"(?:FAILED|ERROR) (\S+\.py(?:::.*?(?= - |$))?)", said):
        _check_as_it_is(copy, found[1])
    return Verdict(change, not passed, time.perf_counter() - began, said)


@functools.cache
def _check_as_it_is(copy: Path, test: str) -> None:
    passed, said = _run(copy, [test])
    if not passed:
        raise ValueError(f"{test} fails on the source as it is: {said}")


def _copy_of_this_process(folder: Path) -> Path:
    copy = folder / str(os.getpid()) / "scalr"
    if not copy.exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).exists():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
    return copy


def _run(copy: Path, tests: Sequence[str]) -> tuple[bool, str]:
    """Fork: the libraries are imported already."""
    log = copy.parent / "log"
    child = os.fork()
    if not child:
        _test(copy, tests, log)
    deadline = time.monotonic() + SLOWEST_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            lines = log.read_text(errors="replace").splitlines()
            last = [line for line in lines if line.startswith(("FAILED", "ERROR"))] or lines[-1:]
            return os.waitstatus_to_exitcode(status) == 0, "".join(last[:1])
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False, f"not done after {SLOWEST_S} s"


def _test(copy: Path, tests: Sequence[str], log: Path) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(copy)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        os.environ["PYTHONPATH"] = str(copy.parent)
        sys.path.insert(0, str(copy.parent))
        import pytest

        base = copy.parent / "tmp"
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", f"--basetemp={base}", *tests])
    finally:
        sys.stdout.flush()
        os._exit(int(code))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, help="changes to draw  [default: all of --module, else 200]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", action="append", help="only of this module; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    found = [change for module in options.module or modules() for change in changes_of(module)]
    number = options.number or (len(found) if options.module else 200)
    drawn = random.Random(options.seed).sample(found, min(number, len(found)))
    for name in PRELOADED:
        __import__(name)
    os.environ.setdefault("SCALR_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryDirectory(prefix="scalr-mutants-") as folder,
        ProcessPoolExecutor(options.jobs, mp_context=get_context("fork")) as pool,
    ):
        print(f"{len(drawn)} of {len(found)} changes", flush=True)
        jobs = [
            pool.submit(judge, Path(folder), number, change, tests_of(change.module))
            for number, change in enumerate(drawn)
        ]
        survivors = []
        for done, future in enumerate(as_completed(jobs), start=1):
            verdict = future.result()
            survivors += [] if verdict.noticed else [verdict.change]
            word, said = ("noticed", f"   {_short(verdict.said)}") if verdict.noticed else ("NOT NOTICED", "")
            print(f"{done:>4}  {verdict.seconds:5.0f} s  {word:<12}{verdict.change}{said}", flush=True)
    noticed = len(drawn) - len(survivors)
    print(f"\nseed {options.seed}: {noticed} of {len(drawn)} noticed ({noticed / len(drawn):.1%}); not noticed:")
    for change in sorted(survivors, key=lambda change: (change.module, change.start)):
        print(f"  {change}")


def _short(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= 100 else f"{joined[:97]}…"


if __name__ == "__main__":
    main()
