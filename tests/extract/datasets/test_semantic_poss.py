from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.scans import intensity_of
from scalr.extract.datasets.semantic_poss import SPLITS, SemanticPoss


def test_poss_splits(simulated, tmp_path):
    root = simulated("semantic_poss")
    assert [frame.token for frame in open_dataset("semantic_poss", root, "train").frames] == ["00/000000", "00/000001"]
    val = open_dataset("semantic_poss", root, "val")
    assert [frame.scene for frame in val.frames] == ["03", "03"]
    assert val.frames[0].views == ()
    shutil.copytree(root / "sequences", tmp_path / "poss/dataset/sequences")
    assert len(open_dataset("semantic_poss", tmp_path / "poss", "00,03").frames) == 4


def test_poss_ids_are_those_of_its_api():
    """SemanticPOSS' raw ids 0 to 22: no class for unlabelled points, for 1 to 3 and for 18 to 20."""
    none = IGNORE_LABEL
    expected = [none] * 4 + [0, 0, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 10, none, none, none, 11, 12]
    found = SemanticPoss.label_map.train_ids(np.arange(23), Path("000000.label"))
    np.testing.assert_array_equal(found, expected)
    assert SemanticPoss.class_names == (
        *("person", "rider", "car", "trunk", "plants", "traffic-sign", "pole", "trashcan", "building", "cone-stone"),
        *("fence", "bike", "ground"),
    )


def test_points_are_those_of_the_file(simulated):
    """Four values each."""
    dataset = open_dataset("semantic_poss", simulated("semantic_poss"), "val")
    path = dataset.root / dataset.frames[0].scan
    np.testing.assert_array_equal(dataset.read_points(dataset.frames[0]), np.fromfile(path, np.float32).reshape(-1, 4))


def test_poss_intensities_are_measured(simulated):
    dataset = open_dataset("semantic_poss", simulated("semantic_poss"), "train")
    values = np.concatenate([dataset.read_points(frame)[:, 3] for frame in dataset.frames]).astype(float)
    statistics = intensity_of(dataset)
    assert (statistics.mean, statistics.std) == pytest.approx((values.mean(), values.std()))


def test_sequence_03_is_val_and_the_five_others_train():
    """As in SemanticPOSS' API and SALUDA."""
    expected = {"train": {"00", "01", "02", "04", "05"}, "val": {"03"}}
    assert {name: set(sequences) for name, sequences in SPLITS.items()} == expected


def test_a_frame_is_a_number_that_a_scan_or_labels_have(simulated, tmp_path):
    root = Path(shutil.copytree(simulated("semantic_poss"), tmp_path / "poss"))
    sequence = root / "sequences/03"
    (sequence / "labels/000007.label").touch()
    (sequence / "velodyne/000009.bin").touch()
    frames = open_dataset("semantic_poss", root, "val").frames
    assert [frame.token for frame in frames] == ["03/000000", "03/000001", "03/000007", "03/000009"]
    assert (frames[3].labels, frames[3].timestamp) == ("sequences/03/labels/000009.label", 900_000)
    shutil.rmtree(sequence / "labels")
    frames = open_dataset("semantic_poss", root, "val").frames
    assert [frame.labels for frame in frames] == [None] * 3
    with pytest.raises(DatasetError, match="frame 03/000000 has no labels"):
        open_dataset("semantic_poss", root, "val").read_labels(frames[0])


def test_a_folder_without_a_scan_of_the_split_is_said(simulated, tmp_path):
    shutil.copytree(simulated("semantic_poss") / "sequences/00", tmp_path / "sequences/00")
    with pytest.raises(
        DatasetError, match=r"sequences: the folder has no scan of split 'val'\..*\(sequences found: 00\)"
    ):
        open_dataset("semantic_poss", tmp_path, "val")
    with pytest.raises(
        DatasetError, match=r"dataset/sequences: the folder has no scan of split 'val'\..*\(sequences found: none\)"
    ):
        open_dataset("semantic_poss", tmp_path / "sequences", "val")
