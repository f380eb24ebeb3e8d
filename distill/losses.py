"""What a student is trained to minimise."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def similarity_loss(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean distance of the unit vectors (ScaLR, equation 1); no hyper-parameter.

    The L2 norm is not squared: the official code does the same.

    Args:
        features: (M, D) of the student, any length.
        targets: (M, D) of the teacher, any length.

    Returns:
        A scalar in [0, 2], zero where all directions agree.
    """
    return torch.linalg.vector_norm(F.normalize(features, dim=1) - F.normalize(targets, dim=1), dim=1).mean()
