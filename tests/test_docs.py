"""The examples of docs/ do what they say, as far as one machine allows."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import scalr
from doc_examples import DOCS, example, indented
from scalr.cli import main
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import save_student
from scalr.distill.recipe import load_recipe, recipe_values
from scalr.distill.recipes import parsed, recipe_names
from scalr.distill.student import Student
from scalr.extract.run import ExtractConfig, extract
from scalr.extract.store import open_store
from store_comparison import assert_same_store

# In place of the cluster of dask-jobqueue, one of two processes on this machine.
STAND_IN = """
from distributed import LocalCluster

class SLURMCluster(LocalCluster):
    def __init__(self, *, queue, cores, processes, memory, walltime, job_extra_directives):
        super().__init__(n_workers=0, threads_per_worker=cores, memory_limit=0, dashboard_address=None)
"""


@pytest.fixture
def options(synthetic_world, tmp_path) -> list[str]:
    words = ["--teacher", "dinov2_vits14", "--weights", "random", "--image-size", "28x56", "--frames-per-block", "1"]
    words += ["--batch-size", "8"]  # as measured, it might differ
    return [*words, "--root", str(synthetic_world), "--out", str(tmp_path / "s.zarr")]


@pytest.fixture
def expected(synthetic_world, tmp_path):
    config = ExtractConfig(
        root=synthetic_world, out=tmp_path / "whole.zarr", teachers=("dinov2_vits14",), weights=("random",),
        image_size=(28, 56), frames_per_block=1, batch_size=8,
    )  # fmt: skip
    extract(config)
    return open_store(config.out)


@pytest.fixture
def extract_synthetic(synthetic_world):
    """Call with a path for a store of a teacher with random weights."""

    def call(out: Path) -> None:
        extract(
            ExtractConfig(
                root=synthetic_world, out=out, teachers=("dinov2_vits14",), weights=("random",), image_size=(28, 56),
                batch_size=8,
            )
        )  # fmt: skip

    return call


def environment(**more: str) -> dict[str, str]:
    binaries = str(Path(sys.executable).parent)
    return os.environ | {"PATH": os.pathsep.join([binaries, os.environ["PATH"]]), "OMP_WAIT_POLICY": "PASSIVE"} | more


def test_a_part_that_is_submitted_again_is_of_as_many_parts(tmp_path):
    """SLURM then counts fewer tasks, and so does a `scalr` that only prints what it is asked for."""
    (tmp_path / "scalr").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "scalr").chmod(0o755)
    script = example("batch.md", "bash")
    (of_all,) = re.findall(r"#SBATCH --array=0-(\d+)", script)
    of_two = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "2"}
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script, "extract.sbatch", "--out", "a b.zarr"], env=os.environ | of_two | {"PATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"extract --out a b.zarr --part 5/{int(of_all) + 1}\n"


def test_every_example_of_a_distillation_names_its_teacher():
    """The store may get another one between two runs."""
    pages = [path.read_text().replace("\\\n", " ") for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]]
    commands = re.findall(r"^.*(?:scalr distill|distill\.sbatch) -.*$", "\n".join(pages), re.MULTILINE)
    commands = [line for line in commands if "`scalr distill" not in line and '"$@"' not in line]
    assert len(commands) > 15
    assert not [line for line in commands if "--teacher " not in line]


@pytest.mark.slow
def test_the_array_job(tmp_path, options, expected):
    """Its tasks at once, as SLURM would start them."""
    (tmp_path / "extract.sbatch").write_text(example("batch.md", "bash"))
    tasks = [
        subprocess.Popen(
            ["bash", tmp_path / "extract.sbatch", *options],
            env=environment(SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_COUNT="3"),
        )
        for task in range(3)
    ]
    assert [task.wait() for task in tasks] == [0, 0, 0]
    assert_same_store(open_store(tmp_path / "s.zarr"), expected)


@pytest.mark.slow
def test_dask_jobqueue(tmp_path, options, expected):
    (tmp_path / "dask_jobqueue.py").write_text(STAND_IN)
    (tmp_path / "extract_on_slurm.py").write_text(example("batch.md", "python"))
    command = [sys.executable, tmp_path / "extract_on_slurm.py", *options]
    assert subprocess.run(command, env=environment()).returncode == 0
    assert_same_store(open_store(tmp_path / "s.zarr"), expected)


def test_training_through_a_student(tmp_path, monkeypatch):
    """The page's code in a folder with a student; scans and their labels are the reader's."""
    monkeypatch.chdir(tmp_path)
    save_student(Student(WaffleIronConfig(width=8, depth=3, out_channels=4)), "student.safetensors", {})
    rng = np.random.default_rng(0)
    scans = [rng.uniform(-20, 20, (count, 4)).astype(np.float32) for count in (300, 200)]
    given = {"scans": scans, "labels_of_scans": [rng.integers(0, 17, len(scan)) for scan in scans]}
    exec(example("students.md", "python"), given)
    assert given["features"].shape == (len(given["labels"]), 8)
    before = scalr.load_student("student.safetensors").state_dict()
    moved = {name for name, value in given["student"].state_dict().items() if not torch.equal(value, before[name])}
    assert {"embed.conv1.weight", "waffleiron.channel_mix.2.mlp.2.weight"} < moved
    assert not {name for name in moved if name.startswith("classif.")}


def test_the_python_interface(extract_tiny, tmp_path, monkeypatch):
    """The page's code in a folder with a store and a student, and what its tables name."""
    monkeypatch.chdir(tmp_path)
    store = extract_tiny(out="store.zarr")
    dim = store.target_dim("coordinates")
    save_student(Student(WaffleIronConfig(width=8, depth=3, out_channels=dim)), "student.safetensors", {})
    page, given = (DOCS / "python.md").read_text(), {}
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(code, given)
    assert (given["features"].shape[1], given["in_teacher_space"].shape[1]) == (8, dim)
    for title, value in (("FeatureStore", store), ("StoredView", given["view"]), ("method or", given["student"])):
        (rows,) = re.findall(rf"\| [^\n]*{title}[^\n]*\n\|---[^\n]*\n((?:\|[^\n]*\n)+)", page)
        names = [re.findall(r"`(\w+)[(`]", row.split("|")[1]) for row in rows.splitlines()]
        assert len(names) > 7
        assert [name for row in names for name in row if name != "student" and not hasattr(value, name)] == []
    fields = {field.name for field in dataclasses.fields(given["view"])}
    assert fields <= set(re.findall(r"(?m)^\| `(\w+)` \|", page))


SMALLER = {
    "scalr distill": "--set training.epochs=2 --set training.batch_size=2",
    "scalr evaluate probe": "--epochs 2 --device cpu",
}


def test_a_backbone_of_one_s_own(synthetic_world, extract_synthetic, tmp_path, monkeypatch):
    """The page's module in a folder with a store and a world, and its commands there; and its Python."""
    code = example("backbones.md", "python")
    assert len(code.splitlines()) < 60
    monkeypatch.chdir(tmp_path)
    Path("my_backbone.py").write_text(code)
    Path("world").symlink_to(synthetic_world)
    extract_synthetic(Path("store.zarr"))
    commands, python = indented("backbones.md", "Run, in the same folder:"), indented("backbones.md", "From Python")
    for command in commands:
        more = next(options for verb, options in SMALLER.items() if command.startswith(verb))
        done = CliRunner().invoke(main, shlex.split(f"{command} {more}")[1:])
        assert done.exit_code == 0, done.output
    assert "mIoU" in done.stdout
    student = scalr.load_student("runs/pointnet/student.safetensors")
    assert (student.config.backbone, student.config.channels) == ("my_backbone:PointNet", 32)
    given = {}
    exec("\n".join(python), given)
    points = np.random.default_rng(0).uniform(-20, 20, (100, 4)).astype(np.float32)
    assert given["student"].extract(points, "nuscenes").shape == (100, 64)


def test_every_option_that_a_page_names_exists():
    """Commands in the pages use options that the command line has."""
    known = {
        option
        for command in [main, *main.commands.values(), *main.commands["evaluate"].commands.values()]
        for parameter in command.params
        for option in parameter.opts
    }
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    used = {
        word
        for page in pages
        for line in re.findall(
            r"scalr (?:check|extract|inspect|verify|distill|convert|evaluate|predict|synth)[^\n`]*", page.read_text()
        )
        for word in re.findall(r"(?<!\S)--[a-z-]+", line)
    }
    assert used
    assert used <= known | {"--scheduler"}


def test_the_command_line_accepts_every_command_of_a_page(monkeypatch):
    """Options, their values and what is required; nothing runs. Lines with variables of the shell are left out."""
    monkeypatch.setenv("NUSCENES", "world")
    pages = [path.read_text().replace("\\\n", " ") for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]]
    lines = re.findall(r"(?m)^ {4,}(?:torchrun .* )?scalr ((?!--).*)$", "\n".join(pages))
    lines = [line for line in lines if not re.search(r"[$…]", line)]
    assert len(lines) > 50
    for line in lines:
        words = shlex.split(re.split(r" (?:&&|[;>|]) ?", line)[0], comments=True)
        command = main
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        command.make_context(line, words, parent=click.Context(main))


def test_the_page_of_distillation_has_a_row_for_each_recipe_and_each_key_with_its_default():
    page = (DOCS / "distill.md").read_text()
    of_recipes, of_keys = (page.split(f"## {title}\n")[1].split("\n## ")[0] for title in ("Recipes", "Keys"))
    assert sorted(re.findall(r"(?m)^\| `(\w+)` \|", of_recipes)) == recipe_names()
    keys = re.findall(r"(?m)^\| `([\w.]+)` \| (.+?) \|", of_keys)
    values = recipe_values(load_recipe("scalr_wi256"))
    expected = {f"{section}.{key}": value for section, of in values.items() for key, value in of.items()}
    del expected["student.out_channels"]  # the run sets it
    assert sorted(name for name, _ in keys) == sorted(expected)
    in_words = {
        "augmentation.max_rotation_rad": ("π", math.pi),
        "augmentation.flip_probability": ("2/3", 2 / 3),
        "inputs.fov_min_m": ("−64, −64, −8", [-64, -64, -8]),
        "inputs.fov_max_m": ("64, 64, 8", [64, 64, 8]),
        "inputs.planes": ("256 × 256, 256 × 32, 256 × 32", expected["inputs.planes"]),
        "objective.teachers": ("the store's only one", {}),
        "sampling.store_weights": ("none", None),
        "training.warmup_epochs": ("none", None),
    }
    for name, default in keys:
        stated = in_words[name][1] if in_words.get(name, ("",))[0] == default else parsed(default.strip("`"))
        assert stated == expected[name], name


def test_every_test_that_a_page_names_exists():
    tests = Path(__file__).parent
    named = {name for page in DOCS.glob("*.md") for name in re.findall(r"[\w/]+\.py::test_\w+", page.read_text())}
    assert len(named) > 10
    for name in named:
        file, function = name.split("::")
        assert f"\ndef {function}(" in (tests / file).read_text(), name


def modules_with_examples() -> list[str]:
    others = {"tests", ".venv", ".venv-newest", "build"}
    files = [file for file in DOCS.parent.rglob("*.py") if not others & set(file.parts)]
    names = [file.relative_to(DOCS.parent).with_suffix("").parts for file in files if ">>>" in file.read_text()]
    return sorted(".".join(["scalr", *parts]).removesuffix(".__init__") for parts in names)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
