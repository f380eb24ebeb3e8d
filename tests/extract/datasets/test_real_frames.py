"""Real frames: how many pairs each view has, counted once by other means."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from scalr.cli import main
from scalr.extract.check import check
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.scans import read_labelled_scan
from scalr.extract.preparation import Selection, prepare_frame
from scalr.extract.store import open_store

PANDARS = {"front": 13930, "front_right": 27178, "right": 26532, "back": 24387, "left": 26722, "front_left": 26065}


def pairs(dataset, token: str) -> dict[str, int]:
    (frame,) = [frame for frame in dataset.frames if frame.token == token]
    views = prepare_frame(dataset, frame, [], Selection()).views
    return {record.camera: len(view.pixel) for record, view in zip(frame.views, views, strict=True)}


@pytest.mark.parametrize(
    ("token", "split", "count"),
    [
        ("01/000001", "train", 18579),
        ("01/000002", "train", 20148),
        ("01/000008", "train", 17186),
        ("08/000000", "val", 20222),
    ],
)
def test_pairs_of_kitti(real_data, token, split, count):
    assert pairs(open_dataset("semantic_kitti", real_data("semantickitti"), split), token) == {"image_2": count}


@pytest.mark.parametrize(("name", "counts"), [("pandaset_64", PANDARS), ("pandaset_gt", {"front": 54708})])
def test_pairs_of_pandaset(real_data, name, counts):
    pytest.importorskip("pandas", reason="PandaSet's files are pandas tables")
    assert pairs(open_dataset(name, real_data("pandaset"), "train"), "002/00") == counts


def test_kitti_says_which_image_is_not_there(real_data):
    report = check("semantic_kitti", real_data("semantickitti"), "train")
    (problem,) = report.problems
    assert "sequences/00/image_2/000000.png: the file is missing" in problem
    assert report.frames == 4


def test_kitti_is_extracted_without_the_scan_that_has_no_image(real_data, tmp_path):
    """It is said and the run stops; or it is skipped and listed, if asked for."""
    command = [
        "extract",
        "--teacher",
        "dinov2_vits14",
        "--weights",
        "random",
        "--image-size",
        "28x56",
        "--device",
        "cpu",
    ]
    command += ["--dataset", "semantic_kitti", "--root", real_data("semantickitti"), "--out", tmp_path / "s.zarr"]
    command = [str(word) for word in command]
    image = "sequences/00/image_2/000000.png: the file is missing"
    stopped = CliRunner().invoke(main, command)
    assert stopped.exit_code == 1
    assert image in stopped.stderr
    assert open_store(tmp_path / "s.zarr").committed_blocks() == set()
    skipped = CliRunner().invoke(main, [*command, "--on-error", "skip"])
    assert skipped.exit_code == 3
    assert "skipped frame 00/000000: " in skipped.stderr
    assert image in skipped.stderr
    views = open_store(tmp_path / "s.zarr").views
    assert views["token"].to_pylist() == ["01/000001", "01/000002", "01/000008"]
    counts = views["pairs_stop"].to_numpy() - views["pairs_start"].to_numpy()
    assert counts.tolist() == [18579, 20148, 17186]


@pytest.mark.parametrize(
    ("name", "folder", "split", "classes"),
    [
        ("nuscenes", "nuscenes", "mini_train", {"car", "pedestrian"}),
        ("semantic_kitti", "semantickitti", "00", {"road", "car", "building", "vegetation"}),
        ("pandaset_64", "pandaset", "train", {"road", "car", "manmade", "sidewalk", "road_marking"}),
        ("pandaset_gt", "pandaset", "train", {"road", "car", "manmade"}),
    ],
)
def test_labels_fit_their_scans(real_data, name, folder, split, classes):
    if folder == "pandaset":
        pytest.importorskip("pandas", reason="PandaSet's files are pandas tables")
    dataset = open_dataset(name, real_data(folder), split)
    points, labels = read_labelled_scan(dataset, dataset.frames[0])
    found = {dataset.class_names[label] for label in np.unique(labels[labels != IGNORE_LABEL])}
    assert classes <= found
    if "road" in found:  # the ground is below the lidar, and it is what is below the car
        assert np.median(points[labels == dataset.class_names.index("road"), 2]) == pytest.approx(-1.8, abs=0.5)
