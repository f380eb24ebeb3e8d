"""A student: a lidar backbone, and the head that maps its features to the teacher's space or to classes."""

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
BATCH_POINTS = 100_000  # of the scans that `Student.extract` puts through the network at a time
BESIDE = ("classif.", "standardisation.")  # what names of tensors begin with that are not of the backbone


class Student(nn.Module):
    """A lidar backbone and the head that maps its features to the teacher's space, or to a standardised one.

    The names of its tensors are the backbone's own, then those of the head, `classif`, and the standardisation.

    Args:
        config: the network: `Config` of a backbone; left out, WaffleIron.
        input_config: how scans become its input: `Inputs` of the same backbone; left out, its defaults.
        standardisation: of the teachers' vectors that it learns; `project` undoes it. None where it learns them as
            they are.

    Raises:
        StudentError: an unknown backbone, settings of two, or a backbone of one's own that is none.

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
        """C, channels of a feature."""
        return self.backbone.width

    @property
    def device(self) -> torch.device:
        return next(self.classif.parameters()).device

    def state_dict(
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """As torch has it, but the backbone's tensors have their own names: files do not say where it is kept here."""
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
        """(M, D): what the head makes of the points, to be trained: `answers` has it in the teacher's space."""
        return self.classif(self.tokens(batch))

    def answers(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., C) tokens -> (..., D) in the teacher's space, in the student's mode and with gradients."""
        of_head = self.classif(tokens)
        return of_head if self.standardisation is None else self.standardisation.in_space_of_teachers(of_head)

    def tokens(self, batch: PackedBatch) -> torch.Tensor:
        """(M, C): the points' tokens after the last layer, which probing reads.

        Raises:
            StudentError: a batch of a single point while training, for which batch norm has no statistics; no
                features of its rows, of a backbone of one's own.
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
        """(..., C) features -> (..., D), in the teacher's space: without gradients and in eval mode, as `extract`.

        What trains calls the student itself, or `tokens` and the head, `classif`.

        Args:
            features: numbers of any kind, on any device; taken to the student's.

        Raises:
            StudentError: no numbers, or not as many for a point as the student is wide.
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
        """Let torch.compile make the kernels of the backbone's layers, from their next use on.

        Raises:
            StudentError: the backbone has no such layers.
        """
        self.backbone.compile_layers()

    def checkpoint_activations(self, where: str) -> None:
        """While training, compute the activations of the backbone's layers again instead of keeping them.

        Args:
            where: what asks for it, for errors.

        Raises:
            StudentError: the backbone cannot do that.
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
            points: (N, 4) x y z [m] in the lidar frame, raw return intensity; numbers of any kind, taken to float32.
            dataset: whose scan this is: by name, which chooses intensity and field of view (`ScanInputs.for_dataset`),
                or by the statistics of its intensity alone.

        Returns:
            (N, C) float32 on the student's device, without gradients and in eval mode whatever mode the student is in.

        Raises:
            ScalrError: unknown dataset, or points that cannot be used.
        """
        return next(self.extract_all([points], dataset))

    def extract_all(
        self, scans: Iterable[ArrayLike], dataset: str | IntensityStatistics = "nuscenes"
    ) -> Iterator[torch.Tensor]:
        """`extract` for any number of scans, in their order: as many go through the network together as have
        `BATCH_POINTS` points in all, so memory depends on the largest scan and not on how many there are.
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
        """For each scan: features of its raw points."""
        batch = packed(inputs, scans)
        with _eval_mode(self):
            tokens = self.tokens(batch.to(self.device)).float()
        per_scan = tokens.split(batch.scan_offsets.diff().tolist())
        return [rows[torch.from_numpy(scan.row).to(self.device)] for rows, scan in zip(per_scan, scans, strict=True)]


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every submodule gets its own mode back (probing trains a head on a frozen backbone)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
