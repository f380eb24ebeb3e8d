"""A teacher's vectors as students learn them where `objective.standardise` asks for it, and the way back.

Most of every vector of a real teacher is one constant, its mean μ. Losses that see directions only see little else.

    centre   y = v − μ
    phi_s    y = α H Uᵀ (v − μ), PHI-S (Ranzinger et al., 2024): Σ = U Λ Uᵀ is the covariance, α = 1 / √(mean of Λ), and
             H an orthonormal Hadamard matrix, which spreads the variance evenly: that of each channel of y is 1

A rotation and a scale change no angle, so with one teacher both give the same losses. Of several teachers, `centre`
puts the unit vectors of y, times their weights, side by side; `phi_s` puts y times its weight there: α makes teachers
of all scales count alike, and how far a vector is from the mean still counts.

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

ROUNDING = 1e-6  # of the mean's length: vectors that vary by less are all the same


@dataclass(frozen=True, kw_only=True)
class StandardisationConfig(Settings, section="standardisation"):
    """Which standardisation it is, and of which teachers.

    Raises:
        StudentError: a value that cannot be used.
    """

    kind: Literal["centre", "phi_s"]
    dims: Annotated[tuple[Count, ...], at_least(1)]  # channels of each teacher, in the order of a batch's targets
    weights: Annotated[tuple[Weight, ...], at_least(1)]  # of the teachers


class Standardisation(nn.Module):
    """From teachers' vectors to what a student learns, and from the student's answers to the teachers' space.

    All that depends on the teachers is in buffers: it stands in a student's file and in checkpoints, for the signs of
    eigenvectors may differ wherever they are computed again.
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
        """The standardisation of teachers; None for "none".

        Args:
            kind: which.
            statistics: by teacher, in the order of a batch's targets.
            weights: of the teachers.
            where: the setting that asks for it, for errors.

        Raises:
            StudentError: vectors that do not vary, or for "phi_s" a number of channels without a Hadamard matrix.
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
        """Of each teacher (R, D_t) vectors -> (R, D) of all together."""
        with torch.autocast(targets[0].device.type, enabled=False):  # half precision would round what is to be learnt
            centred = torch.cat(list(targets), dim=1).float() - self.mean
            parts = centred.split(self.config.dims, dim=1)
            if self.config.kind == "centre":
                standardised = [F.normalize(part, dim=1) for part in parts]
            else:
                # α is √D_t over the root mean square length.
                standardised = [
                    part @ rotation.T * (math.sqrt(dim) / length)
                    for part, rotation, dim, length in zip(
                        parts, self._rotations(), self.config.dims, self.lengths, strict=True
                    )
                ]
            pairs = zip(self.config.weights, standardised, strict=True)
            return torch.cat([weight * part for weight, part in pairs], dim=1)

    def in_space_of_teachers(self, answers: torch.Tensor) -> torch.Tensor:
        """Answers (..., D) of a student -> vectors (..., D) v of the teachers, side by side.

        Losses see directions only: an answer is taken at the root mean square length of what was learnt.
        """
        directions = F.normalize(self.unrotated(answers.float()), dim=-1)
        lengths = self._lengths_learnt()
        whole = math.hypot(*lengths)
        parts = zip(directions.split(self.config.dims, dim=-1), self.lengths, lengths, strict=True)
        centred = torch.cat([part * (length * (whole / learnt)) for part, length, learnt in parts], dim=-1)
        return (centred + self.mean).to(answers)

    def unrotated(self, answers: torch.Tensor) -> torch.Tensor:
        """Answers (..., D) with each teacher's channels as they were before the rotation: parts point along v − μ."""
        if self.config.kind == "centre":
            return answers
        parts = zip(answers.split(self.config.dims, dim=-1), self._rotations(), strict=True)
        return torch.cat([part @ rotation.to(part) for part, rotation in parts], dim=-1)

    def _rotations(self) -> Iterator[torch.Tensor]:
        return (self.get_buffer(f"rotation_{number}") for number in range(len(self.config.dims)))

    def _lengths_learnt(self) -> list[float]:
        """Of each teacher: the root mean square length of its part of what is learnt."""
        is_unit = self.config.kind == "centre"
        pairs = zip(self.config.weights, self.config.dims, strict=True)
        return [weight * (1.0 if is_unit else math.sqrt(dim)) for weight, dim in pairs]


def hadamard(order: int) -> np.ndarray | None:
    """An orthonormal Hadamard matrix (order, order) float64: all values are ±1/√order. None where none is known here.

    Sylvester's doubling of the smallest one that a construction of Paley gives, for a prime number.

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
    """Paley's two constructions: a prime of the form 4k + 3 gives its successor, one of 4k + 1 twice its successor."""
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
    """(prime, prime): at (i, j) 1 where i − j is a square other than 0 modulo the prime, 0 where it is 0, else −1."""
    numbers = np.arange(prime)
    signs = np.full(prime, -1.0)
    signs[numbers**2 % prime] = 1
    signs[0] = 0
    return signs[(numbers[:, None] - numbers) % prime]


def _is_prime(number: int) -> bool:
    return all(number % factor for factor in range(2, math.isqrt(number) + 1))  # of numbers above 1


def _rotation(teacher: str, statistics: TeacherStatistics, where: str) -> np.ndarray:
    """H Uᵀ (D_t, D_t) float64."""
    mixing = hadamard(statistics.dim)
    if mixing is None:
        raise StudentError(
            f"no Hadamard matrix is known here for the {statistics.dim} channels of {teacher}, and phi_s needs one",
            where=where,
            fix="Use objective.standardise=centre.",
        )
    _, axes = np.linalg.eigh(statistics.covariance)
    return mixing @ axes.T
