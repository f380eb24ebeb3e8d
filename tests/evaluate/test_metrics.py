from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from nuscenes.eval.lidarseg.utils import ConfusionMatrix

from scalr.evaluate.metrics import (
    MeanOver,
    accuracy,
    bootstrap_interval,
    confusion_matrix,
    frequency_weighted_iou,
    intersection_over_union,
    mean_iou,
)
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


def points_of(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions that have these counts."""
    rows, columns = np.indices(confusion.shape)
    return np.repeat(rows.ravel(), confusion.ravel()), np.repeat(columns.ravel(), confusion.ravel())


confusions = st.lists(st.integers(0, 3), min_size=16, max_size=16).map(lambda counts: np.reshape(counts, (4, 4)))


@given(confusions)
def test_the_frequency_weighted_iou_is_the_nuscenes_devkit_s(confusion):
    """Its own class on the same points; its class 0 is the ignored one, and its unions are float32."""
    devkit = ConfusionMatrix(num_classes=5, ignore_idx=0)
    labels, predictions = points_of(confusion)
    if not len(labels):
        assert np.isnan(frequency_weighted_iou(confusion))
        return
    devkit.update(labels + 1, predictions + 1)
    assert frequency_weighted_iou(confusion) == pytest.approx(devkit.get_freqweighted_iou(), rel=1e-6)
    assert mean_iou(confusion) == pytest.approx(devkit.get_mean_iou(), rel=1e-6)  # and its mean is ScaLR's


@given(confusions)
def test_the_mean_over_all_classes_is_that_of_semantickitti_s_script(confusion):
    """evaluate_semantics.py, written out: true and false positives and negatives, a union of at least 1e-15."""
    labels, predictions = points_of(confusion)
    iou = []
    for name in range(4):
        true_positives = np.sum((predictions == name) & (labels == name))
        false_positives = np.sum((predictions == name) & (labels != name))
        false_negatives = np.sum((predictions != name) & (labels == name))
        iou.append(true_positives / (true_positives + false_positives + false_negatives + 1e-15))
    if len(labels):
        assert mean_iou(confusion, "all") == pytest.approx(np.mean(iou))


@given(confusions)
def test_the_mean_with_absent_classes_as_1_is_that_of_slidr_s_code(confusion):
    """Its histogram's diagonal over rows + columns - diagonal, where 0 / 0 is taken for 1, and the mean over all."""
    counts = confusion.astype(float)
    union = counts.sum(axis=1) + counts.sum(axis=0) - np.diag(counts)
    iou = [inner / outer if outer else 1.0 for inner, outer in zip(np.diag(counts), union, strict=True)]
    if confusion.any():
        assert mean_iou(confusion, "all, absent as 1") == pytest.approx(np.mean(iou))


def test_the_four_means_of_few_classes():
    """A class that is there, one that is predicted only, one that is neither."""
    confusion = np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]])
    assert mean_iou(confusion, "present") == pytest.approx(6 / 8)
    assert mean_iou(confusion, "present or predicted") == pytest.approx(6 / 8 / 2)
    assert mean_iou(confusion, "all") == pytest.approx(6 / 8 / 3)
    assert mean_iou(confusion, "all, absent as 1") == pytest.approx((6 / 8 + 1) / 3)
    assert frequency_weighted_iou(confusion) == pytest.approx(6 / 8)


def test_figures_of_many_matrices_are_those_of_each():
    confusions = np.random.default_rng(0).integers(0, 3, (20, 4, 4)) * np.tri(20, 4, dtype=int)[:, :, None]
    for over in get_args(MeanOver):
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


def test_without_points_there_are_no_figures():
    nothing = np.zeros((3, 3), int)
    for over in get_args(MeanOver):
        assert np.isnan(mean_iou(nothing, over))
    assert np.isnan(accuracy(nothing))
    assert np.isnan(intersection_over_union(nothing)).all()


def test_the_interval_is_that_of_scenes_drawn_anew():
    """A thousand draws of as many scenes, with replacement, written out: 2.5th and 97.5th percentile."""
    rng = np.random.default_rng(1)
    confusions = rng.integers(0, 50, (7, 3, 3))
    confusions[:5, 2], confusions[:5, :, 2] = 0, 0  # a class that few scenes have
    for over in ("present or predicted", "present"):
        draws = np.random.default_rng(3).multinomial(7, [1 / 7] * 7, size=1000)
        values = [mean_iou(sum(n * c for n, c in zip(draw, confusions, strict=True)), over) for draw in draws]
        expected = (np.percentile(values, 2.5), np.percentile(values, 97.5))
        assert bootstrap_interval(confusions, over, seed=3) == pytest.approx(expected)
    assert bootstrap_interval(confusions) == bootstrap_interval(confusions, "present or predicted", seed=0)
    assert bootstrap_interval(confusions, seed=1) != bootstrap_interval(confusions)


def test_a_class_that_is_predicted_but_absent_counts_or_not():
    confusion = np.array([[6, 0, 2], [0, 2, 0], [0, 0, 0]])
    assert mean_iou(confusion) == pytest.approx((6 / 8 + 1 + 0) / 3)
    assert mean_iou(confusion, "present") == pytest.approx((6 / 8 + 1) / 2)
    assert mean_iou(np.array([[0, 1], [0, 5]]), "present") == pytest.approx((0 + 5 / 6) / 2)  # a single point is one


def test_the_interval_holds_95_percent_of_scenes_drawn_anew():
    """Scenes of one point each, half of them right: how many are right when 100 are drawn is binomial.

    95 % of that lies from 40 to 60, and 90 % from 42 to 58.
    """
    right, wrong = np.array([[1, 0], [0, 0]]), np.array([[0, 1], [0, 0]])
    intervals = [bootstrap_interval(np.array([right, wrong] * 50), "present", seed) for seed in range(30)]
    expected = np.divide(scipy.stats.binom(100, 0.5).interval(0.95), 100)
    np.testing.assert_allclose(np.mean(intervals, axis=0), expected, atol=0.005)
    spread = np.std(intervals, axis=0)
    assert 0 < spread.min() < spread.max() < 0.008
    assert bootstrap_interval(np.array([right, wrong] * 50), "present") == intervals[0]
    few = [bootstrap_interval(np.array([right, wrong] * 4), "present", seed) for seed in range(30)]
    assert np.median(few, axis=0).tolist() == [1 / 8, 7 / 8]  # one of eight or less is right in 3.5 % of draws
    _, high = bootstrap_interval(np.array([right, wrong] * 50))  # the class that is only predicted counts
    assert high == pytest.approx(intervals[0][1] / 2)


def test_the_interval_is_near_that_of_many_more_draws():
    """Each draw counts all points of a scene, the larger scenes more."""
    rng = np.random.default_rng(0)
    confusions = rng.integers(0, 50, (12, 3, 3)) * rng.integers(1, 20, (12, 1, 1))
    intervals = [bootstrap_interval(confusions, seed=seed) for seed in range(10)]
    slow = [mean_iou(confusions[rng.integers(0, 12, 12)].sum(axis=0)) for _ in range(4000)]
    low, inner_low, inner_high, high = np.percentile(slow, [2.5, 5, 95, 97.5])
    assert np.mean(intervals, axis=0) == pytest.approx([low, high], abs=min(inner_low - low, high - inner_high) / 2)
    empty = np.stack([confusions[0], np.zeros_like(confusions[0])])  # a draw of the second scene alone has no mIoU
    assert bootstrap_interval(empty) == pytest.approx([mean_iou(confusions[0])] * 2)
    same = np.repeat(confusions[:1], 5, axis=0)
    assert bootstrap_interval(same) == pytest.approx([mean_iou(confusions[0])] * 2)
    assert bootstrap_interval(confusions[:1]) is None


def test_one_scene_says_nothing_of_others():
    confusions = np.tile(np.diag([3, 4]), (2, 1, 1))
    assert bootstrap_interval(confusions) == (1, 1)
    assert bootstrap_interval(confusions[:1]) is None
    assert bootstrap_interval(confusions[:0]) is None


def test_draws_without_any_labelled_point_are_left_out():
    confusions = np.zeros((4, 2, 2))
    confusions[0] = [[3, 1], [0, 2]]
    value = mean_iou(confusions[0])
    assert bootstrap_interval(confusions) == pytest.approx((value, value))
