from __future__ import annotations

import numpy as np
import pytest

from scalr.errors import DatasetError, ScalrError, StoreError
from scalr.extract import run
from scalr.extract.projection import project


def test_targets_are_the_features_at_each_points_pixel(extract_tiny, tiny_dataset):
    """The teacher's features are patch coordinates, so a target says where it was read."""
    store = extract_tiny("coordinates", frames_per_block=2)
    assert store.views.num_rows == 6
    views = [(frame, view) for frame in tiny_dataset.frames for view in frame.views]
    for row, (frame, view) in enumerate(views):
        stored = store.read_view(row, "coordinates")
        points = tiny_dataset.read_points(frame)
        pairs = project(points, view.calibration, view.image_shape)
        assert len(pairs.point_index) > 10
        np.testing.assert_array_equal(stored.points, points)
        np.testing.assert_array_equal(stored.point_index, pairs.point_index)
        # The 48x64 image is read at 24x32, 6x8 patches of 4 px, corners aligned.
        expected = pairs.pixel // 2 * [5 / 23, 7 / 31]
        np.testing.assert_allclose(stored.targets[:, :2], expected, atol=4e-3)
        np.testing.assert_allclose(stored.targets[:, 2], 1, atol=1e-3)


def test_blocks_do_not_change_what_is_stored(extract_tiny):
    one, three = extract_tiny(out="1.zarr", frames_per_block=1), extract_tiny(out="3.zarr", frames_per_block=3)
    assert (one.num_blocks, three.num_blocks) == (3, 1)
    for row in range(6):
        for ours, theirs in zip(
            vars(one.read_view(row, "coordinates")).values(),
            vars(three.read_view(row, "coordinates")).values(),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_a_teacher_added_later_equals_one_extracted_together(extract_tiny):
    together = extract_tiny("coordinates", "doubled", out="together.zarr")
    extract_tiny("coordinates", out="later.zarr")
    later = extract_tiny("doubled", out="later.zarr")
    for row in range(6):
        np.testing.assert_array_equal(
            together.read_view(row, "doubled").targets, later.read_view(row, "doubled").targets
        )


def test_a_run_goes_on_where_it_stopped(extract_tiny, tiny_dataset, monkeypatch):
    """A scan that cannot be read stops the run; mended, only the blocks not yet there are computed."""
    read, last = tiny_dataset.read_points, tiny_dataset.frames[-1]

    def fail_on_last(frame):
        if frame is last:
            raise DatasetError("broken", where=frame.scan, fix="Mend it.")
        return read(frame)

    monkeypatch.setattr(tiny_dataset, "read_points", fail_on_last)
    with pytest.raises(DatasetError):
        extract_tiny(frames_per_block=1)
    seen = []
    monkeypatch.setattr(tiny_dataset, "read_points", lambda frame: (seen.append(frame.token), read(frame))[1])
    store = extract_tiny(frames_per_block=1)
    assert seen == [last.token]
    assert store.views.num_rows == 6


def test_other_settings_on_the_same_store_are_refused(extract_tiny, tiny_dataset):
    extract_tiny(frames_per_block=2)
    with pytest.raises(StoreError, match="frames_per_block is 2 in the store and 3 now"):
        extract_tiny(frames_per_block=3)
    tiny_dataset.frames = tiny_dataset.frames[:-1]
    with pytest.raises(StoreError, match="num_frames is 3 in the store and 2 now"):
        extract_tiny(frames_per_block=2)


def test_a_frame_that_no_camera_sees_is_stored_without_pairs(extract_tiny, tiny_dataset):
    behind = tiny_dataset.read_points(tiny_dataset.frames[0])
    behind[:, 0] = -np.abs(behind[:, 0]) - 2
    store = extract_tiny()
    assert store.read_view(0, "coordinates").targets.shape == (0, 3)
    assert len(store.read_view(2, "coordinates").targets) > 0


def test_options_that_cannot_go_together_are_said(tmp_path):
    with pytest.raises(ScalrError, match="one weights file cannot serve several teachers"):
        run.ExtractConfig(root=tmp_path, teachers=("a", "b"), weights="w.pth")
    with pytest.raises(ScalrError, match="--frames-per-block: 0 frames"):
        run.ExtractConfig(root=tmp_path, teachers=("a",), frames_per_block=0)
