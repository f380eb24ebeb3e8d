"""What is taken out of a store: in an order that a reader can follow, and durable step by step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scalr.extract.store import SCANS, aside
from scalr.extract.store.aside import AsideFolder
from scalr.extract.store.format import index_path
from small_store import filled_store


@pytest.fixture
def path(tmp_path) -> Path:
    return filled_store(tmp_path / "s.zarr").path


@pytest.fixture
def steps(path, monkeypatch) -> list[str]:
    """Moves, by where something is moved from or to, and flushed folders."""
    noted = []

    def moved(source, target):
        ours = target if source.is_relative_to(path / "aside") else source
        noted.append(f"move {ours.relative_to(path)}")
        real_move(source, target)

    def flushed(folder):
        noted.append(f"flush {folder.relative_to(path)}")
        real_fsync(folder)

    real_move, real_fsync = aside.move, aside.fsync
    monkeypatch.setattr(aside, "move", moved)
    monkeypatch.setattr(aside, "fsync", flushed)
    return noted


def indexes(path: Path, block: int) -> list[Path]:
    return [index_path(path, kind, block) for kind in (SCANS, "t")]


def test_a_group_stops_counting_before_it_is_moved_and_counts_after_it_is_back(path, steps):
    """Each folder is flushed before the next step: whenever the power fails, no index is of a group that is gone."""
    folder = AsideFolder(path)
    entry = folder.take(SCANS, 1, indexes(path, 1))
    assert entry == path / "aside/000001.scans.0"
    assert steps == [
        "move index/scans/000001.parquet", "flush index/scans", "move index/t/000001.parquet", "flush index/t",
        "move blocks/000001", "flush blocks", "flush aside/000001.scans.0",
    ]  # fmt: skip
    steps.clear()
    assert folder.give_back(SCANS, 1)
    assert steps[:2] == ["move blocks/000001", "flush blocks"]
    assert sorted(zip(steps[2::2], steps[3::2], strict=True)) == [
        ("move index/scans/000001.parquet", "flush index/scans"), ("move index/t/000001.parquet", "flush index/t"),
    ]  # fmt: skip
    assert not folder.give_back(SCANS, 1)
    assert not folder.give_back(SCANS, 0)


def test_a_group_comes_back_where_the_folders_of_indexes_are_gone(path):
    folder = AsideFolder(path)
    folder.take(SCANS, 1, indexes(path, 1))
    shutil.rmtree(path / "index")
    assert folder.give_back(SCANS, 1)
    assert all(index.exists() for index in indexes(path, 1))


def test_a_record_is_taken_and_its_folder_flushed(path, steps):
    folder = AsideFolder(path)
    entry = folder.take_file(path / "teachers/t/zarr.json")
    assert entry == path / "aside/teachers.t.zarr.json.0"
    assert steps == ["move teachers/t/zarr.json", "flush teachers/t"]
    assert folder.take_file(path / "teachers/t/zarr.json") is None


def test_targets_come_back_from_what_was_taken_with_their_scans(path, steps):
    folder = AsideFolder(path)
    folder.take(SCANS, 1, indexes(path, 1))
    assert folder.take(SCANS, 1, indexes(path, 1)) is None  # nothing is there any more
    steps.clear()
    (path / "blocks/000001/targets").mkdir(parents=True)  # as scans that are made anew have it
    assert folder.give_back_targets("t", 1)
    assert steps == ["move blocks/000001/targets/t", "flush blocks/000001/targets"]
    assert not folder.give_back_targets("t", 1)  # they are there


def test_an_index_without_its_group_is_taken_too_and_a_group_without_its_index(path, steps):
    folder = AsideFolder(path)
    folder.take(SCANS, 1, [])
    assert steps == ["move blocks/000001", "flush blocks", "flush aside/000001.scans.0"]
    steps.clear()
    assert folder.take(SCANS, 1, indexes(path, 1)) == path / "aside/000001.scans.1"
    assert "move blocks/000001" not in steps
    assert folder.give_back(SCANS, 1)  # the last that has a group
    assert (path / "blocks/000001").exists()


def test_the_last_that_was_taken_comes_back(path):
    """Of eleven: the tenth number is after the ninth."""
    folder = AsideFolder(path)
    for number in range(11):
        (path / "blocks/000001").mkdir(exist_ok=True)
        (path / "blocks/000001/number").write_text(str(number))
        assert folder.take(SCANS, 1, []).name == f"000001.scans.{number}"
    (path / "aside/000001.scans.of-another-program/group").mkdir(parents=True)
    assert folder.give_back(SCANS, 1)
    assert (path / "blocks/000001/number").read_text() == "10"
