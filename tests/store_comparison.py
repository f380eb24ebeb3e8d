"""When two stores are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from scalr.extract.store import FeatureStore, Segments


def files(path: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file below a folder."""
    return {
        str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in path.rglob("*")
        if file.is_file()
    }


def assert_same_store(ours: FeatureStore, theirs: FeatureStore) -> None:
    """The same blocks and statistics, array by array and index by index, bit for bit; nothing unfinished in `ours`."""
    assert ours.committed_blocks() == theirs.committed_blocks()
    assert ours.teachers == theirs.teachers
    for block in sorted(ours.committed_blocks()):
        _assert_equal(ours.read_scans(block), theirs.read_scans(block))
    for teacher in ours.teachers:
        assert ours.committed_blocks(teacher) == theirs.committed_blocks(teacher)
        for block in sorted(ours.committed_blocks(teacher)):
            _assert_equal(ours.read_targets(block, teacher), theirs.read_targets(block, teacher))
        if ours.committed_blocks(teacher):
            _assert_equal(ours.statistics(teacher), theirs.statistics(teacher))
    assert not [path for path in (ours.path / "tmp").rglob("*") if path.is_file()]


def assert_same_views(ours: FeatureStore, theirs: FeatureStore, teacher: str) -> None:
    """The same views, however they are cut into blocks."""
    assert ours.views.num_rows == theirs.views.num_rows
    for row in range(ours.views.num_rows):
        mine, other = ours.read_view(row, teacher), theirs.read_view(row, teacher)
        for name in ("points", "point_index", "pixel", "targets"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


def _assert_equal(ours, theirs) -> None:
    for name, value in vars(ours).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(theirs, name))
        elif isinstance(value, pa.Table):
            assert value.equals(theirs.views)
        elif isinstance(value, Segments):
            _assert_equal(value, theirs.segments)
        else:
            assert value == getattr(theirs, name)
