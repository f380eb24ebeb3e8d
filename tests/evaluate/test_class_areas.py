from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalr.evaluate.class_areas import area_under_curve, areas_of_classes, mean_of_known
from scalr.evaluate.cosines import unit
from scalr.extract.datasets.labels import IGNORE_LABEL

FEW_SCORES = st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=1, max_size=40)


def area_of_all_pairs(scores: np.ndarray, is_of_class: np.ndarray) -> float:
    """Its definition: each point of the class beside each other point, ties half."""
    pairs = [(a, b) for a in scores[is_of_class] for b in scores[~is_of_class]]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else np.nan


def clusters(num_classes: int = 3, count: int = 90, noise: float = 0.3, common: tuple = (0.0, 0.0)) -> tuple:
    """Unit features (N, 8) about a direction of each class, plus one vector at random lengths; labels (N,)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, count).astype(np.uint8)
    features = rng.normal(size=(num_classes, 8))[labels] + noise * rng.normal(size=(count, 8))
    return unit(unit(features) + rng.uniform(*common, (count, 1)) * unit(rng.normal(size=8))), labels


@given(FEW_SCORES)
def test_it_is_the_share_of_pairs_in_order(points):
    scores, is_of_class = np.array([score for score, _ in points]), np.array([inside for _, inside in points])
    np.testing.assert_equal(area_under_curve(scores, is_of_class), area_of_all_pairs(scores, is_of_class))


def test_it_is_scikit_learn_s():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    is_of_class = rng.random(20_000) < 0.03
    for decimals in (1, 8):  # with many ties, and with few
        scores = np.round(rng.normal(size=20_000) + is_of_class, decimals)
        expected = metrics.roc_auc_score(is_of_class, scores)
        assert area_under_curve(scores, is_of_class) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("centre", [False, True])
def test_a_class_is_compared_with_the_mean_of_its_own_points(centre):
    """Over labelled points; the others have a part in the mean that is taken away."""
    units, labels = clusters(common=(2.0, 2.0))
    labels[::4] = IGNORE_LABEL
    units[::4] = unit(units[::4] + 1)
    mean = units.astype(np.float64).mean(axis=0) if centre else 0
    found = areas_of_classes(units, labels, 3, centre=centre)
    for label in range(3):
        query = (units[labels == label] - mean).mean(axis=0)
        counted = labels != IGNORE_LABEL
        scores = [(each - mean) @ query / np.linalg.norm(each - mean) for each in units[counted].astype(np.float64)]
        expected = area_of_all_pairs(np.array(scores), labels[counted] == label)
        assert found[label] == pytest.approx(expected, abs=1e-3)  # where rounding swaps two


def test_what_all_have_in_common_hides_classes_until_it_is_taken_away():
    """Points have more of it or less, so that plain cosines tell how much, not which class."""
    units, labels = clusters(num_classes=6, count=600, noise=0.3, common=(1.0, 12.0))
    assert np.linalg.norm(units.mean(axis=0)) > 0.95
    plain, centred = (areas_of_classes(units, labels, 6, centre=centre).mean() for centre in (False, True))
    assert centred > plain + 0.05
    assert centred > 0.95


def test_features_that_say_nothing_are_worth_a_half():
    labels = np.repeat(np.arange(2, dtype=np.uint8), 50)
    same = np.tile(np.float32([0.6, 0.8]), (100, 1))
    for centre in (False, True):
        np.testing.assert_array_equal(areas_of_classes(same, labels, 2, centre=centre), [0.5, 0.5])


def test_rounding_of_many_points_is_no_feature():
    """Summed up in float32, the mean would be another than what all of them are, and its error tell two apart."""
    same = np.tile(np.float32([0.6, 0.8]), (100_000, 1))
    labels = np.repeat(np.arange(2, dtype=np.uint8), 50_000)
    same[labels == 1] = np.nextafter(same[labels == 1], 1)
    np.testing.assert_array_equal(areas_of_classes(same, labels, 2, centre=True), [0.5, 0.5])


def test_classes_of_few_points_or_without_others_have_no_area():
    """The mean of a class of one point is that point, which would then be found perfectly."""
    units, labels = clusters(num_classes=2)
    labels[:19] = np.repeat([2, 3], [10, 9])
    found = areas_of_classes(units, labels, 5, centre=True)
    np.testing.assert_array_equal(np.isnan(found), [False, False, False, True, True])
    assert np.isnan(areas_of_classes(units, np.zeros(len(units), np.uint8), 4, centre=True)).all()
    nothing = np.full(len(units), IGNORE_LABEL, np.uint8)
    assert np.isnan(areas_of_classes(units, nothing, 4, centre=True)).all()


def test_means_are_over_what_is_known():
    areas = np.array([[0.5, np.nan, np.nan], [1.0, 0.7, np.nan]])
    np.testing.assert_array_equal(mean_of_known(areas), [0.75, 0.7, np.nan])
    assert mean_of_known(np.array([0.2, np.nan, 0.4])) == pytest.approx(0.3)
    assert np.isnan(mean_of_known(np.full(3, np.nan)))
