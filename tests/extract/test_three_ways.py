"""One plan, three ways to run it: parts, processes, a dask cluster; always the same store."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import dask
import distributed
import pytest

from scalr.errors import ScalrError, StoreError
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.executors import local_cluster, run_on_cluster
from scalr.extract.plan import Block, Part
from scalr.extract.run import ExtractConfig, extract, extractor
from scalr.extract.store import FeatureStore, open_store
from scalr.extract.teachers import weights
from store_comparison import assert_same_store
from tiny import TinyDataset, extract_with, killing_extractor, tiny_teachers

TEACHER = ("--teacher", "dinov2_vits14", "--weights", "random", "--image-size", "28x56", "--batch-size", "8")
KEPT = ("--encoding", "patch", "--dtype", "int8", "--frames-per-block", "2")


@pytest.mark.parametrize("count", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 8))])
def test_parts_in_any_order_give_one_store(tmp_path, count):
    dataset = TinyDataset(tmp_path, num_frames=11)
    options = {"teachers": ("coordinates", "doubled"), "frames_per_block": 2, "batch_size": 3}
    whole = extract_with(dataset, tiny_teachers(), tmp_path / "whole.zarr", **options)
    parts = [Part(index, count) for index in range(count)]
    random.Random(count).shuffle(parts)
    for number, part in enumerate(parts):
        store = extract_with(dataset, tiny_teachers(), tmp_path / "parts.zarr", part=part, **options)
        assert len(store.committed_blocks()) == sum(len(range(done.index, 6, count)) for done in parts[: number + 1])
    assert_same_store(store, whole)


def tiny_config(world: Path, out: Path, **options) -> ExtractConfig:
    options |= {"weights": ("random",), "image_size": (28, 56), "batch_size": 8}  # as measured, it might differ
    return ExtractConfig(root=world, out=out, teachers=("dinov2_vits14",), **options)


@pytest.fixture
def forked_workers(children):
    """Dask's workers are forked, too, from the server of the tests' own children; `test_two_workers` spawns them."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


def test_worker_processes_give_the_same_store(synthetic_world, tmp_path, forked_workers):
    extract(tiny_config(synthetic_world, tmp_path / "one.zarr", frames_per_block=1))
    extract(tiny_config(synthetic_world, tmp_path / "two.zarr", frames_per_block=1, workers=2))
    assert_same_store(open_store(tmp_path / "two.zarr"), open_store(tmp_path / "one.zarr"))


def test_a_mistake_in_a_worker_reaches_the_user(synthetic_world, tmp_path, forked_workers):
    """One error with its three parts, as without workers."""
    root = tmp_path / "world"
    root.mkdir()
    for entry in synthetic_world.iterdir():
        (root / entry.name).symlink_to(entry)
    (root / "samples").unlink()
    (root / "samples").mkdir()
    for entry in (synthetic_world / "samples").iterdir():
        if entry.name != "CAM_BACK":
            (root / "samples" / entry.name).symlink_to(entry)
    with pytest.raises(ScalrError, match=r"CAM_BACK.*the file is missing\. Check"):
        extract(tiny_config(root, tmp_path / "s.zarr", frames_per_block=1, workers=1))
    assert open_store(tmp_path / "s.zarr").committed_blocks() == set()


def test_no_scheduler_is_said(synthetic_world, tmp_path):
    with pytest.raises(ScalrError, match=r"no dask scheduler answers .*dask scheduler"):
        extract(tiny_config(synthetic_world, tmp_path / "s.zarr", scheduler="no address"))


@pytest.mark.parametrize("other", ["store", "weights"])
def test_a_worker_that_sees_something_else_writes_nothing(synthetic_world, tmp_path, monkeypatch, other):
    """Another disk under the same path, or another weights file: only the worker can tell."""
    config = tiny_config(synthetic_world, tmp_path / "s.zarr", frames_per_block=1)
    if other == "store":
        with pytest.raises(StoreError, match=r"a worker cannot see the store\. Put --out on storage"):
            extractor(config)
        assert not config.out.exists()
        return
    extract(config)
    monkeypatch.setattr(weights, "RANDOM_SEED", 1)
    with pytest.raises(StoreError, match=r"weights_sha256 is '\w+' in the store and '\w+' now"):
        extractor(config)


def test_a_block_that_kills_its_workers_is_named(monkeypatch):
    """With a cluster that fails at once; the next test has a real one."""
    future = mock.Mock(status="error", result=mock.Mock(side_effect=distributed.scheduler.KilledWorker("b", None, 3)))
    client = mock.Mock(submit=lambda *_, **__: future, scheduler=mock.Mock(address="tcp://here:1"))
    monkeypatch.setattr(distributed, "as_completed", list)
    with pytest.raises(ScalrError, match=r"tcp://here:1: dask workers died repeatedly with block 3, .*--batch-size"):
        list(run_on_cluster(client, killing_extractor, None, [Block(3, 0, 1)]))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            distributed.client.FutureCancelledError("b", "scheduler-connection-lost"),
            "dask scheduler does not respond any more",
        ),
        (
            distributed.comm.CommClosedError("in <TCP (closed)>: Connection reset by peer"),
            "dask scheduler does not respond any more",
        ),
        (
            ModuleNotFoundError("No module named 'scalr'"),
            r"dask cluster cannot run the extraction \(No module named 'scalr'\)",
        ),
        (RuntimeError("Error during deserialization of the"), r"dask cluster cannot run the extraction \(Error during"),
    ],
)
def test_a_cluster_that_fails_is_said_in_one_line(monkeypatch, failure, message):
    """With a client that fails at once; a slow test ends a scheduler."""
    future, cancelled = mock.Mock(result=mock.Mock(side_effect=failure)), []
    client = mock.Mock(submit=lambda *_, **__: future, scheduler=mock.Mock(address="tcp://here:1"), status="closed")
    client.cancel = cancelled.append
    monkeypatch.setattr(distributed, "as_completed", list)
    with pytest.raises(ScalrError, match=f"tcp://here:1: the {message}"):
        list(run_on_cluster(client, killing_extractor, None, [Block(3, 0, 1)]))
    assert not cancelled  # there is nobody to tell


def test_an_error_that_is_not_the_cluster_s_is_left_alone(monkeypatch):
    future = mock.Mock(result=mock.Mock(side_effect=RuntimeError("CUDA out of memory")))
    client = mock.Mock(submit=lambda *_, **__: future)
    monkeypatch.setattr(distributed, "as_completed", list)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(run_on_cluster(client, killing_extractor, None, [Block(3, 0, 1)]))


@pytest.mark.slow
def test_a_scheduler_that_ends_is_said(world, tmp_path, capfd):
    with dask_cluster(tmp_path, workers=1) as (address, (scheduler, _)):
        job = command(world, tmp_path / "s.zarr", "--scheduler", address)
        index = tmp_path / "s.zarr/index/dinov2_vits14"
        while job.poll() is None and not list(index.glob("*")):
            time.sleep(0.05)
        scheduler.kill()
        assert job.wait() == 1
    said = capfd.readouterr().err
    assert "the dask scheduler does not respond any more. Start the scheduler again" in said, said


@pytest.mark.slow
def test_a_block_that_kills_its_workers_ends_the_run():
    with (
        local_cluster(1) as client,
        pytest.raises(ScalrError, match=r"repeatedly with block 3, .*--batch-size"),
    ):
        list(run_on_cluster(client, killing_extractor, None, [Block(3, 0, 1)]))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("three_ways") / "world"
    write_world(root, train_scenes=4, val_scenes=1, keyframes=8, seed=1)
    return root


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> FeatureStore:
    out = tmp_path_factory.mktemp("whole") / "s.zarr"
    assert command(world, out).wait() == 0
    store = open_store(out)
    assert len(store.blocks) == 16
    return store


def command(world: Path, out: Path, *options: str) -> subprocess.Popen:
    scalr = Path(sys.executable).with_name("scalr")
    return subprocess.Popen([scalr, "--quiet", "extract", *TEACHER, *KEPT, "--root", world, "--out", out, *options])


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 8])
def test_an_array_of_shell_processes_at_once(world, whole, tmp_path, count):
    jobs = [command(world, tmp_path / "s.zarr", "--part", f"{index}/{count}") for index in range(count)]
    assert [job.wait() for job in jobs] == [0] * count
    assert_same_store(open_store(tmp_path / "s.zarr"), whole)


@pytest.mark.slow
def test_two_workers(world, whole, tmp_path):
    assert command(world, tmp_path / "s.zarr", "--workers", "2").wait() == 0
    assert_same_store(open_store(tmp_path / "s.zarr"), whole)


@pytest.mark.slow
def test_a_dask_cluster_of_two_processes_one_of_which_dies(world, whole, tmp_path):
    with dask_cluster(tmp_path, workers=2) as (address, (_, first_worker, _)):
        job = command(world, tmp_path / "s.zarr", "--scheduler", address)
        index = tmp_path / "s.zarr/index/dinov2_vits14"
        while job.poll() is None and len(list(index.glob("*"))) < 3:
            time.sleep(0.05)
        first_worker.kill()
        assert job.wait() == 0
    assert_same_store(open_store(tmp_path / "s.zarr"), whole)


@contextmanager
def dask_cluster(folder: Path, workers: int):
    """A scheduler and workers, each a process started from the shell as an operator would."""
    dask, file = Path(sys.executable).with_name("dask"), folder / "scheduler.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    started = [subprocess.Popen([dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", file])]
    try:
        while not file.exists():
            time.sleep(0.1)
        options = ["--scheduler-file", file, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        for _ in range(workers):
            started.append(subprocess.Popen([dask, "worker", *options], env=environment))
        yield _address(file), started
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:  # distributed's worker can wait forever for a scheduler that has ended
                process.kill()
                process.wait()


def _address(scheduler_file: Path) -> str:
    return json.loads(scheduler_file.read_text())["address"]
