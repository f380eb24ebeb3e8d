"""The sets without images: SemanticPOSS, and Robo3D's corruptions of nuScenes and SemanticKITTI."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.scans import intensity_of, read_labelled_scan
from scalr.extract.datasets.semantic_poss import SemanticPoss


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


def test_poss_intensities_are_measured(simulated):
    dataset = open_dataset("semantic_poss", simulated("semantic_poss"), "train")
    values = np.concatenate([dataset.read_points(frame)[:, 3] for frame in dataset.frames]).astype(float)
    statistics = intensity_of(dataset)
    assert (statistics.mean, statistics.std) == pytest.approx((values.mean(), values.std()))


@pytest.fixture
def nuscenes_c(simulated, tmp_path) -> Path:
    """The val scans under `snow/heavy`: the first point taken away, one of class 42 put at the end."""
    clean, root = simulated("nuscenes"), tmp_path / "nuScenes-C"
    for frame in open_dataset("nuscenes", clean, "val").frames:
        scan = np.fromfile(clean / frame.scan, np.float32).reshape(-1, 5)
        labels = np.fromfile(clean / frame.labels, np.uint8)
        corrupted = {frame.scan: np.vstack([scan[1:], scan[:1]]), frame.labels: np.append(labels[1:], np.uint8(42))}
        for name, values in corrupted.items():
            path = root / "snow/heavy" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            values.tofile(path)
    return root


def test_nuscenes_c_takes_scans_and_labels_from_the_corrupted_tree(nuscenes_c, simulated, monkeypatch):
    monkeypatch.setenv("NUSCENES", str(simulated("nuscenes")))
    clean = open_dataset("nuscenes", simulated("nuscenes"), "val")
    dataset = open_dataset("nuscenes_c", nuscenes_c, "snow/heavy")
    assert (dataset.name, dataset.class_names, dataset.intensity) == ("nuscenes_c", clean.class_names, clean.intensity)
    assert [frame.token for frame in dataset.frames] == [frame.token for frame in clean.frames]
    for ours, theirs in zip(dataset.frames, clean.frames, strict=True):
        points, labels = read_labelled_scan(dataset, ours)
        clean_points, clean_labels = read_labelled_scan(clean, theirs)
        np.testing.assert_array_equal(points[:-1], clean_points[1:])
        np.testing.assert_array_equal(labels[:-1], clean_labels[1:])
        assert labels[-1] == IGNORE_LABEL


def test_nuscenes_c_without_tables_says_where_they_were_looked_for(nuscenes_c, monkeypatch):
    monkeypatch.delenv("NUSCENES", raising=False)
    with pytest.raises(DatasetError, match=r"Set \$NUSCENES to nuScenes' folder, or link its v1.0-trainval there"):
        open_dataset("nuscenes_c", nuscenes_c, "snow/heavy")


def test_clean_nuscenes_has_no_points_of_snow(simulated, tmp_path):
    root = Path(shutil.copytree(simulated("nuscenes"), tmp_path / "clean"))
    dataset = open_dataset("nuscenes", root, "val")
    path = root / dataset.frames[0].labels
    path.write_bytes(path.read_bytes()[:-1] + bytes([42]))
    with pytest.raises(DatasetError, match="label ids that the dataset does not have: 42"):
        dataset.read_labels(dataset.frames[0])


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


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val", "no split 'val': 'val' is unknown. Use CORRUPTION/SEVERITY, of fog, wet_ground"),
        ("fog/hevy", "no split 'fog/hevy': 'hevy' is unknown, did you mean 'heavy'?"),
        ("fog/heavy", "fog/heavy: the folder is missing"),
    ],
)
@pytest.mark.parametrize("name", ["nuscenes_c", "semantic_kitti_c"])
def test_splits_of_corruptions(name, split, message, tmp_path):
    with pytest.raises(DatasetError) as caught:
        open_dataset(name, tmp_path, split)
    assert message in str(caught.value)


def test_a_corruption_without_scans_is_said(tmp_path):
    (tmp_path / "fog/light/velodyne").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"fog/light/velodyne: no scans here\. Unpack SemanticKITTI-C again"):
        open_dataset("semantic_kitti_c", tmp_path, "fog/light")
