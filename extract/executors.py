"""Executors compute blocks in processes of this machine or on a dask cluster, by the same plan as in one process.

Each executor takes a function that turns blocks into reports, and yields the reports as blocks are committed. If a
worker dies, dask gives its block to another one.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch

from ..checkpoint_files import shortened
from ..errors import ScalrError
from .pipeline import BlockDone
from .plan import Block

if TYPE_CHECKING:
    from distributed import Client

    from .config import ExtractConfig

CONNECT_TIMEOUT_S = 30
Extractor = Callable[[Sequence[Block]], Iterator[BlockDone]]


def run_on_cluster(
    client: Client, extractor: Callable[[ExtractConfig], Extractor], config: ExtractConfig, blocks: list[Block]
) -> Iterator[BlockDone]:
    """Run each block as a dask task; a worker builds the extractor once and keeps it.

    Raises:
        ScalrError: an error of the extractor, a block during which several workers died, or a scheduler that is lost or
            runs incompatible versions.
    """
    from distributed import CancelledError, as_completed
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    run = uuid.uuid4().hex  # a worker may serve several runs, and weights or tables may change in between
    futures = {client.submit(_extract_one, extractor, config, run, block, pure=False): block for block in blocks}
    try:
        for future in as_completed(futures):
            yield future.result()
    except KilledWorker:
        lost = [futures[future].index for future in futures if future.status == "error"]
        raise ScalrError(
            f"dask workers died repeatedly with block {lost[0] if lost else '?'}, perhaps because memory ran out",
            where=client.scheduler.address,
            fix="Look at the workers' logs; give the workers more memory or pass a smaller --batch-size,"
            " then run again.",
        ) from None
    except (CancelledError, CommClosedError):
        raise ScalrError(
            "the dask scheduler does not respond any more",
            where=client.scheduler.address,
            fix="Start the scheduler again, and run the same command again: committed blocks are kept.",
        ) from None
    except (ImportError, RuntimeError) as error:
        if not isinstance(error, ImportError) and "deserialization" not in str(error):
            raise
        raise ScalrError(
            f"the dask cluster cannot run the extraction ({shortened(error.__cause__ or error)})",
            where=client.scheduler.address,
            fix="Install the same releases of scalr and dask on the scheduler and all workers.",
        ) from None
    finally:
        if client.status == "running":
            with suppress(CommClosedError):  # a closed connection is noticed late
                client.cancel(list(futures))


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Worker processes on this machine that share its cores, and its GPUs in turn."""
    from distributed import Client, LocalCluster, Worker, WorkerPlugin

    class LeaveInterruptsToTheClient(WorkerPlugin):
        """Ctrl-C in a terminal reaches all processes: without this plugin, each worker would print a traceback."""

        def setup(self, worker: Worker) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    cores = max(1, (os.cpu_count() or 1) // workers)
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # dask's own limit is off: the operating system has one
            dashboard_address=None,
            silence_logs=50,  # dask replaces workers that die; the final error is raised
            env={"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "PASSIVE"},
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(LeaveInterruptsToTheClient())
        yield client


@contextmanager
def existing_cluster(address: str) -> Iterator[Client]:
    """Connect to a dask.distributed cluster that is already running.

    Raises:
        ScalrError: no scheduler answers at the address.
    """
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it prints tracebacks of errors raised here
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise ScalrError(
            f"no dask scheduler answers ({str(error) or type(error).__name__})",
            where=address,
            fix="Pass --scheduler with the address that 'dask scheduler' prints, for example tcp://node1:8786.",
        ) from None
    with client:
        yield client


def _extract_one(
    extractor: Callable[[ExtractConfig], Extractor], config: ExtractConfig, run: str, block: Block
) -> BlockDone:
    (done,) = _extractor_of_run(extractor, config, run)([block])
    return done


@functools.lru_cache(maxsize=1)
def _extractor_of_run(extractor: Callable[[ExtractConfig], Extractor], config: ExtractConfig, run: str) -> Extractor:
    return extractor(config)


def device_of_worker(device: str) -> str:
    """Resolve `auto` in a worker: the worker processes of one machine take its GPUs in turn."""
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:  # not in a worker
        return device
    gpus = torch.cuda.device_count()
    return f"cuda:{name % gpus}" if device == "auto" and isinstance(name, int) and gpus else device
