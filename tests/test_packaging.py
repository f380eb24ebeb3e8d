"""What is installed is the whole package, and works outside the checkout."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import scalr

ROOT = Path(__file__).parents[1]
NOT_PACKAGED = ("tests/", "examples/", "docs/")


def tracked(*patterns: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return {path for path in listed.stdout.split() if not path.startswith(NOT_PACKAGED)}


def test_every_package_and_data_file_is_listed():
    """setuptools does not look for them: the root is the package."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(Path(path).parent) for path in tracked("*.py")}
    assert set(settings["packages"]) == {".".join(["scalr", *Path(folder).parts]) for folder in folders}
    data = {
        str((Path(*package.split(".")[1:]) / name).as_posix())
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for name in (path.name for path in (ROOT / Path(*package.split(".")[1:])).glob(pattern))
    }
    assert data == tracked("*.html", "distill/*.yaml", "py.typed")


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_importing_the_package_loads_nothing_heavy():
    script = (
        "import sys, scalr; print(sorted(set(sys.modules) & {'torch', 'numpy', 'zarr', 'timm', 'pyarrow'}), dir(scalr))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.startswith("[] ")
    assert all(f"'{name}'" in loaded for name in scalr.__all__)


def test_type_checkers_see_the_names_that_are_loaded_late():
    (block,) = [node for node in ast.parse(Path(scalr.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name: f".{each.module}" for each in block.body for alias in each.names}
    assert sorted(seen) == sorted(scalr.__all__)
    for name, module in seen.items():
        assert getattr(scalr, name) is getattr(importlib.import_module(module, "scalr"), name)
    with pytest.raises(AttributeError, match="no attribute 'open_stores'"):
        _ = scalr.open_stores


@pytest.mark.slow
def test_a_wheel_runs_the_demo_elsewhere(tmp_path):
    """Built from what is committed, in a clean environment: pip needs its package index."""
    archive, source = tmp_path / "source.tar", tmp_path / "source"
    source.mkdir()
    run("git", "archive", "--output", archive, "HEAD", cwd=ROOT)
    run("tar", "-xf", archive, "-C", source, cwd=tmp_path)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("scalr_distill-*.whl")
    with zipfile.ZipFile(wheel) as contents:
        names = {name.removeprefix("scalr/") for name in contents.namelist() if name.startswith("scalr/")}
    assert names == tracked("*.py", "*.html", "distill/*.yaml", "py.typed")
    venv.create(tmp_path / "environment", with_pip=True)
    binaries = tmp_path / "environment/bin"
    constraints = ("--constraint", ROOT / "constraints.txt")
    run(binaries / "pip", "install", "--quiet", "--no-compile", *constraints, wheel, cwd=tmp_path)
    run(binaries / "scalr", "demo", "--out", "demo", cwd=tmp_path)
    assert (tmp_path / "demo/report.html").stat().st_size > 1e6


def run(*words: object, cwd: Path) -> None:
    subprocess.run([str(word) for word in words], cwd=cwd, check=True)
