"""Killed by SIGKILL at any moment and started again: the same store, and never a partial block for a reader."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from in_children import say_what_is_imported
from moments import Child
from scalr.extract.store import FeatureStore, open_store
from store_comparison import assert_same_store
from tiny import extract_in_child

FRAMES = 12
OPTIONS = {"teachers": ("coordinates", "doubled"), "frames_per_block": 2, "encoding": "patch", "superpixels": "slic"}


def start(children, tmp_path: Path, out: str, *stops: int) -> Child:
    """Start an extraction that waits before those of its changes of the store."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))  # each its own images, always the same
    return Child(children, extract_in_child, folder, tmp_path / out, FRAMES, OPTIONS, stops=stops)


def test_a_child_starts_with_all_imports_done(children, tmp_path):
    """Each would import torch for seconds, unnoticed, if their server did not find our modules."""
    child = children.Process(target=say_what_is_imported, args=(tmp_path / "modules",))
    child.start()
    child.join()
    assert {"tiny", "torch._dynamo"} <= set((tmp_path / "modules").read_text().split())


@pytest.fixture(scope="module")
def whole_run(children, tmp_path_factory) -> tuple[FeatureStore, int]:
    """The store of a run that nobody stops, and its number of moments."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(children, folder, "whole.zarr").end() == 0
    return open_store(folder / "whole.zarr"), int((folder / "whole.moments").read_text())


def kill_and_resume(children, tmp_path: Path, whole_run: tuple[FeatureStore, int], kills: int) -> tuple[int, int]:
    """Kill runs at random moments and resume them until `kills` are done; gives (stores, times a block was read)."""
    whole, moments = whole_run
    rng, stores, reads = np.random.default_rng(0), 0, 0
    while kills:
        out = tmp_path / f"{stores}.zarr"
        while kills:
            child = start(children, tmp_path, out.name, int(rng.integers(moments)))
            killed = child.wait_for_a_moment()
            reads += read_what_is_committed(out)
            if not killed:
                break
            child.kill()
            kills -= 1
        assert start(children, tmp_path, out.name).end() == 0
        reads += read_what_is_committed(out)
        assert_same_store(open_store(out), whole)
        stores += 1
    return stores, reads


def read_what_is_committed(path: Path) -> int:
    """Read the blocks that have an index; each must be whole."""
    if not (path / "zarr.json").exists():
        return 0
    store = open_store(path)
    blocks = sorted(store.committed_blocks())
    for block in blocks:
        assert store.read_scans(block).views["points_stop"][-1].as_py() == 800
    for teacher in store.teachers:
        for block in sorted(store.committed_blocks(teacher)):
            targets = store.read_targets(block, teacher)
            assert len(targets.vectors) == targets.views["stop"][-1].as_py()
            assert np.abs(targets.vectors).max(axis=1).min() == 127
    return len(blocks)


def test_a_killed_run_goes_on(children, tmp_path, whole_run):
    stores, reads = kill_and_resume(children, tmp_path, whole_run, kills=2)
    assert stores
    assert reads > 2


@pytest.mark.slow
def test_sixty_kills(children, tmp_path, whole_run):
    stores, reads = kill_and_resume(children, tmp_path, whole_run, kills=60)
    print(f"60 kills, {stores} stores finished, {reads} blocks read while jobs ran: all whole")
    assert reads > 100


@pytest.mark.slow
def test_two_runs_of_the_same_part_at_once(children, tmp_path, whole_run):
    """By mistake; the second takes the first one's scratch folder for a leftover."""
    whole, moments = whole_run
    runs = []
    for share in (8, 6, 4):
        runs.append(start(children, tmp_path, "doubled.zarr", moments // share))
        assert runs[-1].wait_for_a_moment()
    for run in runs:
        run.go_on()
    assert [run.end() for run in runs] == [0] * 3
    assert_same_store(open_store(tmp_path / "doubled.zarr"), whole)
