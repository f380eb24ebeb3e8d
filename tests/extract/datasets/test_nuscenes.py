from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import nuscenes, nuscenes_tables, open_dataset
from scalr.extract.datasets.devkit_splits import devkit_splits
from scalr.extract.datasets.files import read_image
from scalr.extract.datasets.frame_table import SCHEMA
from scalr.extract.datasets.nuscenes_tables import read_keyframes


@pytest.fixture
def world(synthetic_world, tmp_path) -> Path:
    """A copy of the simulated world that a test may damage."""
    return Path(shutil.copytree(synthetic_world, tmp_path / "world"))


def damage_table(world: Path, table: str, change) -> None:
    path = world / "v1.0-trainval" / f"{table}.json"
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))


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


@pytest.mark.parametrize("table", ["scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor"])
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


def test_something_else_in_place_of_a_table_is_named(world):
    (world / "v1.0-trainval/ego_pose.json").write_text('{"error": "404"}')  # as a download leaves it
    with pytest.raises(DatasetError, match=r"ego_pose\.json: the table is not a list of records\. Unpack the metadata"):
        open_dataset("nuscenes", world, "train")


def test_a_table_that_may_not_be_read_is_named(world, monkeypatch):
    def refuse(path, *arguments, **options):
        if path.name == "ego_pose.json":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DatasetError, match=r"ego_pose\.json: the file cannot be read \(Permission denied\)"):
        open_dataset("nuscenes", world, "train")


@pytest.mark.parametrize(
    ("root", "split", "message"),
    [
        ("nowhere", "train", "the dataset folder is missing"),
        ("", "tran", "no split and no scene 'tran'"),
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


def test_keyframes_are_those_of_the_devkit(synthetic_world):
    """Poses, files and order, against the devkit's own way through the tables."""
    from nuscenes.nuscenes import NuScenes as Devkit

    devkit = Devkit(version="v1.0-trainval", dataroot=str(synthetic_world), verbose=False)
    frames = read_keyframes(synthetic_world / "v1.0-trainval")
    samples = [devkit.get("sample", frame.token) for frame in frames]
    assert [devkit.get("scene", sample["scene_token"])["name"] for sample in samples] == [f.scene for f in frames]
    assert len(frames) == len(devkit.sample)
    for frame, sample in zip(frames, samples, strict=True):
        lidar = sample["data"]["LIDAR_TOP"]
        assert frame.labels == devkit.get("lidarseg", lidar)["filename"]
        for view in frame.views:
            camera = sample["data"][view.camera]
            assert view.image == devkit.get("sample_data", camera)["filename"]
            to_camera = global_from_sensor(devkit, camera)
            expected = np.linalg.inv(to_camera) @ global_from_sensor(devkit, lidar)
            np.testing.assert_allclose(view.calibration.cam_from_lidar, expected, atol=1e-9)


def global_from_sensor(devkit, token: str) -> np.ndarray:
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    data = devkit.get("sample_data", token)
    pose, sensor = devkit.get("ego_pose", data["ego_pose_token"]), data["calibrated_sensor_token"]
    records = (pose, devkit.get("calibrated_sensor", sensor))
    first, second = (transform_matrix(record["translation"], Quaternion(record["rotation"])) for record in records)
    return first @ second


def test_tables_are_parsed_once_until_they_change(world, monkeypatch):
    def calls(*_):
        raise AssertionError("parsed again")

    tokens = [frame.token for frame in open_dataset("nuscenes", world, "train").frames]
    with monkeypatch.context() as patch:
        patch.setattr(nuscenes_tables, "read_keyframes", calls)
        again = open_dataset("nuscenes", world, "train")
        assert [frame.token for frame in again.frames] == tokens
        assert_same_frames(again.frames, read_keyframes(world / "v1.0-trainval")[: len(tokens)])
    damage_table(world, "sample_data", lambda records: [record.update(height=900) for record in records])
    assert open_dataset("nuscenes", world, "train").frames[0].views[0].image_shape[0] == 900


def assert_same_frames(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for name in ("dataset", "scene", "token", "timestamp", "scan", "labels"):
            assert getattr(one, name) == getattr(other, name)
        for view, expected in zip(one.views, other.views, strict=True):
            assert (view.camera, view.image, view.image_shape) == (
                expected.camera,
                expected.image,
                expected.image_shape,
            )
            np.testing.assert_array_equal(view.calibration.cam_from_lidar, expected.calibration.cam_from_lidar)
            np.testing.assert_array_equal(view.calibration.intrinsics, expected.calibration.intrinsics)


def test_a_kept_table_that_is_damaged_is_made_anew(world):
    tables = world / "v1.0-trainval"
    before = open_dataset("nuscenes", world, "train")
    nuscenes_tables._kept_table(tables).write_bytes(b"PAR1 half a table")
    assert_same_frames(open_dataset("nuscenes", world, "train").frames, before.frames)


def test_a_cache_that_cannot_be_written_is_a_warning(world, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_dataset("nuscenes", world, "train").frames) == 2
    assert "will be read again next time" in caplog.text


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


def test_splits_are_those_that_the_devkit_gives():
    from nuscenes.utils.splits import create_splits_scenes

    ours, expected = devkit_splits(), create_splits_scenes()
    assert {name: ours[name] for name in expected} == expected


def test_slidr_splits_train_into_600_and_100(trainval):
    larger, smaller = trainval("slidr_train"), trainval("slidr_val")
    assert (len(larger), len(smaller)) == (600, 100)
    assert {*larger, *smaller} == set(trainval.train)
    assert {"scene-0008", "scene-0029", "scene-1107"} <= set(smaller)
    assert "scene-0001" in larger


def test_scenes_by_name(trainval):
    assert set(trainval("scene-0003,scene-0001")) == {"scene-0001", "scene-0003"}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train-3%", "no label subset of 3 % in 'train-3%'. Use one of: train-1%, train-5%"),
        ("scene-0001,scene-9999", "no split and no scene 'scene-9999'"),
        ("slidr_tran", "did you mean 'slidr_train'?"),
    ],
)
def test_splits_that_are_none(trainval, split, message):
    with pytest.raises(DatasetError) as caught:
        trainval(split)
    assert message in str(caught.value)
