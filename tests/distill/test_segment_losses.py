"""SLidR's and ST-SLidR's losses beside slow ones, written from the formulas value by value."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalr.distill.segment_losses import (
    balanced_weights,
    cosines,
    negatives,
    segment_means,
    superpixel_loss,
    tolerant_loss,
)

TEMPERATURE = 0.07


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def slow_loss(student, teacher, weight) -> torch.Tensor:
    """Of segment i: -log of exp(W_ii k_i q_i / t) in the sum of exp(W_ij k_i q_j / t)."""
    losses = []
    for i, k in enumerate(student):
        scores = [(weight[i][j] * torch.dot(k, q) / TEMPERATURE).exp() for j, q in enumerate(teacher)]
        losses.append(-torch.log(scores[i] / sum(scores)))
    return torch.stack(losses)


def slow_negatives(directions, quantile) -> list[list[int]]:
    """W of ST-SLidR: 0 below the row's quantile, else 1; W_ii = 1."""
    rows = []
    for i, mine in enumerate(directions):
        distance = [
            1 - torch.dot(mine, other).item() / mine.norm().item() / other.norm().item() for other in directions
        ]
        distance[i] = 0.0
        least = torch.quantile(torch.tensor(distance, dtype=torch.float64), quantile).item()
        rows.append([0 if each < least or abs(each) < 1e-6 else 1 for each in distance])
        rows[i][i] = 1
    return rows


def slow_weights(directions, threshold) -> torch.Tensor:
    votes = []
    for mine in directions:
        similar = [(torch.dot(mine, other) / mine.norm() / other.norm()).item() for other in directions]
        votes.append(sum(each for each in similar if each >= threshold))
    above = [each - min(votes) for each in votes]
    return torch.tensor([1 - each / max(above) for each in above])


@given(seed=st.integers(0, 1000), segments=st.integers(1, 12))
def test_a_mean_is_that_of_the_vectors_of_its_segment(seed, segments):
    vectors, segment = drawn(seed, 30, 4), torch.randint(segments, (30,), generator=torch.Generator().manual_seed(seed))
    means = segment_means(vectors, segment, segments)
    for number in range(segments):
        mine = vectors[segment == number]
        torch.testing.assert_close(means[number], mine.sum(dim=0) / (len(mine) + 1e-6))


@given(seed=st.integers(0, 1000), segments=st.integers(1, 9))
def test_slidr_is_a_cross_entropy_of_means_that_are_no_unit_vectors(seed, segments):
    k, q = 0.3 * unit(drawn(seed, segments, 4)), 0.8 * unit(drawn(seed + 1, segments, 4))
    torch.testing.assert_close(superpixel_loss(k, q, TEMPERATURE), slow_loss(k, q, torch.ones(segments, segments)))
    shorter = superpixel_loss(0.01 * k, q, TEMPERATURE)  # a mean of features that differ says little
    assert (shorter - math.log(segments)).abs().max() < 0.2


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), segments=st.integers(1, 40), quantile=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.99]))
def test_the_tolerant_loss_leaves_out_the_most_similar(seed, segments, quantile):
    k, q, directions = (
        0.5 * unit(drawn(seed, segments, 4)),
        unit(drawn(seed + 1, segments, 4)),
        drawn(seed, segments, 3),
    )
    chosen, expected = negatives(cosines(directions), quantile), slow_negatives(directions, quantile)
    own = torch.eye(segments, dtype=torch.bool)
    assert torch.equal(chosen | own, torch.tensor(expected).bool())
    losses = tolerant_loss(k, q, chosen, TEMPERATURE)
    torch.testing.assert_close(losses, slow_loss(k, q, torch.tensor(expected).double()))


def test_one_in_a_hundred_is_no_negative():
    """The nearest two of 301, of which one is the segment itself, and the one whose distance is the quantile stays."""
    chosen = negatives(cosines(drawn(0, 301, 16)), 0.01)
    assert (~chosen).sum(dim=1).tolist() == [3] * 301
    assert not chosen.diagonal().any()


def test_what_is_no_negative_adds_one_to_the_denominator_and_no_gradient():
    k, q = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    losses = tolerant_loss(k, q, torch.zeros(2, 2, dtype=torch.bool), 1.0)
    assert losses[0].item() == pytest.approx(-math.log(math.e / (math.e + 1)))
    (gradient,) = torch.autograd.grad(losses[0], k)
    assert gradient[0].tolist() == pytest.approx([math.e / (math.e + 1) - 1, 0])


@given(seed=st.integers(0, 1000), segments=st.integers(2, 30), threshold=st.sampled_from([-0.5, 0.0, 0.5, 0.9]))
def test_weights_fall_with_the_votes(seed, segments, threshold):
    directions = drawn(seed, segments, 3)
    weights = balanced_weights(cosines(directions), threshold)
    votes_differ = weights.min() < 1
    if votes_differ:
        torch.testing.assert_close(weights, slow_weights(directions, threshold), rtol=1e-3, atol=1e-4)
        assert (weights.min().item(), weights.max().item()) == (0, 1)


def test_what_is_rare_weighs_most():
    """Eight segments of one kind, two of another, and one alone; each kind is at a right angle to the others."""
    directions = torch.eye(3)[[0] * 8 + [1] * 2 + [2]] * torch.arange(1, 12)[:, None]
    weights = balanced_weights(cosines(directions), 0.5)
    torch.testing.assert_close(weights, torch.tensor([0.0] * 8 + [6 / 7] * 2 + [1.0]))


@given(seed=st.integers(0, 1000))
def test_the_order_of_segments_makes_no_difference(seed):
    k, q, directions = drawn(seed, 20, 4), drawn(seed + 1, 20, 4), drawn(seed + 2, 20, 3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))

    def of(k, q, directions) -> list[torch.Tensor]:
        similarity = cosines(directions)
        tolerant = tolerant_loss(k, q, negatives(similarity, 0.1), TEMPERATURE)
        return [superpixel_loss(k, q, TEMPERATURE), tolerant, balanced_weights(similarity, 0.5)]

    for before, after in zip(of(k, q, directions), of(k[order], q[order], directions[order]), strict=True):
        torch.testing.assert_close(after, before[order], rtol=1e-4, atol=1e-5)


def test_a_segment_alone_has_nothing_to_tell_apart():
    k, q, similarity = drawn(0, 1, 4), drawn(1, 1, 4), cosines(drawn(2, 1, 4))
    assert superpixel_loss(k, q, TEMPERATURE).tolist() == [0]
    assert tolerant_loss(k, q, negatives(similarity, 0.01), TEMPERATURE).tolist() == [0]
    assert balanced_weights(similarity, 0.5).tolist() == [1]


@pytest.mark.parametrize("direction", [[0.1, 0.7, -0.3], [1e-4, 3e4, 0.0]])
def test_segments_that_are_all_the_same_count_alike(direction):
    """Nobody is anybody's negative: each logit but its own is zero."""
    similarity = cosines(torch.tensor(direction).repeat(50, 1) * torch.arange(1, 51)[:, None])
    assert not negatives(similarity, 0.01).any()
    assert balanced_weights(similarity, 0.5).tolist() == [1] * 50


@pytest.mark.parametrize("quantile", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(quantile):
    vectors, segment = drawn(0, 12, 3).requires_grad_(), torch.tensor([0, 1, 2, 3] * 3)
    teacher, similarity = drawn(1, 4, 3).requires_grad_(), cosines(drawn(2, 4, 3))

    def loss(vectors, teacher):
        means = segment_means(vectors, segment, 4)
        tolerant = tolerant_loss(means, teacher, negatives(similarity, quantile), 0.5)
        return superpixel_loss(means, teacher, 0.5) + tolerant * balanced_weights(similarity, 0.5)

    assert torch.autograd.gradcheck(loss, (vectors, teacher))
