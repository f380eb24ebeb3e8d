from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scalr.errors import StoreError
from scalr.extract import recompute
from scalr.extract.recompute import recompute_targets
from tiny import look_along_x


@pytest.fixture
def recomputed(extract_tiny, tiny_dataset, monkeypatch):
    """Call to recompute a view of the tiny dataset's store."""
    store = extract_tiny()
    monkeypatch.setattr(recompute, "open_dataset", lambda *_, **__: tiny_dataset)
    monkeypatch.setattr(recompute, "load_teacher", lambda name, **_: extract_tiny.teachers[name])
    return lambda: list(recompute_targets(store, 1, root=None, weights=(), device=torch.device("cpu")))


def test_the_same_teacher_gives_the_same_targets(recomputed):
    (view,) = recomputed()
    assert view.same_pairs
    assert view.worst_cosine > 0.9999


def test_the_cosines_are_those_of_the_stored_and_the_exact_targets(extract_tiny, tiny_dataset, monkeypatch):
    """Each pair of a view counts once in the means."""
    store, teacher = extract_tiny(), extract_tiny.teachers["coordinates"]
    maps = teacher.patch_maps
    monkeypatch.setattr(teacher, "patch_maps", lambda images: maps(images) + torch.tensor([0.0, 0.0, 3.0]))
    monkeypatch.setattr(recompute, "open_dataset", lambda *_, **__: tiny_dataset)
    monkeypatch.setattr(recompute, "load_teacher", lambda name, **_: teacher)
    found = list(recompute_targets(store, 4, root=None, weights=(), device=torch.device("cpu")))
    assert len({each.row for each in found}) == 4
    for each in found:
        stored = store.read_view(each.row, "coordinates")
        # As in test_run: the teacher's features are coordinates of patches, and 1; now 4.
        exact = np.hstack([stored.pixel // 2 * [5 / 23, 7 / 31], np.full((len(stored.pixel), 1), 4)])
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        kept = stored.targets / np.linalg.norm(stored.targets, axis=1, keepdims=True)
        cosine = (exact * kept).sum(axis=1)
        assert (each.pairs, each.same_pairs) == (len(stored.pixel), True)
        assert each.mean_cosine == pytest.approx(cosine.mean(), abs=1e-6)
        assert each.worst_cosine == pytest.approx(cosine.min(), abs=1e-6)
        assert each.loss_difference == pytest.approx(np.linalg.norm(exact - kept, axis=1).mean(), abs=1e-5)


@pytest.mark.parametrize("change", ["points", "a point's place", "a camera"])
def test_pairs_that_have_changed_are_said_and_nothing_is_compared(recomputed, tiny_dataset, change):
    for number, frame in enumerate(tiny_dataset.frames):
        points = tiny_dataset.read_points(frame)
        if change == "points":
            points[:, 3] += 1  # no pair is another, but the scan is
        elif change == "a point's place":
            points[:, :3] *= 1.1
        else:
            views = tuple(replace(view, calibration=look_along_x(focal_px=41.0)) for view in frame.views)
            tiny_dataset.frames[number] = replace(frame, views=views)
    (view,) = recomputed()
    assert not view.same_pairs
    assert view.pairs > 0
    assert all(math.isnan(value) for value in (view.mean_cosine, view.worst_cosine, view.loss_difference))


def test_frames_of_another_dataset_are_said(recomputed, tiny_dataset):
    tiny_dataset.frames = [replace(frame, token=f"other-{frame.token}") for frame in tiny_dataset.frames]
    with pytest.raises(StoreError, match=r"tiny: frame frame\d is in the store, but not in this dataset\. Pass --root"):
        recomputed()


def test_other_weights_are_said(recomputed, extract_tiny):
    teacher = extract_tiny.teachers["coordinates"]
    teacher.provenance = replace(teacher.provenance, weights_sha256="1" * 64)
    with pytest.raises(StoreError, match=r"other weights \(SHA-256 000000000000, these have 111111111111\)\. Pass"):
        recomputed()
