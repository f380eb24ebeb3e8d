"""From a batch to its loss: student, targets of one or several teachers, and the loss between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..settings import Settings, Weight, at_least, below, up_to
from .dataset import DistillBatch
from .losses import contrastive_loss, cosine_loss, similarity_loss, smooth_loss
from .segment_losses import balanced_weights, cosines, negatives, segment_means, superpixel_loss, tolerant_loss
from .segments import PAIRS, TargetParts
from .standardisation import Standardise
from .student import Student

Loss = Literal["similarity", "cosine", "smooth", "contrastive", "slidr", "st_slidr"]
TargetHead = Literal["none", "linear"]
Temperature = Annotated[float, at_least(1e-4), up_to(10_000)]  # of cosines: float32 holds their exponents

OF_EACH_PAIR: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "similarity": similarity_loss,
    "cosine": cosine_loss,
    "smooth": smooth_loss,
}
OF_SEGMENTS = ("slidr", "st_slidr")
WITH_TARGET_HEAD = ("contrastive", *OF_SEGMENTS)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings, section="objective"):
    """What is learnt; the defaults are ScaLR's, those of other losses those of PPKT, SLidR and ST-SLidR.

    Raises:
        StudentError: a value that cannot be used.
    """

    loss: Loss = "similarity"
    # Teacher -> weight of its unit vector in the joint target; empty takes the store's only one.
    teachers: dict[str, Weight] = field(default_factory=dict)
    standardise: Standardise = "none"  # of the teachers' vectors, see `standardisation`
    temperature: Temperature = 0.07  # contrastive, slidr and st_slidr only, as the target_head
    contrastive_pairs: Annotated[int, at_least(2), up_to(1_000_000)] = 4096  # contrastive: drawn from a batch
    target_head: TargetHead = "none"  # linear: targets are projected too, by weights that are learnt
    target_head_channels: Annotated[int, at_least(1), up_to(65536)] = 64
    # st_slidr: the share of a batch's segments that are too similar to a segment to be told from it; whether rare
    # segments weigh more, and from which cosine on two segments are of one kind.
    tolerance_quantile: Annotated[float, at_least(0), below(1)] = 0.01
    balanced: bool = True
    balance_threshold: Annotated[float, at_least(-1), up_to(1)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_head != "none" and self.loss not in WITH_TARGET_HEAD:
            fix = f"Use it with loss {', '.join(WITH_TARGET_HEAD)}: others would make all targets equal."
            raise self.refused("target_head", self.target_head, fix)
        if self.loss in OF_SEGMENTS and self.standardise != "none":
            fix = f"Use none with loss {self.loss}: the store has the means of its segments as they are."
            raise self.refused("standardise", self.standardise, fix)
        if self.loss in OF_SEGMENTS and len(self.teachers) > 1:
            fix = f"Use one teacher with loss {self.loss}, or loss contrastive with several."
            raise self.refused("teachers", list(self.teachers), fix)
        if self.target_head != "none" and self.standardise != "none":
            fix = (
                "Use none with a target_head: its linear layer learns to take away the mean, and to rotate, by itself."
            )
            raise self.refused("standardise", self.standardise, fix)

    def output_channels(self, target_dim: int) -> int:
        """Channels of the student's head, for targets of so many."""
        return target_dim if self.target_head == "none" else self.target_head_channels

    @property
    def reads(self) -> TargetParts:
        """What of the targets the loss is of."""
        if self.loss not in OF_SEGMENTS:
            return PAIRS
        has_head = self.target_head != "none"
        return TargetParts(pairs=has_head, segments=True, means=not has_head, directions=self.loss == "st_slidr")


def unrelated_loss(config: ObjectiveConfig) -> float | None:
    """The loss of features at right angles to their targets; None for losses of several pairs at once.

    >>> [unrelated_loss(ObjectiveConfig(loss=name)) for name in ("cosine", "contrastive")]
    [1.0, None]
    """
    loss, (feature, target) = OF_EACH_PAIR.get(config.loss), torch.eye(2).split(1)
    return None if loss is None else loss(feature, target).item()


class _Losses(NamedTuple):
    """What a batch's loss is the weighted mean of."""

    values: torch.Tensor  # (L,)
    sample: torch.Tensor  # (L,) int64
    weights: torch.Tensor | None = None  # (L,); None: all alike


class DistillObjective(nn.Module):
    """A student and what is learnt beside it; called with a batch, it gives the loss.

    Args:
        student: with a head for `config.output_channels`, and the standardisation of what it is to learn.
        config: the loss.
        teacher_weights: in the order of a batch's targets.
        target_dim: of all teachers together.
    """

    def __init__(
        self, student: Student, config: ObjectiveConfig, teacher_weights: Sequence[float], target_dim: int
    ) -> None:
        super().__init__()
        self.student, self.config, self.teacher_weights = student, config, tuple(teacher_weights)
        self.target_head = (
            nn.Linear(target_dim, config.target_head_channels) if config.target_head == "linear" else nn.Identity()
        )

    def forward(self, batch: DistillBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean over the batch's pairs or segments; and, detached, (2, B): sum and number of each sample's losses.

        Where losses have weights, the mean, the sums and the numbers are of weighted losses.
        """
        features = self.student(batch.inputs).float()
        features = features if batch.point is None else features.index_select(0, batch.point)
        losses = (self._of_pairs if batch.segments is None else self._of_segments)(features, batch)
        of_samples = _of_each_sample(losses, batch.inputs.num_scans)
        if losses.weights is None:
            return losses.values.mean(), of_samples
        return (losses.weights * losses.values).sum() / losses.weights.sum(), of_samples

    def _of_pairs(self, features: torch.Tensor, batch: DistillBatch) -> _Losses:
        targets = self._targets(batch)
        if self.config.loss != "contrastive":
            return _Losses(OF_EACH_PAIR[self.config.loss](features, targets), batch.sample)
        drawn = torch.randperm(len(features), device=features.device)[: self.config.contrastive_pairs]
        losses = contrastive_loss(features[drawn], targets[drawn], self.config.temperature)
        return _Losses(losses, batch.sample[drawn])

    def _of_segments(self, features: torch.Tensor, batch: DistillBatch) -> _Losses:
        segments, config = batch.segments, self.config
        with torch.autocast(features.device.type, enabled=False):  # quantiles and logits of up to 14
            student = segment_means(F.normalize(features, dim=1), segments.row, len(segments))
            if segments.mean is not None:
                teacher = segments.mean.float()
            else:  # of the pairs: those of all pixels would change with the head
                teacher = segment_means(F.normalize(self._targets(batch), dim=1), segments.row, len(segments))
            if config.loss == "slidr":
                return _Losses(superpixel_loss(student, teacher, config.temperature), segments.sample)
            similarity = cosines(segments.direction)
            chosen = negatives(similarity, config.tolerance_quantile)
            weights = balanced_weights(similarity, config.balance_threshold) if config.balanced else None
            return _Losses(tolerant_loss(student, teacher, chosen, config.temperature), segments.sample, weights)

    def _targets(self, batch: DistillBatch) -> torch.Tensor:
        """(R, D) float32 that the pairs' features are compared with."""
        return self.target_head(self._joint([each.decode() for each in batch.targets])).float()

    def _joint(self, targets: Sequence[torch.Tensor]) -> torch.Tensor:
        standardisation = self.student.standardisation
        return joint_targets(targets, self.teacher_weights) if standardisation is None else standardisation(targets)


def joint_targets(targets: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Of each teacher (R, D_t) -> (R, sum of D_t): the unit vectors times their weights, one after the other."""
    if len(targets) == 1:
        return targets[0]  # the losses see its direction only
    return torch.cat([weight * F.normalize(each, dim=1) for each, weight in zip(targets, weights, strict=True)], dim=1)


def _of_each_sample(losses: _Losses, num_samples: int) -> torch.Tensor:
    values = losses.values.detach()
    weights = torch.ones_like(values) if losses.weights is None else losses.weights
    return values.new_zeros(2, num_samples).index_add_(1, losses.sample, torch.stack([values * weights, weights]))
