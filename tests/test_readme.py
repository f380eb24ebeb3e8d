"""README.md does what it says: commands, what they print, Python. So do CONTRIBUTING.md's tree and all links."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from doc_examples import DOCS
from scalr.cli import main

ROOT = DOCS.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])

SHORT = "--set training.epochs=1 --set training.warmup_steps=0"
# What makes commands small enough for every run of the tests; an option that is given twice counts as the last one.
SMALLER = {
    "scalr synth": "--train-scenes 1 --keyframes 1",
    "scalr extract": "--image-size 28x56 --batch-size 6",
    "scalr distill": f"{SHORT} --set student.depth=3 --set training.workers=0",
    "scalr evaluate probe": "--epochs 2",
}
# Teachers' weights cannot be fetched in a test, and random ones of a ViT-L take a minute to draw; a student for a GPU
# takes hours without one.
STAND_IN = {
    "scalr extract": "--weights random --image-size 28x56 --encoding patch --batch-size 6",
    "scalr distill": f"{SHORT} --set student.depth=3 --set student.width=8",
    "scalr evaluate probe": "--fast --epochs 2 --warmup-epochs 0",
}


def section(title: str, page: str = README) -> str:
    return re.split(r"(?m)^## ", page.split(f"\n## {title}\n")[1])[0]


def commands(text: str) -> list[str]:
    """Indented lines, without the comment behind them, that do not ask for this checkout's own environment."""
    wanted = re.compile(r"    (?:scalr|export|python) ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if wanted.match(line)]


def with_more(command: str, more: dict[str, str]) -> str:
    return " ".join([command, *(options for verb, options in more.items() if command.startswith(verb))])


def run(lines: list[str], folder: Path, **environment: str) -> str:
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = "set -e\n" + "\n".join(f"echo {shlex.quote('$ ' + line)}\n{line}" for line in lines)
    changed = {"PATH": binaries, "OMP_WAIT_POLICY": "PASSIVE", "HOME": str(folder), **environment}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=os.environ | changed, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_here(lines: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """The same in this process, which has imported everything: what each command prints, its log included."""
    monkeypatch.chdir(folder)
    printed = ""
    for program, *words in map(shlex.split, lines):
        if program == "export":
            monkeypatch.setenv(*words[0].split("="))
        else:
            assert program == "scalr"
            done = CliRunner().invoke(main, words)
            assert done.exit_code == 0, done.output
            printed += done.output
    return printed


def first_hour(folder: Path) -> tuple[list[str], str]:
    """Its commands, and the Python below them."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    return commands(section("The first hour")), f"import scalr\n{code}\nprint(student.project(features).shape)\n"


def promised(text: str) -> list[str]:
    """What the reader should see, in quotes of code."""
    sentences = re.findall(r"You should see ([^\n]*)", text)
    return [quoted for sentence in sentences for quoted in re.findall(r"`([^`]+)`", sentence)]


def test_the_first_hour(tmp_path, monkeypatch, capsys):
    """Its commands one after the other in an empty folder, smaller; what they print; then the Python below them."""
    lines, code = first_hour(tmp_path)
    lines = [with_more(line, SMALLER) for line in lines if "python" not in line]
    assert len(lines) >= 9
    printed = run_here(lines, monkeypatch, tmp_path)
    expected = promised(section("The first hour"))
    assert len(expected) > 4
    assert [quoted for quoted in expected if quoted not in printed] == []
    exec(code, {})
    assert "384]" in capsys.readouterr().out


@pytest.mark.slow
def test_the_first_hour_as_it_stands(tmp_path):
    lines, code = first_hour(tmp_path)
    printed = run(lines, tmp_path)
    assert [quoted for quoted in promised(section("The first hour")) if quoted not in printed] == []
    (tmp_path / "code.py").write_text(code)
    assert "384]" in run([f"{sys.executable} code.py"], tmp_path)


def test_the_three_commands(synthetic_world, tmp_path, monkeypatch):
    """As they are, but for stand-ins of what a test cannot have."""
    smaller = section("Three commands").replace("dinov2_vitl14", "dinov2_vits14")
    lines = [with_more(line, STAND_IN) for line in commands(smaller) if not line.startswith("export")]
    assert [line.split()[1] for line in lines] == ["extract", "distill", "evaluate"]
    monkeypatch.setenv("NUSCENES", str(synthetic_world))
    assert "mIoU" in run_here(lines, monkeypatch, tmp_path)
    assert (tmp_path / "runs/distill/student.safetensors").exists()
    assert (tmp_path / "runs/probe/result.md").exists()


@pytest.mark.slow
def test_the_example_script(tmp_path):
    assert "mIoU" in run([f"{sys.executable} {ROOT / 'examples/first_steps.py'}"], tmp_path, TMPDIR=str(tmp_path))


def test_the_tree_is_that_of_the_repository():
    """Each file that it names is there, and each module is named, or lies in a folder that is told of as a whole."""
    folders, found = [(-1, ROOT)], set()
    for line in section("Layout", CONTRIBUTING).splitlines():
        if not line.startswith("    "):
            continue
        indent, names = len(line) - len(line.lstrip()), re.split(r"\s{2,}", line.strip())[0].split(", ")
        while folders[-1][0] >= indent:
            folders.pop()
        parent = folders[-1][1]
        for name in names:
            found.add(parent / name)
            if name.endswith("/"):
                folders.append((indent, parent / name))
    assert [path for path in found if not path.exists()] == []
    as_a_whole = {path for path in found if path.is_dir() and not any(path in other.parents for other in found)}
    modules = [ROOT / path for path in packaged_modules() if not path.endswith("__init__.py")]
    assert [path for path in modules if path not in found and not as_a_whole & set(path.parents)] == []


def packaged_modules() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.split() if not path.startswith(("tests/", "examples/"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"(?m)^#+ (.*)$", file.read_text())
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, target
