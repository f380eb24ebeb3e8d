from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalr.distill.losses import contrastive_loss, cosine_loss, similarity_loss, smooth_loss


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_only_directions_count(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    features, targets = torch.randn(2, 30, 8, generator=generator).double()
    assert similarity_loss(scale * targets, targets).mean().item() == pytest.approx(0, abs=1e-6)
    unscaled = similarity_loss(features, targets).mean().item()
    assert similarity_loss(scale * features, targets).mean().item() == pytest.approx(unscaled)
    assert similarity_loss(-targets, targets).mean().item() == pytest.approx(2)


def test_it_is_the_mean_distance_of_unit_vectors_not_squared():
    features, targets = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    assert similarity_loss(features, targets).mean().item() == pytest.approx(math.sqrt(2) / 2)


def test_gradients_are_finite_where_directions_agree():
    features = torch.randn(5, 4).requires_grad_()
    similarity_loss(features, features.detach()).mean().backward()
    assert torch.isfinite(features.grad).all()


@given(seed=st.integers(0, 1000))
def test_the_variants_are_functions_of_the_same_distance(seed):
    generator = torch.Generator().manual_seed(seed)
    features, targets = torch.randn(2, 30, 3, generator=generator).double()
    distance = similarity_loss(features, targets)
    torch.testing.assert_close(cosine_loss(features, targets), distance.square() / 2)
    near = distance < 1
    torch.testing.assert_close(smooth_loss(features, targets)[near], cosine_loss(features, targets)[near])
    torch.testing.assert_close(smooth_loss(features, targets)[~near], distance[~near] - 0.5)


def test_a_sharper_softmax_tells_pairs_apart():
    targets = torch.eye(4)
    assert contrastive_loss(targets, targets, temperature=100.0).mean().item() == pytest.approx(math.log(4), abs=0.01)
    assert contrastive_loss(targets, targets, temperature=0.01).mean().item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(targets.roll(1, 0), targets, temperature=0.1).mean().item() == pytest.approx(10, abs=0.01)


def test_contrastive_losses_are_cross_entropies_of_the_cosines():
    """Of each pair, by definition."""
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(2, 6, 5, generator=generator).double()
    cosines = torch.tensor([[torch.dot(f, t) / f.norm() / t.norm() for t in targets] for f in features]).double()
    expected = torch.stack([torch.logsumexp(row / 0.07, 0) - row[number] / 0.07 for number, row in enumerate(cosines)])
    torch.testing.assert_close(contrastive_loss(features, targets, temperature=0.07), expected)


@pytest.mark.parametrize("loss", [similarity_loss, cosine_loss, smooth_loss])
def test_each_pair_has_a_loss(loss):
    features, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -3.0]])
    expected = {similarity_loss: [0, 2], cosine_loss: [0, 2], smooth_loss: [0, 1.5]}
    torch.testing.assert_close(loss(features, targets), torch.tensor(expected[loss], dtype=torch.float32))
