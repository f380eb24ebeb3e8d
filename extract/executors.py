"""Where blocks are computed: in this process, in processes of this machine, or on a dask cluster. One plan for all.

Each executor takes a function that turns blocks into reports, and yields the reports as blocks are committed. Dask
gives a block to another worker when one dies.
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
    """Each block a task; a worker builds the extractor once and keeps it.

    Raises:
        ScalrError: what an extractor raises, a block that took several workers down with it, a scheduler that is lost,
            or that cannot pass this release's work on.
    """
    from distributed import CancelledError, as_completed
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    run = uuid.uuid4().hex  # a worker outlives runs, and weights or tables may change between two of them
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
            with suppress(CommClosedError):  # which is noticed late
                client.cancel(list(futures))


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Worker processes on this machine that share its cores, and its GPUs in turn."""
    from distributed import Client, LocalCluster, Worker, WorkerPlugin

    class LeaveInterruptsToTheClient(WorkerPlugin):
        """A terminal's Ctrl-C reaches all processes: without this, each worker ends in a traceback of its own."""

        def setup(self, worker: Worker) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    cores = max(1, (os.cpu_count() or 1) // workers)
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # the system's own limit is the one that counts
            dashboard_address=None,
            silence_logs=50,  # a worker that dies is replaced; what is wrong in the end is raised
            env={"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "PASSIVE"},
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(LeaveInterruptsToTheClient())
        yield client


@contextmanager
def existing_cluster(address: str) -> Iterator[Client]:
    """A dask.distributed cluster that somebody else started.

    Raises:
        ScalrError: no scheduler answers there.
    """
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # tracebacks of what is raised here as well
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
    """`auto` among the worker processes of one machine: each takes the next GPU."""
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:  # not in a worker
        return device
    gpus = torch.cuda.device_count()
    return f"cuda:{name % gpus}" if device == "auto" and isinstance(name, int) and gpus else device
