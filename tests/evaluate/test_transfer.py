from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import save_student
from scalr.distill.student import Student
from scalr.errors import StudentError
from scalr.evaluate.class_sets import RAW_IDS, class_map, with_classes
from scalr.evaluate.probe import ProbeConfig, probe
from scalr.evaluate.transfer import TARGETS, TransferConfig, transfer
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL

CLASSES = {
    "semantic_kitti_10": (
        "car", "bicycle", "motorcycle", "truck", "other_vehicle", "pedestrian", "driveable_surface", "sidewalk",
        "terrain", "vegetation",
    ),
    "semantic_poss_6": ("person", "bike", "car", "ground", "vegetation", "manmade"),
}  # fmt: skip
# datasets/*.py of SALUDA: raw id -> class, counted from 1, 0 for none.
SALUDA = {
    ("semantic_kitti_10", "nuscenes"): dict(
        enumerate([
            0, 0, 6, 6, 6, 6, 6, 0, 0, 0,  0, 0, 0, 0, 2, 5, 5, 1, 5, 5,
            5, 3, 5, 4, 7, 0, 8, 9, 0, 0,  10, 0,
        ])
    ),
    ("semantic_kitti_10", "semantic_kitti"): {
        0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 0, 18: 4, 20: 5, 30: 6, 31: 0, 32: 0, 40: 7, 44: 7, 48: 8, 49: 0,
        50: 0, 51: 0, 52: 0, 60: 7, 70: 10, 71: 10, 72: 9, 80: 0, 81: 0, 99: 0, 252: 1, 253: 0, 254: 6, 255: 0, 256: 0,
        257: 5, 258: 4, 259: 5,
    },
    ("semantic_poss_6", "nuscenes"): dict(
        enumerate([
            0, 0, 1, 1, 1, 0, 1, 0, 0, 6,  0, 0, 6, 0, 2, 3, 3, 3, 3, 0,
            0, 2, 3, 3, 4, 4, 4, 4, 6, 0,  5, 0,
        ])
    ),
    ("semantic_poss_6", "semantic_poss"): dict(
        enumerate([0, 0, 0, 0, 1, 1, 2, 3, 0, 5,  6, 6, 6, 6, 6, 6, 6, 6, 0, 0,  0, 2, 4])
    ),
}  # fmt: skip


@pytest.mark.parametrize("classes", RAW_IDS)
def test_both_sides_have_the_same_classes_in_the_same_order(classes):
    sides = [list(of_dataset) for of_dataset in RAW_IDS[classes].values()]
    assert sides[0] == sides[1]
    assert len(sides[0]) == int(classes.rsplit("_", 1)[1])
    for dataset in RAW_IDS[classes]:
        ids = [raw for group in RAW_IDS[classes][dataset].values() for raw in group]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("classes", "dataset"), SALUDA)
def test_the_mappings_are_those_of_saluda(classes, dataset):
    """Every raw id, among them those that surprise: in both sets other_flat, riders and trunks differ."""
    raw, expected = zip(*SALUDA[classes, dataset].items(), strict=True)
    label_map = class_map(classes, dataset)
    train_ids = label_map.train_ids(np.array(raw), "labels")
    assert label_map.class_names == CLASSES[classes]
    np.testing.assert_array_equal(train_ids, [IGNORE_LABEL if each == 0 else each - 1 for each in expected])


def test_targets_are_those_of_saluda():
    """SemanticKITTI is annotated up to 50 m."""
    assert TARGETS == {"semantic_kitti": ("semantic_kitti_10", 50), "semantic_poss": ("semantic_poss_6", None)}


def test_every_raw_id_of_a_dataset_is_known(simulated):
    dataset = with_classes(open_dataset("nuscenes", simulated("nuscenes"), "val"), "semantic_kitti_10")
    assert set(dataset.label_map.train_ids(np.arange(32), "labels")) == {*range(10), IGNORE_LABEL}


def test_a_set_of_classes_leaves_the_dataset_as_it_was(simulated):
    dataset = open_dataset("nuscenes", simulated("nuscenes"), "val")
    before = dataset.read_labels(dataset.frames[0])
    assert len(with_classes(dataset, "semantic_poss_6").class_names) == 6
    assert len(dataset.class_names) == 16
    np.testing.assert_array_equal(dataset.read_labels(dataset.frames[0]), before)


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_of_one_lidar_is_scored_on_another(target, simulated, tmp_path):
    classes, max_range_m = TARGETS[target]
    torch.manual_seed(0)
    save_student(Student(WaffleIronConfig(width=8, depth=3, out_channels=4)), tmp_path / "student.safetensors", {})
    source = ProbeConfig(
        student=tmp_path / "student.safetensors", root=simulated("nuscenes"), out=tmp_path / "source",
        classes=classes, fast=True, epochs=3, learning_rate=0.1,
    )  # fmt: skip
    model = probe(source).model
    scores = transfer(TransferConfig(model=model, root=simulated(target), out=tmp_path / "out", dataset=target))
    assert scores.class_names == tuple(RAW_IDS[classes][target])
    dataset = with_classes(open_dataset(target, simulated(target), "val"), classes)
    expected = np.zeros(len(scores.class_names), dtype=np.int64)
    for frame in dataset.frames:
        points, labels = dataset.read_points(frame), dataset.read_labels(frame)
        near = np.linalg.norm(points[:, :3], axis=1) < (max_range_m or np.inf)
        expected += np.bincount(labels[near & (labels != IGNORE_LABEL)], minlength=len(expected))
    np.testing.assert_array_equal(scores.confusion.sum(axis=1), expected)
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert scores.mean_over == result["protocol"]["mean_over"] == "present"
    assert result["departures_of_protocol"] == []
    assert "width 8, not 768" in result["departures"][0]
    (training,) = result["model"]["labels"]
    assert training.startswith("probed on nuscenes train (2 frames) by the schedule of scalr with deviations: ")
    of_source = json.loads((tmp_path / "source/result.json").read_text())
    assert of_source["setting"] is None  # nothing is published for a source's shared classes
    assert result["protocol"]["trained_on"] == of_source["protocol"]["training_frames_sha256"]
    scored = "every labelled raw point" if max_range_m is None else "labelled raw points nearer than 50 m"
    assert result["protocol"]["scored_points"].startswith(scored)
    assert "intensity" in result["protocol"]
    assert result["protocol"]["classes_of"] == classes


def test_a_model_of_other_classes_is_told_how_to_train(simulated, tmp_path):
    save_student(Student(WaffleIronConfig(width=8, depth=3, out_channels=4)), tmp_path / "student.safetensors", {})
    source = ProbeConfig(
        student=tmp_path / "student.safetensors", root=simulated("nuscenes"), out=tmp_path / "source",
        fast=True, epochs=1,
    )  # fmt: skip
    model = probe(source).model
    with pytest.raises(StudentError, match="--classes semantic_kitti_10"):
        transfer(TransferConfig(model=model, root=simulated("semantic_kitti"), out=tmp_path / "out"))
    with pytest.raises(StudentError, match="did you mean 'semantic_kitti_10'"):
        class_map("semantic_kitti_1", "nuscenes")
    with pytest.raises(StudentError, match="is not defined for dataset pandaset_64"):
        class_map("semantic_poss_6", "pandaset_64")


def test_other_targets_have_no_conventions(tmp_path):
    config = TransferConfig(model=tmp_path, root=tmp_path, out=tmp_path, dataset="pandaset_64")
    with pytest.raises(
        StudentError,
        match=r"domain generalisation is not defined for pandaset_64\. Use"
        " semantic_kitti or semantic_poss",
    ):
        transfer(config)
