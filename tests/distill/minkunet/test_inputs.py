"""From points to voxels and their features."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scalr.distill.augmentation import AugmentConfig
from scalr.distill.backbones.minkunet.inputs import MinkUNetInputs
from scalr.distill.backbones.minkunet.voxels import voxel_coordinates
from scalr.distill.dataset import DistillDataset, SamplingConfig
from scalr.errors import StudentError
from scalr.extract.intensity import IntensityStatistics

STATISTICS = IntensityStatistics(mean=20.0, std=10.0)
metres = st.floats(-50, 50, width=32)
clouds = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(4)), elements=metres)


@given(clouds, st.sampled_from(["cylindrical", "cartesian"]))
def test_each_point_reads_its_voxel_which_its_first_point_stands_for(points, voxels):
    inputs = MinkUNetInputs(voxels=voxels, voxel_size_m=0.5)
    prepared = inputs.prepare(points, STATISTICS)
    coordinates = [tuple(voxel) for voxel in voxel_coordinates(points[:, :3], voxels, 0.5).tolist()]
    first = {voxel: row for row, voxel in reversed(list(enumerate(coordinates)))}
    assert prepared.kept.tolist() == sorted(first.values())
    assert [prepared.kept[row] for row in prepared.row] == [first[voxel] for voxel in coordinates]
    assert prepared.input.features.tolist() == points[prepared.kept, 3:].tolist()


def test_cylindrical_voxels_are_radius_degrees_and_height_rounded_down():
    xyz = np.array([[3.04, 4.03, 0.31], [-1, 1e-3, -0.01], [0, -2, -0.1], [0, 0, 0]], np.float32)
    assert voxel_coordinates(xyz, "cylindrical", 0.1).tolist() == [[50, 52, 3], [10, 179, -1], [20, -90, -1], [0, 0, 0]]
    assert voxel_coordinates(xyz, "cylindrical", 0.2).tolist() == [[25, 52, 1], [5, 179, -1], [10, -90, -1], [0, 0, 0]]
    assert voxel_coordinates(xyz, "cartesian", 0.1).tolist() == [[30, 40, 3], [-10, 0, -1], [0, -20, -1], [0, 0, 0]]


def test_features_are_raw_intensity_or_those_of_scalr():
    points = np.array([[3, 4, 12, 40]], np.float32)
    raw = MinkUNetInputs()
    assert raw.prepare(points, STATISTICS).input.features.tolist() == [[40]]
    scalr = MinkUNetInputs(features="scalr")
    assert scalr.prepare(points, STATISTICS).input.features.tolist() == [[2, 3, 4, 12, 13]]
    moved = np.array([[0, -3, 4]], np.float32)
    assert scalr.prepare(points, STATISTICS, moved).input.features.tolist() == [[2, 0, -3, 4, 5]]
    assert (raw.channels, scalr.channels) == (1, 5)


def test_remission_of_semantic_kitti_is_raised_once():
    inputs = MinkUNetInputs()
    raised = inputs.for_dataset("semantic_kitti")
    assert raised.prepare(np.array([[3, 4, 12, 0.5]], np.float32), STATISTICS).input.features.tolist() == [[1.5]]
    assert raised.for_dataset("semantic_kitti") == raised
    assert inputs.for_dataset("nuscenes") == inputs
    assert MinkUNetInputs(features="scalr").for_dataset("semantic_kitti").intensity_offset == 0


def test_a_student_learns_from_remission_as_it_is_evaluated_on_it(extract_tiny, monkeypatch):
    store = extract_tiny()
    samples = DistillDataset(store, ("coordinates",), MinkUNetInputs(), SamplingConfig(), AugmentConfig(), seed=0)
    before, read_view = samples[0, 0].scan.input.features, store.read_view
    monkeypatch.setattr(store, "read_view", lambda row: replace(read_view(row), dataset="semantic_kitti"))
    np.testing.assert_allclose(samples[0, 0].scan.input.features, before + 1)


def test_a_batch_holds_scans_one_after_the_other_and_travels_between_processes():
    inputs = MinkUNetInputs()
    rng = np.random.default_rng(0)
    scans = [rng.uniform(-3, 3, size=(count, 4)).astype(np.float32) for count in (30, 1, 50)]
    prepared = [pickle.loads(pickle.dumps(inputs.prepare(scan, STATISTICS))) for scan in scans]
    batch = inputs.pack([each.input for each in prepared])
    counts = [len(each.kept) for each in prepared]
    assert batch.scan_offsets.tolist() == np.cumsum([0, *counts]).tolist()
    assert (batch.num_points, batch.num_scans) == (sum(counts), 3)
    for number, alone in enumerate(prepared):
        rows = slice(batch.scan_offsets[number], batch.scan_offsets[number + 1])
        assert torch.equal(batch.features[rows], torch.from_numpy(alone.input.features))
    assert [pairs.num_targets for pairs in batch.neighbours] == [
        sum(each.input.maps.sizes[level] for each in prepared) for level in range(5)
    ]
    assert batch.voxels[:, 0].tolist() == np.repeat([0, 1, 2], counts).tolist()
    found = batch.voxels[:, 1:].split(counts)
    for scan, each, voxels in zip(scans, prepared, found, strict=True):
        move = voxels.numpy() - voxel_coordinates(scan[each.kept, :3], "cylindrical", 0.1)
        assert not np.any(move % 16)  # else coarser voxels would be others
        assert len(np.unique(move, axis=0)) == 1
        assert voxels.min() >= 0
    high, bound = batch.voxels[:, 1:].amax(dim=0).numpy(), np.array(batch.extent)
    assert ((high < bound) & (bound <= high + 16) & (bound % 16 == 0)).all()
    moved = batch.to("cpu")
    assert torch.equal(moved.neighbours[0].source, batch.neighbours[0].source)
    assert moved.children[-1].counts == batch.children[-1].counts


@pytest.mark.parametrize("far", [105_000.0, -3e38])
def test_points_beyond_any_sensor_are_refused(far):
    points = np.array([[1, 1, 1, 0], [1, 1, far, 0]], np.float32)
    with pytest.raises(StudentError, match=r"1 of 2 points lie more than 1,048,544 voxels of 0\.1 m from the sensor"):
        MinkUNetInputs().prepare(points, STATISTICS)
