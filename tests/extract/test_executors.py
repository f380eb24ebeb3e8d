"""How clusters are started; `test_three_ways.py` runs them."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import distributed
import pytest

from calls import SeenEnough, calls_of
from scalr.errors import ScalrError
from scalr.extract import executors
from scalr.extract.executors import device_of_worker, existing_cluster, local_cluster


@pytest.mark.parametrize(("cores", "threads"), [(8, 2), (None, 1), (3, 1)])
def test_local_workers_share_the_cores_and_leave_ctrl_c_to_the_first_process(monkeypatch, cores, threads):
    """A worker computes one block at a time: two would need twice the memory."""
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    plugins, clients = [], []
    clusters = calls_of(monkeypatch, distributed, "LocalCluster", nullcontext("a cluster"))
    client = SimpleNamespace(register_plugin=plugins.append)
    clients = calls_of(monkeypatch, distributed, "Client", nullcontext(client))
    with local_cluster(4) as given:
        assert given is client
    assert clients == [(("a cluster",), {})]
    env = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    options = {"n_workers": 4, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
    assert clusters == [((), {**options, "silence_logs": 50, "env": env})]
    (plugin,) = plugins
    handlers = calls_of(monkeypatch, signal, "signal")
    plugin.setup(None)
    assert handlers == [((signal.SIGINT, signal.SIG_IGN), {})]


def test_a_scheduler_is_waited_for_half_a_minute(monkeypatch):
    tried = calls_of(monkeypatch, distributed, "Client", OSError("timed out"))
    with (
        pytest.raises(ScalrError, match=r"tcp://a:1: no dask scheduler answers \(timed out\)"),
        existing_cluster("tcp://a:1"),
    ):
        pass
    assert tried == [(("tcp://a:1",), {"timeout": 30})]


@pytest.mark.parametrize(
    ("asked", "name", "gpus", "expected"),
    [
        ("auto", 0, 2, "cuda:0"),
        ("auto", 3, 2, "cuda:1"),
        ("auto", 3, 0, "auto"),
        ("auto", "tcp://a:1", 2, "auto"),  # of a cluster that others started
        ("cpu", 3, 2, "cpu"),
        ("cuda:0", 3, 2, "cuda:0"),
    ],
)
def test_workers_take_the_gpus_in_turn(monkeypatch, asked, name, gpus, expected):
    assert device_of_worker(asked) == asked  # not in a worker
    monkeypatch.setattr(executors.torch.cuda, "device_count", lambda: gpus)
    calls_of(monkeypatch, distributed, "get_worker", SimpleNamespace(name=name))
    assert device_of_worker(asked) == expected


def test_a_worker_keeps_its_extractor_for_a_run_and_no_longer():
    """Weights or tables may change between two runs."""
    built = []

    def extractor(config):
        built.append(config)
        return lambda blocks: iter([(config, blocks)])

    for run, config in (("1", "a"), ("1", "a"), ("2", "a"), ("2", "a"), ("1", "a")):
        assert executors._extract_one(extractor, config, run, "a block") == ("a", ["a block"])
    assert len(built) == 3


def test_every_block_is_a_task_and_none_is_left_behind(monkeypatch):
    submitted, cancelled = [], []

    class Client:
        status = "running"

        def submit(self, *arguments, **options):
            submitted.append((arguments, options))
            return object()

        def cancel(self, futures):
            cancelled.extend(futures)

    def failing(futures):
        raise SeenEnough

    monkeypatch.setattr(distributed, "as_completed", failing)
    with pytest.raises(SeenEnough):
        list(executors.run_on_cluster(Client(), "an extractor", "a config", ["b", "c"]))
    assert [(arguments[1], arguments[2], arguments[4], options) for arguments, options in submitted] == [
        ("an extractor", "a config", block, {"pure": False}) for block in "bc"
    ]
    assert submitted[0][0][3] == submitted[1][0][3]  # one run
    assert len(cancelled) == 2
