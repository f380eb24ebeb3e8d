"""The fixtures: a tiny dataset, a simulated world, and the real frames where they are."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from scalr.extract.datasets.synthetic import write_nuscenes
from scalr.extract.store import FeatureStore
from tiny import TinyDataset, extract_with, tiny_teachers

settings.register_profile("scalr", deadline=None)  # machines are noisy
settings.load_profile("scalr")

# Tables that are kept for the next start must not end up in the cache of whoever runs the tests.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="scalr-tests-cache-")

REAL_DATA = Path(os.environ.get("SCALR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_nuscenes() -> Path:
    """The folder of one real nuScenes keyframe; tests that use it are skipped where it is not."""
    root = REAL_DATA / "nuscenes"
    if not root.is_dir():
        pytest.skip(f"real nuScenes keyframe not found at {root} (set SCALR_TEST_DATA)")
    return root


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
def synthetic_world(tmp_path_factory) -> Path:
    """A simulated world of one training and one validation scene, two keyframes each; not to be written to."""
    root = tmp_path_factory.mktemp("synthetic") / "world"
    write_nuscenes(root, train_scenes=1, val_scenes=1, keyframes=2, seed=0)
    return root
