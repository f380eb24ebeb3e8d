from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.scans import read_labelled_scan
from scalr.extract.datasets.semantic_kitti import LABELS, read_calibration
from scalr.extract.preparation import Selection, prepare_frame


def moved(source: Path, root: Path, places: dict[str, str]) -> Path:
    """A copy of the sequences with each kind of file below a folder of its own."""
    for sequence in sorted((source / "sequences").iterdir()):
        for name, place in places.items():
            target = root / place / "sequences" / sequence.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (sequence / name).is_dir() else shutil.copy
            copy(sequence / name, target)
    return root


LAYOUTS = {
    "plain": dict.fromkeys(("velodyne", "labels", "image_2", "calib.txt"), ""),
    "dataset/": dict.fromkeys(("velodyne", "labels", "image_2", "calib.txt"), "dataset"),
    "as ScaLR wants it": {
        **dict.fromkeys(("velodyne", "labels", "image_2"), "dataset"),
        "calib.txt": "calib/dataset",
    },
    "an archive a folder": {
        "velodyne": "data_odometry_velodyne/dataset",
        "labels": "data_odometry_labels/dataset",
        "image_2": "data_odometry_color/dataset",
        "calib.txt": "data_odometry_calib/dataset",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wherever_the_archives_are_unpacked(layout, simulated, tmp_path):
    source = simulated("semantic_kitti")
    root = moved(source, tmp_path / "kitti", LAYOUTS[layout])
    expected, found = (open_dataset("semantic_kitti", each, "train") for each in (source, root))
    assert [frame.token for frame in found.frames] == ["00/000000", "00/000001"]
    for ours, theirs in zip(found.frames, expected.frames, strict=True):
        for mine, other in zip(read_labelled_scan(found, ours), read_labelled_scan(expected, theirs), strict=True):
            np.testing.assert_array_equal(mine, other)
        (mine,) = prepare_frame(found, ours, [], Selection()).views
        (other,) = prepare_frame(expected, theirs, [], Selection()).views
        np.testing.assert_array_equal(mine.pixel, other.pixel)


@pytest.fixture
def many(tmp_path):
    """Sequences with empty files: 130 scans in 00, 120 in 01, 7 in 08."""
    for sequence, count in (("00", 130), ("01", 120), ("08", 7)):
        (tmp_path / f"sequences/{sequence}/velodyne").mkdir(parents=True)
        for number in range(count):
            (tmp_path / f"sequences/{sequence}/velodyne/{number:06d}.bin").touch()
    return lambda split: [frame.token for frame in open_dataset("semantic_kitti", tmp_path, split).frames]


def test_splits_and_shares(many):
    everything = many("train")
    assert len(everything) == 250
    assert everything == sorted(everything)
    assert many("train-1%") == [
        "00/000000",
        "00/000100",
        "01/000070",
    ]  # every 100th of the sorted list, the first first
    assert len(many("train-10%")) == 25
    assert len(many("val")) == 7
    assert many("01,08") == many("01") + many("08")
    with pytest.raises(DatasetError, match="no scan of split 'test'"):
        many("test")


def test_other_files_are_no_scans(many, tmp_path):
    for name in ("._000000.bin", "readme.txt", "000000.bin.part"):
        (tmp_path / "sequences/08/velodyne" / name).touch()
    assert len(many("val")) == 7


def test_without_labels_there_is_extraction_but_no_probing(simulated, tmp_path):
    root = moved(simulated("semantic_kitti"), tmp_path / "k", dict.fromkeys(("velodyne", "image_2", "calib.txt"), ""))
    dataset = open_dataset("semantic_kitti", root, "train")
    assert len(prepare_frame(dataset, dataset.frames[0], [], Selection()).views[0].pixel) > 1000
    with pytest.raises(DatasetError, match="frame 00/000000 has no labels"):
        dataset.read_labels(dataset.frames[0])


def test_the_calibration_s_product_is_p2_tr(simulated):
    path = simulated("semantic_kitti") / "sequences/00/calib.txt"
    rows = dict(line.split(":") for line in path.read_text().splitlines())
    matrix = {name: np.array(row.split(), float).reshape(3, 4) for name, row in rows.items()}
    expected = matrix["P2"] @ np.vstack([matrix["Tr"], [0, 0, 0, 1]])
    calibration = read_calibration(path)
    found = calibration.intrinsics @ calibration.cam_from_lidar[:3]
    np.testing.assert_allclose(found / found[2, 2], expected / expected[2, 2], rtol=1e-9, atol=1e-9)


def test_only_points_ahead_of_the_lidar_count(simulated):
    """The official reader asks for x > 1 m in the lidar's frame, whatever the camera sees."""
    dataset = open_dataset("semantic_kitti", simulated("semantic_kitti"), "train")
    prepared = prepare_frame(dataset, dataset.frames[0], [], Selection())
    assert prepared.points[prepared.views[0].point_index, 0].min() > 1
    assert prepared.points[:, 0].min() < -5


NAMES = {10: "car", 252: "car", 13: "other-vehicle", 256: "other-vehicle", 40: "road", 60: "road", 81: "traffic-sign"}


@pytest.mark.parametrize(("raw", "name"), NAMES.items())
def test_raw_ids(raw, name):
    (train_id,) = LABELS.train_ids(np.array([raw]), Path())
    assert LABELS.class_names[train_id] == name


def test_there_are_nineteen_classes_and_four_ignored_ids():
    assert len(LABELS.class_names) == 19
    assert (LABELS.train_ids(np.array([0, 1, 52, 99]), Path()) == IGNORE_LABEL).all()
