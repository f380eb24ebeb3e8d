"""What `scalr verify` looks at, in which order, and what it says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scalr.extract import verification
from scalr.extract.recompute import Recomputed
from scalr.extract.verification import VerifyConfig, verify
from small_store import filled_store

VIEW = Recomputed(
    row=3, of="frame 1-0, camera CAM", teacher="t", pairs=7, same_image=True, same_pairs=True, least_cosine=0.89,
    mean_cosine=0.9, worst_cosine=0.8, loss_difference=0.01,
)  # fmt: skip


@pytest.fixture
def sampled(monkeypatch) -> list:
    """The arguments that views were recomputed with."""
    calls = []

    def recompute_targets(store, number, **options):
        calls.append((store.path, number, options))
        return iter([VIEW])

    monkeypatch.setattr(verification, "recompute_targets", recompute_targets)
    return calls


def test_a_sample_is_recomputed_from_the_dataset_and_weights_that_are_given(tmp_path, sampled):
    store = filled_store(tmp_path / "s.zarr")
    given = {"root": Path("data"), "superpixels": Path("maps"), "weights": ("w.pth",)}
    result = verify(VerifyConfig(store=store.path, sample=4, device="cpu", **given))
    options = {**given, "device": torch.device("cpu")}
    assert sampled == [(store.path, 4, options)]
    assert (result.whole, result.found.blocks, result.sample, result.damage) == (True, 2, [VIEW], [])
    assert result.as_text().splitlines() == [
        f"{store.path}: 2 blocks read, 0 damaged",
        "view 3 (frame 1-0, camera CAM), t: 7 pairs, cosine to recomputed features: mean 0.900000,"
        " minimum 0.800000; loss differs by 0.01 at most",
    ]
    assert result.as_json()["whole"] is True


def test_nothing_is_recomputed_without_a_sample_or_from_a_damaged_store(tmp_path, sampled):
    """A damaged store is not whole, and is changed where that is asked for only."""
    store = filled_store(tmp_path / "s.zarr")
    assert verify(VerifyConfig(store=store.path)).sample == []
    (store.path / "blocks/000001/targets/t/vectors/c/0/0").unlink()
    result = verify(VerifyConfig(store=store.path, sample=4))
    assert sampled == []
    assert not result.whole
    assert [(damage.block, damage.kind) for damage in result.damage] == [(1, "t")]
    assert f"Run 'scalr verify {store.path} --repair'" in result.as_text()
    assert store.committed_blocks("t") == {0, 1}
    repaired = verify(VerifyConfig(store=store.path, repair=True))
    assert f"1 damaged item moved to {store.path / 'aside'}:" in repaired.as_text()
    assert store.committed_blocks("t") == {0}
    assert verify(VerifyConfig(store=store.path)).damage == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"same_pairs": False}, "OTHER POINTS OR PIXELS than the dataset gives"),
        (
            {"same_image": False},
            "ANOTHER IMAGE than the store was made from, cosine to recomputed features: mean 0.900000",
        ),
        ({"same_superpixels": False, "segments": 2}, "OTHER SUPERPIXELS than the store was made from"),
        (
            {"segments": 2, "segments_cosine": 0.5, "least_segments_cosine": 0.75},
            "OTHER TARGETS .*, 2 segments, mean cosine 0.500000; expected: .* and mean 0.750000 or more of segments",
        ),
        (
            {"least_cosine": 0.91},
            "OTHER TARGETS than the teacher gives, .* mean 0.900000, .*expected: mean 0.910000 or more",
        ),
    ],
)
def test_a_view_that_is_not_as_stored_is_named_and_is_not_whole(tmp_path, monkeypatch, change, said):
    store = filled_store(tmp_path / "s.zarr")
    other = replace(VIEW, **change)
    monkeypatch.setattr(verification, "recompute_targets", lambda *_, **__: iter([VIEW, other]))
    result = verify(VerifyConfig(store=store.path, sample=2))
    assert not result.whole
    assert re.search(rf"view 3 \(frame 1-0, camera CAM\), t: .*{said}", result.as_text().splitlines()[-1])
    assert [view["as_stored"] for view in result.as_json()["sample"]] == [True, False]
