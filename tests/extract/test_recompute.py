from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scalr.errors import StoreError
from scalr.extract import recompute
from scalr.extract.recompute import recompute_targets


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


def test_frames_of_another_dataset_are_said(recomputed, tiny_dataset):
    tiny_dataset.frames = [replace(frame, token=f"other-{frame.token}") for frame in tiny_dataset.frames]
    with pytest.raises(StoreError, match=r"tiny: frame frame\d is in the store, but not in this dataset\. Pass --root"):
        recomputed()


def test_other_weights_are_said(recomputed, extract_tiny):
    teacher = extract_tiny.teachers["coordinates"]
    teacher.provenance = replace(teacher.provenance, weights_sha256="1" * 64)
    with pytest.raises(StoreError, match=r"other weights \(SHA-256 000000000000, these have 111111111111\)\. Pass"):
        recomputed()
