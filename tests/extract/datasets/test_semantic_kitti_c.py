from __future__ import annotations

import shutil

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.scans import read_labelled_scan
from scalr.extract.datasets.semantic_kitti_c import LABELS


def test_semantic_kitti_c(simulated, tmp_path):
    clean, folder = simulated("semantic_kitti") / "sequences/08", tmp_path / "C/crosstalk/moderate"
    for name in ("velodyne", "labels"):
        shutil.copytree(clean / name, folder / name)
    raw = np.fromfile(folder / "labels/000001.label", np.uint32)
    raw[:3] = 21, 22, 23 + (7 << 16)
    raw.tofile(folder / "labels/000001.label")
    dataset = open_dataset("semantic_kitti_c", tmp_path / "C", "crosstalk/moderate")
    expected = open_dataset("semantic_kitti", simulated("semantic_kitti"), "val")
    assert [frame.token for frame in dataset.frames] == [frame.token for frame in expected.frames]
    _, labels = read_labelled_scan(dataset, dataset.frames[1])
    assert (labels[:3] == IGNORE_LABEL).all()
    np.testing.assert_array_equal(labels[3:], expected.read_labels(expected.frames[1])[3:])


def test_a_corruption_without_scans_is_said(tmp_path):
    (tmp_path / "fog/light/velodyne").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"velodyne: the folder has no scans\. Unpack SemanticKITTI-C again"):
        open_dataset("semantic_kitti_c", tmp_path, "fog/light")


def test_other_ids_than_those_of_fog_snow_and_crosstalk_are_not_known():
    """Robo3D writes 21, 22 and 23 for them."""
    assert (LABELS.train_ids(np.array([21, 22, 23]), "labels") == IGNORE_LABEL).all()
    with pytest.raises(DatasetError, match="does not define: 19, 24"):
        LABELS.train_ids(np.array([19, 24]), "labels")


def test_a_scan_without_labels_and_labels_without_a_scan_are_frames(tmp_path):
    for name in ("velodyne/000001.bin", "labels/000002.label"):
        (tmp_path / "fog/light" / name).parent.mkdir(parents=True)
        (tmp_path / "fog/light" / name).touch()
    frames = open_dataset("semantic_kitti_c", tmp_path, "fog/light").frames
    assert [(frame.scene, frame.token) for frame in frames] == [("08", "08/000001"), ("08", "08/000002")]
    assert (frames[1].scan, frames[1].labels) == ("fog/light/velodyne/000002.bin", "fog/light/labels/000002.label")
