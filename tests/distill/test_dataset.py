from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from scalr.distill import dataset
from scalr.distill.augmentation import AugmentConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.dataset import DistillCollate, DistillDataset, SamplingConfig
from scalr.distill.sampling import EpochBatches, EpochLoader
from scalr.errors import StoreError, StudentError
from scalr.extract import run

CPU = torch.device("cpu")
INPUTS = WaffleIronInputs()
SAMPLING = SamplingConfig()
STILL = AugmentConfig(max_rotation_rad=0, flip_probability=0, max_scale_change=0)


def tiny(store, inputs=INPUTS, augmentation=STILL, seed=0, sampling=SAMPLING, teachers=("coordinates",)):
    return DistillDataset(store, teachers, inputs, sampling, augmentation, seed)


def test_each_point_keeps_its_own_target(extract_tiny):
    """Unaugmented, a sample's points are found again in the stored view, with the same target."""
    store = extract_tiny()
    dataset = tiny(store)
    for key in [(epoch, frame) for epoch in range(3) for frame in range(3)]:
        sample = dataset[key]
        found = [view for row in dataset.frames[key[1]] if (view := matching_view(store, row, sample)) is not None]
        assert len(found) == 1


def matching_view(store, row, sample):
    """The view if all points of the sample carry their target of that view."""
    view = store.read_view(row, "coordinates")
    targets = {
        tuple(xyz): tuple(target)
        for xyz, target in zip(view.points[view.point_index, :3].tolist(), view.targets.tolist(), strict=True)
    }
    points = map(tuple, sample.scan.input.features[:, 1:4].tolist())
    pairs = zip(points, map(tuple, sample.targets[0].decode().tolist()), strict=True)
    return view if all(targets.get(point) == target for point, target in pairs) else None


def test_a_sample_depends_on_seed_epoch_and_frame_alone(extract_tiny):
    store = extract_tiny()
    first, again = tiny(store, augmentation=AugmentConfig()), tiny(store, augmentation=AugmentConfig())
    again[(0, 2)]
    np.testing.assert_array_equal(first[(1, 0)].scan.input.features, again[(1, 0)].scan.input.features)
    assert not np.array_equal(first[(2, 0)].scan.input.features[:5], first[(1, 0)].scan.input.features[:5])
    other_seed = tiny(store, augmentation=AugmentConfig(), seed=1)
    assert not np.array_equal(other_seed[(1, 0)].scan.input.features[:5], first[(1, 0)].scan.input.features[:5])


def test_one_camera_a_frame_each_as_likely(extract_tiny):
    store = extract_tiny()
    dataset = tiny(store)
    rows = Counter(
        row
        for epoch in range(30)
        for row in dataset.frames[0]
        if matching_view(store, row, dataset[(epoch, 0)]) is not None
    )
    assert set(rows) == {0, 1}
    assert min(rows.values()) > 5


def test_all_cameras_of_a_frame_in_one_sample(extract_tiny):
    """A point that both cameras see is there once, with a target of each."""
    store = extract_tiny("coordinates", "doubled")
    sampling = SamplingConfig(views_per_sample="all", voxel_point="first")
    dataset = tiny(store, sampling=sampling, teachers=("coordinates", "doubled"))
    sample = dataset[0, 1]
    rows = sample.id.rows
    assert sorted(rows) == dataset.frames[1].tolist()
    views = [store.read_view(row, "coordinates") for row in rows]
    xyz = sample.scan.input.features[:, 1:4]
    assert len({tuple(point) for point in xyz.tolist()}) == len(xyz)
    expected = Counter(
        (tuple(view.points[point, :3].tolist()), tuple(target))
        for view in views
        for point, target in zip(view.point_index, view.targets.tolist(), strict=True)
    )
    targets = sample.targets[0].decode()
    found = Counter(zip(map(tuple, xyz[sample.point].tolist()), map(tuple, targets.tolist()), strict=True))
    assert found <= expected
    assert sum(found.values()) > 0.95 * sum(expected.values())  # but for points that share a voxel
    assert max(Counter(sample.point.tolist()).values()) == 2
    assert len(sample.targets[1]) == len(sample.point)
    batch = DistillCollate(INPUTS)([sample, dataset[0, 2]])
    assert batch.num_pairs == len(batch.point) > batch.num_points
    assert torch.equal(batch.inputs.features[batch.point[: len(targets)], 1:4], torch.from_numpy(xyz[sample.point]))
    assert (batch.sample == 1).sum() == len(dataset[0, 2].point)
    # A frame that one camera sees may be among them, as where nuScenes is mixed with SemanticKITTI.
    alone = tiny(store, teachers=("coordinates", "doubled"))[0, 0]
    mixed = DistillCollate(INPUTS)([alone, sample])
    expected = np.concatenate([alone.scan.input.features, sample.scan.input.features[sample.point]])
    assert torch.equal(mixed.inputs.features[mixed.point], torch.from_numpy(expected))


def test_two_cameras_of_two_are_all(extract_tiny):
    store = extract_tiny()
    two, all_views = (tiny(store, sampling=SamplingConfig(views_per_sample=views)) for views in (2, "all"))
    for visit in range(8):
        assert sorted(two[visit, 0].id.rows) == [0, 1]
        assert np.array_equal(two[visit, 0].scan.input.features, all_views[visit, 0].scan.input.features)


def test_a_voxel_may_always_have_the_same_point(extract_tiny):
    store, coarse = extract_tiny(), WaffleIronInputs(voxel_size_m=8.0)
    dataset = tiny(store, inputs=coarse, sampling=SamplingConfig(voxel_point="first", views_per_sample="all"))
    first, again = (dataset[visit, 0].scan.input.features for visit in (0, 1))
    assert np.array_equal(first, again)
    drawn = tiny(store, inputs=coarse, sampling=SamplingConfig(views_per_sample="all"))
    assert not np.array_equal(drawn[0, 0].scan.input.features[:, 1:4], drawn[1, 0].scan.input.features[:, 1:4])


def test_max_points_keeps_one_neighbourhood(extract_tiny):
    store = extract_tiny()
    sample = tiny(store, inputs=WaffleIronInputs(max_points=10))[(0, 0)]
    assert len(sample.targets[0]) == len(sample.scan.input.features) == 10


def test_points_outside_the_field_of_view_are_left_out(extract_tiny):
    store = extract_tiny()
    inputs = WaffleIronInputs(fov_min_m=(-12, -12, -3), fov_max_m=(12, 12, 3))
    sample = tiny(store, inputs=inputs)[(0, 1)]
    assert (np.abs(sample.scan.input.features[:, 1:4]) < [12, 12, 3]).all()
    nothing = WaffleIronInputs(fov_min_m=(-0.5, -0.5, -3), fov_max_m=(0.5, 0.5, 3))
    with pytest.raises(StoreError, match="no point inside the field of view"):
        tiny(store, inputs=nothing)[(0, 1)]


def test_a_frame_is_drawn_again_where_nothing_is_left_of_it(extract_tiny):
    """Turned about, what the cameras see in front of them is outside this field of view once in three times or so."""
    inputs = WaffleIronInputs(fov_min_m=(3, -64, -8))
    turning = AugmentConfig(flip_probability=0, max_scale_change=0)
    dataset = tiny(extract_tiny(), inputs=inputs, augmentation=turning)
    samples = [dataset[visit, frame] for visit in range(8) for frame in range(3)]
    assert all((sample.scan.input.features[:, 1] > 3).all() and len(sample.scan.input.features) for sample in samples)


def test_a_cuboid_is_left_out_of_a_sample_with_its_pairs(extract_tiny, monkeypatch):
    store, both = extract_tiny(), SamplingConfig(views_per_sample="all")
    monkeypatch.setattr(dataset, "MIN_PAIRS", 1)
    whole, cut = (tiny(store, augmentation=replace(STILL, drop_cuboid=share), sampling=both) for share in (0.0, 1.0))
    sizes = [(len(whole[v, 0].scan.input.features), len(cut[v, 0].scan.input.features)) for v in range(8)]
    assert all(0 < less <= more for more, less in sizes)
    assert any(less < more for more, less in sizes)
    for visit in range(8):
        sample = cut[visit, 0]
        assert set(sample.point.tolist()) == set(
            range(len(sample.scan.input.features))
        )  # no point is left without a pair


def test_a_cuboid_that_leaves_a_view_too_little_is_kept(extract_tiny, monkeypatch):
    """1,024 pairs of each view, in SLidR's code; here as many as the view of fewest pairs has without a cuboid."""
    store, both = extract_tiny(), SamplingConfig(views_per_sample="all")
    augmentation = replace(STILL, drop_cuboid=1.0)
    assert len(tiny(store, augmentation=augmentation, sampling=both)[0, 0].targets[0]) < 2 * dataset.MIN_PAIRS
    whole, kept = tiny(store, sampling=both), tiny(store, augmentation=augmentation, sampling=both)
    for visit in range(4):
        np.testing.assert_array_equal(kept[visit, 0].scan.input.features, whole[visit, 0].scan.input.features)


def test_a_source_is_its_frames_alone(extract_tiny, tiny_dataset):
    """One split of one dataset: neither the dataset's other split, nor the same split of another dataset."""
    extract_tiny()
    tiny_dataset.split, tiny_dataset.frames = "val", tiny_dataset.frames[:1]
    extract_tiny()
    tiny_dataset.name, tiny_dataset.split = "other", "train"
    store = extract_tiny()
    first, val, other = store.sources

    def frames(*sources) -> list[list[int]]:
        dataset = DistillDataset(store, ("coordinates",), INPUTS, SAMPLING, STILL, 0, sources)
        return [rows.tolist() for rows in dataset.frames]

    assert frames(first) == [[0, 1], [2, 3], [4, 5]]
    assert frames(val) == [[6, 7]]
    assert frames(other) == [[8, 9]]
    assert frames(first, other) == [[0, 1], [2, 3], [4, 5], [8, 9]]
    assert len(tiny(store)) == 5
    with pytest.raises(StoreError, match="no view of the store has targets of coordinates"):
        frames()


def test_a_batch_is_its_samples_one_after_the_other(extract_tiny):
    dataset = tiny(extract_tiny())
    samples = [dataset[(0, frame)] for frame in range(3)]
    batch = DistillCollate(INPUTS)(samples)
    expected = torch.cat([sample.targets[0].decode() for sample in samples])
    assert torch.equal(batch.targets[0].decode(), expected)
    assert batch.inputs.num_points == batch.num_points == len(batch.targets[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_gives_the_same_batches_in_any_process(extract_tiny, workers):
    dataset = tiny(extract_tiny(), augmentation=AugmentConfig())
    expected = EpochBatches([3], 2, 0)
    with EpochLoader([dataset], DistillCollate(INPUTS), batch_size=2, seed=0, workers=workers, device=CPU) as loader:
        for epoch in range(2):
            expected.epoch = epoch
            keys = next(iter(expected))
            (batch,) = loader(epoch)
            reference = DistillCollate(INPUTS)([dataset[key.visit, key.frame] for key in keys])
            assert torch.equal(batch.targets[0].decode(), reference.targets[0].decode())
            assert torch.equal(batch.inputs.features, reference.inputs.features)


def test_a_store_without_pairs_is_said(extract_tiny, tiny_dataset, monkeypatch):
    monkeypatch.setattr(run, "findings", lambda *_: [])  # which would refuse it
    for frame in tiny_dataset.frames:
        tiny_dataset.read_points(frame)[:, 0] = -5
    with pytest.raises(StoreError, match="no view of the store has targets of coordinates"):
        tiny(extract_tiny())


def test_the_defaults_are_those_of_scalr():
    """One random camera, a random point a voxel; stores by their numbers of frames."""
    expected = {"views_per_sample": 1, "points": "seen", "voxel_point": "random", "store_weights": None}
    assert asdict(SamplingConfig()) == expected


def test_a_sampling_comes_back_equal_from_yaml():
    """Which has lists for tuples."""
    sampling = SamplingConfig(store_weights=[1, 2.5])
    assert sampling == SamplingConfig(store_weights=(1, 2.5))
    assert hash(sampling) == hash(SamplingConfig(store_weights=(1, 2.5)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"views_per_sample": 0},
            "sampling.views_per_sample: 0 cannot be used. Give a whole number, at least 1 .* or all$",
        ),
        ({"views_per_sample": 1.5}, "views_per_sample: 1.5"),
        ({"views_per_sample": "both"}, "views_per_sample: 'both'"),
        ({"voxel_point": "last"}, "sampling.voxel_point: 'last' cannot be used. Give one of random, first"),
    ],
)
def test_values_that_make_no_sense_are_said(values, message):
    with pytest.raises(StudentError, match=message):
        SamplingConfig(**values)


def test_a_frame_is_drawn_ten_times_at_most(extract_tiny, monkeypatch):
    dataset = tiny(extract_tiny())
    tries = []
    monkeypatch.setattr(dataset, "_sample", lambda rows, rng: tries.append(rows) or dataset._out_of_view(rows))
    with pytest.raises(
        StoreError, match=r"views \[\d\] keep no point inside the field of view. Enlarge the field of view"
    ):
        dataset[0, 0]
    assert len(tries) == 10
    assert {tuple(rows) for rows in tries} == {(0,), (1,)}  # another camera may see more


def test_samples_know_their_store_and_views(extract_tiny):
    dataset = DistillDataset(extract_tiny(), ("coordinates",), INPUTS, SAMPLING, STILL, 0, number=3)
    sample = dataset[0, 1]
    assert sample.id.store == 3
    assert set(sample.id.rows) < {2, 3}
    assert DistillCollate(INPUTS)([sample]).samples == (sample.id,)
    assert tiny(dataset.store)[0, 1].id.store == 0


def test_a_batch_moves_with_all_its_parts(extract_tiny):
    """To another device; and to page-locked memory, where there is a GPU to copy to."""
    sampling = SamplingConfig(views_per_sample="all")
    batch = DistillCollate(INPUTS)([tiny(extract_tiny(), sampling=sampling)[0, 0]])
    moved = batch.to(torch.device("meta"))
    tensors = (moved.inputs.features, moved.point, moved.sample, moved.targets[0].vectors)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.samples, moved.num_pairs) == (batch.samples, batch.num_pairs)


def test_views_without_targets_of_every_teacher_are_left_out(extract_tiny, tiny_dataset):
    extract_tiny("coordinates")
    tiny_dataset.split, tiny_dataset.frames = "val", tiny_dataset.frames[:1]
    store = extract_tiny("coordinates", "doubled")
    assert [rows.tolist() for rows in tiny(store).frames] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [rows.tolist() for rows in tiny(store, teachers=("coordinates", "doubled")).frames] == [[6, 7]]
