from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import nuscenes_tables, open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.datasets.nuscenes_tables import keyframe_table, lidar_tokens, named_splits, read_keyframes


def damage_table(world: Path, table: str, change) -> None:
    path = world / "v1.0-trainval" / f"{table}.json"
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))


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


def test_without_a_home_folder_the_tables_are_read_each_time(world, monkeypatch, caplog):
    """A container that runs as a number without an account."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert len(open_dataset("nuscenes", world, "train").frames)
    assert "there is no home folder; set $XDG_CACHE_HOME" in caplog.text


def test_a_missing_field_is_named(world):
    damage_table(world, "sample_data", lambda records: [record.pop("timestamp") for record in records[3:]])
    with pytest.raises(DatasetError, match=r"sample_data.json: record 3 has no field 'timestamp'"):
        open_dataset("nuscenes", world, "train")


def test_a_table_that_may_be_missing_is_read_where_it_is_there(world):
    """Without lidarseg, whatever else is wrong is named; with it, what is wrong with it."""
    lidarseg, sensor = (world / f"v1.0-trainval/{name}.json" for name in ("lidarseg", "sensor"))
    whole = sensor.read_text()
    lidarseg.write_text("[{}]")
    with pytest.raises(DatasetError, match=r"lidarseg\.json: record 0 has no field 'sample_data_token'"):
        open_dataset("nuscenes", world, "train")
    lidarseg.unlink()
    sensor.write_text("[]")
    with pytest.raises(DatasetError, match="the tables do not fit together"):
        open_dataset("nuscenes", world, "train")
    sensor.write_text(whole)
    assert open_dataset("nuscenes", world, "train").frames[0].labels is None


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
    assert "will be read again in the next run" in caplog.text


# CUSTOM_SPLIT of SLidR, as in BEVContrast, ALSO and ScaLR.
VERIFYING = """
    0008 0009 0019 0029 0032 0042 0045 0049 0052 0054 0056 0066 0067 0073 0131 0152 0166 0168 0183 0190
    0194 0208 0210 0211 0241 0243 0248 0259 0260 0261 0287 0292 0297 0305 0306 0350 0352 0358 0361 0365
    0368 0377 0388 0391 0395 0413 0427 0428 0438 0444 0452 0453 0459 0463 0464 0475 0513 0533 0544 0575
    0587 0589 0642 0652 0658 0669 0678 0687 0701 0703 0706 0710 0715 0726 0735 0740 0758 0786 0790 0804
    0806 0847 0856 0868 0882 0897 0899 0976 0996 1012 1015 1016 1018 1020 1024 1044 1058 1094 1098 1107
"""


def test_the_scenes_that_slidr_verifies_on_are_these():
    splits = named_splits()
    assert splits["slidr_val"] == [f"scene-{number}" for number in VERIFYING.split()]
    assert sorted(splits["slidr_train"] + splits["slidr_val"]) == sorted(splits["train"])
    assert {name: len(scenes) for name, scenes in splits.items()} == {
        "train": 700,
        "val": 150,
        "test": 150,
        "mini_train": 8,
        "mini_val": 2,
        "slidr_train": 600,
        "slidr_val": 100,
    }


def test_a_scan_s_token_is_that_of_its_keyframe(world):
    """Not of a sweep between two, whose record is in the same table."""
    tables = world / "v1.0-trainval"
    records = json.loads((tables / "sample_data.json").read_text())
    sweep = dict(records[0], token="sweep", is_key_frame=False, filename="sweeps/0.bin")
    (tables / "sample_data.json").write_text(json.dumps([*records, sweep]))
    expected = {record["filename"]: record["token"] for record in records if record["is_key_frame"]}
    assert lidar_tokens(tables) == expected
    assert len(read_keyframes(tables)) == 4
    (tables / "sample_data.json").write_text("[{}]")
    with pytest.raises(DatasetError, match=r"sample_data\.json: record 0 has no field 'token'"):
        lidar_tokens(tables)


def test_intrinsics_that_are_no_matrix_are_said(world):
    damage_table(world, "calibrated_sensor", lambda records: [each.update(camera_intrinsic=[]) for each in records])
    with pytest.raises(DatasetError, match=r"calibrated_sensor\.json: the intrinsics of .* are not 3x3 numbers"):
        read_keyframes(world / "v1.0-trainval")


@pytest.mark.parametrize(
    ("table", "field", "value", "message"),
    [
        ("sample_data", "height", "400 px", r"do not fit together \(ArrowInvalid"),
        ("sample_data", "filename", ["a.jpg"], r"do not fit together \(ArrowTypeError"),
        ("ego_pose", "rotation", [2.0, 0.0, 0.0, 0.0], "has the length 2, not 1"),
        ("ego_pose", "translation", [1.0, 2.0], "do not fit together"),
    ],
)
def test_a_value_of_another_kind_is_said(world, table, field, value, message):
    damage_table(world, table, lambda records: [record.update({field: value}) for record in records])
    with pytest.raises(DatasetError, match=message):
        open_dataset("nuscenes", world, "train")


def test_tables_of_two_versions_are_said(world):
    """Each is whole, but they do not name the same records."""
    damage_table(world, "ego_pose", lambda records: [record.update(token="other") for record in records])
    with pytest.raises(
        DatasetError, match=r"the tables do not fit together \(KeyError: .*\)\. Unpack the metadata archives"
    ):
        read_keyframes(world / "v1.0-trainval")


@pytest.mark.parametrize("change", ["content", "time", "version", "splits"])
def test_kept_tables_are_made_anew_where_anything_has_changed(world, monkeypatch, change):
    tables = world / "v1.0-trainval"
    keyframe_table(tables)
    kept, table = nuscenes_tables._kept_table(tables), tables / "sensor.json"
    if change == "content":
        table.write_text(table.read_text() + " ")
    elif change == "time":
        table.touch()
    elif change == "version":
        monkeypatch.setattr(nuscenes_tables, "CACHE_VERSION", 0)
    else:
        values = pq.read_table(kept)
        pq.write_table(values.replace_schema_metadata({"scalr": "{}"}), kept)
    read = []
    monkeypatch.setattr(nuscenes_tables, "read_keyframes", lambda folder: read.append(folder) or read_keyframes(folder))
    for _ in range(2):
        again, splits = keyframe_table(tables)
    assert read == [tables]
    assert (len(again), splits) == (24, named_splits())


def test_each_folder_of_tables_has_a_file_of_its_own(world, tmp_path, monkeypatch):
    """In the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [
        nuscenes_tables._kept_table(world / version) for version in ("v1.0-trainval", "v1.0-mini", "../world/v1.0-mini")
    ]
    assert names[0] != names[1] == names[2]
    assert names[0].parent == tmp_path / "cache/scalr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert nuscenes_tables._kept_table(world).parent == Path.home() / ".cache/scalr"


def test_an_image_of_another_size_is_said(world):
    damage_table(world, "sample_data", lambda records: [record.update(height=900) for record in records])
    dataset = open_dataset("nuscenes", world, "train")
    with pytest.raises(DatasetError, match="its calibration is for 900x"):
        read_image(dataset.root, dataset.frames[0].views[0])
