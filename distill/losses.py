"""Losses of a pair, the student's feature and its target.

All depend only on the directions of both. The loss of a batch is their mean over the pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def similarity_loss(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Distance of the unit vectors (ScaLR, equation 1). It has no hyper-parameter.

    The L2 norm is not squared, as in the official code.

    Args:
        features: (R, D) of the student, of any length.
        targets: (R, D) of the teacher, of any length.

    Returns:
        (R,) in [0, 2]; zero if the directions are equal.

    >>> features, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -3.0]])
    >>> similarity_loss(features, targets)
    tensor([0., 2.])
    """
    return torch.linalg.vector_norm(F.normalize(features, dim=1) - F.normalize(targets, dim=1), dim=1)


def cosine_loss(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - cosine, which is half the square of `similarity_loss`: (R, D), (R, D) -> (R,) in [0, 2]."""
    return 1 - F.cosine_similarity(features, targets, dim=1)


def smooth_loss(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Smooth L1 of `similarity_loss`: `cosine_loss` for angles below 60 degrees, the distance minus 1/2 above.

    (R, D), (R, D) -> (R,) in [0, 1.5].
    """
    distance = similarity_loss(features, targets)
    return F.smooth_l1_loss(distance, torch.zeros_like(distance), reduction="none")


def contrastive_loss(features: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of PPKT (Liu et al., 2021): each feature has to identify its target among those of all pairs.

    Args:
        features: (S, D) of the student, of any length.
        targets: (S, D), of any length.
        temperature: temperature of the softmax over the cosines.

    Returns:
        (S,) cross-entropies.
    """
    logits = F.normalize(features, dim=1) @ F.normalize(targets, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
