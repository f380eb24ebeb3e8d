"""Labelled scans as the official code trains and scores on them."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from scalr.distill.augmentation import Motion
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.inputs import evaluation_input
from scalr.distill.sampling import EpochLoader
from scalr.errors import DatasetError, StudentError
from scalr.evaluate import labelled_scans
from scalr.evaluate.labelled_scans import AugmentedScans, EvaluationScans, LabelledCollate
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL

SMALL = WaffleIronInputs(fov_min_m=(-20, -20, -3), fov_max_m=(20, 20, 3))


def test_scans_come_in_the_order_that_is_asked_for(simulated):
    dataset = open_dataset("nuscenes", simulated("nuscenes"), "val")
    scans = EvaluationScans(dataset, WaffleIronInputs()).read([1, 0])
    for scan, number in zip(scans, (1, 0), strict=True):
        assert scan.frame == number
        np.testing.assert_array_equal(scan.labels, dataset.read_labels(dataset.frames[number]))


def test_a_broken_frame_is_named_from_a_worker(simulated, tmp_path):
    dataset = copy.copy(open_dataset("nuscenes", simulated("nuscenes"), "val"))
    dataset.root = tmp_path  # nothing is there
    with pytest.raises(DatasetError, match=r"pcd\.bin"):
        list(EvaluationScans(dataset, WaffleIronInputs()).read([0], workers=1))


def test_a_scan_of_many_points_is_cut_around_one_of_them(simulated):
    dataset = open_dataset("nuscenes", simulated("nuscenes"), "train")
    inputs = replace(WaffleIronInputs(), max_points=500)
    scans = [AugmentedScans(dataset, inputs, seed)[0, 0] for seed in range(3)]
    assert all(len(labels) <= 500 for _, labels in scans)
    centres = np.stack([scan.input.features[:, 1:4].mean(axis=0) for scan, _ in scans])
    assert np.ptp(centres, axis=0).max() > 1  # each around another point


def test_a_training_scan_is_a_random_point_of_each_voxel_with_its_label(simulated, monkeypatch):
    """Another for each visit, frame and seed; of points near the lidar, so that none is cut off."""
    dataset, config = open_dataset("nuscenes", simulated("nuscenes"), "train"), WaffleIronInputs()
    augmentations = []

    def unaugmented(rng, augmentation, schedule):
        augmentations.append(augmentation)
        return Motion(), Motion()

    monkeypatch.setattr(labelled_scans, "draw_motions", unaugmented)
    raw, raw_labels = dataset.read_points(dataset.frames[0]), dataset.read_labels(dataset.frames[0])
    label_at = dict(zip(map(bytes, raw[:, :3].copy()), raw_labels, strict=True))
    draws = {}
    for seed, visit in ((0, 0), (0, 1), (1, 0)):
        scan, labels = AugmentedScans(dataset, config, seed)[visit, 0]
        xyz = np.ascontiguousarray(scan.input.features[:, 1:4])
        assert labels.tolist() == [label_at[bytes(point)] for point in xyz]
        assert (np.abs(xyz) < config.fov_max_m).all()
        draws[seed, visit] = {bytes(point) for point in xyz}
    assert draws[0, 0] != draws[0, 1] != draws[1, 0] != draws[0, 0]
    np.testing.assert_array_equal(
        AugmentedScans(dataset, config, 1)[0, 0][0].input.features,
        AugmentedScans(dataset, config, 1)[0, 0][0].input.features,
    )
    assert set(augmentations) == {"official"}


def test_a_split_has_a_scan_for_each_frame(tiny_dataset):
    assert len(EvaluationScans(tiny_dataset, SMALL)) == len(AugmentedScans(tiny_dataset, SMALL, 0)) == 3


def test_a_scan_is_scored_at_all_of_its_points(tiny_dataset):
    """Those outside the field of view too; each by the nearest that goes through the network."""
    scan = EvaluationScans(tiny_dataset, SMALL)[1]
    points = tiny_dataset.read_points(tiny_dataset.frames[1])
    expected, kept, nearest = evaluation_input(points, tiny_dataset.intensity, SMALL)
    np.testing.assert_array_equal(scan.scan.input.features, expected.features)
    np.testing.assert_array_equal(scan.scan.kept, kept)
    np.testing.assert_array_equal(scan.scan.row, nearest)
    np.testing.assert_array_equal(scan.labels, tiny_dataset.read_labels(tiny_dataset.frames[1]))
    assert scan.frame == 1
    assert len(scan.scan.kept) < 400 == len(scan.scan.row)


def test_labels_are_read_unless_they_are_not_wanted(tiny_dataset):
    tiny_dataset.read_labels = None
    assert EvaluationScans(tiny_dataset, SMALL, labelled=False)[0].labels is None
    far = EvaluationScans(tiny_dataset, SMALL, labelled=False, max_range_m=15)[0]
    assert far.labels is None
    assert len(far.scan.row) < 400


def test_points_at_the_range_and_beyond_are_removed_before_anything_else(tiny_dataset):
    """With their labels, as in SALUDA."""
    points, labels = tiny_dataset.read_points(tiny_dataset.frames[0]), np.arange(400) % 250
    tiny_dataset.read_labels = lambda frame: labels.astype(np.uint8)
    points[:3, :3] = [[3, 4, 0], [2.999, 4, 0], [6, 8, 0]]
    near = np.linalg.norm(points[:, :3], axis=1) < 5
    assert near[:3].tolist() == [False, True, False]
    scan = EvaluationScans(tiny_dataset, SMALL, max_range_m=5.0)[0]
    np.testing.assert_array_equal(scan.labels, labels[near])
    np.testing.assert_array_equal(scan.scan.input.features[:, 1:4], points[near][scan.scan.kept, :3])
    assert len(EvaluationScans(tiny_dataset, SMALL, max_range_m=10.1)[0].scan.row) > len(scan.scan.row)


def test_training_scans_are_cut_to_the_field_of_view(tiny_dataset):
    """Once they are turned, flipped and, in joint augmentation, scaled."""
    whole, cut = (AugmentedScans(tiny_dataset, inputs, 3, "joint")[2, 1] for inputs in (WaffleIronInputs(), SMALL))
    inside = (np.abs(whole[0].input.features[:, 1:4]) < np.array([20, 20, 3]) - 1e-4).all(axis=1)
    np.testing.assert_array_equal(cut[0].input.features, whole[0].input.features[inside])
    np.testing.assert_array_equal(cut[1], whole[1][inside])
    assert 0 < inside.sum() < len(inside)


def test_every_visit_of_every_frame_draws_anew(tiny_dataset):
    scans = AugmentedScans(tiny_dataset, SMALL, 0)
    tiny_dataset.frames[1] = tiny_dataset.frames[0]  # the same points, but another frame
    drawn = [scans[key][0].input.features.tobytes() for key in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert len(set(drawn)) == 3
    assert drawn[0] == drawn[3]


def test_a_batch_is_its_scans_one_after_the_other(tiny_dataset):
    scans = AugmentedScans(tiny_dataset, SMALL, 0)
    samples = [scans[0, frame] for frame in (2, 0)]
    batch = LabelledCollate(SMALL)(samples)
    assert torch.equal(batch.inputs.features, torch.cat([torch.from_numpy(scan.input.features) for scan, _ in samples]))
    assert batch.labels.tolist() == [*samples[0][1].tolist(), *samples[1][1].tolist()]
    assert (batch.labels.dtype, batch.num_points) == (torch.int64, len(batch.labels))
    moved = batch.to(torch.device("meta"))
    assert {moved.labels.device.type, moved.inputs.features.device.type} == {"meta"}


def test_labels_that_are_not_counted_stay_what_they_are(tiny_dataset):
    tiny_dataset.read_labels = lambda frame: np.full(400, IGNORE_LABEL, np.uint8)
    _, labels = AugmentedScans(tiny_dataset, SMALL, 0)[0, 0]
    assert set(labels.tolist()) == {IGNORE_LABEL}
    assert set(EvaluationScans(tiny_dataset, SMALL)[0].labels.tolist()) == {IGNORE_LABEL}


def test_a_scan_of_which_nothing_is_left_is_named(tiny_dataset):
    """By the loader that trains and by the one that scores."""
    nothing = WaffleIronInputs(fov_min_m=(-0.5, -0.5, -3), fov_max_m=(0.5, 0.5, 3))
    scans = AugmentedScans(tiny_dataset, nothing, 0)
    with (
        EpochLoader(
            [scans], LabelledCollate(nothing), batch_size=1, seed=0, workers=0, device=torch.device("cpu")
        ) as loader,
        pytest.raises(StudentError, match=r"^nuscenes split train frame frame\d: scan: no point of the scan is inside"),
    ):
        list(loader(0))
    with pytest.raises(StudentError, match=r"^nuscenes split train frame frame1: scan: no point of the scan is inside"):
        list(EvaluationScans(tiny_dataset, nothing).read([1]))
