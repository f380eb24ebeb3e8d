from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scalr.errors import StoreError
from scalr.extract import preparation, recompute
from scalr.extract.recompute import _recorded_teacher, recompute_targets


@pytest.fixture
def recompute_some(extract_tiny, tiny_dataset, monkeypatch):
    """Call to recompute views of a store of the tiny dataset."""
    monkeypatch.setattr(recompute, "open_dataset", lambda *_, **__: tiny_dataset)
    monkeypatch.setattr(recompute, "load_teacher", lambda name, **_: extract_tiny.teachers[name])

    def call(store, num_views):
        return list(recompute_targets(store, num_views, root=None, weights=(), device=torch.device("cpu")))

    return call


@pytest.fixture
def recomputed(extract_tiny, recompute_some):
    """Call to recompute a view of the tiny dataset's store."""
    store = extract_tiny()
    return lambda: recompute_some(store, 1)


def test_the_same_teacher_gives_the_same_targets(recomputed):
    (view,) = recomputed()
    assert view.same_pairs
    assert view.worst_cosine > 0.9999


def test_what_the_store_leaves_out_is_left_out_again(extract_tiny, tiny_dataset, recompute_some):
    """Hidden pairs, points that no view sees, and views that see none; every other view is drawn once."""
    behind = tiny_dataset.read_points(tiny_dataset.frames[0])
    behind[:, 0] = -np.abs(behind[:, 0]) - 2
    store = extract_tiny(points="visible", occlusion="drop")
    assert store.views["pairs_hidden"].to_numpy().sum() > 0
    found = recompute_some(store, 10)
    assert [each.row for each in found] == [2, 3, 4, 5]
    assert all(each.same_pairs and each.worst_cosine > 0.9999 for each in found)


def test_the_cosines_are_those_of_the_stored_and_the_exact_targets(extract_tiny, recompute_some, monkeypatch):
    """Each pair of a view counts once in the means."""
    store, teacher = extract_tiny(), extract_tiny.teachers["coordinates"]
    maps = teacher.patch_maps
    monkeypatch.setattr(teacher, "patch_maps", lambda images: maps(images) + torch.tensor([0.0, 0.0, 3.0]))
    found = recompute_some(store, 4)
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


@pytest.mark.parametrize("name", ["points", "point_index", "pixel"])
def test_pairs_that_have_changed_are_said_and_nothing_is_compared(recomputed, monkeypatch, name):
    def changed(*arguments):
        prepared = preparation.prepare_frame(*arguments)
        if name == "points":
            return replace(prepared, points=prepared.points + 1)
        return replace(prepared, views=[replace(view, **{name: getattr(view, name) + 1}) for view in prepared.views])

    monkeypatch.setattr(recompute, "prepare_frame", changed)
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


@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_the_cosine_that_is_expected_follows_from_encoding_and_precision(
    extract_tiny, recompute_some, precision, apart
):
    """Four times what rounding cost when the view was stored, and what two machines may differ by."""
    teacher = extract_tiny.teachers["coordinates"]
    teacher.provenance = replace(teacher.provenance, precision=precision)
    store = extract_tiny(dtype="int8")
    kept = store.read_target_views("coordinates")["mean_cosine"].to_pylist()
    for view in recompute_some(store, 10):
        assert kept[view.row] < 1 - 1e-7
        assert view.least_cosine == pytest.approx(1 - 4 * (1 - kept[view.row]) - apart, abs=1e-12)


def test_targets_of_another_image_or_teacher_are_not_as_stored(extract_tiny, recompute_some, tiny_dataset, monkeypatch):
    store, teacher = extract_tiny(), extract_tiny.teachers["coordinates"]
    assert all(view.as_stored for view in recompute_some(store, 6))
    image = tiny_dataset.root / "frame1_RIGHT.png"
    image.write_bytes(image.read_bytes() + b"more")
    found = {view.row: view for view in recompute_some(store, 6)}
    assert [row for row, view in found.items() if not view.as_stored] == [3]
    assert (found[3].same_image, found[3].same_pairs) == (False, True)
    assert str(found[3]).startswith("view 3 (frame frame1, camera RIGHT), coordinates: ")
    maps = teacher.patch_maps
    monkeypatch.setattr(teacher, "patch_maps", lambda images: maps(images) + torch.tensor([0.0, 0.0, 3.0]))
    assert not any(view.as_stored for view in recompute_some(store, 6))


def test_a_scan_of_which_only_unseen_points_changed_is_noticed(extract_tiny, recompute_some, tiny_dataset):
    """The store keeps what cameras see; the digest is of the whole scan."""
    store = extract_tiny(points="visible")
    behind = tiny_dataset.read_points(tiny_dataset.frames[0])
    behind[behind[:, 0].argmin(), 0] -= 1
    assert {view.row for view in recompute_some(store, 6) if not view.same_pairs} == {0, 1}


def test_a_teacher_from_a_file_needs_its_file_again():
    store = SimpleNamespace(path=Path("s.zarr"), teachers={"dinov2_vits14": {"weights": "file"}})
    with pytest.raises(StoreError, match=r"s\.zarr: the targets of dinov2_vits14 were made from a weights file\. Pass"):
        _recorded_teacher(store, "dinov2_vits14", None, torch.device("cpu"))
