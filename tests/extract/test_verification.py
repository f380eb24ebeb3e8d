"""What `scalr verify` looks at, in which order, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scalr.extract import verification
from scalr.extract.recompute import Recomputed
from scalr.extract.verification import VerifyConfig, verify
from small_store import filled_store

VIEW = Recomputed(row=3, teacher="t", pairs=7, same_pairs=True, mean_cosine=0.9, worst_cosine=0.8, loss_difference=0.01)


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
    config = VerifyConfig(store=store.path, sample=4, root=Path("data"), weights=("w.pth",), device="cpu")
    result = verify(config)
    options = {"root": Path("data"), "weights": ("w.pth",), "device": torch.device("cpu")}
    assert sampled == [(store.path, 4, options)]
    assert (result.whole, result.blocks, result.sample, result.damage) == (True, 2, [VIEW], [])
    assert result.as_text().splitlines() == [
        f"{store.path}: 2 blocks read, 0 damaged",
        "view 3, t: 7 pairs, cosine 0.900000 (worst 0.800000), loss within 0.01",
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
    assert "The damaged blocks are taken out" in repaired.as_text()
    assert store.committed_blocks("t") == {0}
    assert verify(VerifyConfig(store=store.path)).whole


def test_a_view_of_other_points_is_not_whole(tmp_path, monkeypatch):
    store = filled_store(tmp_path / "s.zarr")
    other = Recomputed(**vars(VIEW) | {"same_pairs": False})
    monkeypatch.setattr(verification, "recompute_targets", lambda *_, **__: iter([VIEW, other]))
    result = verify(VerifyConfig(store=store.path, sample=2))
    assert not result.whole
    assert "OTHER POINTS OR PIXELS" in result.as_text().splitlines()[-1]
