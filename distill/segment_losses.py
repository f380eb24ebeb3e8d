"""Losses of superpixels: SLidR (Sautier et al., 2022) and ST-SLidR (Mahmoud et al., 2023).

A segment is a superpixel of one image that holds pairs. k is the mean of the student's unit vectors over its pairs, q
that of the targets' unit vectors. Neither mean is normalised again: if features differ within a segment, the mean is
short and the logits are small. All segments of a batch are each other's negatives.

Letters in shapes: R pairs, S segments, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

COUNT_EPS = 1e-6  # added to the number of vectors of a mean, as in the official code
ROUNDING = 1e-6  # of a cosine: directions that differ by less count as equal


def segment_means(vectors: torch.Tensor, segment: torch.Tensor, num_segments: int) -> torch.Tensor:
    """(R, D) vectors and (R,) int64 segments of pairs -> (S, D): sum over each segment / (number of pairs + 1e-6)."""
    sums = vectors.new_zeros(num_segments, vectors.shape[1]).index_add(0, segment, vectors)
    return sums / (segment.bincount(minlength=num_segments)[:, None] + COUNT_EPS)


def superpixel_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of SLidR: each segment's k has to identify its q among those of all segments.

    Args:
        student: (S, D) k.
        teacher: (S, D) q.
        temperature: temperature of the softmax.

    Returns:
        (S,) cross-entropies of k q' / temperature.
    """
    return _own_among(student @ teacher.T / temperature)


def tolerant_loss(
    student: torch.Tensor, teacher: torch.Tensor, is_negative: torch.Tensor, temperature: float
) -> torch.Tensor:
    """`superpixel_loss` of ST-SLidR: logits of segments that are not negatives are set to zero, except the own one.

    As published, a zero logit still adds 1 to the softmax's denominator. It has no gradient.

    Args:
        student, teacher, temperature: as for `superpixel_loss`.
        is_negative: (S, S) bool, row i for segment i; see `negatives`.

    Returns:
        (S,) cross-entropies.
    """
    own = torch.eye(len(student), dtype=torch.bool, device=student.device)
    return _own_among(student @ teacher.T / temperature * (is_negative | own))


def cosines(directions: torch.Tensor) -> torch.Tensor:
    """Cosines (S, S) float32 between the segments' teacher vectors (S, D), of any length above zero, without a head."""
    unit = F.normalize(directions.float(), dim=1)
    return unit @ unit.T


def negatives(similarity: torch.Tensor, quantile: float) -> torch.Tensor:
    """The negatives of each segment: all segments except those that are too similar.

    The distance of segments i and j is W_ij = 1 - similarity_ij. Segment j is a negative of i if W_ij is not zero and
    not below the quantile of row i, in which i itself is included.

    Args:
        similarity: (S, S), see `cosines`.
        quantile: fraction of the segments that are too similar, for example 0.01.

    Returns:
        (S, S) bool.
    """
    distance = 1 - similarity
    return (distance >= _quantile_of_rows(distance, quantile)) & (distance > ROUNDING)


def balanced_weights(similarity: torch.Tensor, threshold: float) -> torch.Tensor:
    """Weights of the segments' losses: 0 for the segment that is most like the others, 1 for the rarest.

    Args:
        similarity: (S, S), see `cosines`.
        threshold: similarities below it count as zero.

    Returns:
        (S,) in [0, 1]; 1 for all if all are equally common.
    """
    votes = similarity.where(similarity >= threshold, 0).sum(dim=1)
    above_least = votes - votes.min()
    most = above_least.max()
    # Sums of equal votes may differ by rounding.
    return torch.where(most > ROUNDING * len(votes), 1 - above_least / most, 1.0)


def _own_among(logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


def _quantile_of_rows(values: torch.Tensor, quantile: float) -> torch.Tensor:
    """Quantile of each row, (S, S) -> (S, 1), linearly interpolated. torch.quantile takes at most 16 million values."""
    position = quantile * (values.shape[1] - 1)
    lower = int(position)
    smallest = values.topk(min(lower + 2, values.shape[1]), dim=1, largest=False).values
    return torch.lerp(smallest[:, lower], smallest[:, -1], position - lower)[:, None]
