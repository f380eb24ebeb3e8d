from __future__ import annotations

import importlib.util
import sys

import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets.devkit_splits import devkit_splits


def test_splits_are_those_that_the_devkit_gives():
    from nuscenes.utils.splits import create_splits_scenes

    ours, expected = devkit_splits(), create_splits_scenes()
    assert {name: ours[name] for name in expected} == expected


@pytest.fixture
def without_devkit(monkeypatch):
    """Nothing of what is installed is found, only what lies in the folder that one is in."""
    monkeypatch.delitem(sys.modules, "nuscenes", raising=False)
    monkeypatch.setattr(sys, "path", [""])
    devkit_splits.cache_clear()
    yield
    devkit_splits.cache_clear()


@pytest.mark.parametrize("beside", ["", "nuscenes", "nuscenes/v1.0-trainval"])
def test_a_devkit_that_is_missing_is_said(without_devkit, tmp_path, monkeypatch, beside):
    """A folder of data is no devkit, though it has its name."""
    (tmp_path / beside).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    assert (importlib.util.find_spec("nuscenes") is not None) == bool(beside)
    with pytest.raises(
        DatasetError, match=r"nuscenes-devkit: nuscenes-devkit is not installed.* Run 'pip install nuscenes-devkit'"
    ):
        devkit_splits()
