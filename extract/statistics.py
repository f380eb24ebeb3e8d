"""Statistics of a teacher's vectors: their mean, and their spread around it.

Features of real teachers are far from isotropic: a few channels are ten times as large as the others, and most of every
vector is one constant. Both matter when vectors are stored and when their directions are compared. `teacher_sample.py`
computes the statistics; this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class TeacherStatistics:
    """Statistics of the patch tokens, each counted once, that the pairs of some views need.

    Attributes:
        count: number of vectors, N.
        mean: (D,) float64.
        covariance: (D, D) float64, divided by N.
        mean_unit: (D,) float64, the mean of the normalised vectors.
        frames_left_out: frames of the sample that could not be used.
    """

    count: int
    mean: np.ndarray
    covariance: np.ndarray
    mean_unit: np.ndarray
    frames_left_out: int = 0

    @property
    def dim(self) -> int:
        """Number of channels, D."""
        return len(self.mean)

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation of each channel, (D,) float64."""
        return np.sqrt(np.diag(self.covariance).clip(min=0))

    def channels(self, layers: int = 1) -> np.ndarray:
        """Offset and scale of each channel for int8, (2, D) float32.

        The offset is the mean, since most of a real teacher's vector is one constant. The scale is the standard
        deviation, since a few channels spread ten times as far as the others: one scale for all would leave the others
        no steps. It is at least the root mean square of all deviations: the larger error of such a channel is small
        beside the error of the others, and a channel that is constant in the sample would otherwise have the scale 0.
        The root mean square is computed per layer: an early layer's values may be a thousandth of a late one's.

        Args:
            layers: number of layers of equal size that the vectors concatenate.
        """
        deviation = self.deviation.reshape(layers, -1)
        usual = np.sqrt(np.mean(deviation**2, axis=1, keepdims=True))
        scale = np.maximum(deviation, usual).ravel()
        return np.stack([self.mean, np.where(scale > 0, scale, 1)]).astype(np.float32)

    @property
    def mean_unit_length(self) -> float:
        """Length of the mean unit vector: 0 if directions are spread evenly, 1 if all are the same."""
        return float(np.linalg.norm(self.mean_unit))

    @property
    def effective_rank(self) -> float:
        """exp(entropy) of the fractions of variance on the principal axes (Roy and Vetterli, 2007); 0 without any."""
        variance = np.linalg.eigvalsh(self.covariance).clip(min=0)
        if not variance.any():
            return 0.0
        shares = variance[variance > 0] / variance.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    @staticmethod
    def pooled(parts: Sequence[TeacherStatistics]) -> TeacherStatistics:
        """Combine the statistics of several samples, weighted by their counts."""
        count = sum(part.count for part in parts)
        shares = [part.count / count if count else 1 / len(parts) for part in parts]
        mean = sum(share * part.mean for share, part in zip(shares, parts, strict=True))
        within = sum(share * part.covariance for share, part in zip(shares, parts, strict=True))
        apart = [part.mean - mean for part in parts]
        between = sum(share * np.outer(each, each) for share, each in zip(shares, apart, strict=True))
        mean_unit = sum(share * part.mean_unit for share, part in zip(shares, parts, strict=True))
        left_out = sum(part.frames_left_out for part in parts)
        return TeacherStatistics(count, mean, within + between, mean_unit, left_out)
