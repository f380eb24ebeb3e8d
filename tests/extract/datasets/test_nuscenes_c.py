from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.nuscenes import LABELS as CLEAN
from scalr.extract.datasets.nuscenes_c import LABELS
from scalr.extract.datasets.scans import read_labelled_scan


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
    with pytest.raises(DatasetError, match=r"Set \$NUSCENES to the folder of nuScenes, or link its v1.0-trainval into"):
        open_dataset("nuscenes_c", nuscenes_c, "snow/heavy")


def test_clean_nuscenes_has_no_points_of_snow(simulated, tmp_path):
    root = Path(shutil.copytree(simulated("nuscenes"), tmp_path / "clean"))
    dataset = open_dataset("nuscenes", root, "val")
    path = root / dataset.frames[0].labels
    path.write_bytes(path.read_bytes()[:-1] + bytes([42]))
    with pytest.raises(DatasetError, match="label ids that the dataset does not define: 42"):
        dataset.read_labels(dataset.frames[0])


def test_points_of_fog_snow_and_crosstalk_are_ignored_and_all_others_as_they_were():
    """Robo3D writes 41, 42 and 43 for them."""
    raw = np.arange(32)
    np.testing.assert_array_equal(LABELS.train_ids(raw, "lidarseg"), CLEAN.train_ids(raw, "lidarseg"))
    assert (LABELS.train_ids(np.array([41, 42, 43]), "lidarseg") == IGNORE_LABEL).all()
    with pytest.raises(DatasetError, match="does not define: 32, 40, 44"):
        LABELS.train_ids(np.array([32, 40, 44]), "lidarseg")


def test_nuscenes_c_takes_tables_that_lie_beside_it(nuscenes_c, simulated, monkeypatch):
    """Rather than those of $NUSCENES."""
    monkeypatch.setenv("NUSCENES", "/nowhere")
    (nuscenes_c / "v1.0-trainval").symlink_to(simulated("nuscenes") / "v1.0-trainval")
    dataset = open_dataset("nuscenes_c", nuscenes_c, "snow/heavy")
    assert [(frame.views, frame.dataset) for frame in dataset.frames] == [((), "nuscenes_c")] * 2
