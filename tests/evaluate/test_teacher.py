from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scalr.errors import DatasetError, StoreError
from scalr.evaluate import teacher as module
from scalr.evaluate.teacher import LabelledTargets, TeacherProbeConfig, probe_teacher
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.run import ExtractConfig, extract
from scalr.extract.store import open_store

TEACHER = "dinov2_vits14"


@pytest.fixture(scope="module")
def stores(simulated, tmp_path_factory):
    """Call with what to keep of the scans to get a store with both splits."""
    folder = tmp_path_factory.mktemp("stores")

    def call(points: str):
        path = folder / f"{points}.zarr"
        for split in ("train", "val"):
            extract(
                ExtractConfig(
                    root=simulated("nuscenes"), out=path, split=split, teachers=(TEACHER,), weights=("random",),
                    image_size=(28, 56), batch_size=8, points=points,
                )
            )  # fmt: skip
        return path

    return {points: call(points) for points in ("all", "visible")}


@pytest.mark.parametrize("points", ["all", "visible"])
def test_each_pair_has_the_label_of_its_point(stores, simulated, points):
    """By the coordinates of the points, which are the same in the store and in the dataset."""
    store, dataset = open_store(stores[points]), open_dataset("nuscenes", simulated("nuscenes"), "val")
    targets = LabelledTargets(store, TEACHER, dataset, seed=0)
    assert len(targets) == len(dataset.frames)
    for number, stored in enumerate(targets.frames):
        raw = dataset.read_points(stored.frame)
        label_at = dict(zip(map(bytes, raw), dataset.read_labels(stored.frame).tolist(), strict=True))
        views = [store.read_view(row, TEACHER) for row in stored.rows]
        assert len(views) == 6
        features, labels = targets.read(number)
        assert labels.tolist() == [label_at[bytes(view.points[point])] for view in views for point in view.point_index]
        exact = F.normalize(torch.cat([torch.from_numpy(view.targets) for view in views]), dim=1)
        torch.testing.assert_close(features, exact)


def test_training_draws_other_pairs_each_epoch(stores, simulated, monkeypatch):
    monkeypatch.setattr("scalr.evaluate.teacher.PAIRS_OF_A_VIEW", 20)
    dataset = open_dataset("nuscenes", simulated("nuscenes"), "train")
    targets = LabelledTargets(open_store(stores["all"]), TEACHER, dataset, seed=0)
    first, again, second = targets[0, 0], targets[0, 0], targets[1, 0]
    assert len(first[0]) == len(first[1]) == 120
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], second[0])
    other = LabelledTargets(targets.store, TEACHER, dataset, seed=1)
    assert not torch.equal(first[0], other[0, 0][0])
    assert not torch.equal(first[0], targets[0, 1][0])


def test_pairs_are_drawn_once_each_with_their_labels(stores, simulated, monkeypatch):
    class Last:
        """A generator that draws the last of all, and no value twice."""

        def choice(self, values, count, replace):
            assert not replace
            return values[::-1][:count]

    monkeypatch.setattr("scalr.evaluate.teacher.PAIRS_OF_A_VIEW", 20)
    dataset = open_dataset("nuscenes", simulated("nuscenes"), "train")
    store = open_store(stores["all"])
    targets = LabelledTargets(store, TEACHER, dataset, seed=0)
    pairs = [len(store.read_view(row, TEACHER).point_index) for row in targets.frames[0].rows]
    ends = np.cumsum(pairs)
    kept = np.concatenate([np.arange(end - min(20, count), end) for end, count in zip(ends, pairs, strict=True)])
    features, labels = targets.read(0)
    with monkeypatch.context() as patch:
        patch.setattr("scalr.evaluate.teacher.PAIRS_OF_A_VIEW", max(pairs))
        assert len(targets.read(0, None)[1]) == len(targets.read(0, object())[1])  # no more than asked for: none drawn
    some_features, some_labels = targets.read(0, Last())
    torch.testing.assert_close(some_features, features[kept])
    assert torch.equal(some_labels, labels[kept])


@pytest.mark.slow
def test_the_probe_counts_every_labelled_pair(stores, simulated, tmp_path, monkeypatch):
    config = TeacherProbeConfig(
        cache=stores["visible"],
        val_cache=stores["all"],
        root=simulated("nuscenes"),
        out=tmp_path / "out",
        epochs=12,
        learning_rate=0.05,
        batch_size=1,
    )
    scored = []

    def score_targets(head, targets, device):
        scored.append((targets.store.path, targets.dataset.split, head.training))
        return real(head, targets, device)

    real = module.score_targets
    monkeypatch.setattr(module, "score_targets", score_targets)
    scores = probe_teacher(config)
    assert scored == [(stores["all"], "val", False)]
    dataset = open_dataset("nuscenes", simulated("nuscenes"), "val")
    targets = LabelledTargets(open_store(stores["all"]), TEACHER, dataset, seed=0)
    labels = np.concatenate([targets.read(number)[1].numpy() for number in range(len(targets))])
    counts = np.bincount(labels[labels != IGNORE_LABEL], minlength=16)
    np.testing.assert_array_equal(scores.confusion.sum(axis=1), counts)
    assert scores.accuracy > counts.max() / counts.sum()  # better than the commonest class
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["provenance"]["teachers"][TEACHER]["image_size"] == [28, 56]
    assert result["protocol"]["scored_points"].startswith("every pair")
    schedule = result["protocol"]["schedule"]
    assert (schedule["warmup_epochs"], schedule["min_learning_rate"], schedule["weight_decay"]) == (2, 1e-5, 3e-3)
    assert result["departures"] == [
        "epochs 12, not 20", "batch_size 1, not 8", "learning_rate 0.05, not 0.001"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["centre", "phi_s"])
def test_both_splits_are_standardised_by_the_training_split(stores, simulated, tmp_path, monkeypatch, kind):
    store, read = open_store(stores["all"]), []
    monkeypatch.setattr(module, "fit_head", lambda targets, *_: read.append(targets.read(0)[0]) or a_head(384))
    score = module.score_targets
    monkeypatch.setattr(
        module, "score_targets", lambda head, targets, *_: read.append(targets.read(0)[0]) or score(head, targets, *_)
    )
    config = TeacherProbeConfig(
        cache=stores["all"], root=simulated("nuscenes"), out=tmp_path / "out", standardise=kind, device="cpu"
    )
    probe_teacher(config)
    sources = {source.split: source for source in store.sources}
    statistics = store.statistics(TEACHER, [sources["train"]])
    assert not np.allclose(statistics.mean, store.statistics(TEACHER, [sources["val"]]).mean)
    for split, found in zip(("train", "val"), read, strict=True):
        dataset = open_dataset("nuscenes", simulated("nuscenes"), split)
        rows = LabelledTargets(store, TEACHER, dataset, seed=0).frames[0].rows
        vectors = np.concatenate([store.read_view(row, TEACHER).targets for row in rows])
        centred = F.normalize(torch.from_numpy(vectors - statistics.mean).float(), dim=1)
        if kind == "centre":
            torch.testing.assert_close(found, centred, rtol=0, atol=1e-5)
        else:  # the same but for a rotation
            some = slice(0, 200)
            torch.testing.assert_close(found[some] @ found[some].T, centred[some] @ centred[some].T, rtol=0, atol=1e-4)
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert f"(standardise {kind})" in written["protocol"]["features"]
    assert f"standardise {kind}, not none" in written["departures"]


def a_head(dim: int) -> torch.nn.Module:
    return torch.nn.Linear(dim, 16)


def test_what_is_missing_is_said(stores, simulated, tmp_path):
    root = simulated("nuscenes")
    base = {"root": root, "out": tmp_path / "out"}
    other = tmp_path / "other.zarr"
    extract(
        ExtractConfig(root=root, out=other, teachers=(TEACHER,), weights=("random",), image_size=(56, 56), batch_size=8)
    )
    with pytest.raises(StoreError, match=r"image_size is \[56, 56\] and \[28, 56\]"):
        probe_teacher(TeacherProbeConfig(cache=other, val_cache=stores["all"], **base))
    with pytest.raises(StoreError, match="no targets of dinov2_vits14 for split val"):
        probe_teacher(TeacherProbeConfig(cache=other, **base))
    with pytest.raises(StoreError, match="no targets of teacher 'dino"):
        probe_teacher(TeacherProbeConfig(cache=other, teacher="dino_vits8", **base))


def test_a_store_of_another_dataset_is_noticed(stores, simulated, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(simulated("nuscenes"), root)
    dataset = open_dataset("nuscenes", root, "val")
    targets = LabelledTargets(open_store(stores["visible"]), TEACHER, dataset, seed=0)
    stranger = copy.copy(dataset)
    stranger.name = "my_rig"
    with pytest.raises(StoreError, match=f"no targets of {TEACHER} for split val of my_rig"):
        LabelledTargets(targets.store, TEACHER, stranger, seed=0)
    scan = root / dataset.frames[0].scan
    points = np.fromfile(scan, dtype=np.float32)
    (points + 1).tofile(scan)
    with pytest.raises(StoreError, match="differs from the dataset's"):
        targets.read(0)


def test_targets_of_which_no_point_is_labelled_are_said(stores, simulated, tmp_path, monkeypatch):
    """In all of a split, before anything is trained; or of the pairs alone, before a score is given out."""
    store, dataset = open_store(stores["all"]), open_dataset("nuscenes", simulated("nuscenes"), "val")
    message = "no point of split val of nuscenes has a label"
    unlabelled = copy.copy(dataset)
    unlabelled.read_labels = lambda frame: np.full_like(dataset.read_labels(frame), IGNORE_LABEL)
    head = torch.nn.Linear(store.target_dim(TEACHER), 16)
    with pytest.raises(DatasetError, match=message):
        module.score_targets(head, LabelledTargets(store, TEACHER, unlabelled, 0), torch.device("cpu"))
    monkeypatch.setattr(module, "open_dataset", lambda name, root, split, need: unlabelled)
    config = TeacherProbeConfig(cache=stores["all"], root=simulated("nuscenes"), out=tmp_path / "out")
    with pytest.raises(DatasetError, match=message):
        probe_teacher(config)
    assert not (tmp_path / "out").exists()
