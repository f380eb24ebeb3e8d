"""`--on-error`: frames that cannot be used stop a run, or are left out and listed, and made up for once mended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalr.distill.augmentation import AugmentConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.dataset import DistillDataset, SamplingConfig
from scalr.errors import DatasetError
from scalr.extract.store import open_store
from scalr.extract.store.inspect import inspect_store
from scalr.extract.store.verify import verify_store
from store_comparison import assert_same_store, assert_same_views

FRAME = "frame1"


@pytest.fixture
def image(tiny_dataset) -> Path:
    return tiny_dataset.root / f"{FRAME}_RIGHT.png"


@pytest.fixture
def broken(image) -> bytes:
    """What the image of one view of the second frame held; now it is empty."""
    content = image.read_bytes()
    image.write_bytes(b"")
    return content


def test_a_broken_frame_stops_a_run_after_whole_blocks(extract_tiny, broken, tmp_path):
    with pytest.raises(DatasetError, match=r"frame1_RIGHT\.png: the image cannot be decoded"):
        extract_tiny(frames_per_block=1)
    store = open_store(tmp_path / "s.zarr")
    assert 1 not in store.committed_blocks()
    assert verify_store(store).damage == []


@pytest.mark.parametrize("frames_per_block", [1, 2, 8])
@pytest.mark.parametrize("encoding", [{}, {"encoding": "patch", "dtype": "int8"}])
def test_a_skipped_frame_is_left_out_and_listed(extract_tiny, tiny_dataset, broken, frames_per_block, encoding):
    """Also where it is a block's only one."""
    store = extract_tiny(frames_per_block=frames_per_block, on_error="skip", **encoding)
    assert list(dict.fromkeys(store.views["token"].to_pylist())) == ["frame0", "frame2"]
    report = inspect_store(store)
    assert report.scans.missing_blocks == []
    assert report.teachers["coordinates"].missing_blocks == []
    assert list(report.skipped) == [FRAME]
    assert "frame1_RIGHT.png" in report.skipped[FRAME]
    assert f"skipped frame {FRAME}: " in report.as_text()
    assert verify_store(store).whole
    samples = DistillDataset(store, ("coordinates",), WaffleIronInputs(), SamplingConfig(), AugmentConfig(), seed=0)
    assert len(samples) == 2
    tiny_dataset.frames = [frame for frame in tiny_dataset.frames if frame.token != FRAME]
    without = extract_tiny(out="without.zarr", frames_per_block=frames_per_block, **encoding)
    assert_same_views(store, without, "coordinates")


def test_a_mended_frame_is_made_up_for(extract_tiny, image, broken):
    options = {"frames_per_block": 2, "dtype": "float16"}  # int8 would show that the sample was without the frame
    skipped = extract_tiny(on_error="skip", **options)
    assert len(skipped.views) == 4
    again = extract_tiny(on_error="skip", **options)
    assert inspect_store(again).skipped.keys() == {FRAME}
    image.write_bytes(broken)
    mended = extract_tiny(**options)
    assert inspect_store(mended).skipped == {}
    assert_same_views(mended, extract_tiny(out="clean.zarr", **options), "coordinates")


def test_a_second_teacher_leaves_out_the_same_frames(extract_tiny, broken):
    extract_tiny("coordinates", on_error="skip")
    store = extract_tiny("doubled", on_error="stop")  # what the first has left out is no news
    assert inspect_store(store).teachers["doubled"].missing_blocks == []
    for row in range(store.views.num_rows):
        one, two = store.read_view(row, "coordinates"), store.read_view(row, "doubled")
        np.testing.assert_array_equal(2 * one.targets, two.targets)


def test_an_image_that_goes_bad_between_two_teachers_costs_the_second_its_block(extract_tiny, image):
    extract_tiny("coordinates", frames_per_block=1)
    content = image.read_bytes()
    image.write_bytes(content[:50])
    store = extract_tiny("doubled", frames_per_block=1, on_error="skip")
    assert inspect_store(store).teachers["doubled"].missing_blocks == [1]
    assert inspect_store(store).teachers["coordinates"].missing_blocks == []
    image.write_bytes(content)
    assert inspect_store(extract_tiny("doubled", frames_per_block=1)).teachers["doubled"].missing_blocks == []


def test_parts_skip_as_one_run_does(extract_tiny, broken):
    from scalr.extract.plan import Part

    whole = extract_tiny(frames_per_block=1, on_error="skip")
    for part in (2, 0, 1):
        parts = extract_tiny(out="parts.zarr", frames_per_block=1, on_error="skip", part=Part(part, 3))
    assert_same_store(whole, parts)


def test_a_frame_without_cameras_is_no_input(extract_tiny, tiny_dataset):
    tiny_dataset.frames[1] = replace(tiny_dataset.frames[1], views=())
    with pytest.raises(DatasetError, match=r"frame1\.bin: frame frame1 of nuscenes has no image\. Leave the frame out"):
        extract_tiny()
