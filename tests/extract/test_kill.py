"""Killed by SIGKILL at any moment and started again: the same store, and never a partial block for a reader."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from scalr.extract.store import open_store
from store_comparison import assert_same_store
from tiny import extract_in_child

FRAMES = 24
OPTIONS = {"teachers": ("coordinates", "doubled"), "frames_per_block": 2, "encoding": "patch", "dtype": "int8"}


def start(children, tmp_path: Path, out: str):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))  # each its own images, always the same
    child = children.Process(target=extract_in_child, args=(folder, tmp_path / out, FRAMES), kwargs=OPTIONS)
    child.start()
    return child


def kill_and_resume(children, tmp_path: Path, kills: int) -> tuple[int, int]:
    """Kill runs at random moments and resume them until `kills` are done; gives (stores, times a block was read)."""
    warm, whole = start(children, tmp_path, "warm.zarr"), tmp_path / "whole.zarr"
    warm.join()
    began = time.perf_counter()
    child = start(children, tmp_path, whole.name)
    child.join()
    assert child.exitcode == 0
    seconds, rng = time.perf_counter() - began, np.random.default_rng(0)
    stores = reads = 0
    while kills:
        out = tmp_path / f"{stores}.zarr"
        while True:
            child = start(children, tmp_path, out.name)
            deadline = time.perf_counter() + rng.uniform(0, 0.7 * seconds)
            while child.is_alive() and time.perf_counter() < deadline:
                reads += read_what_is_committed(out, 1)
            if kills and child.is_alive():
                child.kill()
                kills -= 1
            child.join()
            reads += read_what_is_committed(out)
            if child.exitcode == 0:
                break
        assert_same_store(open_store(out), open_store(whole))
        stores += 1
    return stores, reads


def read_what_is_committed(path: Path, most: int = 1000) -> int:
    """Read the newest blocks that have an index; each must be whole."""
    if not (path / "zarr.json").exists():
        return 0
    store = open_store(path)
    blocks = sorted(store.committed_blocks())[-most:]
    for block in blocks:
        assert store.read_scans(block).views["points_stop"][-1].as_py() == 800
    for teacher in store.teachers:
        for block in sorted(store.committed_blocks(teacher))[-most:]:
            targets = store.read_targets(block, teacher)
            assert len(targets.vectors) == targets.views["stop"][-1].as_py()
            assert np.abs(targets.vectors).max(axis=1).min() == 127
    return len(blocks)


def test_a_killed_run_goes_on(children, tmp_path):
    stores, reads = kill_and_resume(children, tmp_path, kills=6)
    assert stores
    assert reads > 10


@pytest.mark.slow
def test_sixty_kills(children, tmp_path):
    stores, reads = kill_and_resume(children, tmp_path, kills=60)
    print(f"60 kills, {stores} stores finished, {reads} blocks read while jobs ran: all whole")
    assert reads > 100


def test_two_runs_of_the_same_part_at_once(children, tmp_path):
    """By mistake; the second takes the first one's scratch folder for a leftover."""
    runs = []
    for _ in range(3):
        runs.append(start(children, tmp_path, "doubled.zarr"))
        time.sleep(0.3)
    alone = start(children, tmp_path, "alone.zarr")
    for child in (*runs, alone):
        child.join()
    assert [child.exitcode for child in (*runs, alone)] == [0] * 4
    assert_same_store(open_store(tmp_path / "doubled.zarr"), open_store(tmp_path / "alone.zarr"))
