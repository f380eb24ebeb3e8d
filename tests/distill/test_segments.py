"""Superpixels from store to batch: which segments a sample has, and which pairs are of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scalr.distill.augmentation import AugmentConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.dataset import DistillCollate, DistillDataset, SamplingConfig
from scalr.distill.segments import PAIRS, TargetParts
from scalr.distill.varying_targets import VaryingTargets
from scalr.errors import StoreError
from scalr.extract.encoding import Encoding
from scalr.extract.store import Segments
from tiny import TinyDataset, extract_with, tiny_teachers

INPUTS = WaffleIronInputs(num_neighbours=4)
MEANS = TargetParts(pairs=False, segments=True, means=True, directions=False)
ALL = TargetParts(pairs=True, segments=True, means=True, directions=True)
ROWS_ONLY = TargetParts(pairs=True, segments=True, means=False, directions=False)
LOST, WITHOUT_PATCH = 2, 5  # of each view: a segment without pixels at the teacher's image size, one without a patch


class WithSuperpixels:
    """A store whose images have six segments each, and means and directions that name view and segment."""

    def __init__(self, store) -> None:
        self.store = store

    def __getattr__(self, name: str):
        return getattr(self.store, name)

    def require_superpixels(self, source):
        pass

    def read_view(self, row: int, teacher: str | None = None):
        view = self.store.read_view(row, teacher)
        return replace(view, superpixel=segment_of(view.pixel))

    def read_segments(self, row: int, teacher: str):
        ids = np.unique(segment_of(self.store.read_view(row).pixel))
        named = np.stack([np.full(len(ids), row + 1), ids, np.ones(len(ids))], axis=1).astype(np.float32)
        mean, direction = named.copy(), -named
        mean[ids == LOST] = direction[ids == WITHOUT_PATCH] = 0
        return Segments(ids, np.ones(len(ids)), mean, direction)


def segment_of(pixel: np.ndarray) -> np.ndarray:
    """Of images of 48 x 64: two rows of three."""
    return (pixel[:, 0] // 24 * 3 + pixel[:, 1] // 22).astype(np.uint16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Three frames without superpixels."""
    folder = tmp_path_factory.mktemp("segments")
    return extract_with(TinyDataset(folder), tiny_teachers(), folder / "s.zarr", teachers=("coordinates",))


@pytest.fixture
def store(plain):
    return WithSuperpixels(plain)


def samples_of(store, parts, **sampling):
    return DistillDataset(
        store, ("coordinates",), INPUTS, SamplingConfig(**sampling), AugmentConfig(), seed=0, parts=parts
    )


@pytest.mark.parametrize("views", [1, "all"])
def test_each_pair_has_the_segment_of_its_own_view(store, views):
    """Pairs are found again by the targets of the coordinate teacher, and segments by their means."""
    dataset = samples_of(store, ALL._replace(directions=False), views_per_sample=views)
    for frame in range(3):
        sample = dataset[0, frame]
        segments_of = {}  # target -> what the means of the segments say that a pair of this target may be of
        for row in sample.id.rows:
            view = store.store.read_view(row, "coordinates")
            for target, segment in zip(view.targets.tolist(), segment_of(view.pixel).tolist(), strict=True):
                segments_of.setdefault(tuple(target), set()).add((row + 1, segment, 1))
        means = sample.segments.mean[sample.segments.row].tolist()
        for target, mean in zip(sample.targets[0].decode().tolist(), means, strict=True):
            assert tuple(mean) in segments_of[tuple(target)]
        assert sample.num_pairs == len(sample.segments.row) == len(sample.targets[0])


@pytest.mark.parametrize(
    ("parts", "left_out"),
    [
        (ROWS_ONLY, set()),
        (MEANS, {LOST}),
        (ALL, {LOST, WITHOUT_PATCH}),
        (ALL._replace(means=False), {WITHOUT_PATCH}),
    ],
)
def test_segments_that_the_store_does_not_know_are_left_out_with_their_pairs(store, parts, left_out):
    whole = samples_of(store, ROWS_ONLY, views_per_sample="all")[0, 0]
    sample = samples_of(store, parts, views_per_sample="all")[0, 0]
    assert {LOST, WITHOUT_PATCH} <= {
        int(s) for row in whole.id.rows for s in segment_of(store.store.read_view(row).pixel)
    }
    assert len(whole.segments) - len(sample.segments) == len(left_out) * len(whole.id.rows)
    assert (sample.num_pairs < whole.num_pairs) == bool(left_out)
    assert set(sample.segments.row.tolist()) == set(range(len(sample.segments)))  # each holds a pair
    for values, zero in ((sample.segments.mean, LOST), (sample.segments.direction, WITHOUT_PATCH)):
        assert values is None or values.any(dim=1).all()
        assert values is None or zero not in values[:, 1].abs().tolist()
    if sample.targets:
        assert len(sample.targets[0]) == sample.num_pairs
    np.testing.assert_array_equal(sample.scan.input.features, whole.scan.input.features)  # points stay


def test_points_without_a_pair_stay_where_all_are_asked_for(store):
    """Each pair has the target of its own point, which its intensity names."""
    seen, every = (samples_of(store, ROWS_ONLY, points=points)[0, 0] for points in ("seen", "all"))
    assert seen.point is None
    assert len(every.scan.input.features) > len(seen.scan.input.features)
    assert len(set(every.point.tolist())) == every.num_pairs < len(every.scan.input.features)
    view = store.store.read_view(every.id.rows[0], "coordinates")
    normalised = (view.points[view.point_index, 3] - view.intensity.mean) / view.intensity.std
    distance = np.abs(every.scan.input.features[every.point, 0][:, None] - normalised)
    assert distance.min(axis=1).max() < 1e-5
    np.testing.assert_array_equal(every.targets[0].decode(), view.targets[distance.argmin(axis=1)])
    packed = DistillCollate(INPUTS)([seen, every])
    assert packed.point.tolist() == [*range(seen.num_pairs), *(every.point + len(seen.scan.input.features)).tolist()]


def test_a_batch_has_the_segments_of_its_samples_one_after_the_other(store):
    dataset = samples_of(store, ALL, views_per_sample="all")
    samples = [dataset[0, frame] for frame in range(3)]
    batch = DistillCollate(INPUTS)(samples)
    sizes = [len(each.segments) for each in samples]
    assert batch.segments.sample.tolist() == [number for number, size in enumerate(sizes) for _ in range(size)]
    assert batch.num_pairs == sum(sizes)
    for number, sample in enumerate(samples):
        mine = batch.segments.row[batch.sample == number]
        assert torch.equal(mine, sample.segments.row + sum(sizes[:number]))
        assert torch.equal(batch.segments.mean[mine], sample.segments.mean[sample.segments.row])
        assert torch.equal(batch.segments.direction[mine], sample.segments.direction[sample.segments.row])
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.segments.row, batch.segments.row)


def test_means_that_are_all_the_same_are_noticed(store, monkeypatch):
    """Where a loss reads no targets of pairs."""
    read = WithSuperpixels.read_segments

    def all_the_same(self, row, teacher):
        segments = read(self, row, teacher)
        segments.mean[:] = 1
        return segments

    def first_batch():
        dataset = samples_of(store, MEANS, views_per_sample="all")
        batch = DistillCollate(INPUTS)([dataset[visit, frame] for visit in range(3) for frame in range(3)])
        varying = VaryingTargets(
            lambda epoch, first: [batch], ("coordinates",), lambda sample: dataset.describe(sample.rows)
        )
        return next(iter(varying(0)))

    assert first_batch().targets == ()
    monkeypatch.setattr(WithSuperpixels, "read_segments", all_the_same)
    with pytest.raises(StoreError, match="have the same target of coordinates at all points"):
        first_batch()


def test_means_that_are_all_zero_are_said(store, monkeypatch):
    nothing = Segments(np.arange(6), np.zeros(6), np.zeros((6, 3)), np.zeros((6, 3)))
    monkeypatch.setattr(WithSuperpixels, "read_segments", lambda self, row, teacher: nothing)
    with pytest.raises(
        StoreError, match=r"LEFT \(view 0\), RIGHT \(view 1\): all targets of coordinates are zero"
    ) as caught:
        samples_of(store, MEANS, views_per_sample="all")[0, 0]
    assert caught.value.fix.startswith("Run 'scalr verify ")


def test_superpixels_too_small_for_features_are_said(store, monkeypatch):
    """The points are inside the field of view: their segments have no patch."""
    read = WithSuperpixels.read_segments

    def without_patches(self, row, teacher):
        segments = read(self, row, teacher)
        return replace(segments, direction=np.zeros_like(segments.direction))

    monkeypatch.setattr(WithSuperpixels, "read_segments", without_patches)
    message = r"\(view \d\): views \[\d, \d\] keep no point in a superpixel that is large enough"
    with pytest.raises(StoreError, match=rf"{message} to have features of coordinates\. Extract with larger"):
        samples_of(store, ALL, views_per_sample="all")[0, 0]


@pytest.mark.parametrize(
    ("parts", "fix"),
    [
        (PAIRS, "Use loss slidr or st_slidr with target_head none"),
        (ROWS_ONLY, "Pass --set objective.target_head=none"),  # the loss is one of segments already
    ],
)
def test_a_store_of_segments_alone_is_refused_with_what_helps(store, monkeypatch, parts, fix):
    monkeypatch.setattr(store.store, "encoding", lambda teacher: Encoding("segments", "float16"))
    with pytest.raises(StoreError, match=f"the store holds only segments of coordinates,.*{fix}, or extract"):
        samples_of(store, parts)
    samples_of(store, MEANS)


def test_a_store_without_superpixels_is_refused(plain):
    with pytest.raises(
        StoreError, match=r"s\.zarr: nuscenes train has no superpixels\. Run 'scalr extract --superpixels"
    ):
        samples_of(plain, MEANS)
    samples_of(plain, PAIRS)
