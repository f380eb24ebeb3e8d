"""What a student is trained to minimise: losses of each pair of a student's feature and its target.

All see directions only. Their means over the pairs are the losses of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def similarity_loss(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Distance of the unit vectors (ScaLR, equation 1); no hyper-parameter.

    The L2 norm is not squared: the official code does the same.

    Args:
        features: (R, D) of the student, any length.
        targets: (R, D) of the teacher, any length.

    Returns:
        (R,) in [0, 2], zero where the directions agree.

    >>> features, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -3.0]])
    >>> similarity_loss(features, targets)
    tensor([0., 2.])
    """
    return torch.linalg.vector_norm(F.normalize(features, dim=1) - F.normalize(targets, dim=1), dim=1)


def cosine_loss(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - cosine: half the square of `similarity_loss`. (R, D), (R, D) -> (R,) in [0, 2]."""
    return 1 - F.cosine_similarity(features, targets, dim=1)


def smooth_loss(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Smooth L1 of `similarity_loss`: as `cosine_loss` for angles below 60 degrees, as the distance minus 1/2 above.

    (R, D), (R, D) -> (R,) in [0, 1.5].
    """
    distance = similarity_loss(features, targets)
    return F.smooth_l1_loss(distance, torch.zeros_like(distance), reduction="none")


def contrastive_loss(features: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of PPKT (Liu et al., 2021): each feature tells its own target from those of the other pairs.

    Args:
        features: (S, D) of the student, any length.
        targets: (S, D), any length.
        temperature: of the softmax over the cosines.

    Returns:
        (S,) cross-entropies.
    """
    logits = F.normalize(features, dim=1) @ F.normalize(targets, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
