"""`scalr remove`: a teacher or a split goes for good, and nothing counts whose data are on their way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from scalr.cli import main
from scalr.errors import StoreError
from scalr.extract.store import open_store
from scalr.extract.store.remove import removal_of_split, removal_of_teacher
from scalr.extract.verification import VerifyConfig, verify
from small_store import (
    PROVENANCE,
    SETTINGS,
    a_block,
    add_inputs,
    create_store,
    filled_store,
    write_block,
    write_targets,
)
from store_comparison import assert_same_store, files


def add_more(path: Path) -> None:
    """A second teacher of both blocks, and a second split of one block with both teachers."""
    writer = create_store(path, "part-0-of-1")
    both = {name: {**PROVENANCE, "teacher": name} for name in "tu"} | {"t": PROVENANCE}
    add_inputs(writer, **both)
    for block in (0, 1):
        write_targets(writer, block, "u", a_block(block)[1])
    add_inputs(writer, {**SETTINGS, "split": "val", "num_blocks": 1}, **both)
    scans, targets = a_block(2)
    write_block(writer, 2, scans, t=targets, u=targets)


@pytest.fixture(scope="module")
def larger(tmp_path_factory) -> Path:
    path = filled_store(tmp_path_factory.mktemp("larger") / "s.zarr").path
    add_more(path)
    return path


@pytest.fixture
def path(larger, tmp_path) -> Path:
    return shutil.copytree(larger, tmp_path / "s.zarr")


def test_a_teacher_goes_and_all_else_stays(path, larger):
    before = files(larger)
    removal_of_teacher(open_store(path), "u").run()
    store = open_store(path)
    assert list(store.teachers) == ["t"]
    assert files(path).keys() == {name for name in before if "/u/" not in f"/{name}"}
    assert verify(VerifyConfig(store=path)).whole
    create_store(path, "p").add_inputs(SETTINGS, {}, {"u": {**PROVENANCE, "dim": 5}})  # other settings are no trouble


def test_a_split_goes_and_the_others_stay_where_they_are(path, larger):
    removal_of_split(open_store(path), "nuscenes/train").run()
    store = open_store(path)
    assert store.blocks == [2]
    assert set(store.column("block").tolist()) == {2}
    assert verify(VerifyConfig(store=path)).whole
    assert not list(path.glob("*/*/000000*"))
    assert not list(path.glob("*/000001"))
    np.testing.assert_array_equal(store.read_view(0, "u").targets, open_store(larger).read_view(6, "u").targets)
    # A new split gets the blocks after those that stay.
    source = create_store(path, "p").add_inputs(SETTINGS, {}, {"t": PROVENANCE})
    assert list(source.blocks) == [3, 4]


@pytest.mark.parametrize(
    ("remove", "name"),
    [(removal_of_teacher, "u"), pytest.param(removal_of_split, "nuscenes/train", marks=pytest.mark.slow)],
)
def test_killed_anywhere_it_leaves_whole_blocks_and_goes_on(larger, tmp_path, remove, name):
    """Before each file or folder that it takes out of the way."""
    done = shutil.copytree(larger, tmp_path / "done.zarr")
    steps = []

    def killed_after(number: int):
        def rename(source, target):
            steps.append(source)
            if len(steps) > number:
                raise SystemExit
            real(source, target)

        return rename

    real, killed = os.rename, 0
    remove(open_store(done), name).run()
    while True:
        path, steps[:] = shutil.copytree(larger, tmp_path / f"{killed}.zarr"), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "rename", killed_after(killed))
            try:
                remove(open_store(path), name).run()
                break
            except SystemExit:
                killed += 1
        store = open_store(path)
        for row in range(store.views.num_rows):
            for teacher in store.teachers:
                if row in store.rows_with_targets(teacher):
                    store.read_view(row, teacher)
        assert verify(VerifyConfig(store=path)).damage == []
        remove(open_store(path), name).run()
        assert_same_store(open_store(path), open_store(done))
        assert files(path).keys() == files(done).keys()
    assert killed == len(steps) > 2


@pytest.mark.parametrize("option", [("--teacher", "u"), ("--split", "nuscenes/val")])
def test_the_command_asks_first(path, option):
    before = files(path)
    asked = CliRunner().invoke(main, ["remove", str(path), *option], input="n\n")
    assert asked.exit_code == 1
    assert f"Delete {'teacher u (3 blocks' if option[1] == 'u' else 'split nuscenes/val (1 block'}, " in asked.output
    assert files(path) == before
    sure = CliRunner().invoke(main, ["remove", str(path), *option, "--yes"])
    assert sure.exit_code == 0, sure.output
    assert ": deleted " in sure.output
    store = open_store(path)
    assert ("u" in store.teachers, len(store.sources)) == ((False, 2) if option[1] == "u" else (True, 1))


def test_litter_is_in_nobodys_way(path):
    (path / "index/.DS_Store").touch()
    (path / "blocks/.DS_Store").touch()
    for name in ("nuscenes/train", "nuscenes/val"):
        removal_of_split(open_store(path), name).run()
    removal_of_teacher(open_store(path), "u").run()
    assert verify(VerifyConfig(store=path)).found.stray == ["blocks/.DS_Store", "index/.DS_Store"]


def test_what_is_not_there_cannot_be_removed(path):
    with pytest.raises(StoreError, match=r"no teacher 'x' \(it has: t, u\)\. Pass --teacher"):
        removal_of_teacher(open_store(path), "x")
    with pytest.raises(StoreError, match=r"no split 'val' \(it has: nuscenes/train, nuscenes/val\)\. Pass --split"):
        removal_of_split(open_store(path), "val")
    for options in ([], ["--teacher", "t", "--split", "nuscenes/val"]):
        wrong = CliRunner().invoke(main, ["remove", str(path), *options])
        assert wrong.exit_code == 2
        assert "Pass one --teacher or one --split" in wrong.output


def test_a_store_that_may_not_be_changed_is_said(path, monkeypatch):
    def rename(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(
        StoreError, match=r"index/u: the file or folder cannot be deleted \(Permission denied\)\. Check"
    ):
        removal_of_teacher(open_store(path), "u").run()
