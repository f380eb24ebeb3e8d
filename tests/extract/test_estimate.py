from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bars import Bars
from scalr.errors import DatasetError
from scalr.extract import estimate as module
from scalr.extract import run
from scalr.extract.encoding import ENCODINGS, OF_SEGMENTS, Encoding
from scalr.extract.estimate import (
    EncodingEstimate,
    Estimate,
    bytes_of_frame,
    patch_maps_of,
    readable_seconds,
    warn_of_size,
)
from scalr.extract.preparation import PreparedFrame, Selection, prepare_frame
from scalr.extract.run import ExtractConfig, estimate_extraction
from scalr.extract.store.arrays import SHARD_BYTES
from scalr.extract.store.format import COSINES
from scalr.extract.store.inspect import inspect_store, readable_bytes
from tiny import CoordinateTeacher, OtherTeacher, TinyDataset, tiny_teachers

POINT, PATCH = Encoding("point", "float16"), Encoding("patch", "int8")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"), (89, "89 seconds"), (90, "1.5 minutes"), (5399, "90 minutes"), (5400, "1.5 hours"),
        (129_599, "36 hours"), (129_600, "1.5 days"), (864_000, "10 days"),
    ],
)  # fmt: skip
def test_times_are_in_the_unit_that_people_would_take(seconds, text):
    assert readable_seconds(seconds) == text


ESTIMATE = Estimate(
    frames=28_130, views=168_780, pairs=1_000_000, scan_bytes=3_000, scan_files=12_345, superpixel_bytes=0,
    encodings=[EncodingEstimate(POINT, 2_500_000, 1_234, 0.9999994, 0.99995, 0.999999, 0.9987),
               EncodingEstimate(PATCH, 500_000, 56, 0.9998, 0.987, 0.9965, 0.95)],
    chosen=PATCH, free_bytes=503_000, memory_bytes=1_570_000_000, seconds=5_400, sampled_frames=4,
)  # fmt: skip


def test_an_estimate_is_a_table():
    assert ESTIMATE.as_text().splitlines() == [
        "28,130 frames, 168,780 views, about 1,000,000 pairs (extrapolated from 4 frames)",
        "scans and pairs: 3 kB in 12,345 files",
        "",
        "encoding                size  bytes/pair     files   mean cosine   minimum     centred   minimum",
        "point float16         2.5 MB         2.5     1,234      0.999999  0.999950    0.999999  0.998700",
        "patch int8            500 kB         0.5        56      0.999800  0.987000    0.996500  0.950000   chosen",
        "Cosines compare stored with unrounded features; centred: after subtracting the mean feature.",
        "",
        "free disk space: 503 kB",
        "peak memory of a process: about 1.57 GB",
        "time on this machine, in one process: about 1.5 hours",
    ]


def test_what_is_needed_is_scans_and_the_chosen_targets():
    """As much as is free is enough; a byte less is not."""
    assert ESTIMATE.bytes == 503_000
    (line,) = set(replace(ESTIMATE, free_bytes=502_999).as_text().splitlines()) - set(ESTIMATE.as_text().splitlines())
    assert line == "NOT ENOUGH DISK SPACE: 503 kB are needed"
    assert replace(ESTIMATE, chosen=POINT).bytes == 2_503_000
    assert "0.0" in replace(ESTIMATE, pairs=0, encodings=[replace(ESTIMATE.encodings[1], bytes=0)]).as_text()


def test_an_estimate_is_plain_json():
    values = ESTIMATE.as_json()
    assert values["chosen"] == {"layout": "patch", "dtype": "int8"}
    assert values["encodings"][0]["worst_cosine"] == 0.99995


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Call with a dataset and options for the estimate of `scalr extract --dry-run`."""

    def call(dataset: TinyDataset, out: str = "s.zarr", **options) -> Estimate:
        monkeypatch.setattr(run, "open_dataset", lambda *_, **__: dataset)
        monkeypatch.setattr(run, "load_teacher", lambda name, **_: tiny_teachers()[name])
        options = {"teachers": ("coordinates",), "batch_size": 3} | options
        return estimate_extraction(ExtractConfig(root=dataset.root, out=tmp_path / out, **options))

    return call


@pytest.mark.parametrize(("layout", "dtype", "frames_per_block"), [("point", "int8", 1), ("patch", "float16", None)])
def test_a_split_that_is_sampled_whole_takes_what_is_said(
    measure, extract_tiny, tiny_dataset, layout, dtype, frames_per_block
):
    """Nothing is extrapolated but the number of blocks."""
    options = {"teachers": ("coordinates", "doubled"), "encoding": layout, "dtype": dtype}
    found = measure(tiny_dataset, frames_per_block=frames_per_block, **options)
    names = options.pop("teachers")
    one_block = inspect_store(extract_tiny(*names, **options))
    store = inspect_store(extract_tiny(*names, out="blocks.zarr", frames_per_block=frames_per_block, **options))
    assert (found.frames, found.views, found.pairs, found.sampled_frames) == (3, 6, sum(store.pairs.values()), 3)
    assert (found.scan_bytes, found.scan_files) == (pytest.approx(one_block.scans.bytes, rel=0.1), store.scans.files)
    assert found.chosen == Encoding(layout, dtype)
    assert [each.encoding for each in found.encodings] == list(ENCODINGS)
    (chosen,) = [each for each in found.encodings if each.encoding == found.chosen]
    num_bytes = sum(each.bytes for each in one_block.teachers.values())
    assert chosen.bytes == pytest.approx(num_bytes, rel=1e-3)  # a store keeps its statistics in float32
    assert chosen.files == sum(each.files for each in store.teachers.values())
    for name, of_all in zip(COSINES, (np.mean, np.min, np.mean, np.min), strict=True):
        cosines = [getattr(each, name) for each in one_block.teachers.values()]
        assert getattr(chosen, name) == pytest.approx(of_all(cosines))
    assert found.free_bytes == pytest.approx(shutil.disk_usage(tiny_dataset.root).free, rel=0.1)


def test_more_frames_are_extrapolated_from_four(measure, tmp_path, monkeypatch):
    """The first, the last and two between; 20 frames of points are two blocks, of patches one."""
    (tmp_path / "tiny").mkdir()
    dataset = TinyDataset(tmp_path / "tiny", num_frames=20, num_points=50)
    sampled = []
    monkeypatch.setattr(
        module,
        "prepare_or_skip",
        lambda data, frame, *rest: sampled.append(frame.token) or original(data, frame, *rest),
    )
    original = prepare_frame_or_raise
    point = measure(dataset, encoding="point")
    assert sampled == ["frame0", "frame6", "frame13", "frame19"]
    frames = [dataset.frames[number] for number in (0, 6, 13, 19)]
    pairs = sum(len(view.pixel) for frame in frames for view in prepare_frame(dataset, frame, [], Selection()).views)
    assert (point.frames, point.views, point.pairs, point.sampled_frames) == (20, 40, 5 * pairs, 4)
    dataset.frames = frames
    four = measure(dataset, encoding="point")
    assert point.scan_bytes == 5 * four.scan_bytes
    assert point.scan_files == 2 * four.scan_files
    assert [each.bytes for each in point.encodings] == [5 * each.bytes for each in four.encodings]
    blocks = [2 if each.encoding.layout == "point" else 1 for each in four.encodings]
    assert [each.files for each in point.encodings] == [
        count * each.files for count, each in zip(blocks, four.encodings, strict=True)
    ]


def prepare_frame_or_raise(dataset, frame, teachers, selection, on_error) -> PreparedFrame:
    return prepare_frame(dataset, frame, teachers, selection)


def test_time_is_that_of_preparing_and_of_the_chosen_encoding(measure, tmp_path, monkeypatch):
    """By a clock that maps move by 10 s and the encodings by 1, 2, 4 and 8 s; eight frames take twice that of four."""
    now, seconds = [100.0], dict(zip(ENCODINGS, (1, 2, 4, 8), strict=True))
    (tmp_path / "tiny").mkdir()
    dataset = TinyDataset(tmp_path / "tiny", num_frames=8, num_points=50)
    write, maps = module.write_sample, module.patch_maps_of

    def pass_time(length, value):
        now[0] += length
        return value

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(module, "patch_maps_of", lambda *arguments: pass_time(10, maps(*arguments)))
    monkeypatch.setattr(
        module,
        "write_sample",
        lambda *arguments, **options: pass_time(seconds[arguments[-1]], write(*arguments, **options)),
    )
    for encoding in ENCODINGS[1:3]:
        found = measure(dataset, encoding=encoding.layout, dtype=encoding.dtype)
        assert found.seconds == pytest.approx(2 * (10 + seconds[encoding]))


def test_free_space_is_that_of_the_folder_that_there_is(measure, tiny_dataset, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=77, used=1, total=2)
    )
    (tmp_path / "a").mkdir()
    assert measure(tiny_dataset, out="a/b/c.zarr").free_bytes == 77
    assert asked == [tmp_path / "a"]


def test_an_estimate_needs_one_frame_that_can_be_used(measure, tiny_dataset):
    images = sorted(tiny_dataset.root.glob("*_RIGHT.png"))
    for image in images[:2]:
        image.write_bytes(b"")
    found = measure(tiny_dataset, on_error="skip")
    assert (found.frames, found.sampled_frames) == (3, 1)
    images[2].write_bytes(b"")
    with pytest.raises(
        DatasetError, match=r"none of 3 sampled frames can be used; the first: .*0_RIGHT\.png.*Run 'scalr check'"
    ):
        measure(tiny_dataset, on_error="skip")
    with pytest.raises(DatasetError, match=r"frame0_RIGHT\.png: the image cannot be decoded"):
        measure(tiny_dataset)


def test_each_teacher_sees_an_empty_image_first_where_it_runs(tiny_dataset):
    """The first forward pass, which is slow, is not timed."""

    class FirstPassError(Exception):
        pass

    class OnMeta(CoordinateTeacher):
        device = torch.device("meta")

        def patch_maps(self, images):
            raise FirstPassError(images.shape, images.device.type)

    options = {"selection": Selection(), "batch_sizes": {"coordinates": 1}}
    with pytest.raises(FirstPassError) as caught:
        module.estimate(tiny_dataset, [OnMeta()], POINT, Path("s.zarr"), **options)
    assert caught.value.args == ((1, 3, 24, 32), "meta")


def test_files_grow_in_number_with_their_size():
    """A shard more for each `SHARD_BYTES` of a block."""

    def report(num_bytes: int, files: int, *cosines: float) -> SimpleNamespace:
        return SimpleNamespace(bytes=num_bytes, files=files, **dict(zip(COSINES, cosines, strict=True)))

    large, small = report(SHARD_BYTES, 3, 0.9, 0.5, 0.8, 0.3), report(SHARD_BYTES // 4, 2, 0.7, 0.4, 0.4, 0.1)
    store = SimpleNamespace(teachers={"a": large, "b": small})
    found = module._encoding_estimate(POINT, store, scale=8, num_blocks=2)
    # Of the first 4 shards in each block, 4 more than the one that is there; of the second one more.
    cosines = pytest.approx(0.8), 0.4, pytest.approx(0.6), 0.1
    assert found == EncodingEstimate(POINT, 10 * SHARD_BYTES, 2 * (3 + 2 + 4 + 1), *cosines)


@pytest.fixture
def frame(tiny_dataset) -> PreparedFrame:
    return prepare_frame(tiny_dataset, tiny_dataset.frames[0], list(tiny_teachers().values()), Selection())


class Wide(OtherTeacher):
    name, dim = "wide", 5


def test_memory_is_that_of_libraries_shards_images_and_a_teacher_on_the_cpu(frame, monkeypatch):
    """A block that is longer than a shard takes no more; a teacher on a GPU takes its memory there."""

    class Large(CoordinateTeacher):
        model = torch.nn.Linear(1000, 1000, bias=False)

    def peak(teacher, frames_per_block: int, batch_size: int = 1) -> int:
        return module.peak_memory(frame, [teacher], POINT, {teacher.name: batch_size}, frames_per_block)

    images = 8 * (frame.points.nbytes + 2 * 3 * 48 * 64 * (1 + 4))
    activations = 16 * 6 * 8 * 3 * 4  # LIVE_TENSORS, patches, dimensions, float32
    one = bytes_of_frame(frame, [Large()], POINT)
    assert peak(Large(), 1) == 600_000_000 + images + 4_000_000 + activations + 6 * one
    assert peak(Large(), 1, batch_size=5) == peak(Large(), 1) + 4 * activations
    assert peak(Large(), 10**6) == peak(Large(), 10**9) == peak(Large(), 1) + 6 * (SHARD_BYTES - one)
    monkeypatch.setattr(module, "bytes_of_frame", lambda *_: one)
    Large.device = torch.device("cuda")
    assert peak(Large(), 1) == 600_000_000 + images + 6 * one


def test_a_frame_in_memory_is_its_arrays_and_the_largest_targets(frame):
    pairs = sum(len(view.pixel) for view in frame.views)
    arrays = 400 * 4 * 4 + pairs * (4 + 2 * 2)  # float32 points; uint32 and two uint16 for a pair
    assert bytes_of_frame(frame, [], POINT) == arrays
    assert bytes_of_frame(frame, [CoordinateTeacher(), Wide()], POINT) == arrays + 2 * 5 * pairs
    assert bytes_of_frame(frame, [Wide(), CoordinateTeacher()], Encoding("point", "int8")) == arrays + (5 + 4) * pairs


@pytest.mark.parametrize(("num_pairs", "warns"), [(30, False), (31, True)])
def test_targets_more_than_three_times_as_large_as_need_be_are_pointed_out(
    frame, monkeypatch, caplog, num_pairs, warns
):
    """Ten patches; at two dimensions a float16 pair is 4 bytes, an int8 patch 6, a float16 patch 4."""
    monkeypatch.setattr(module, "_counts", lambda teacher, view: (num_pairs, 10))
    teacher = SimpleNamespace(dim=2)
    warn_of_size(frame, 1000, [teacher], POINT)
    assert bool(caplog.records) == warns
    if warns:
        assert "take about 248 kB with --encoding point --dtype float16; 80 kB with --encoding patch" in caplog.text


def test_maps_are_made_in_batches_of_all_frames_images(frame, monkeypatch):
    bars, seen = Bars(monkeypatch, module), []

    class Seeing(OtherTeacher):
        def patch_maps(self, images):
            seen.append(images)
            return super().patch_maps(images)

    frames = [frame, frame, frame]
    maps = patch_maps_of(Seeing(), 1, frames, batch_size=4)
    assert (len(maps), [len(images) for images in seen]) == (6, [4, 2])
    assert bars[0].says == (6, "dry run of doubled", "image")
    assert bars[0].moved == [4, 2]
    expected = torch.stack([view.images[1] for each in frames for view in each.views])
    assert torch.equal(torch.cat(seen), expected)


@pytest.mark.parametrize("chosen", ["patch", "segments"])
def test_superpixels_are_a_part_of_what_is_said(measure, extract_tiny, tiny_dataset, chosen, monkeypatch):
    """Their ids among scans and pairs, their vectors in each row, and one of these alone."""
    monkeypatch.setattr(module, "num_readers", lambda: 3)
    options = {"superpixels": "slic", "frames_per_block": 3}
    found = measure(tiny_dataset, encoding=chosen, **options)
    plain = measure(tiny_dataset, frames_per_block=3)
    store = extract_tiny(encoding=chosen, **options)
    report = inspect_store(store)
    rows = {each.encoding: each for each in found.encodings}
    assert [*rows] == [*ENCODINGS, OF_SEGMENTS]
    assert found.scan_files == report.scans.files
    assert rows[found.chosen].bytes == pytest.approx(report.teachers["coordinates"].bytes, rel=0.01)
    files = (store.path / "blocks/000000/pairs/superpixel").rglob("*")
    assert found.superpixel_bytes == sum(file.stat().st_size for file in files if file.is_file())
    assert plain.superpixel_bytes == 0
    added = {each.encoding: rows[each.encoding].bytes - each.bytes for each in plain.encodings}
    assert min(added.values()) > 0.5 * rows[OF_SEGMENTS].bytes
    assert max(added.values()) < rows[OF_SEGMENTS].bytes
    assert found.memory_bytes - plain.memory_bytes >= 3 * 125 * 48 * 64
    lines = found.as_text().splitlines()
    assert lines[1].endswith(f"including {readable_bytes(found.superpixel_bytes)} of superpixel ids")
    assert re.search(r"segments float16 .* - +- +- +-", lines[8])
    assert lines[9] == "All encodings include the vectors of superpixels; 'segments' holds only these."
    assert not [line for line in plain.as_text().splitlines() if "superpixel" in line or "segments" in line]
    assert report.teachers["coordinates"].segments == sum(
        len(store.read_segments(row, "coordinates")) for row in range(6)
    )
    text = report.as_text()
    assert "superpixels of nuscenes train: method slic, n_segments 150," in text
    assert (f"{report.teachers['coordinates'].segments:,} segments" in text, "cosine" in text) == (
        True,
        chosen == "patch",
    )
