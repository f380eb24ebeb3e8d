"""The fixtures: a tiny dataset, a simulated world, and the real frames where they are."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import logging
import os
import signal
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

# Before torch is imported. Tests run in several processes already; an operation on several threads waits for the
# slowest of them, on busy cores for long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from browser import start_browser
from error_record import (  # noqa: F401  # hooks of pytest
    pytest_configure,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from real_teacher import NoRealTeacherError, cache_folder, official_file
from scalr import progress, worker_processes
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.store import FeatureStore
from tiny import TinyDataset, extract_with, tiny_teachers

settings.register_profile("scalr", deadline=None)  # machines are noisy
settings.load_profile("scalr")


class ReachesItsEnd(progress._LogLines):
    """A progress display that must have come to its total where the work was done, whether anybody sees it or not."""

    def __init__(self, *, total: int, initial: int, desc: str, **options: object) -> None:
        super().__init__(total=total, initial=initial, desc=desc, **options)
        self.wanted, self.counted, self.says = total, initial, desc

    def update(self, n: int = 1) -> bool | None:
        self.counted += n
        return super().update(n)

    def __exit__(self, kind: type | None, *others: object) -> None:
        super().__exit__(kind, *others)
        assert kind is not None or self.counted == self.wanted, f"{self.says}: {self.counted} of {self.wanted}"


progress._LogLines = ReachesItsEnd

# Weights that are kept for the next start are looked for where the user keeps such things.
REAL_TEACHER_FOLDER = cache_folder()
# Tables that are kept for the next start must not end up in the cache of whoever runs the tests.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="scalr-tests-cache-")

# A suite in the background, as of nohup, starts with signals ignored, and so would the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for ignored in (signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, signal.SIG_DFL)

REAL_DATA = Path(os.environ.get("SCALR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first: the last ones are short then, and no process waits long for another."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session")
def real_data():
    """Call with nuscenes, semantickitti or pandaset for a folder of real frames; tests are skipped where it is not."""

    def call(name: str) -> Path:
        if not (REAL_DATA / name).is_dir():
            pytest.skip(f"real frames not found at {REAL_DATA / name} (set SCALR_TEST_DATA)")
        return REAL_DATA / name

    return call


@pytest.fixture(scope="session")
def real_nuscenes(real_data) -> Path:
    """The folder of one real nuScenes keyframe."""
    return real_data("nuscenes")


@pytest.fixture(scope="session")
def real_teacher() -> Path:
    """A real DINOv2 ViT-S/14 in its makers' layout; tests are skipped where no package index has it."""
    try:
        return official_file(REAL_TEACHER_FOLDER)
    except NoRealTeacherError as error:
        pytest.skip(f"no real teacher: {error}")


# What tests run there, and what torch would import at the first step of a training.
PRELOADED = (
    "tiny",
    "distillation_in_child",
    "in_children",
    "zarr",
    "skimage.segmentation",
    "torch._dynamo",
    "tensorboard.compat.proto.event_pb2",
)
UNFLUSHED = "unflushed"


@pytest.fixture(scope="session")
def preloaded(pytestconfig: pytest.Config) -> list[str]:
    """Only the slow tests wait for the disk."""
    if pytestconfig.option.markexpr != "not slow":
        return [*PRELOADED]
    importlib.import_module(UNFLUSHED)
    return [UNFLUSHED, *PRELOADED]


@pytest.fixture(scope="session", autouse=True)
def one_server_of_children(preloaded):
    """Tests' own children are forked from a server that has imported everything and done nothing.

    So are the package's workers, which are spawned elsewhere, and import torch for seconds.
    """
    ensure_running = forkserver.ForkServer.ensure_running

    def with_our_path(server: forkserver.ForkServer) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server does not get ours otherwise
            held_back = signal.pthread_sigmask(signal.SIG_SETMASK, ())  # its children would get that from it
            ensure_running(server)
            signal.pthread_sigmask(signal.SIG_SETMASK, held_back)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_processes, "START_METHOD", "forkserver")
        patch.setattr(forkserver.ForkServer, "ensure_running", with_our_path)
        forkserver.set_forkserver_preload(preloaded)
        yield


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """The command line sets up the package's logger for the whole process."""
    logger = logging.getLogger("scalr")
    before = logger.handlers, logger.level
    yield
    logger.handlers, logger.level = before


@pytest.fixture(scope="session")
def children(one_server_of_children):
    """Starts children at once."""
    forkserver._forkserver.ensure_running()  # the module's own `ensure_running` would not see the patch above
    return worker_processes.worker_context()


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> TinyDataset:
    folder = tmp_path / "tiny"
    folder.mkdir()
    return TinyDataset(folder)


@pytest.fixture
def extract_tiny(tiny_dataset, tmp_path):
    """Call with teacher names to extract the tiny dataset; gives the store."""
    teachers = tiny_teachers()

    def call(*names: str, out: str = "s.zarr", **options) -> FeatureStore:
        return extract_with(tiny_dataset, teachers, tmp_path / out, teachers=names or ("coordinates",), **options)

    call.teachers = teachers
    return call


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Call with a layout to get a simulated world of one training and one validation scene, two keyframes each; not to
    be written to.
    """

    worlds = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        worlds = worlds.parent  # which all processes of this run have

    @functools.cache
    def call(layout: str) -> Path:
        if layout == "pandaset":
            pytest.importorskip("pandas", reason="PandaSet's files are pandas tables")
        if importlib.util.find_spec("nuscenes") is None:
            pytest.skip("nuscenes-devkit, whose list names the scenes of simulated worlds, is not installed")
        root = worlds / f"{layout}-world"
        with (worlds / f"{layout}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not root.exists():
                write_world(root, layout=layout, train_scenes=1, val_scenes=1, keyframes=2, seed=0)
        return root

    return call


@pytest.fixture(scope="session")
def synthetic_world(simulated) -> Path:
    """The one in nuScenes' layout."""
    return simulated("nuscenes")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser, on whatever page a test opened last; without Chromium, tests are skipped."""
    yield from start_browser(tmp_path_factory.mktemp("profile"))
