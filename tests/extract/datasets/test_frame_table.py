from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from scalr.extract.datasets import frame_table
from scalr.extract.datasets.frame import Frame
from scalr.extract.datasets.frame_table import SCHEMA, FrameTable, frames_as_table, write_table


@pytest.fixture
def frames(tiny_dataset) -> list[Frame]:
    """Of one, two and two views; with and without labels; every matrix another."""
    rng = np.random.default_rng(0)

    def another(view):
        matrix = np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]])
        return replace(
            view,
            image_shape=(rng.integers(100), rng.integers(100)),
            calibration=replace(view.calibration, cam_from_lidar=matrix, intrinsics=rng.normal(size=(3, 3))),
        )

    found = [replace(frame, views=tuple(map(another, frame.views))) for frame in tiny_dataset.frames]
    return [replace(found[0], views=found[0].views[:1]), replace(found[1], labels="1.label"), found[2]]


def assert_same(found: Frame, expected: Frame) -> None:
    for name in ("dataset", "scene", "token", "timestamp", "scan", "labels", "error"):
        assert getattr(found, name) == getattr(expected, name)
    for ours, theirs in zip(found.views, expected.views, strict=True):
        assert (ours.camera, ours.image, ours.image_shape) == (theirs.camera, theirs.image, theirs.image_shape)
        np.testing.assert_array_equal(ours.calibration.cam_from_lidar, theirs.calibration.cam_from_lidar)
        np.testing.assert_array_equal(ours.calibration.intrinsics, theirs.calibration.intrinsics)


def test_frames_come_back_from_their_table(frames):
    table = frames_as_table(frames)
    assert (table.schema, table.num_rows) == (SCHEMA, 5)
    again = FrameTable("nuscenes", table)
    assert len(again) == 3
    for found, expected in zip(again, frames, strict=True):
        assert_same(found, expected)
    assert_same(again[-1], frames[2])
    assert [frame.token for frame in again[1:]] == ["frame1", "frame2"]
    assert [frame.token for frame in again[::-2]] == ["frame2", "frame0"]
    with pytest.raises(IndexError):
        again[3]


def test_a_table_of_no_frames_has_none():
    assert list(FrameTable("nuscenes", frames_as_table([]))) == []


def test_a_table_is_written_whole_into_a_folder_that_is_made(frames, tmp_path):
    path = tmp_path / "a/b/t.parquet"
    for count in (3, 1):
        write_table(frames_as_table(frames[:count]), path)
        assert pq.read_table(path).equals(frames_as_table(frames[:count]))
        assert os.listdir(path.parent) == ["t.parquet"]


def test_a_table_that_cannot_be_written_leaves_the_one_before(frames, tmp_path, monkeypatch):
    path = tmp_path / "kept/t.parquet"
    write_table(frames_as_table(frames), path)

    def fail(table, partial):
        partial.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frame_table.pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write_table(frames_as_table(frames[:1]), path)
    assert os.listdir(path.parent) == ["t.parquet"]
    assert pq.read_table(path).num_rows == 5
