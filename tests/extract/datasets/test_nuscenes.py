from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import nuscenes, nuscenes_tables, open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.datasets.frame_table import SCHEMA
from scalr.extract.datasets.labels import IGNORE_LABEL


def test_frames_are_those_of_the_split_in_order(synthetic_world):
    train, val = (open_dataset("nuscenes", synthetic_world, split) for split in ("train", "val"))
    assert len({frame.scene for frame in train.frames} & {frame.scene for frame in val.frames}) == 0
    for dataset in (train, val):
        assert dataset.frames
        for frame in dataset.frames:
            assert len(frame.views) == 6
            assert len(dataset.read_points(frame)) == len(dataset.read_labels(frame))
        by_scene = {}
        for frame in dataset.frames:
            by_scene.setdefault(frame.scene, []).append(frame.timestamp)
        assert all(times == sorted(times) for times in by_scene.values())


@pytest.mark.parametrize(
    ("root", "split", "message"),
    [
        ("nowhere", "train", "the dataset folder is missing"),
        ("", "tran", "no split and no scene 'tran'"),
        (
            "",
            "mini_train",
            "split 'mini_train' needs the folder v1.0-mini, and this one has v1.0-trainval. Pass --root",
        ),
        ("", "slidr_val", r"scene\.json: the tables have no scene of split 'slidr_val'\. Choose a split"),
        (
            "",
            "train-1%",
            r"'train-1%' keeps every 100th scene of split 'train', which has \d here\. Choose a larger fraction",
        ),
        ("samples", "train", "split 'train' needs the folder v1.0-trainval, and this one has no v1.0-"),
    ],
)
def test_a_wrong_root_or_split_is_said(synthetic_world, root, split, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset("nuscenes", synthetic_world / root, split)


def test_an_unknown_dataset_is_said(synthetic_world):
    with pytest.raises(DatasetError, match="unknown dataset 'nuscene', did you mean 'nuscenes'"):
        open_dataset("nuscene", synthetic_world, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda scan: None, "the file is missing"),
        (lambda scan: b"", "empty or truncated"),
        (lambda scan: scan[:-7], "not a whole number of points"),
        (lambda scan: np.float32("nan").tobytes() + scan[4:], "1 of [0-9]+ points are not finite"),
    ],
)
def test_a_broken_scan_is_said(world, content, message):
    dataset = open_dataset("nuscenes", world, "train")
    path = world / dataset.frames[0].scan
    broken = content(path.read_bytes())
    path.unlink() if broken is None else path.write_bytes(broken)
    with pytest.raises(DatasetError, match=message) as caught:
        dataset.read_points(dataset.frames[0])
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda image: None, "the file is missing"),
        (lambda image: b"", "cannot be decoded"),
        (lambda image: image[: len(image) // 2], "cannot be decoded"),
        (lambda image: b"GIF89a not a picture", "cannot be decoded"),
    ],
)
def test_a_broken_image_is_said(world, content, message):
    dataset = open_dataset("nuscenes", world, "train")
    view = dataset.frames[0].views[2]
    path = world / view.image
    broken = content(path.read_bytes())
    path.unlink() if broken is None else path.write_bytes(broken)
    with pytest.raises(DatasetError, match=message) as caught:
        read_image(dataset.root, view)
    assert caught.value.where == str(path)


class SceneList:
    """In place of tables: scenes in an order that is not that of their names."""

    def __init__(self, scenes: list[str]) -> None:
        self.scenes = scenes

    def __call__(self, tables: Path):
        matrices = {"cam_from_lidar": np.eye(3, 4).ravel().tolist(), "intrinsics": np.eye(3).ravel().tolist()}
        rows = [{"scene": scene, "token": scene, **matrices} for scene in self.scenes]
        return pa.Table.from_pylist(rows, schema=SCHEMA), nuscenes_tables.named_splits()


@pytest.fixture
def trainval(tmp_path, monkeypatch):
    """All 850 scenes of nuScenes v1.0-trainval, shuffled: call with a split to get its scenes."""
    splits = nuscenes_tables.named_splits()
    scenes = [*splits["train"], *splits["val"]]
    np.random.default_rng(0).shuffle(scenes)
    monkeypatch.setattr(nuscenes, "keyframe_table", SceneList(scenes))
    (tmp_path / "v1.0-trainval").mkdir()

    def open_split(split: str) -> list[str]:
        return [frame.scene for frame in open_dataset("nuscenes", tmp_path, split).frames]

    open_split.train = [scene for scene in scenes if scene in splits["train"]]
    return open_split


@pytest.mark.parametrize(
    ("percent", "ratio", "count"), [(1, 100, 7), (5, 20, 35), (10, 10, 70), (25, 4, 175), (50, 2, 350)]
)
def test_label_subsets_follow_the_scene_rule(trainval, percent, ratio, count):
    """SLidR's loop over the scene table, written out: a scene stays when the counter is a multiple of the ratio."""
    expected = [scene for counter, scene in enumerate(trainval.train, start=1) if counter % ratio == 0]
    assert len(expected) == count
    assert trainval(f"train-{percent}%") == expected


def test_slidr_splits_train_into_600_and_100(trainval):
    larger, smaller = trainval("slidr_train"), trainval("slidr_val")
    assert (len(larger), len(smaller)) == (600, 100)
    assert {*larger, *smaller} == set(trainval.train)
    assert {"scene-0008", "scene-0029", "scene-1107"} <= set(smaller)
    assert "scene-0001" in larger


def test_scenes_by_name(trainval):
    assert set(trainval("scene-0003,scene-0001")) == {"scene-0001", "scene-0003"}


def test_several_splits_are_one(trainval):
    both = trainval("val,slidr_val")
    assert len(both) == len(set(both)) == 250
    assert {*both} == {*trainval("val"), *trainval("slidr_val")}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train-3%", "'train-3%' is unknown: there is no label subset of 3 %. Use one of: train-1%, train-5%"),
        ("scene-0001,scene-9999", "no split and no scene 'scene-9999'"),
        ("slidr_tran", "did you mean 'slidr_train'?"),
        ("train,mini_val", "'train,mini_val' belong to several versions of nuScenes: v1.0-mini, v1.0-trainval"),
    ],
)
def test_splits_that_are_none(trainval, split, message):
    with pytest.raises(DatasetError) as caught:
        trainval(split)
    assert message in str(caught.value)


# The devkit's categories -> the lidar segmentation challenge's classes, counted from 1, 0 for none.
CHALLENGE = [
    0, 0, 7, 7, 7, 0, 7, 0, 0, 1,  0, 0, 8, 0, 2, 3, 3, 4, 5, 0,
    0, 6, 9, 10, 11, 12, 13, 14, 15, 0,  16, 0,
]  # fmt: skip


def test_classes_are_those_of_the_lidar_segmentation_challenge():
    """Every raw id, less one and with 255 for 0, as ScaLR trains."""
    found = nuscenes.LABELS.train_ids(np.arange(32), Path("lidarseg.bin"))
    np.testing.assert_array_equal(found, [IGNORE_LABEL if each == 0 else each - 1 for each in CHALLENGE])
    assert nuscenes.LABELS.class_names == (
        *("barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone"),
        *("trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation"),
    )
    with pytest.raises(DatasetError, match="does not define: 32"):
        nuscenes.LABELS.train_ids(np.array([32]), Path("lidarseg.bin"))


def test_the_reader_s_conventions_are_the_official_ones():
    """datasets/nuscenes.py of valeoai/ScaLR: a metre of depth, a border of a pixel, its intensity's statistics."""
    reader = nuscenes.NuScenes
    assert (reader.visibility.min_depth_m, reader.visibility.border_px, reader.visibility.min_x_m) == (1.0, 1, None)
    assert (reader.intensity.mean, reader.intensity.std) == (18.742355, 22.04632)


def test_a_frame_without_labels_says_where_they_come_from(world):
    (world / "v1.0-trainval/lidarseg.json").unlink()
    dataset = open_dataset("nuscenes", world, "train")
    with pytest.raises(DatasetError, match=r"has no labels in lidarseg\.json\. Unpack the nuScenes-lidarseg archive"):
        dataset.read_labels(dataset.frames[0])


def test_scenes_by_name_are_looked_for_where_there_are_tables(world):
    """In v1.0-trainval where it is there, else in the first folder by name."""
    scenes = {frame.scene for frame in open_dataset("nuscenes", world, "train").frames}
    tables = world / "v1.0-trainval"
    shutil.copytree(tables, world / "v1.0-mini")
    (world / "v1.0-notes").touch()  # a file is none of them
    assert open_dataset("nuscenes", world, ",".join(scenes)).tables == tables
    shutil.rmtree(tables)
    shutil.copytree(world / "v1.0-mini", world / "v1.0-test")
    assert open_dataset("nuscenes", world, ",".join(scenes)).tables == world / "v1.0-mini"
    with pytest.raises(DatasetError, match=r"this one has v1\.0-mini, v1\.0-test"):
        open_dataset("nuscenes", world, "train")
