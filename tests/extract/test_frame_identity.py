"""A later job means the same frames, or is told where they differ."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from scalr.errors import DatasetError, StoreError
from scalr.extract.frame_identity import SCHEMA, first_difference, frames_sha256, frames_table
from scalr.extract.projection import Calibration


def change_view(frame, number=1, **changes):
    views = list(frame.views)
    views[number] = replace(views[number], **changes)
    return replace(frame, views=tuple(views))


def moved(calibration: Calibration, by: float, name: str = "cam_from_lidar") -> Calibration:
    matrix = getattr(calibration, name).copy()
    matrix[1, 2] += by
    return replace(calibration, **{name: matrix})


CHANGES = {
    "scene": lambda frame: replace(frame, scene="other"),
    "token": lambda frame: replace(frame, token="other"),
    "timestamp": lambda frame: replace(frame, timestamp=frame.timestamp + 1),
    "scan": lambda frame: replace(frame, scan="other.bin"),
    "camera": lambda frame: change_view(frame, camera="OTHER"),
    "image": lambda frame: change_view(frame, image="other.png"),
    "image_height": lambda frame: change_view(frame, image_shape=(47, 64)),
    "image_width": lambda frame: change_view(frame, image_shape=(48, 63)),
    "cam_from_lidar": lambda frame: change_view(frame, calibration=moved(frame.views[1].calibration, 1e-5)),
    "intrinsics": lambda frame: change_view(frame, calibration=moved(frame.views[1].calibration, 1e-5, "intrinsics")),
    "cameras": lambda frame: replace(frame, views=frame.views[:1]),
    "order": lambda frame: replace(frame, views=frame.views[::-1]),
}
FOUND = {
    "scene": r"frame frame1 \(number 1\): scene is 'scene0' in the store and 'other' now",
    "token": r"frame frame1 \(number 1\): token is 'frame1' in the store and 'other' now",
    "timestamp": "timestamp is 1 in the store and 2 now",
    "scan": "scan is 'frame1.bin' in the store and 'other.bin' now",
    "camera": "cameras is 'LEFT, RIGHT' in the store and 'LEFT, OTHER' now",
    "image": "camera RIGHT: image is 'frame1_RIGHT.png' in the store and 'other.png' now",
    "image_height": "camera RIGHT: image_height is 48 in the store and 47 now",
    "image_width": "camera RIGHT: image_width is 64 in the store and 63 now",
    "cam_from_lidar": r"camera RIGHT: calibration \(cam_from_lidar\) is \[",
    "intrinsics": r"camera RIGHT: calibration \(intrinsics\) is \[",
    "cameras": "cameras is 'LEFT, RIGHT' in the store and 'LEFT' now",
    "order": "cameras is 'LEFT, RIGHT' in the store and 'RIGHT, LEFT' now",
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_the_tables_say_counts_and_is_named(tiny_dataset, name):
    frames = list(tiny_dataset.frames)
    before = frames_table(frames)
    frames[1] = CHANGES[name](frames[1])
    after = frames_table(frames)
    assert frames_sha256(after) != frames_sha256(before)
    assert re.search(FOUND[name], first_difference(before, after))


def test_frames_that_came_or_went_are_named(tiny_dataset):
    frames = tiny_dataset.frames
    short, whole = frames_table(frames[:2]), frames_table(frames)
    assert first_difference(whole, short) == "frame frame2 (number 2): the store has it, the dataset no longer"
    assert first_difference(short, whole) == "frame frame2 (number 2): the store does not have it"
    assert first_difference(whole, frames_table(list(frames))) is None


def test_the_last_bits_of_a_calibration_are_no_difference(tiny_dataset):
    """Other machines multiply matrices in another order; the digest sees it, the comparison allows it."""
    frames = list(tiny_dataset.frames)
    before = frames_table(frames)
    frames[2] = change_view(frames[2], calibration=moved(frames[2].views[1].calibration, 1e-13))
    after = frames_table(frames)
    assert frames_sha256(after) != frames_sha256(before)
    assert first_difference(before, after) is None


def test_a_row_that_was_mended_since_is_no_difference_and_one_that_broke_is(tiny_dataset):
    frames = list(tiny_dataset.frames)
    sound = frames_table(frames)
    frames[1] = replace(frames[1], views=(), error=DatasetError("a bad row", where="frames.parquet", fix="Mend it."))
    broken = frames_table(frames)
    assert frames_sha256(sound) != frames_sha256(broken)
    assert first_difference(broken, sound) is None
    assert first_difference(sound, broken) == "frame frame1 (number 1): unusable is False in the store and True now"
    frames[1] = replace(frames[1], token="other")
    assert "token" in first_difference(broken, frames_table(frames))


def test_tables_are_as_they_were_after_a_file(tiny_dataset, tmp_path):
    """Views without a size of their own, and frames without views, included."""
    frames = [change_view(tiny_dataset.frames[0], image_shape=None), replace(tiny_dataset.frames[1], views=())]
    table = frames_table(frames)
    assert table.schema.equals(SCHEMA)
    pq.write_table(table, tmp_path / "t.parquet")
    again = pq.read_table(tmp_path / "t.parquet")
    assert frames_sha256(again) == frames_sha256(table)
    assert first_difference(again, table) is None
    assert again["image_height"].to_pylist() == [48, None, None]
    np.testing.assert_array_equal(again["intrinsics"][0].as_py(), frames[0].views[0].calibration.intrinsics.ravel())


def test_a_store_keeps_the_table_and_refuses_other_frames(extract_tiny, tiny_dataset):
    """Before anything is written; what differs only by rounding goes on."""
    store = extract_tiny(frames_per_block=1)
    assert first_difference(store.read_frames(store.sources[0]), frames_table(tiny_dataset.frames)) is None
    frames = list(tiny_dataset.frames)
    tiny_dataset.frames[2] = change_view(frames[2], calibration=moved(frames[2].views[1].calibration, 1e-13))
    extract_tiny("doubled", frames_per_block=1)
    tiny_dataset.frames[2] = CHANGES["cam_from_lidar"](frames[2])
    with pytest.raises(
        StoreError, match=r"frame frame2 \(number 2\): camera RIGHT: calibration .* Use the unchanged dataset"
    ):
        extract_tiny("doubled", frames_per_block=1)
    (store.path / "sources/000/frames.parquet").unlink()
    with pytest.raises(StoreError, match="its table of frames, which would tell where, is lost"):
        extract_tiny("doubled", frames_per_block=1)
    tiny_dataset.frames[2] = frames[2]
    again = extract_tiny("doubled", frames_per_block=1)
    assert first_difference(again.read_frames(again.sources[0]), frames_table(frames)) is None
