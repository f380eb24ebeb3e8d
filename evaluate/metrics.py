"""Segmentation metrics from confusion matrices: counts of points by (label, prediction)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..extract.datasets.labels import IGNORE_LABEL

RESAMPLES = 1000  # number of draws of the bootstrap

# The classes that a mIoU is the mean of: classes with labels or predictions, as in the official code of ScaLR; classes
# with labels, as in SALUDA's code; or all classes. An absent class, without labels and predictions, then has an IoU of
# 0, as in SemanticKITTI's script, or of 1, as in the code of SLidR.
MeanOver = Literal["present or predicted", "present", "all", "all, absent as 1"]
AbsentClasses = Literal["left-out", "as-1"]  # what ScaLR and SLidR do with absent classes
NAME_OF_MEAN: dict[MeanOver, str] = {"all, absent as 1": "mIoU, absent classes as 1"}  # others: mIoU
MEAN_WITH: dict[AbsentClasses, MeanOver] = {"left-out": "present or predicted", "as-1": "all, absent as 1"}


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Count points by (label, prediction).

    Args:
        labels: (N,) train ids; points with IGNORE_LABEL are not counted.
        predictions: (N,) train ids.

    Returns:
        (num_classes, num_classes) int64, rows are labels.

    >>> confusion_matrix(np.array([0, 0, 1, IGNORE_LABEL]), np.array([0, 1, 1, 0]), num_classes=2)
    array([[1, 1],
           [0, 1]])
    """
    counted = labels != IGNORE_LABEL
    pairs = labels[counted].astype(np.int64) * num_classes + predictions[counted].astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class; NaN for a class that is neither present nor predicted.

    Args:
        confusion: (..., num_classes, num_classes) counts or weighted counts.

    Returns:
        (..., num_classes) float64.
    """
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(axis=-2) + confusion.sum(axis=-1) - intersection
    return np.divide(intersection, union, out=np.full(intersection.shape, np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray, over: MeanOver = "present or predicted") -> np.ndarray:
    """Mean of the IoU of classes.

    Args:
        confusion: (..., num_classes, num_classes) counts or weighted counts.

    Returns:
        (...,) float64; NaN without a class to take the mean over.

    >>> float(mean_iou(np.array([[1, 1], [0, 1]])))
    0.5
    """
    iou, labelled = intersection_over_union(confusion), confusion.sum(axis=-1) > 0
    of_all = np.broadcast_to(np.isfinite(iou).any(axis=-1, keepdims=True), iou.shape)
    is_counted = {
        "present or predicted": np.isfinite(iou),
        "present": labelled,
        "all": of_all,
        "all, absent as 1": of_all,
    }
    counted = is_counted[over]
    number = counted.sum(axis=-1)
    of_absent = 1.0 if over == "all, absent as 1" else 0.0
    total = np.where(counted, np.nan_to_num(iou, nan=of_absent), 0.0).sum(axis=-1)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)[()]  # a scalar for one matrix


def frequency_weighted_iou(confusion: np.ndarray) -> float:
    """The mean IoU with classes weighted by their fraction of the labels (nuScenes devkit); NaN without points.

    >>> frequency_weighted_iou(np.array([[2, 1], [0, 1]]))  # IoU 2/3 and 1/2
    0.625
    """
    labels = confusion.sum(axis=-1)
    total = labels.sum()
    weighted = labels * np.nan_to_num(intersection_over_union(confusion))
    return float(weighted.sum() / total) if total else float("nan")


def accuracy(confusion: np.ndarray) -> float:
    """The fraction of points whose prediction is their label; NaN without points."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def bootstrap_interval(
    confusions: np.ndarray, over: MeanOver = "present or predicted", seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the mIoU when scenes are drawn with replacement (percentile bootstrap).

    Args:
        confusions: (S, num_classes, num_classes), one for each scene.
        seed: random seed of the draws.

    Returns:
        The 2.5th and 97.5th percentile; None for fewer than two scenes.
    """
    if len(confusions) < 2:
        return None
    scenes = len(confusions)
    draws = np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1 / scenes), size=RESAMPLES)
    low, high = np.nanpercentile(mean_iou(np.tensordot(draws, confusions, axes=1), over), [2.5, 97.5])
    return float(low), float(high)
