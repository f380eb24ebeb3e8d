"""Losses for training a segmentation head: cross-entropy and Lovász-softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..extract.datasets.labels import IGNORE_LABEL


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy + Lovász-softmax, each averaged over the labelled points of the batch.

    Args:
        logits: (M, num_classes).
        labels: (M,) int64 train ids; points with IGNORE_LABEL are left out.

    Returns:
        A scalar; zero, with zero gradients, if no point is labelled.
    """
    labelled = labels != IGNORE_LABEL
    if not labelled.any():
        return logits.sum() * 0
    logits, labels = logits[labelled], labels[labelled]
    return F.cross_entropy(logits, labels) + lovasz_softmax(logits.softmax(dim=1), labels)


def lovasz_softmax(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The Lovász extension of the Jaccard loss (Berman et al., CVPR 2018), mean over the classes present.

    Args:
        probabilities: (M, num_classes), rows sum to one.
        labels: (M,) int64.
    """
    classes = labels.unique()
    truth = (labels[:, None] == classes).to(probabilities.dtype)
    errors = (truth - probabilities[:, classes]).abs()
    errors, order = errors.sort(dim=0, descending=True)
    return (errors * _jaccard_steps(truth.gather(0, order))).sum(dim=0).mean()


def _jaccard_steps(truth: torch.Tensor) -> torch.Tensor:
    """The increase of the Jaccard loss as each point, in order of error, becomes wrong: (M, classes)."""
    positives = truth.sum(dim=0)
    intersection = positives - truth.cumsum(dim=0)
    union = positives + (1 - truth).cumsum(dim=0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
