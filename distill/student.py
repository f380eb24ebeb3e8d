"""A student: a lidar backbone with a head that maps its features to the teacher's space or to classes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import nn

from ..errors import StudentError
from ..extract.intensity import IntensityStatistics, intensity_statistics
from .backbones import settings_of
from .backbones.backbone import BackboneConfig, PackedBatch, PreparedScan, ScanInputs
from .backbones.calls import features_of, inputs_for, network_of, packed
from .heads import new_head
from .inputs import as_float32, evaluation_input
from .standardisation import Standardisation

FEATURES_WANTED = "Pass the result of student.extract, of shape (N, width)."
BATCH_POINTS = 100_000  # points per batch in `Student.extract_all`
BESIDE = ("classif.", "standardisation.")  # prefixes of tensors that are not the backbone's


class Student(nn.Module):
    """A lidar backbone with a head that maps its features to the teacher's space, to a standardised one, or to classes.

    `extract` gives features of a raw scan, `project` maps features to the teacher's space. Called with a batch, a
    student returns the head's outputs with gradients.

    Tensors have the backbone's own names, `classif.` for the head, and `standardisation.`.

    Args:
        config: the network, a backbone's `Config`. Default: WaffleIron.
        input_config: how scans become the network's input, the same backbone's `Inputs`. Default: its defaults.
        standardisation: standardisation of the targets, which `project` undoes. None: targets are not standardised.

    Raises:
        StudentError: an unknown backbone, settings of two backbones, or an invalid user-defined backbone.

    Examples:
        >>> import numpy as np
        >>> from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
        >>> student = Student(WaffleIronConfig(width=96, depth=3, out_channels=1024)).eval()
        >>> points = np.random.default_rng(0).uniform(-20, 20, (500, 4)).astype(np.float32)  # a raw scan
        >>> features = student.extract(points, dataset="nuscenes")
        >>> features.shape, student.project(features).shape
        (torch.Size([500, 96]), torch.Size([500, 1024]))
    """

    def __init__(
        self,
        config: BackboneConfig | None = None,
        input_config: ScanInputs | None = None,
        standardisation: Standardisation | None = None,
    ) -> None:
        super().__init__()
        self.config, self.input_config = settings_of(config or {}, input_config or {})
        self.backbone = network_of(self.config, self.input_config)
        self.classif = new_head(self.config.head, self.width, self.config.out_channels)
        self.standardisation = standardisation
        taken = sorted(name for name in self.backbone.state_dict() if name.startswith(BESIDE))
        if taken:
            raise StudentError(
                f"the backbone's tensor {taken[0]} has a name that is reserved for the head or the standardisation",
                where=self.config.backbone,
                fix="Choose another name for the module that holds the tensor.",
            )

    @property
    def width(self) -> int:
        """C, the number of channels of a point feature."""
        return self.backbone.width

    @property
    def device(self) -> torch.device:
        return next(self.classif.parameters()).device

    def state_dict(
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """torch's state dict, but without the prefix `backbone.`, so that files do not depend on this class."""
        destination = OrderedDict() if destination is None else destination
        for name, module in self.named_children():
            own = prefix if module is self.backbone else f"{prefix}{name}."
            module.state_dict(destination=destination, prefix=own, keep_vars=keep_vars)
        return destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in [name for name in state_dict if name.startswith(prefix)]:
            own = name.removeprefix(prefix)
            if not own.startswith(BESIDE):
                state_dict[f"{prefix}backbone.{own}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Outputs of the head (M, D), for training. `answers` maps features to the teacher's space."""
        return self.classif(self.tokens(batch))

    def answers(self, tokens: torch.Tensor) -> torch.Tensor:
        """Point features (..., C) -> (..., D) in the teacher's space, in the student's mode and with gradients."""
        of_head = self.classif(tokens)
        return of_head if self.standardisation is None else self.standardisation.in_space_of_teachers(of_head)

    def tokens(self, batch: PackedBatch) -> torch.Tensor:
        """Point features (M, C) after the last layer, which probing uses.

        Raises:
            StudentError: a batch of a single point in training mode, for which batch norm has no statistics; or a
                user-defined backbone that does not return a feature per row.
        """
        if self.training and batch.num_points < 2:
            raise StudentError(
                "the batch has a single point",
                where="training",
                fix="Enlarge the batch, or leave out scans with so few points",
            )
        return features_of(self.backbone, batch, next(self.classif.parameters()).dtype)

    @torch.no_grad()
    def project(self, features: torch.Tensor | ArrayLike) -> torch.Tensor:
        """Point features (..., C) -> (..., D) in the teacher's space, without gradients and in eval mode.

        For training, call the student, or `tokens` and the head, `classif`.

        Args:
            features: numbers of any type on any device; they are moved to the student's device.

        Raises:
            StudentError: not numbers, or another number of channels than the student's width.
        """
        if not isinstance(features, torch.Tensor):
            features = torch.from_numpy(as_float32(features, "features", where="project", wanted=FEATURES_WANTED))
        if features.shape[-1:] != (self.width,) or features.is_complex():
            raise StudentError(
                f"features are {features.dtype} of shape {tuple(features.shape)}, and the student's have"
                f" {self.width} columns",
                where="project",
                fix=FEATURES_WANTED,
            )
        with _eval_mode(self):
            return self.answers(features.to(next(self.classif.parameters())))

    def compile_layers(self) -> None:
        """Compile the backbone's layers with torch.compile at their next use.

        Raises:
            StudentError: the backbone has no such layers.
        """
        self.backbone.compile_layers()

    def checkpoint_activations(self, where: str) -> None:
        """In training, recompute the activations of the backbone's layers in the backward pass instead of keeping them.

        Args:
            where: the setting that asks for it, for errors.

        Raises:
            StudentError: the backbone does not support it.
        """
        if self.backbone.activation_checkpointing is None:
            raise StudentError(
                f"{type(self.backbone).__name__} does not support activation checkpointing",
                where=where,
                fix="Leave out this setting; to save memory, use smaller batches.",
            )
        self.backbone.activation_checkpointing = True

    def extract(self, points: ArrayLike, dataset: str | IntensityStatistics = "nuscenes") -> torch.Tensor:
        """Features of a raw scan by the official evaluation protocol of its backbone (`inputs.evaluation_input`).

        Args:
            points: (N, 4) x y z [m] in the lidar frame and raw return intensity, of any numeric type.
            dataset: the dataset of the scan: its name, which selects intensity statistics and field of view
                (`ScanInputs.for_dataset`), or its intensity statistics only.

        Returns:
            (N, C) float32 on the student's device, without gradients, computed in eval mode.

        Raises:
            ScalrError: unknown dataset, or unusable points.
        """
        return next(self.extract_all([points], dataset))

    def extract_all(
        self, scans: Iterable[ArrayLike], dataset: str | IntensityStatistics = "nuscenes"
    ) -> Iterator[torch.Tensor]:
        """`extract` for any number of scans, in their order.

        Scans are batched up to `BATCH_POINTS` points, so memory depends on the largest scan, not on their number.
        """
        statistics, inputs = dataset, self.input_config
        if isinstance(dataset, str):
            statistics, inputs = intensity_statistics(dataset), inputs_for(inputs, dataset)
        waiting: list[PreparedScan] = []
        for points in scans:
            scan = evaluation_input(points, statistics, inputs)
            if waiting and sum(len(each.kept) for each in waiting) + len(scan.kept) > BATCH_POINTS:
                yield from self._extract_batch(waiting, inputs)
                waiting = []
            waiting.append(scan)
        if waiting:
            yield from self._extract_batch(waiting, inputs)

    @torch.no_grad()
    def _extract_batch(self, scans: Sequence[PreparedScan], inputs: ScanInputs) -> list[torch.Tensor]:
        """Features of the raw points of each scan."""
        batch = packed(inputs, scans)
        with _eval_mode(self):
            tokens = self.tokens(batch.to(self.device)).float()
        per_scan = tokens.split(batch.scan_offsets.diff().tolist())
        return [rows[torch.from_numpy(scan.row).to(self.device)] for rows, scan in zip(per_scan, scans, strict=True)]


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode within the context. Each submodule gets its own mode back, since probing trains a head alone."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
