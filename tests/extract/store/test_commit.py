"""Killed, doubled, full: what is committed is whole, and what is missing is made by the next run."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from durable_moves import DurableMoves
from scalr.errors import StoreError
from scalr.extract.store import SCANS, commit, create_store, open_store
from small_store import PROVENANCE, SETTINGS, a_block, filled_store, write_targets
from store_comparison import assert_same_store


@pytest.fixture
def whole(tmp_path):
    return filled_store(tmp_path / "whole.zarr")


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_dies_anywhere_leaves_whole_blocks_only(tmp_path, whole, monkeypatch, every):
    """Die at the n-th fsync or rename: readers see whole blocks, and the same run again completes."""
    steps = count_durable_steps(tmp_path / "count.zarr", monkeypatch)
    assert steps > 80
    for fatal in range(0, steps, every):
        path = tmp_path / f"{fatal}.zarr"
        with monkeypatch.context() as patch:
            die_at_step(patch, fatal)
            with pytest.raises(SystemExit):
                filled_store(path)
        if (path / "zarr.json").exists():
            assert_readable(open_store(path))
        writer = create_store(path, "part-0-of-1")
        writer.clear_leftovers()
        assert_same_store(filled_store(path), whole)


DURABLE = ("fsync", "rename", "replace")


def count_durable_steps(path: Path, monkeypatch) -> int:
    calls = []
    with monkeypatch.context() as patch:
        on_durable_step(patch, lambda: calls.append(0))
        filled_store(path)
    return len(calls)


def die_at_step(patch, fatal: int) -> None:
    """From the `fatal`-th fsync or rename on, nothing works any more: not even tidying up, as after SIGKILL."""
    calls = []

    def die():
        calls.append(0)
        if len(calls) > fatal:
            patch.setattr(commit.shutil, "rmtree", lambda *_, **__: None)
            raise SystemExit

    on_durable_step(patch, die)


def on_durable_step(patch, action) -> None:
    """Call `action` before each fsync and rename of our own; zarr's are made in its threads."""

    def wrapped(real):
        def call(*args):
            if threading.current_thread() is threading.main_thread():
                action()
            return real(*args)

        return call

    for name in DURABLE:
        patch.setattr(os, name, wrapped(getattr(os, name)))


def assert_readable(store) -> None:
    for row in range(store.views.num_rows):
        store.read_view(row)
    for teacher in store.teachers:
        for row in store.rows_with_targets(teacher):
            store.read_view(int(row), teacher)


def test_what_counts_would_survive_a_power_failure(tmp_path, monkeypatch):
    """Before a move all of it is on disk, and before the next one the folder that it went to, the index' last."""
    path = tmp_path / "s.zarr"
    moves = DurableMoves(monkeypatch, ignored=path / "tmp")
    filled_store(path)
    assert moves.complaints == []
    assert moves.unflushed_folder is None
    for block in (0, 1):
        group, targets = path / f"blocks/{block:06d}", path / f"blocks/{block:06d}/targets/t"
        indexes = [path / f"index/{kind}/{block:06d}.parquet" for kind in (SCANS, "t")]
        order = [moves.targets.index(each) for each in (group, *indexes)]
        assert order == sorted(order)
        assert targets not in moves.targets  # it came with the scans
    assert moves.targets.index(path / "zarr.json") > moves.targets.index(path / "blocks/zarr.json")


def test_a_disk_that_does_not_flush_is_said_but_folders_of_some_network_file_systems(tmp_path, monkeypatch):
    """Those know no fsync of folders (EINVAL); nothing stays open."""
    (tmp_path / "file").touch()
    descriptors = []

    def refuse(code):
        def call(descriptor):
            descriptors.append(descriptor)
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", call)

    refuse(errno.EINVAL)
    commit.fsync(tmp_path)
    for path, code in ((tmp_path / "file", errno.EINVAL), (tmp_path, errno.EIO), (tmp_path / "file", errno.EIO)):
        refuse(code)
        with pytest.raises(OSError, match=os.strerror(code)):
            commit.fsync(path)
    assert len(descriptors) == 4
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_group_without_index_counts_if_it_is_whole(tmp_path, whole):
    """Killed between two renames: whole files are kept, damaged ones are written anew."""
    path = tmp_path / "s.zarr"
    filled_store(path)
    for block in (0, 1):
        for kind in (SCANS, "t"):
            (path / f"index/{kind}/{block:06d}.parquet").unlink()
    vectors = path / "blocks/000001/targets/t/vectors/c/0/0"
    vectors.write_bytes(vectors.read_bytes()[:-1])
    writer = create_store(path, "part-0-of-1")
    assert [writer.recover(SCANS, 0), writer.recover("t", 0), writer.recover(SCANS, 1)] == [True] * 3
    assert not writer.recover("t", 1)
    assert not vectors.exists()
    write_targets(writer, 1, "t", a_block(1)[1])
    assert_same_store(open_store(path), whole)


def test_leftovers_are_cleared_by_the_same_part_only(tmp_path):
    path = tmp_path / "s.zarr"
    filled_store(path)
    left = path / "tmp/part-1-of-2/abc/points"
    left.mkdir(parents=True)
    (left / "zarr.json").touch()
    assert create_store(path, "part-0-of-2").clear_leftovers() == 0
    assert left.exists()
    assert create_store(path, "part-1-of-2").clear_leftovers() == 1
    assert not left.exists()


def test_two_jobs_with_the_same_part_lose_nothing(tmp_path, whole):
    """Two writers of all blocks at once, and a third that keeps clearing their scratch folder away."""
    path = tmp_path / "s.zarr"
    done, failures = threading.Event(), []

    def write():
        try:
            filled_store(path)
        except StoreError as error:  # it gave up after several tries, and says so
            failures.append(str(error))

    def clear():
        create_store(path, "part-0-of-1")
        while not done.wait(0.05):
            create_store(path, "part-0-of-1").clear_leftovers()

    writers, clearer = [threading.Thread(target=write) for _ in range(2)], threading.Thread(target=clear)
    for thread in (*writers, clearer):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    clearer.join()
    assert all("Run each part in one job at a time" in failure for failure in failures), failures
    assert_readable(open_store(path))
    assert_same_store(filled_store(path), whole)


@pytest.mark.parametrize("every", [pytest.param(7, marks=pytest.mark.slow), 23])
def test_a_scratch_folder_taken_away_is_written_again(tmp_path, whole, monkeypatch, caplog, every):
    """At every step of writing a block, another run of the same part clears the leftovers, once."""
    steps = count_durable_steps(tmp_path / "count.zarr", monkeypatch)
    for fatal in range(20, steps, every):
        path = tmp_path / f"{fatal}.zarr"
        with monkeypatch.context() as patch:
            clear_at_step(patch, path, fatal)
            filled_store(path)
        assert_same_store(open_store(path), whole)
    assert "is the same part running twice?" in caplog.text


def clear_at_step(patch, path: Path, step: int) -> None:
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(0)
        if len(calls) == step:
            create_store(path, "part-0-of-1").clear_leftovers()
        real(descriptor)

    patch.setattr(os, "fsync", fsync)


def test_several_jobs_may_make_the_store_at_once(tmp_path):
    """Jobs of an array that start together agree on sources and their blocks."""
    path, found = tmp_path / "s.zarr", []

    def start(split: str):
        writer = create_store(path, f"part-{split}")
        source = writer.add_inputs({**SETTINGS, "split": split}, record={}, teachers={"t": PROVENANCE})
        found.append((split, source.first_block))

    threads = [threading.Thread(target=start, args=(split,)) for split in ("train", "val") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 2
    assert {first for _, first in found} == {0, 2}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_file_system_that_refuses_is_one_clear_error(tmp_path, whole, monkeypatch, code):
    path = tmp_path / "s.zarr"
    filled_store(path, blocks=(0,))

    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    remedy = "Check the permissions there" if code == errno.EROFS else "Make room there"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match=rf"s.zarr: .*{os.strerror(code)}.*{remedy}, then run the same command"):
            filled_store(path)
    assert open_store(path).committed_blocks("t") == {0}
    assert_same_store(filled_store(path), whole)


def test_a_file_in_place_of_a_folder_is_not_answered_with_make_room(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        StoreError, match=r"refuses to write \(Not a directory\)\. Check which part of the path is a file"
    ):
        create_store(tmp_path / "file/s.zarr", "part-0-of-1")


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_crosses_devices_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch, is_folder):
    """As in a container, where a folder of a lower layer is on another device than all that is new."""
    source, target, flushed = tmp_path / "here/a", tmp_path / "there/b", []
    (source if is_folder else source.parent).mkdir(parents=True)
    target.parent.mkdir()
    (source / "file" if is_folder else source).write_text("content")

    def renamed(from_path, to_path):
        if Path(from_path).parent != Path(to_path).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        copy = Path(from_path)
        assert copy.name.startswith(".moving-")  # litter, should the process be killed now
        assert set(flushed) == {copy, *copy.rglob("*")}
        real(from_path, to_path)

    real = os.rename
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(commit, "fsync", flushed.append)
    commit.move(source, target)
    assert not source.exists()
    assert (target / "file" if is_folder else target).read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_folders_that_cannot_be_flushed_are_taken_as_they_are(tmp_path, monkeypatch):
    """Some network file systems know no fsync of folders; a file that is not on disk is an error everywhere."""

    def refusing(code):
        def fsync(descriptor):
            raise OSError(code, os.strerror(code))

        return fsync

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    commit.fsync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        commit.fsync(tmp_path / "file")
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        commit.fsync(tmp_path)
