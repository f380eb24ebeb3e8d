"""Standardisation of teachers' vectors (`objective.standardise`), and its inverse.

Most of every vector of a real teacher is one constant, the mean μ. Losses that depend on directions see little else.

    centre   y = v − μ
    phi_s    y = α H Uᵀ (v − μ), PHI-S (Ranzinger et al., 2024): Σ = U Λ Uᵀ is the covariance, α = 1 / √(mean of Λ), and
             H an orthonormal Hadamard matrix, which spreads the variance evenly: each channel of y has a variance of 1

A rotation and a scale change no angle, so with one teacher both give the same losses. With several teachers, `centre`
concatenates the unit vectors of y times the teachers' weights. `phi_s` concatenates y times the weight: α makes
teachers of all scales count alike, while vectors far from the mean count more than those near it.

Letters in shapes: T teachers, D_t channels of one, D of all together, R pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import StudentError
from ..extract.statistics import TeacherStatistics
from ..settings import Count, Settings, Weight, at_least

Standardise = Literal["none", "centre", "phi_s"]

ROUNDING = 1e-6  # as a fraction of the mean's length: vectors that vary by less are all equal


@dataclass(frozen=True, kw_only=True)
class StandardisationConfig(Settings, section="standardisation"):
    """The kind of standardisation, and its teachers.

    Raises:
        StudentError: a value that cannot be used.
    """

    kind: Literal["centre", "phi_s"]
    dims: Annotated[tuple[Count, ...], at_least(1)]  # channels of each teacher, in the order of a batch's targets
    weights: Annotated[tuple[Weight, ...], at_least(1)]  # weight of each teacher


class Standardisation(nn.Module):
    """Maps teachers' vectors to what a student learns, and the student's outputs back to the teachers' space.

    Everything that depends on the teachers is in buffers, and so in student files and checkpoints, because eigenvectors
    may have other signs when they are computed again.
    """

    def __init__(self, config: StandardisationConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(sum(config.dims)))  # (D,)
        self.register_buffer("lengths", torch.ones(len(config.dims)))  # (T,) root mean square of |v − μ|
        for number, dim in enumerate(config.dims if config.kind == "phi_s" else ()):
            self.register_buffer(f"rotation_{number}", torch.eye(dim))  # (D_t, D_t), H Uᵀ

    @classmethod
    def of(
        cls, kind: Standardise, statistics: Mapping[str, TeacherStatistics], weights: Sequence[float], where: str
    ) -> Standardisation | None:
        """Make the standardisation for teachers; None for "none".

        Args:
            kind: the kind of standardisation.
            statistics: statistics by teacher, in the order of a batch's targets.
            weights: weight of each teacher.
            where: the setting that asks for it, for errors.

        Raises:
            StudentError: vectors do not vary, or "phi_s" has no Hadamard matrix for the number of channels.
        """
        if kind == "none":
            return None
        dims = tuple(each.dim for each in statistics.values())
        made = cls(StandardisationConfig(kind=kind, dims=dims, weights=tuple(weights)))
        made.mean.copy_(torch.from_numpy(np.concatenate([each.mean for each in statistics.values()])))
        for number, (teacher, each) in enumerate(statistics.items()):
            if each.count == 0:
                raise StudentError(
                    f"the store's statistics of {teacher} are of 0 vectors: no sampled frame has a visible point",
                    where=where,
                    fix="Repeat the 'scalr extract' command that wrote the store, once these frames can be used.",
                )
            length = math.sqrt(max(0.0, float(np.trace(each.covariance))))
            if length <= ROUNDING * np.linalg.norm(each.mean):
                raise StudentError(
                    f"the {each.count} vectors of {teacher} in the store's statistics are all the same",
                    where=where,
                    fix="Check the teacher's weights, and extract its targets again.",
                )
            made.lengths[number] = length
            if kind == "phi_s":
                made.get_buffer(f"rotation_{number}").copy_(torch.from_numpy(_rotation(teacher, each, where)))
        return made

    def forward(self, targets: Sequence[torch.Tensor]) -> torch.Tensor:
        """Vectors (R, D_t) of each teacher -> targets (R, D) of all teachers."""
        with torch.autocast(targets[0].device.type, enabled=False):  # half precision would round the targets
            centred = torch.cat(list(targets), dim=1).float() - self.mean
            parts = centred.split(self.config.dims, dim=1)
            if self.config.kind == "centre":
                standardised = [F.normalize(part, dim=1) for part in parts]
            else:
                # α is √D_t / root mean square length.
                standardised = [
                    part @ rotation.T * (math.sqrt(dim) / length)
                    for part, rotation, dim, length in zip(
                        parts, self._rotations(), self.config.dims, self.lengths, strict=True
                    )
                ]
            pairs = zip(self.config.weights, standardised, strict=True)
            return torch.cat([weight * part for weight, part in pairs], dim=1)

    def in_space_of_teachers(self, answers: torch.Tensor) -> torch.Tensor:
        """Outputs (..., D) of a student -> vectors v (..., D) of the teachers, concatenated.

        Losses depend on directions only, so an output is scaled to the root mean square length of the targets.
        """
        directions = F.normalize(self.unrotated(answers.float()), dim=-1)
        lengths = self._lengths_learnt()
        whole = math.hypot(*lengths)
        parts = zip(directions.split(self.config.dims, dim=-1), self.lengths, lengths, strict=True)
        centred = torch.cat([part * (length * (whole / learnt)) for part, length, learnt in parts], dim=-1)
        return (centred + self.mean).to(answers)

    def unrotated(self, answers: torch.Tensor) -> torch.Tensor:
        """Outputs (..., D) with each teacher's rotation undone: their parts have the directions of v − μ."""
        if self.config.kind == "centre":
            return answers
        parts = zip(answers.split(self.config.dims, dim=-1), self._rotations(), strict=True)
        return torch.cat([part @ rotation.to(part) for part, rotation in parts], dim=-1)

    def _rotations(self) -> Iterator[torch.Tensor]:
        return (self.get_buffer(f"rotation_{number}") for number in range(len(self.config.dims)))

    def _lengths_learnt(self) -> list[float]:
        """Root mean square length of each teacher's part of the targets."""
        is_unit = self.config.kind == "centre"
        pairs = zip(self.config.weights, self.config.dims, strict=True)
        return [weight * (1.0 if is_unit else math.sqrt(dim)) for weight, dim in pairs]


def hadamard(order: int) -> np.ndarray | None:
    """An orthonormal Hadamard matrix (order, order) float64, with values ±1/√order. None if no construction applies.

    Sylvester's doubling, from the smallest matrix that one of Paley's constructions gives for a prime number.

    >>> hadamard(2) * 2**0.5
    array([[ 1.,  1.],
           [ 1., -1.]])
    """
    signs = _hadamard_signs(order)
    return None if signs is None else signs / math.sqrt(order)


def _hadamard_signs(order: int) -> np.ndarray | None:
    if order == 1:
        return np.ones((1, 1))
    half = _hadamard_signs(order // 2) if order % 2 == 0 else None
    return _paley(order) if half is None else np.kron([[1, 1], [1, -1]], half)


def _paley(order: int) -> np.ndarray | None:
    """Paley's constructions: a prime p = 4k + 3 gives the order p + 1, a prime p = 4k + 1 the order 2 (p + 1)."""
    if order % 4:
        return None
    if _is_prime(order - 1):
        border = np.ones(order - 1)
        conference = np.block([[np.zeros((1, 1)), border], [-border[:, None], _residues(order - 1)]])
        return conference + np.eye(order)
    prime = order // 2 - 1
    if prime % 4 == 1 and _is_prime(prime):
        border = np.ones(prime)
        conference = np.block([[np.zeros((1, 1)), border], [border[:, None], _residues(prime)]])
        return np.kron(conference, [[1, 1], [1, -1]]) + np.kron(np.eye(prime + 1), [[1, -1], [-1, -1]])
    return None


def _residues(prime: int) -> np.ndarray:
    """(prime, prime): at (i, j), 0 if i = j, 1 if i − j is a square modulo the prime, else −1."""
    numbers = np.arange(prime)
    signs = np.full(prime, -1.0)
    signs[numbers**2 % prime] = 1
    signs[0] = 0
    return signs[(numbers[:, None] - numbers) % prime]


def _is_prime(number: int) -> bool:
    return all(number % factor for factor in range(2, math.isqrt(number) + 1))  # for numbers above 1


def _rotation(teacher: str, statistics: TeacherStatistics, where: str) -> np.ndarray:
    """H Uᵀ (D_t, D_t) float64."""
    mixing = hadamard(statistics.dim)
    if mixing is None:
        raise StudentError(
            f"no Hadamard matrix is known here for the {statistics.dim} channels of {teacher}, and phi_s needs one",
            where=where,
            fix="Use centre.",
        )
    _, axes = np.linalg.eigh(statistics.covariance)
    return mixing @ axes.T
