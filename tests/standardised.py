"""Vectors as those of real teachers, and standardisations of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from scalr.distill.standardisation import Standardisation
from scalr.extract.statistics import TeacherStatistics

WEIGHTS = (1.0, 0.5)


def vectors_of(dim: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """(2000, dim), as those of real teachers: a large constant, a few large channels, channels that go together."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, dim) * torch.randn(dim, dim, generator=generator)
    return scale * (torch.randn(2000, dim, generator=generator) @ spread + 3 * torch.randn(dim, generator=generator))


def statistics_of(vectors: torch.Tensor) -> TeacherStatistics:
    """By sums of squares, as extraction has them, whose last bits are noise."""
    vectors = vectors.double()
    mean = vectors.mean(dim=0)
    covariance = vectors.T @ vectors / len(vectors) - torch.outer(mean, mean)
    mean_unit = F.normalize(vectors, dim=1).mean(dim=0)
    return TeacherStatistics(len(vectors), mean.numpy(), covariance.numpy(), mean_unit.numpy())


def standardisation_of(kind: str, *vectors: torch.Tensor, weights: tuple[float, ...] | None = None) -> Standardisation:
    statistics = {f"teacher {number}": statistics_of(each) for number, each in enumerate(vectors)}
    return Standardisation.of(kind, statistics, weights or WEIGHTS[: len(vectors)], "objective.standardise")
