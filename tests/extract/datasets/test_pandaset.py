from __future__ import annotations

import gzip
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset, pandaset
from scalr.extract.datasets.files import read_json
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.pandaset import LABELS, PANDAR64, PANDARGT, SCAN_FROM_POSE, PandaSet
from scalr.extract.datasets.scans import read_labelled_scan

pandas = pytest.importorskip("pandas", reason="PandaSet's files are pandas tables")


def write(path: Path, value: object, protocol: int = 3) -> Path:
    path.write_bytes(gzip.compress(pickle.dumps(value, protocol)))
    return path


def test_splits_follow_each_scene_s_own_gps(simulated, tmp_path):
    root = Path(shutil.copytree(simulated("pandaset"), tmp_path / "pandaset"))
    assert {frame.scene for frame in open_dataset("pandaset_64", root, "train").frames} == {"001"}
    assert {frame.scene for frame in open_dataset("pandaset_gt", root, "val").frames} == {"101"}
    assert len(open_dataset("pandaset_64", root, "001,101").frames) == 4
    shutil.copy(root / "001/meta/gps.json", root / "101/meta/gps.json")
    assert {frame.scene for frame in open_dataset("pandaset_64", root, "train").frames} == {"001", "101"}
    entries = json.loads((root / "101/meta/gps.json").read_text())
    (root / "101/meta/gps.json").write_text(json.dumps([entries[0], *({**each, "lat": 0} for each in entries)]))
    assert len(open_dataset("pandaset_64", root, "train").frames) == 4  # where the scene begins is what counts
    shutil.rmtree(root / "101/annotations/semseg")  # as most scenes of the real set: not used
    assert {frame.scene for frame in open_dataset("pandaset_64", root, "train").frames} == {"001"}


def test_a_folder_with_scenes_of_the_other_split_is_said(simulated, tmp_path):
    shutil.copytree(simulated("pandaset") / "001", tmp_path / "001")
    with pytest.raises(DatasetError, match=r"no scan of split 'val'\. Name scenes of: \['001'\]"):
        open_dataset("pandaset_64", tmp_path, "val")


def test_each_lidar_has_its_cameras_and_points(simulated):
    spinning, forward = (open_dataset(name, simulated("pandaset"), "train") for name in ("pandaset_64", "pandaset_gt"))
    assert len(spinning.frames[0].views) == 6
    assert [view.camera for view in forward.frames[0].views] == ["front"]
    table = pandas.read_pickle(simulated("pandaset") / "001/lidar/00.pkl.gz")
    assert len(spinning.read_points(spinning.frames[0])) == (table.d == 0).sum()
    assert len(forward.read_points(forward.frames[0])) == (table.d == 1).sum()
    assert spinning.intensity != forward.intensity


def test_without_pandas_the_extra_is_named(simulated, monkeypatch):
    dataset = open_dataset("pandaset_64", simulated("pandaset"), "train")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(DatasetError, match=r"pip install 'scalr-distill\[pandaset\]'"):
        dataset.read_points(dataset.frames[0])


# datasets/pandaset.py of valeoai/ScaLR: raw id -> class, counted from 1, 0 for none.
OFFICIAL = [
    0, 0, 0, 0, 0, 5, 16, 1, 6, 6,  6, 7, 17, 10, 12, 12, 12, 15, 11, 15,
    15, 15, 0, 13, 0, 0, 14, 15, 15, 15,  4, 4, 0, 0, 9, 3, 2, 9, 2, 3,
    0, 8, 8,
]  # fmt: skip


def test_classes_are_those_of_the_official_reader():
    expected = [IGNORE_LABEL if each == 0 else each - 1 for each in OFFICIAL]
    np.testing.assert_array_equal(LABELS.train_ids(np.arange(43), Path("a.pkl.gz")), expected)
    assert LABELS.class_names == (
        *("road", "traffic_sign", "barrier", "pedestrian", "vegetation", "road_marking", "sidewalk", "manmade"),
        *("traffic_cone", "car", "motorcycle", "truck", "bus", "bicycle", "other_vehicle", "ground", "driveway"),
    )
    with pytest.raises(DatasetError, match="does not define: 43"):
        LABELS.train_ids(np.array([43]), Path("a.pkl.gz"))


def test_conventions_are_those_of_the_official_reader():
    """Depth above zero, the whole image; 1.6 m off z; the two sensors' numbers, cameras and intensities."""
    assert (PandaSet.visibility.min_depth_m, PandaSet.visibility.border_px, PandaSet.visibility.min_x_m) == (0, 0, None)
    np.testing.assert_array_equal(SCAN_FROM_POSE, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1.6], [0, 0, 0, 1]])
    assert (PANDAR64.number, PANDARGT.number) == (0, 1)
    assert {*PANDAR64.cameras} == {"front", "front_right", "right", "back", "left", "front_left"}
    assert PANDARGT.cameras == ("front",)


@pytest.mark.parametrize(("latitude", "split"), [(37.6, "val"), (37.600001, "train"), (37.59, "val")])
def test_train_is_north_of_san_francisco_s_border(simulated, tmp_path, latitude, split):
    shutil.copytree(simulated("pandaset") / "001", tmp_path / "001")
    (tmp_path / "001/meta/gps.json").write_text(json.dumps([{"lat": latitude}]))
    assert len(open_dataset("pandaset_64", tmp_path, split).frames) == 2


def test_a_frame_is_a_number_that_any_of_its_files_has(simulated, tmp_path):
    root = Path(shutil.copytree(simulated("pandaset"), tmp_path / "pandaset"))
    for number, name in enumerate(("lidar/90.pkl.gz", "annotations/semseg/91.pkl.gz", "camera/left_camera/92.jpg")):
        (root / "001" / name).touch()
        tokens = [frame.token for frame in open_dataset("pandaset_64", root, "train").frames]
        assert tokens == ["001/00", "001/01", *(f"001/{each}" for each in range(90, 91 + number))]
    (beyond,) = open_dataset("pandaset_64", root, "train").frames[-1:]
    assert "timestamps.json: the file does not have PandaSet's format (IndexError: list index out of range)" in str(
        beyond.error
    )
    assert (beyond.views, beyond.timestamp) == ((), 0)
    assert len(open_dataset("pandaset_gt", root, "train").frames) == 4  # its camera is the front one alone


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("lidar/timestamps", lambda times: [float("inf")] * len(times), "OverflowError"),
        ("lidar/timestamps", lambda times: [float("nan")] * len(times), "ValueError"),
        (
            "lidar/poses",
            lambda poses: [each | {"heading": dict.fromkeys("wxyz", 1.0)} for each in poses],
            "length 2",
        ),
    ],
)
def test_values_that_cannot_be_are_said(simulated, tmp_path, file, damage, message):
    root = Path(shutil.copytree(simulated("pandaset"), tmp_path / "pandaset"))
    path = root / f"001/{file}.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    errors = [str(frame.error) for frame in open_dataset("pandaset_gt", root, "train").frames]
    assert all(f"{path}: the file does not have PandaSet's format" in error for error in errors)
    assert all(message in error for error in errors)


def test_unpacked_tables_are_read_as_they_are(simulated, tmp_path):
    root = Path(shutil.copytree(simulated("pandaset"), tmp_path / "pandaset"))
    before = open_dataset("pandaset_64", root, "train")
    expected = [read_labelled_scan(before, frame) for frame in before.frames]
    for path in [*root.glob("001/*/00.pkl.gz"), *root.glob("001/*/*/0*.pkl.gz")]:
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    (root / "001/lidar/01.pkl").write_bytes(b"of two, the one as published counts")
    dataset = open_dataset("pandaset_64", root, "train")
    assert [frame.scan for frame in dataset.frames] == ["001/lidar/00.pkl", "001/lidar/01.pkl.gz"]
    assert dataset.frames[0].labels == "001/annotations/semseg/00.pkl"
    for frame, (points, labels) in zip(dataset.frames, expected, strict=True):
        found = read_labelled_scan(dataset, frame)
        np.testing.assert_array_equal(found[0], points)
        np.testing.assert_array_equal(found[1], labels)


def test_frames_know_their_files_and_their_time(simulated):
    frame = open_dataset("pandaset_64", simulated("pandaset"), "train").frames[1]
    times = json.loads((simulated("pandaset") / "001/lidar/timestamps.json").read_text())
    assert (frame.token, frame.timestamp) == ("001/01", round(times[1] * 1e6))
    assert (frame.scan, frame.labels) == ("001/lidar/01.pkl.gz", "001/annotations/semseg/01.pkl.gz")
    assert frame.views[3].image == "001/camera/back_camera/01.jpg"
    assert frame.error is None


def test_a_file_is_parsed_once_for_all_frames(simulated, monkeypatch):
    read = []
    monkeypatch.setattr(pandaset, "read_json", lambda path: read.append(path) or read_json(path))
    open_dataset("pandaset_64", simulated("pandaset"), "train")
    assert len(read) == len(set(read)) > 10


@pytest.mark.parametrize(("name", "sensor"), [("pandaset_64", 0), ("pandaset_gt", 1)])
def test_labels_are_those_of_the_sensor_s_points(simulated, name, sensor):
    dataset = open_dataset(name, simulated("pandaset"), "train")
    folder = simulated("pandaset") / "001"
    scan, labels = (pandas.read_pickle(folder / f"{kind}/01.pkl.gz") for kind in ("lidar", "annotations/semseg"))
    raw = labels["class"].to_numpy()[scan["d"].to_numpy() == sensor]
    found = dataset.read_labels(dataset.frames[1])
    np.testing.assert_array_equal(found, LABELS.train_ids(raw, Path("a.pkl.gz")))
    assert len(found) == len(dataset.read_points(dataset.frames[1]))


def test_labels_of_another_scan_are_said(simulated, tmp_path):
    root = Path(shutil.copytree(simulated("pandaset"), tmp_path / "pandaset"))
    write(root / "001/annotations/semseg/00.pkl.gz", pandas.DataFrame({"class": [7, 7, 7]}))
    dataset = open_dataset("pandaset_64", root, "train")
    with pytest.raises(
        DatasetError, match=r"semseg/00\.pkl\.gz: the file has 3 labels, and the scan 001/lidar/00\.pkl\.gz has"
    ):
        dataset.read_labels(dataset.frames[0])


def test_a_camera_s_calibration_is_that_of_its_files(simulated):
    """A pinhole without skew; from the lidar's pose to the world, 1.6 m up, and into the camera's pose."""
    folder = simulated("pandaset") / "001"
    frame = open_dataset("pandaset_64", simulated("pandaset"), "train").frames[1]
    points = open_dataset("pandaset_64", simulated("pandaset"), "train").read_points(frame)
    world = pandas.read_pickle(folder / "lidar/01.pkl.gz").query("d == 0")[["x", "y", "z"]].to_numpy()
    for view in frame.views:
        camera = folder / f"camera/{view.camera}_camera"
        values = json.loads((camera / "intrinsics.json").read_text())
        expected = [[values["fx"], 0, values["cx"]], [0, values["fy"], values["cy"]], [0, 0, 1]]
        np.testing.assert_array_equal(view.calibration.intrinsics, expected)
        pose = json.loads((camera / "poses.json").read_text())[1]
        rotation = Rotation.from_quat([pose["heading"][axis] for axis in "xyzw"])
        in_camera = rotation.inv().apply(world - [pose["position"][axis] for axis in "xyz"])
        matrix = view.calibration.cam_from_lidar
        np.testing.assert_allclose(points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3], in_camera, atol=1e-3)


def test_scenes_come_by_name_whatever_the_file_system_says(simulated, monkeypatch):
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: sorted(glob(path, pattern), reverse=True))
    frames = open_dataset("pandaset_64", simulated("pandaset"), "101,001").frames
    assert [frame.token for frame in frames] == ["001/00", "001/01", "101/00", "101/01"]
