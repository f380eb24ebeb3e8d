"""From a batch to its loss: student, targets of one or several teachers, and the loss between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..settings import Settings, Weight, at_least, up_to
from .dataset import DistillBatch
from .losses import contrastive_loss, cosine_loss, similarity_loss, smooth_loss
from .standardisation import Standardise
from .student import Student

Loss = Literal["similarity", "cosine", "smooth", "contrastive"]
TargetHead = Literal["none", "linear"]
Temperature = Annotated[float, at_least(1e-4), up_to(10_000)]  # of cosines: float32 holds their exponents

OF_EACH_PAIR: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "similarity": similarity_loss,
    "cosine": cosine_loss,
    "smooth": smooth_loss,
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings, section="objective"):
    """What is learnt; the defaults are ScaLR's, those of the contrastive loss PPKT's.

    Raises:
        StudentError: a value that cannot be used.
    """

    loss: Loss = "similarity"
    # Teacher -> weight of its unit vector in the joint target; empty takes the store's only one.
    teachers: dict[str, Weight] = field(default_factory=dict)
    standardise: Standardise = "none"  # of the teachers' vectors, see `standardisation`
    temperature: Temperature = 0.07  # contrastive only, as all below
    contrastive_pairs: Annotated[int, at_least(1), up_to(1_000_000)] = 4096  # drawn from a batch
    target_head: TargetHead = "none"  # linear: targets are projected too, by weights that are learnt
    target_head_channels: Annotated[int, at_least(1), up_to(65536)] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_head != "none" and self.loss != "contrastive":
            fix = "Use it with loss contrastive: others would make all targets equal"
            raise self.refused("target_head", self.target_head, fix)
        if self.target_head != "none" and self.standardise != "none":
            fix = (
                "Use none with a target_head: its linear layer learns to take away the mean, and to rotate, by itself."
            )
            raise self.refused("standardise", self.standardise, fix)

    def output_channels(self, target_dim: int) -> int:
        """Channels of the student's head, for targets of so many."""
        return target_dim if self.target_head == "none" else self.target_head_channels


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
        """The mean over the batch's pairs; and, detached, (2, B): sum and number of the losses of each sample."""
        features = self.student(batch.inputs).float()
        features = features if batch.point is None else features.index_select(0, batch.point)
        targets = self.target_head(self._joint([each.decode() for each in batch.targets]))
        targets, sample = targets.float(), batch.sample
        if self.config.loss != "contrastive":
            losses = OF_EACH_PAIR[self.config.loss](features, targets)
        else:
            drawn = torch.randperm(len(features), device=features.device)[: self.config.contrastive_pairs]
            losses = contrastive_loss(features[drawn], targets[drawn], self.config.temperature)
            sample = sample[drawn]
        return losses.mean(), _of_each_sample(losses.detach(), sample, batch.inputs.num_scans)

    def _joint(self, targets: Sequence[torch.Tensor]) -> torch.Tensor:
        standardisation = self.student.standardisation
        return joint_targets(targets, self.teacher_weights) if standardisation is None else standardisation(targets)


def joint_targets(targets: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Of each teacher (R, D_t) -> (R, sum of D_t): the unit vectors times their weights, one after the other."""
    if len(targets) == 1:
        return targets[0]  # the losses see its direction only
    return torch.cat([weight * F.normalize(each, dim=1) for each, weight in zip(targets, weights, strict=True)], dim=1)


def _of_each_sample(losses: torch.Tensor, sample: torch.Tensor, num_samples: int) -> torch.Tensor:
    sums = losses.new_zeros(2, num_samples)
    return sums.index_add_(1, sample, torch.stack([losses, torch.ones_like(losses)]))
