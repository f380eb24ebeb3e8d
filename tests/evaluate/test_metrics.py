from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalr.evaluate.metrics import accuracy, confusion_matrix, intersection_over_union, mean_iou
from scalr.evaluate.segmentation_losses import lovasz_softmax, segmentation_loss
from scalr.extract.datasets.labels import IGNORE_LABEL

labelled = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, IGNORE_LABEL]), st.integers(0, 3)), max_size=60)


@given(labelled)
def test_confusion_and_iou_against_scikit_learn(points):
    labels, predictions = np.array(points, dtype=np.uint8).reshape(-1, 2).T
    confusion = confusion_matrix(labels, predictions, 4)
    counted = labels != IGNORE_LABEL
    if not counted.any():
        assert confusion.sum() == 0
        return
    truth, guess = labels[counted], predictions[counted]
    np.testing.assert_array_equal(confusion, sklearn.metrics.confusion_matrix(truth, guess, labels=range(4)))
    iou = intersection_over_union(confusion)
    for name in range(4):
        if (truth == name).any() or (guess == name).any():
            assert iou[name] == pytest.approx(sklearn.metrics.jaccard_score(truth == name, guess == name))
        else:
            assert np.isnan(iou[name])
    assert mean_iou(confusion) == pytest.approx(np.nanmean(iou))
    assert accuracy(confusion) == pytest.approx(sklearn.metrics.accuracy_score(truth, guess))


def test_figures_of_many_matrices_are_those_of_each():
    confusions = np.random.default_rng(0).integers(0, 3, (20, 4, 4)) * np.tri(20, 4, dtype=int)[:, :, None]
    for over in ("present or predicted", "present"):
        np.testing.assert_array_equal(mean_iou(confusions, over), [mean_iou(each, over) for each in confusions])
    np.testing.assert_array_equal(
        intersection_over_union(confusions), [intersection_over_union(each) for each in confusions]
    )


def slow_lovasz(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """By definition: the Jaccard loss' Lovász extension, as an integral over thresholds of the set function."""
    total = []
    for name in np.unique(labels):
        truth = labels == name
        errors = np.abs(truth - probabilities[:, name])
        levels = np.concatenate([np.sort(errors)[::-1], [0.0]])
        value = 0.0
        for high, low in pairwise(levels):
            wrong = errors >= high
            value += (high - low) * (1 - (truth & ~wrong).sum() / (truth | wrong).sum())
        total.append(value)
    return float(np.mean(total))


@given(seed=st.integers(0, 1000), points=st.integers(1, 30))
def test_lovasz_is_its_definition(seed, points):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(4), points)
    labels = rng.integers(0, 4, points)
    ours = lovasz_softmax(torch.from_numpy(probabilities), torch.from_numpy(labels)).item()
    assert ours == pytest.approx(slow_lovasz(probabilities, labels), abs=1e-9)


def test_the_loss_of_a_head_is_cross_entropy_and_lovasz():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cross_entropy = -np.log(probabilities[np.arange(50), labels]).mean()
    ours = segmentation_loss(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert ours == pytest.approx(cross_entropy + slow_lovasz(probabilities, labels))


def test_segmentation_loss_leaves_unlabelled_points_out():
    logits = torch.randn(20, 4, requires_grad=True)
    labels = torch.randint(0, 4, (20,))
    labels[10:] = IGNORE_LABEL
    assert segmentation_loss(logits, labels).item() == pytest.approx(segmentation_loss(logits[:10], labels[:10]).item())
    nothing = segmentation_loss(logits, torch.full((20,), IGNORE_LABEL))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


def test_a_perfect_prediction_costs_nothing():
    labels = torch.randint(0, 4, (50,))
    logits = 100.0 * torch.nn.functional.one_hot(labels, 4)
    assert segmentation_loss(logits, labels).item() == pytest.approx(0, abs=1e-6)
