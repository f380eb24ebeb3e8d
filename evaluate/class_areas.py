"""How well features rank the points of a class above all others: areas under ROC curves, which need no training.

The query of a class is the mean of its points' unit features, as in a similarity map. The area is the share of pairs
(a point of the class, a point of another) in which the former has the higher cosine to it: 0.5 is chance, 1 perfect.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from ..extract.datasets.labels import IGNORE_LABEL
from .cosines import centred, unit

FEWEST_POINTS = 10  # of fewer, the mean is so much each point itself that it tells nothing of the others


def area_under_curve(scores: np.ndarray, is_of_class: np.ndarray) -> float:
    """The share of pairs (of the class, of another) in which the former has the higher score; equal scores count half.

    Args:
        scores: (N,), finite.
        is_of_class: (N,) bool.

    Returns:
        0..1, NaN where there is no such pair: Mann and Whitney's U over the number of pairs.

    >>> area_under_curve(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    inside = int(is_of_class.sum())
    pairs = inside * (len(scores) - inside)
    if pairs == 0:
        return float("nan")
    ranks = rankdata(scores)  # from 1; of equal scores the mean
    return float((ranks[is_of_class].sum() - inside * (inside + 1) / 2) / pairs)


def areas_of_classes(units: np.ndarray, labels: np.ndarray, num_classes: int, *, centre: bool) -> np.ndarray:
    """The area of each class against all other labelled points.

    Args:
        units: (N, C) float32 unit features, N > 0.
        labels: (N,) uint8 train ids; points of IGNORE_LABEL count for the mean alone.
        centre: whether the mean of all features is taken away first, from points and queries.

    Returns:
        (num_classes,) float64; NaN for a class of fewer than FEWEST_POINTS points, or where there are no others.
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
    """The mean (K,) over the first axis of (F, K) of what is not NaN; NaN where nothing is left."""
    known = np.isfinite(areas)
    number = known.sum(axis=0)
    total = np.where(known, areas, 0).sum(axis=0)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
