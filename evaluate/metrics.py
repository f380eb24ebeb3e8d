"""Segmentation metrics from one confusion matrix over all points of all frames."""

from __future__ import annotations

import numpy as np

from ..extract.datasets.labels import IGNORE_LABEL


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Count points by (label, prediction).

    Args:
        labels: (N,) train ids; IGNORE_LABEL is left out.
        predictions: (N,) train ids.

    Returns:
        (num_classes, num_classes) int64, rows are labels.
    """
    counted = labels != IGNORE_LABEL
    pairs = labels[counted].astype(np.int64) * num_classes + predictions[counted].astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, (num_classes,) float64; NaN for a class that is neither present nor predicted."""
    intersection = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return np.divide(intersection, union, out=np.full(len(confusion), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean over the classes that are present or predicted, as in the official code (np.nanmean)."""
    return float(np.nanmean(intersection_over_union(confusion)))
