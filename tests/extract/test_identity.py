"""Jobs that add to a store mean what its first job meant: images, cameras, settings; and a false start binds nobody."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scalr.errors import DatasetError, StoreError
from scalr.extract import estimate, run
from scalr.extract.plan import FRAMES_PER_BLOCK, Part
from scalr.extract.preparation import Selection, prepare_frame
from scalr.extract.store import SCANS, create_store, open_store
from scalr.extract.store.writer import StoreWriter
from scalr.extract.verification import VerifyConfig, verify
from small_store import PROVENANCE, SETTINGS, a_block, filled_store, write_block
from store_comparison import assert_same_store, assert_same_views, files


def other_image(path: Path) -> bytes:
    """Replace an image by one of the same size; gives what it was."""
    before = path.read_bytes()
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
    return before


def test_an_image_that_was_replaced_between_two_teachers_is_named(extract_tiny, tiny_dataset):
    """Whatever happens to unusable frames: this one can be used, and is another."""
    image = tiny_dataset.root / "frame1_RIGHT.png"
    store = extract_tiny(frames_per_block=1)
    before = other_image(image)
    for on_error in ("stop", "skip"):
        with pytest.raises(StoreError, match=r"frame1_RIGHT.png: the image has changed since frame frame1, camera R"):
            extract_tiny("doubled", frames_per_block=1, on_error=on_error)
    assert open_store(store.path).committed_blocks("doubled") <= {0, 2}
    image.write_bytes(before)
    assert extract_tiny("doubled", frames_per_block=1).committed_blocks("doubled") == {0, 1, 2}


def test_digests_are_of_the_files_and_points(extract_tiny, tiny_dataset):
    store = extract_tiny(points="visible")
    for row in store.views.to_pylist():
        image = (tiny_dataset.root / row["image"]).read_bytes()
        (frame,) = [frame for frame in tiny_dataset.frames if frame.token == row["token"]]
        assert row["image_sha256"] == hashlib.sha256(image).digest()
        assert row["scan_sha256"] == hashlib.sha256(tiny_dataset.read_points(frame).tobytes()).digest()


def test_cameras_are_told_by_their_names(extract_tiny, tiny_dataset):
    """A reader that gives them in another order gives each its own image; one that lacks a camera is refused."""
    scans, frame = extract_tiny(frames_per_block=3).read_scans(0), tiny_dataset.frames[1]
    teacher = extract_tiny.teachers["coordinates"]
    usual = prepare_frame(tiny_dataset, frame, [teacher], Selection(), scans)
    turned = prepare_frame(tiny_dataset, replace(frame, views=frame.views[::-1]), [teacher], Selection(), scans)
    assert [view.record.camera for view in turned.views] == ["LEFT", "RIGHT"]
    for one, two in zip(usual.views, turned.views, strict=True):
        assert torch.equal(one.images[0], two.images[0])
        np.testing.assert_array_equal(one.pixel, two.pixel)
    with pytest.raises(StoreError, match="camera RIGHT of frame frame1 is in the store, but not in the dataset"):
        prepare_frame(tiny_dataset, replace(frame, views=frame.views[:1]), [teacher], Selection(), scans)
    with pytest.raises(StoreError, match="frame other is not among those of its block"):
        prepare_frame(tiny_dataset, replace(frame, token="other"), [teacher], Selection(), scans)


def test_a_false_start_does_not_bind(extract_tiny, tiny_dataset, caplog):
    """A run that failed before its first block; then with other settings of source and teacher, and other frames."""
    image = tiny_dataset.root / "frame0_LEFT.png"
    content = image.read_bytes()
    image.write_bytes(b"")
    with pytest.raises(DatasetError, match="cannot be decoded"):
        extract_tiny(frames_per_block=1)
    image.write_bytes(content)
    tiny_dataset.frames = tiny_dataset.frames[:2]
    store = extract_tiny(frames_per_block=2, dtype="float16", points="visible")
    assert [list(source.blocks) for source in store.sources] == [[0]]
    assert store.encoding("coordinates").dtype == "float16"
    assert "sources/000: this run replaces num_frames and frames_per_block and" in caplog.text
    assert "teachers/coordinates: this run replaces dtype of an earlier run" in caplog.text
    assert verify(VerifyConfig(store=store.path)).whole
    with pytest.raises(StoreError, match="dtype is 'float16' in the store and 'int8' now"):
        extract_tiny(frames_per_block=2, points="visible")


def test_the_length_of_a_false_start_s_blocks_does_not_bind(extract_tiny, tiny_dataset):
    """Each encoding has its own where none is asked for."""
    image = tiny_dataset.root / "frame0_LEFT.png"
    content = image.read_bytes()
    image.write_bytes(b"")
    with pytest.raises(DatasetError, match="cannot be decoded"):
        extract_tiny(encoding="point")
    image.write_bytes(content)
    assert extract_tiny(encoding="patch").sources[0].frames_per_block == FRAMES_PER_BLOCK["patch"]


def test_a_source_between_others_is_replaced_after_them(tmp_path):
    path = tmp_path / "s.zarr"
    writer = create_store(path, "p")
    writer.add_inputs(SETTINGS, {}, {"t": PROVENANCE})
    writer.add_inputs({**SETTINGS, "split": "val", "num_blocks": 1}, {}, {"t": PROVENANCE})
    scans, targets = a_block(2)
    write_block(writer, 2, scans, t=targets)
    source = writer.add_inputs({**SETTINGS, "num_blocks": 5}, {}, {"t": PROVENANCE})
    assert list(source.blocks) == [3, 4, 5, 6, 7]
    assert open_store(path).blocks == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("other", ["source", "teacher"])
def test_a_job_whose_settings_were_replaced_commits_nothing(tmp_path, other):
    """Two jobs with different options begin the same store: the one that was replaced may not mix its blocks in."""
    path = tmp_path / "s.zarr"
    first, second = create_store(path, "p1"), create_store(path, "p2")
    first.add_inputs(SETTINGS, {}, {"t": PROVENANCE})
    draft = first.draft(0, ["t"])
    settings, provenance = (
        ({**SETTINGS, "frames_per_block": 4}, PROVENANCE) if other == "source" else (SETTINGS, {**PROVENANCE, "dim": 4})
    )
    second.add_inputs(settings, {}, {"t": provenance})
    with pytest.raises(
        StoreError, match="another run replaced or removed the settings of this run before a block was committed"
    ):
        first.commit(draft)
    draft.scratch.remove()
    assert open_store(path).committed_blocks() == set()


def test_what_a_killed_job_left_under_other_settings_does_not_count(tmp_path):
    """Whole groups without an index, of settings that were replaced since."""
    path = filled_store(tmp_path / "s.zarr").path
    for index in path.glob("index/*/*"):
        index.unlink()
    writer = create_store(path, "p")
    writer.add_inputs(SETTINGS, {}, {"t": {**PROVENANCE, "activation": "other"}})
    assert writer.recover(SCANS, 0)  # the source is the same
    assert not writer.recover("t", 0)
    assert (path / "aside/000000.t.0/group/vectors").is_dir()


def test_batch_sizes_are_measured_for_each_kind_of_device(extract_tiny, monkeypatch):
    sizes = iter([3, 5])
    monkeypatch.setattr(run, "fitting_batch_size", lambda teacher: next(sizes))
    extract_tiny(frames_per_block=1, part=Part(0, 3))
    monkeypatch.setattr(run, "kind_of_device", lambda device: "some-gpu")
    extract_tiny(frames_per_block=1, part=Part(1, 3))
    monkeypatch.setattr(run, "kind_of_device", lambda device: "cpu")
    store = extract_tiny(frames_per_block=1, part=Part(2, 3))  # nothing is measured again
    writer = create_store(store.path, "p")
    found = [writer.batch_size("coordinates", kind, lambda: 0) for kind in ("cpu", "some-gpu")]
    assert found == [3, 5]


@pytest.mark.parametrize(("limit", "frames"), [(1 << 30, 16), (3 * 8_000 - 1, 2), (3 * 8_000, 3), (1, 1)])
def test_large_frames_make_short_blocks(extract_tiny, monkeypatch, limit, frames):
    """Those of the first frame decide."""
    monkeypatch.setattr(estimate, "bytes_of_frame", lambda frame, teachers, encoding: 8_000)
    monkeypatch.setattr(estimate, "BLOCK_BYTES", limit)
    assert extract_tiny(encoding="point").sources[0].frames_per_block == frames


def test_a_split_that_was_begun_keeps_the_length_of_its_blocks(extract_tiny, monkeypatch):
    extract_tiny(frames_per_block=1, part=Part(0, 3))
    assert_same_store(extract_tiny(), extract_tiny(out="whole.zarr", frames_per_block=1))


# --- frames that are left out -----------------------------------------------------------------------------------


# With int8, what is mended would show that the frame was not in the sample.
OF_TWO, OF_THREE = ({"frames_per_block": number, "dtype": "float16"} for number in (2, 3))


@pytest.fixture
def left_out(extract_tiny, tiny_dataset):
    """A store of two blocks, the first without frame1, one of its images broken; gives what mends it."""
    image = tiny_dataset.root / "frame1_RIGHT.png"
    content = image.read_bytes()
    image.write_bytes(b"")
    extract_tiny("coordinates", "doubled", on_error="skip", **OF_TWO)
    return lambda: image.write_bytes(content)


def test_a_block_that_lacks_a_frame_is_replaced_by_a_whole_one_of_all_its_teachers(extract_tiny, left_out, caplog):
    left_out()
    store = extract_tiny("coordinates", **OF_TWO, on_error="skip")
    assert len(store.views) == 4
    assert (
        "block 0 is not extracted again: frame frame1 can be used now, but the block also has targets of doubled"
        in caplog.text
    )
    assert list(store.skipped_frames(0)) == ["frame1"]
    store = extract_tiny("coordinates", "doubled", **OF_TWO)
    whole = extract_tiny("coordinates", "doubled", out="whole.zarr", **OF_TWO)
    for teacher in ("coordinates", "doubled"):
        assert_same_views(store, whole, teacher)
    assert (store.path / "aside/000000.scans.0/group/targets/doubled").is_dir()  # what it replaces is kept


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_it_stays_where_another_frame_of_it_fails_now(extract_tiny, tiny_dataset, left_out, on_error):
    left_out()
    other = tiny_dataset.root / "frame0_LEFT.png"
    content = other.read_bytes()
    other.write_bytes(b"")
    before = files(tiny_dataset.root.parent / "s.zarr/blocks")
    with pytest.raises(DatasetError, match="frame0_LEFT") if on_error == "stop" else nullcontext():
        extract_tiny("coordinates", "doubled", **OF_TWO, on_error=on_error)
    store = open_store(tiny_dataset.root.parent / "s.zarr")
    assert files(store.path / "blocks") == before
    assert store.committed_blocks() == store.committed_blocks("doubled") == {0, 1}
    other.write_bytes(content)
    assert len(extract_tiny("coordinates", "doubled", **OF_TWO).views) == 6


def test_it_stays_until_all_of_its_frames_can_be_used(extract_tiny, tiny_dataset, caplog):
    images = [tiny_dataset.root / f"frame{number}_RIGHT.png" for number in (0, 1)]
    contents = [image.read_bytes() for image in images]
    for image in images:
        image.write_bytes(b"")
    extract_tiny(**OF_THREE, on_error="skip")
    images[0].write_bytes(contents[0])
    store = extract_tiny(**OF_THREE, on_error="skip")
    assert set(store.skipped_frames(0)) == {"frame0", "frame1"}
    assert "block 0 is not extracted again: frame frame0 can be used now, but frame frame1 still cannot" in caplog.text
    images[1].write_bytes(contents[1])
    assert_same_views(extract_tiny(**OF_THREE), extract_tiny(out="whole.zarr", **OF_THREE), "coordinates")


@pytest.mark.parametrize("first", ["whole", "skipping"])
def test_two_jobs_of_which_one_leaves_out_a_frame_never_mix(tmp_path, first):
    """The rename that wins decides for scans and targets; the other has to make its targets anew, for what stands."""
    path = tmp_path / "s.zarr"
    writers = {name: create_store(path, name) for name in ("whole", "skipping")}
    for writer in writers.values():
        writer.add_inputs(SETTINGS, {}, {"t": PROVENANCE, "u": {**PROVENANCE, "teacher": "u"}})
    blocks = {"whole": a_block(0), "skipping": a_block(0, views=2)}
    second = "skipping" if first == "whole" else "whole"
    assert write_block(writers[first], 0, blocks[first][0], t=blocks[first][1])
    assert not write_block(writers[second], 0, blocks[second][0], u=blocks[second][1])
    store = open_store(path)
    assert store.committed_blocks("u") == set()
    assert len(store.read_scans(0).views) == len(store.read_targets(0, "t").views) == len(blocks[first][0].views)
    assert write_block(writers[second], 0, None, u=blocks[first][1])
    assert verify(VerifyConfig(store=path)).damage == []


def test_who_comes_second_makes_targets_for_the_frames_that_stand(extract_tiny, tiny_dataset, monkeypatch):
    """Between its reading and its commit, a job that could not use a frame commits the same block."""

    image, commit, others = tiny_dataset.root / "frame1_RIGHT.png", StoreWriter.commit, []
    content = image.read_bytes()

    def after_another(writer, draft, **options):
        if not others:
            others.append(1)
            image.write_bytes(b"")
            extract_tiny("coordinates", frames_per_block=3, on_error="skip")
            image.write_bytes(content)
        return commit(writer, draft, **options)

    monkeypatch.setattr(StoreWriter, "commit", after_another)
    store = extract_tiny("doubled", frames_per_block=3)
    assert list(dict.fromkeys(store.views["token"].to_pylist())) == ["frame0", "frame2"]
    assert store.read_target_views("doubled")["token"].to_pylist() == store.views["token"].to_pylist()
    assert verify(VerifyConfig(store=store.path)).damage == []


@pytest.mark.parametrize("kind", [SCANS, "coordinates"])
def test_what_was_taken_out_comes_back_where_it_cannot_be_made_again(extract_tiny, tiny_dataset, caplog, kind):
    """Damaged as it was: with all that is sound of it."""
    whole = extract_tiny(frames_per_block=1)
    file = whole.path / ("blocks/000001/" + ("points" if kind == SCANS else f"targets/{kind}/vectors")) / "c/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    before = files(whole.path / "blocks")
    verify(VerifyConfig(store=whole.path, repair=True))
    image = tiny_dataset.root / "frame1_RIGHT.png"
    sound = image.read_bytes()
    image.write_bytes(b"")
    with pytest.raises(DatasetError, match="frame1_RIGHT"):
        extract_tiny(frames_per_block=1)
    assert files(whole.path / "blocks") == before
    assert "block 1 cannot be extracted again now: its removed" in caplog.text
    assert open_store(whole.path).is_committed("coordinates", 1)
    image.write_bytes(sound)
    verify(VerifyConfig(store=whole.path, repair=True))
    assert_same_store(extract_tiny(frames_per_block=1), extract_tiny(out="whole.zarr", frames_per_block=1))
