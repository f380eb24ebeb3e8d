"""The loss of a batch, from the student and the targets of one or several teachers."""

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
Temperature = Annotated[float, at_least(1e-4), up_to(10_000)]  # float32 holds the exponentials of cosines / temperature

OF_EACH_PAIR: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "similarity": similarity_loss,
    "cosine": cosine_loss,
    "smooth": smooth_loss,
}
OF_SEGMENTS = ("slidr", "st_slidr")
WITH_TARGET_HEAD = ("contrastive", *OF_SEGMENTS)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings, section="objective"):
    """Loss, teachers and treatment of targets; the defaults are those of ScaLR, PPKT, SLidR and ST-SLidR.

    Raises:
        StudentError: a value that cannot be used.
    """

    loss: Loss = "similarity"
    # Teacher -> weight of its unit vector in the joint target. Empty: the store's only teacher.
    teachers: dict[str, Weight] = field(default_factory=dict)
    standardise: Standardise = "none"  # see `standardisation`
    temperature: Temperature = 0.07  # contrastive, slidr, st_slidr, as target_head
    contrastive_pairs: Annotated[int, at_least(2), up_to(1_000_000)] = 4096  # per batch, of contrastive
    target_head: TargetHead = "none"  # linear: a trained layer projects targets
    target_head_channels: Annotated[int, at_least(1), up_to(65536)] = 64
    # st_slidr: the fraction of a batch's segments that are too similar to a segment to be its negatives; whether rare
    # segments have larger weights; the cosine from which two segments count as the same kind.
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
        """Output channels of the student's head for targets with `target_dim` channels."""
        return target_dim if self.target_head == "none" else self.target_head_channels

    @property
    def reads(self) -> TargetParts:
        """The parts of the targets that the loss needs."""
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
    """The losses of a batch, one per pair or segment; the loss of the batch is their weighted mean."""

    values: torch.Tensor  # (L,)
    sample: torch.Tensor  # (L,) int64
    weights: torch.Tensor | None = None  # (L,); None: all equal


class DistillObjective(nn.Module):
    """A student with the head on the targets, if any. Called with a batch, it returns the loss.

    Args:
        student: has a head with `config.output_channels` outputs, and the standardisation of its targets.
        config: the loss.
        teacher_weights: weights of the teachers, in the order of a batch's targets.
        target_dim: number of channels of all teachers together.
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
        """The mean loss over the batch's pairs or segments; and (2, B), detached: sum and number of losses per sample.

        If losses have weights, the mean and the sums are weighted, and the numbers are sums of weights.
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
        with torch.autocast(features.device.type, enabled=False):  # quantiles and logits of up to 14 need float32
            student = segment_means(F.normalize(features, dim=1), segments.row, len(segments))
            if segments.mean is not None:
                teacher = segments.mean.float()
            else:  # over pairs: the mean over all pixels would change with the head
                teacher = segment_means(F.normalize(self._targets(batch), dim=1), segments.row, len(segments))
            if config.loss == "slidr":
                return _Losses(superpixel_loss(student, teacher, config.temperature), segments.sample)
            similarity = cosines(segments.direction)
            chosen = negatives(similarity, config.tolerance_quantile)
            weights = balanced_weights(similarity, config.balance_threshold) if config.balanced else None
            return _Losses(tolerant_loss(student, teacher, chosen, config.temperature), segments.sample, weights)

    def _targets(self, batch: DistillBatch) -> torch.Tensor:
        """(R, D) float32 targets of the pairs, after head and standardisation."""
        return self.target_head(self._joint([each.decode() for each in batch.targets])).float()

    def _joint(self, targets: Sequence[torch.Tensor]) -> torch.Tensor:
        standardisation = self.student.standardisation
        return joint_targets(targets, self.teacher_weights) if standardisation is None else standardisation(targets)


def joint_targets(targets: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Targets (R, D_t) of each teacher -> (R, sum of D_t): unit vectors times weights, concatenated."""
    if len(targets) == 1:
        return targets[0]  # losses depend on its direction only
    return torch.cat([weight * F.normalize(each, dim=1) for each, weight in zip(targets, weights, strict=True)], dim=1)


def _of_each_sample(losses: _Losses, num_samples: int) -> torch.Tensor:
    values = losses.values.detach()
    weights = torch.ones_like(values) if losses.weights is None else losses.weights
    return values.new_zeros(2, num_samples).index_add_(1, losses.sample, torch.stack([values * weights, weights]))
