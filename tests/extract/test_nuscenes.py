from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.frame import IGNORE_LABEL, read_image
from scalr.extract.datasets.nuscenes import CLASSES, TRAIN_ID


@pytest.fixture
def world(synthetic_world, tmp_path) -> Path:
    """A copy of the simulated world that a test may damage."""
    return Path(shutil.copytree(synthetic_world, tmp_path / "world"))


def damage_table(world: Path, table: str, change) -> None:
    path = world / "v1.0-trainval" / f"{table}.json"
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))


def test_classes_are_the_official_sixteen():
    assert len(CLASSES) == 16
    assert TRAIN_ID[[0, 1, 9, 17, 24, 30, 31, 41]].tolist() == [255, 255, 0, 3, 10, 15, 255, 255]
    assert (TRAIN_ID != IGNORE_LABEL).sum() == sum(len(raw_ids) for raw_ids in CLASSES.values())


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


@pytest.mark.parametrize("table", ["scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "category"])
@pytest.mark.parametrize("damage", ["missing", "cut", "field", "empty"])
def test_a_damaged_table_is_named(world, table, damage):
    path = world / "v1.0-trainval" / f"{table}.json"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_text(path.read_text()[:-20])
    elif damage == "field":
        damage_table(world, table, lambda records: records[0].pop("token"))
    else:
        path.write_text("[]")
    with pytest.raises(DatasetError) as caught:
        open_dataset("nuscenes", world, "train")
    assert "v1.0-trainval" in caught.value.where
    assert damage == "empty" or table in caught.value.where
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named(world):
    damage_table(world, "sample_data", lambda records: [record.pop("timestamp") for record in records[3:]])
    with pytest.raises(DatasetError, match=r"sample_data.json: record 3 has no field 'timestamp'"):
        open_dataset("nuscenes", world, "train")


@pytest.mark.parametrize(
    ("root", "split", "message"),
    [
        ("nowhere", "train", "the dataset folder is missing"),
        ("", "tran", "nuScenes has no split 'tran'"),
        ("", "mini_train", r"v1.0-mini: the version folder is missing \(found here: \['v1.0-trainval'\]\)"),
        ("samples", "train", r"the version folder is missing \(found here: none\)"),
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


def test_an_image_of_another_size_is_said(world):
    damage_table(world, "sample_data", lambda records: [record.update(height=900) for record in records])
    dataset = open_dataset("nuscenes", world, "train")
    with pytest.raises(DatasetError, match="its calibration is for 900x"):
        read_image(dataset.root, dataset.frames[0].views[0])
