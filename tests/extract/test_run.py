from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError, StoreError
from scalr.extract import preparation, run
from scalr.extract.intensity import IntensityStatistics
from scalr.extract.plan import Part
from scalr.extract.projection import Visibility, project
from scalr.extract.store import format as fmt
from scalr.extract.store import gathering
from scalr.extract.teachers.teacher import Preprocessing
from scalr.extract.verification import VerifyConfig, verify
from store_comparison import assert_same_views, files


def test_targets_are_the_features_at_each_points_pixel(extract_tiny, tiny_dataset):
    """The teacher's features are patch coordinates, so a target says where it was read."""
    store = extract_tiny("coordinates", frames_per_block=2, dtype="float16")
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


def test_what_a_killed_run_left_is_cleared_and_said(extract_tiny, caplog):
    with caplog.at_level(logging.INFO):
        store = extract_tiny()
        assert "cleared" not in caplog.text
        left = store.path / "tmp" / "part-0-of-1" / "left"
        left.mkdir(parents=True)
        extract_tiny()
    assert "removed 1 temporary files of a killed run of part 0/1" in caplog.text
    assert not left.exists()


def test_an_extraction_ends_by_gathering_and_one_that_was_stopped_there_goes_on(extract_tiny, monkeypatch):
    monkeypatch.setattr(gathering, "FEW_BLOCKS", 1)

    def stopped(parts: object, kind: str, path: Path) -> None:
        path.write_bytes(b"PAR1")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gathering, "write_gathered", stopped)
        with pytest.raises(KeyboardInterrupt):
            extract_tiny(frames_per_block=1)
    path = extract_tiny(frames_per_block=1).path
    assert sorted(file.name for file in (path / fmt.GATHERED).iterdir()) == ["coordinates.parquet", "scans.parquet"]
    assert not [file for file in (path / fmt.TMP).rglob("*") if file.is_file()]
    assert verify(VerifyConfig(store=path)).whole


def test_blocks_do_not_change_what_is_stored(extract_tiny):
    one, three = extract_tiny(out="1.zarr", frames_per_block=1), extract_tiny(out="3.zarr", frames_per_block=3)
    assert (len(one.blocks), len(three.blocks)) == (3, 1)
    assert_same_views(one, three, "coordinates")


def test_a_teacher_added_later_equals_one_extracted_together(extract_tiny, tiny_dataset, monkeypatch):
    """Its pairs are those of the store: no scan is read again, and no file of the store changes."""
    together = extract_tiny("coordinates", "doubled", out="together.zarr")
    before = files(extract_tiny("coordinates", out="later.zarr").path)
    monkeypatch.setattr(tiny_dataset, "read_points", lambda frame: pytest.fail("a scan was read again"))
    later = extract_tiny("doubled", out="later.zarr")
    assert before.items() <= files(later.path).items()
    for row in range(6):
        np.testing.assert_array_equal(
            together.read_view(row, "doubled").targets, later.read_view(row, "doubled").targets
        )


def test_a_split_added_later_rewrites_nothing(extract_tiny, tiny_dataset):
    train = extract_tiny(frames_per_block=2)
    before = files(train.path)
    tiny_dataset.split = "val"
    both = extract_tiny(frames_per_block=1, split="val")
    assert before.items() <= files(both.path).items()
    assert [(source.split, list(source.blocks)) for source in both.sources] == [("train", [0, 1]), ("val", [2, 3, 4])]
    assert both.views["split"].to_pylist() == ["train"] * 6 + ["val"] * 6
    assert both.views["block"].to_pylist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for row in range(6):
        np.testing.assert_array_equal(
            both.read_view(row, "coordinates").targets, both.read_view(row + 6, "coordinates").targets
        )


@pytest.mark.parametrize("encoding", ["point", "patch"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_every_encoding_gives_the_same_targets(extract_tiny, encoding, dtype):
    exact = extract_tiny(out="exact.zarr", encoding="point", dtype="float16")
    store = extract_tiny(encoding=encoding, dtype=dtype, batch_size=4)
    for row in range(6):
        # Of coordinates up to 4 from their mean, half a step of int8 is 4 / 254.
        np.testing.assert_allclose(
            store.read_view(row, "coordinates").targets, exact.read_view(row, "coordinates").targets,
            atol=4e-3 if dtype == "float16" else 0.02,
        )  # fmt: skip


def test_visible_keeps_the_points_that_some_view_sees(extract_tiny):
    whole, cut = extract_tiny(out="all.zarr"), extract_tiny(out="visible.zarr", points="visible")
    for row in range(0, 6, 2):
        views = [whole.read_view(row + camera) for camera in range(2)]
        seen = np.unique(np.concatenate([view.point_index for view in views]))
        assert 0 < len(seen) < len(views[0].points)
        for camera, view in enumerate(views):
            kept = cut.read_view(row + camera, "coordinates")
            np.testing.assert_array_equal(kept.points, view.points[seen])
            np.testing.assert_array_equal(kept.points[kept.point_index], view.points[view.point_index])
            np.testing.assert_array_equal(kept.targets, whole.read_view(row + camera, "coordinates").targets)


def test_the_teacher_sees_full_batches(extract_tiny, monkeypatch):
    """Two views a frame, batches of four: only the last batch of the sample and of a block may be smaller."""
    teacher, sizes = extract_tiny.teachers["coordinates"], []
    forward = teacher.patch_maps
    monkeypatch.setattr(teacher, "patch_maps", lambda images: (sizes.append(len(images)), forward(images))[1])
    extract_tiny(batch_size=4, frames_per_block=3)
    assert sizes == [4, 2, 4, 2]


def test_two_teachers_share_scans_images_and_pairs(extract_tiny, tiny_dataset, monkeypatch):
    """Beside their forward passes nothing is done twice: not even resizing, where both want the same."""
    counts = Counter()

    def counted(place, name):
        function = getattr(place, name)

        def count(*arguments):
            counts[name] += 1
            return function(*arguments)

        monkeypatch.setattr(place, name, count)

    for place, name in (
        (preparation, "read_image_file"), (preparation, "project"), (tiny_dataset, "read_points"),
        (Preprocessing, "apply"),
    ):  # fmt: skip
        counted(place, name)
    extract_tiny("coordinates", out="one.zarr", frames_per_block=3)
    one = counts.copy()
    counts.clear()
    extract_tiny("coordinates", "doubled", out="two.zarr", frames_per_block=3)
    assert counts == one
    assert (one["read_image_file"], one["apply"]) == (12, 12)  # of the sample and of the blocks


def test_the_batch_size_is_measured_once_for_a_store(extract_tiny, monkeypatch):
    """Others, on whatever machine, take it over; asked for, another one is taken and nothing measured."""
    sizes, teacher = [], extract_tiny.teachers["coordinates"]
    forward = teacher.patch_maps
    monkeypatch.setattr(teacher, "patch_maps", lambda images: (sizes.append(len(images)), forward(images))[1])
    monkeypatch.setattr(run, "fitting_batch_size", lambda teacher: 3)
    extract_tiny(frames_per_block=3, out="asked.zarr", batch_size=5)
    extract_tiny(frames_per_block=3, out="measured.zarr")
    extract_tiny(frames_per_block=2, out="split.zarr", part=Part(0, 2))
    monkeypatch.setattr(run, "fitting_batch_size", lambda teacher: pytest.fail("measured again"))
    extract_tiny(frames_per_block=2, out="split.zarr", part=Part(1, 2))
    sample = [3, 3]
    assert sizes == [5, 1, 5, 1, *sample, 3, 3, *sample, 3, 1, 2]


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
    assert set(seen) == {last.token}
    assert store.views.num_rows == 6


def test_views_are_listed_with_what_they_are_of(extract_tiny, tiny_dataset):
    store = extract_tiny(frames_per_block=2)
    expected = [
        ("nuscenes", "train", frame.scene, frame.token, frame.timestamp, view.camera, view.image, *view.image_shape)
        for frame in tiny_dataset.frames
        for view in frame.views
    ]
    names = ("dataset", "split", "scene", "token", "timestamp", "camera", "image", "image_height", "image_width")
    assert list(zip(*(store.views[name].to_pylist() for name in names), strict=True)) == expected
    for name in ("block", "token", "camera"):
        assert store.read_target_views("coordinates")[name].to_pylist() == store.views[name].to_pylist()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_cosines_of_a_view_are_those_of_its_stored_vectors(extract_tiny, tiny_dataset, dtype):
    """Against the features' definition, pair by pair; a view without pairs has lost nothing."""
    behind = tiny_dataset.read_points(tiny_dataset.frames[0])
    behind[:, 0] = -np.abs(behind[:, 0]) - 2
    store = extract_tiny(encoding="point", dtype=dtype)
    mean = store.statistics("coordinates").mean
    for row, listed in enumerate(store.read_target_views("coordinates").to_pylist()):
        view = store.read_view(row, "coordinates")
        exact = np.hstack([view.pixel // 2 * [5 / 23, 7 / 31], np.ones((len(view.pixel), 1))])
        for centre, name in ((0, "cosine"), (mean, "cosine_centred")):
            one, two = exact - centre, view.targets - centre
            cosine = (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
            cosine = cosine if len(exact) else np.ones(1)
            found = listed[f"mean_{name}"], listed[f"worst_{name}"]
            assert found == (pytest.approx(cosine.mean(), abs=4e-7), pytest.approx(cosine.min(), abs=4e-7))
        if dtype == "int8" and row >= 2:
            assert 1 - listed["worst_cosine"] > 1e-6
            assert 1 - listed["worst_cosine_centred"] > 1e-6


@pytest.mark.parametrize(
    ("options", "attribute", "message"),
    [
        ({"points": "visible"}, None, "points is 'all' in the store and 'visible' now"),
        ({"occlusion": "drop"}, None, "occlusion is 'keep' in the store and 'drop' now"),
        ({}, ("visibility", Visibility(min_depth_m=2.0)), "visibility.min_depth_m is 1.0 in the store and 2.0 now"),
        (
            {},
            ("intensity", IntensityStatistics(1.0, 2.0)),
            "intensity.mean is 128.0 in the store and 1.0 now; intensity.std is 74.0",
        ),
        ({}, ("frames", None), "frame frame0 .number 0.: token is 'frame0' in the store and 'frame2' now"),
        ({"encoding": "point"}, None, "encoding is 'patch' in the store and 'point' now"),
        ({"dtype": "float16"}, None, "dtype is 'int8' in the store and 'float16' now"),
    ],
)
def test_what_targets_depend_on_may_not_change(extract_tiny, tiny_dataset, monkeypatch, options, attribute, message):
    extract_tiny()
    if attribute is not None:
        name, value = attribute
        monkeypatch.setattr(tiny_dataset, name, value or tiny_dataset.frames[::-1], raising=False)
    with pytest.raises(StoreError, match=message):
        extract_tiny(**options)


def test_other_settings_on_the_same_store_are_refused(extract_tiny, tiny_dataset):
    extract_tiny(frames_per_block=2)
    with pytest.raises(StoreError, match="frames_per_block is 2 in the store and 3 now"):
        extract_tiny(frames_per_block=3)
    tiny_dataset.frames = tiny_dataset.frames[:-1]
    with pytest.raises(StoreError, match=r"frame frame2 .number 2.: the store has it, the dataset no longer"):
        extract_tiny(frames_per_block=2)


def test_a_frame_that_no_camera_sees_is_stored_without_pairs(extract_tiny, tiny_dataset):
    behind = tiny_dataset.read_points(tiny_dataset.frames[0])
    behind[:, 0] = -np.abs(behind[:, 0]) - 2
    store = extract_tiny()
    assert store.read_view(0, "coordinates").targets.shape == (0, 3)
    assert len(store.read_view(2, "coordinates").targets) > 0
