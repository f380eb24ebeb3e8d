from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalr.distill.losses import similarity_loss


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
