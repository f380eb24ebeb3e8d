"""Vectors as those of real teachers, and standardisations of them."""

from __future__ import annotations

import torch

from scalr.distill.standardisation import Standardisation
from scalr.extract.statistics import TeacherStatistics, VectorSums

WEIGHTS = (1.0, 0.5)


def vectors_of(dim: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """(2000, dim), as those of real teachers: a large constant, a few large channels, channels that go together."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, dim) * torch.randn(dim, dim, generator=generator)
    return scale * (torch.randn(2000, dim, generator=generator) @ spread + 3 * torch.randn(dim, generator=generator))


def statistics_of(vectors: torch.Tensor) -> TeacherStatistics:
    sums = VectorSums(vectors.shape[1])
    sums.add(vectors)
    return sums.statistics()


def standardisation_of(kind: str, *vectors: torch.Tensor, weights: tuple[float, ...] | None = None) -> Standardisation:
    statistics = {f"teacher {number}": statistics_of(each) for number, each in enumerate(vectors)}
    return Standardisation.of(kind, statistics, weights or WEIGHTS[: len(vectors)], "objective.standardise")
