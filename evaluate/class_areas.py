"""How well features rank the points of a class above all other points: areas under ROC curves, without training.

The query of a class is the mean of its points' unit features, as in a similarity map. The area is the fraction of pairs
(a point of the class, a point of another class) in which the first point has the higher cosine to the query: 0.5 is
chance, 1 is perfect.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from ..extract.datasets.labels import IGNORE_LABEL
from .cosines import centred, unit

FEWEST_POINTS = 10  # with fewer points, each point is so much of the mean that the area says nothing of the others


def area_under_curve(scores: np.ndarray, is_of_class: np.ndarray) -> float:
    """The fraction of pairs (a point of the class, another) in which the first has the higher score.

    Equal scores count half.

    Args:
        scores: (N,), finite.
        is_of_class: (N,) bool.

    Returns:
        Mann and Whitney's U over the number of pairs, in 0..1; NaN without a pair.

    >>> area_under_curve(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    inside = int(is_of_class.sum())
    pairs = inside * (len(scores) - inside)
    if pairs == 0:
        return float("nan")
    ranks = rankdata(scores)  # from 1; equal scores have their mean rank
    return float((ranks[is_of_class].sum() - inside * (inside + 1) / 2) / pairs)


def areas_of_classes(units: np.ndarray, labels: np.ndarray, num_classes: int, *, centre: bool) -> np.ndarray:
    """The area of each class against all other labelled points.

    Args:
        units: (N, C) float32 unit features, N > 0.
        labels: (N,) uint8 train ids; points with IGNORE_LABEL count only in the mean of all features.
        centre: whether the mean of all features is first subtracted from points and queries.

    Returns:
        (num_classes,) float64; NaN for a class of fewer than FEWEST_POINTS points, or without points of other classes.
    """
    features = centred(units, units.mean(axis=0, dtype=np.float64)) if centre else units
    directions, labelled = unit(features), labels != IGNORE_LABEL
    counts = np.bincount(labels[labelled], minlength=num_classes)
    areas = np.full(num_classes, np.nan)
    for label in np.flatnonzero(counts >= FEWEST_POINTS):
        of_class = labels == label
        scores = directions[labelled] @ unit(features[of_class].mean(axis=0, dtype=np.float64))
        areas[label] = area_under_curve(scores, of_class[labelled])
    return areas


def mean_of_known(areas: np.ndarray) -> np.ndarray:
    """The mean (K,) over the first axis of (F, K), without NaN; NaN if all values are NaN."""
    known = np.isfinite(areas)
    number = known.sum(axis=0)
    total = np.where(known, areas, 0).sum(axis=0)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
