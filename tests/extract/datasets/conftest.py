"""A world to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def world(synthetic_world, tmp_path) -> Path:
    """A copy of the simulated world that a test may damage."""
    return Path(shutil.copytree(synthetic_world, tmp_path / "world"))
