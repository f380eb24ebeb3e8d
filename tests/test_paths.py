"""Paths as people write them: what is filled in, and what is refused before anything is made of it."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from scalr.cli import main
from scalr.cli_options import WrittenPath
from scalr.distill.checkpoint import load_student
from scalr.distill.convert import convert
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig
from scalr.errors import DatasetError, ScalrError
from scalr.extract.config import ExtractConfig
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.store import create_store, open_store
from scalr.extract.teachers.teacher import load_teacher
from scalr.extract.verification import VerifyConfig
from scalr.paths import below, expanded

URL = "s3://bucket/x.zarr"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("runs/a", "runs/a"),
        ("~/rig", "{home}/rig"),
        ("~", "{home}"),
        ("$SCRATCH/s.zarr", "/scratch/me/s.zarr"),
        ("${SCRATCH}er/s.zarr", "/scratch/meer/s.zarr"),
        ("$HOME/rig", "{home}/rig"),
        ("a~b/c", "a~b/c"),
        ("100$/c", "100$/c"),
        ("12:30/c", "12:30/c"),
        ("a/s3://b", "a/s3:/b"),
        ("model.pth.tar", "model.pth.tar"),
        ("x.zip.zarr", "x.zip.zarr"),
        ("x.tar.zarr", "x.tar.zarr"),
    ],
)
def test_home_and_variables_are_filled_in(home, written, path):
    assert str(expanded(written)) == path.format(home=home)
    assert expanded(expanded(written)) == expanded(written)


def test_what_is_there_by_its_very_name_is_taken(home):
    for name in ("~", "$SCRATCH", "data.zip"):
        Path(name).mkdir()
        assert expanded(name) == Path(name)


def test_a_name_that_is_no_text_stays_as_it_is(tmp_path):
    name = os.fsencode(tmp_path) + b"/st\xffre"
    assert os.fsencode(expanded(name)) == name


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (URL, r"^s3://bucket/x\.zarr: URLs are not read or written\. Copy the data to a disk"),
        (Path(URL), r"^s3://bucket/x\.zarr: URLs are not read"),
        ("gs://bucket", "^gs://bucket: URLs are not read"),
        ("https://host/a.pth", "^https://host/a.pth: URLs are not read"),
        ("HDFS://host/a", "^HDFS://host/a: URLs are not read"),
        ("file:///data/x", r"^file:///data/x: URLs are not read.* Pass /data/x$"),
        ("file://localhost/data/x", r"^file:///data/x: URLs are not read.* Pass /data/x$"),
        ("$BUCKET/x", "^s3://mine/x: URLs are not read"),
        ("data/nuscenes.zip", "nuscenes.zip: archives are not read or written"),
        ("nuscenes.tar.gz", "nuscenes.tar.gz: archives are not read or written"),
        ("a.TGZ", "archives are not read or written"),
        ("a\0b", r"^'a\\x00b': the path holds a NUL character"),
        ("", "^'': the path is empty"),
        ("$NOT_SET_ANYWHERE/x", r"^\$NOT_SET_ANYWHERE/x: the environment variable 'NOT_SET_ANYWHERE' is not set"),
        ("${NOT_SET_ANYWHERE}/x", "'NOT_SET_ANYWHERE' is not set"),
        ("~nobody-of-this-name/x", "^~nobody-of-this-name/x: the home folder of ~ is not known"),
    ],
)
def test_what_is_no_path_of_a_file_system_is_refused(monkeypatch, written, message):
    monkeypatch.setenv("BUCKET", "s3://mine")
    with pytest.raises(DatasetError, match=message):
        expanded(written, DatasetError)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "..", "", "a\0b"])
def test_a_name_from_a_file_never_leads_out_of_a_folder(tmp_path, name):
    with pytest.raises(DatasetError, match="in the dataset's tables leads out of the folder"):
        below(tmp_path, name, DatasetError)


@pytest.mark.parametrize("name", ["x", "a/b..c", "...", "~", "$HOME"])
def test_other_names_stay_as_they_are(tmp_path, name):
    assert below(tmp_path, name) == tmp_path / name


def test_without_a_home_folder_the_path_is_asked_for(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(ScalrError, match="the home folder of ~ is not known"):
        expanded("~/x")


def test_every_path_of_the_command_line_is_one_of_these():
    def kinds(command: click.Command, words: str) -> list[tuple[str, type]]:
        below = getattr(command, "commands", {})
        own = [(f"{words} {each.name}", type(each.type)) for each in command.params]
        return own + [found for name, inner in below.items() for found in kinds(inner, f"{words} {name}")]

    found = kinds(main, "scalr")
    assert not [name for name, kind in found if issubclass(kind, click.Path) and kind is not WrittenPath]
    assert len([name for name, kind in found if kind is WrittenPath]) > 20


@pytest.mark.parametrize(
    "words",
    [
        ("extract", "--teacher", "dinov2_vits14", "--root", ".", "--out", URL),
        ("extract", "--teacher", "dinov2_vits14", "--root", URL),
        ("extract", "--teacher", "dinov2_vits14", "--root", ".", "--weights", URL),
        ("extract", "--teacher", "dinov2_vits14", "--root", ".", "--weights", f"dinov2_vits14={URL}"),
        ("extract", "--teacher", "dinov2_vits14", "--root", ".", "--superpixels", URL),
        ("check", "--root", URL),
        ("inspect", URL),
        ("verify", URL),
        ("distill", "--cache", URL),
        ("distill", "--recipe", URL),
        ("convert", URL, "a.safetensors"),
        ("evaluate", "report", URL),
        ("synth", "--out", URL),
    ],
)
def test_each_command_refuses_a_url_in_one_line_and_makes_no_folder(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1, done.output
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == done.stderr.splitlines()[-1:]
    assert f"{URL}: URLs are not read" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "call",
    [
        open_store,
        load_student,
        load_recipe,
        lambda url: create_store(url, "owner"),
        lambda url: open_dataset("frames", url, "train"),
        lambda url: write_world(url),
        lambda url: convert(Path(url), Path("a.safetensors")),
        lambda url: load_teacher("dinov2_vits14", image_size=(28, 56), weights=url),
        lambda url: ExtractConfig(root="r", out=url, teachers=("dinov2_vits14",)),
        lambda url: VerifyConfig(store="s.zarr", superpixels=url),
        lambda url: DistillConfig(caches=(url,), out="o"),
    ],
)
def test_so_does_python(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScalrError, match=r"^s3://bucket/x\.zarr: URLs are not read"):
        call(URL)
    assert list(tmp_path.iterdir()) == []


def test_the_option_is_named():
    done = CliRunner().invoke(main, ["inspect", ""])
    assert done.stderr == "Error: store: '': the path is empty. Name a file or folder; . is the current folder\n"
    done = CliRunner().invoke(main, ["check", "--root", "$NOT_SET_ANYWHERE"])
    assert done.stderr.startswith("Error: --root: $NOT_SET_ANYWHERE: the environment variable")


def test_an_empty_variable_names_no_nuscenes(monkeypatch):
    monkeypatch.setenv("NUSCENES", "")
    assert "--root: no dataset folder" in CliRunner().invoke(main, ["check"]).stderr


def test_the_nuscenes_folder_of_the_environment_is_one_too(monkeypatch):
    monkeypatch.setenv("NUSCENES", URL)
    done = CliRunner().invoke(main, ["check"])
    assert done.stderr.startswith(f"Error: {URL}: URLs are not read")
