"""The student: WaffleIron (Puy et al., ICCV 2023) as ScaLR uses it, on packed points and parts of the planes.

Where the official code holds a padded (B, C, N) batch and whole planes, this one holds rows (M, C), the points of all
scans one after the other, and of the planes the cells in use, or crops (`inputs.pack`) where a GPU fills them. The
output is the same but for one deliberate difference: padding points do not exist, so they do not enter the statistics
of batch norm.

Parameters have the official names, are drawn in the official order from the official distributions, and are stored as
rows use them: a linear layer's weight is (out, in) where the official 1x1 convolution has (out, in, 1).

Letters in shapes: M points, C width, D output channels, K neighbours, B scans, (h, w) cells of a plane's crops.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import StudentError
from ..extract.intensity import IntensityStatistics, intensity_statistics
from ..settings import Settings, at_least, below, up_to
from .inputs import POINT_FEATURES, InputConfig, PackedBatch, ScanInput, as_float32, evaluation_input, inputs_for, pack
from .occupied_cells import depthwise, occupied_cells
from .processes import BatchNorm
from .standardisation import Standardisation

Norm = Literal["batch", "layer"]
Activation = Literal["relu", "gelu"]
Head = Literal["linear", "mlp", "probe"]  # of ScaLR, of ScaLR+, and of models probed or finetuned for classes

NORMS = {"batch": BatchNorm, "layer": nn.LayerNorm}
ACTIVATIONS = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU}
FEATURES_WANTED = "Pass what student.extract gives: (N, width)."
HEAD_HIDDEN = 2048  # channels between the two layers of the ScaLR+ head
# Rows at a time where nothing depends on all of them: on a CPU what fits its cache, else what fits its memory.
CPU_CHUNK, DEVICE_CHUNK = 2048, 131072
BATCH_POINTS = 100_000  # of the scans that `Student.extract` puts through the network at a time


@dataclass(frozen=True)
class WaffleIronConfig(Settings, section="student"):
    """The network; the defaults are WI-48-256 with a head for the features of a ViT-L.

    ScaLR's WI-48-768 has width 768 and norm "layer"; ScaLR+ adds activation "gelu", stochastic_depth 0.2, head "mlp".

    Raises:
        StudentError: a value that cannot be used.
    """

    width: Annotated[int, at_least(1), up_to(8192)] = 256
    depth: Annotated[int, at_least(1), up_to(1024)] = 48
    norm: Norm = "batch"
    activation: Activation = "relu"
    # The probability of leaving out a residual of a scan, while training.
    stochastic_depth: Annotated[float, at_least(0), below(1)] = 0.0

    head: Head = "linear"
    out_channels: Annotated[int, at_least(1), up_to(65536)] = 1024


class Student(nn.Module):
    """A lidar backbone and the head that maps its features to the teacher's space, or to a standardised one.

    Args:
        config: the network.
        input_config: voxels, field of view and planes.
        standardisation: of the teachers' vectors that it learns; `project` undoes it. None where it learns them as
            they are.

    >>> student = Student(WaffleIronConfig(width=96, depth=3, out_channels=1024)).eval()
    >>> points = np.random.default_rng(0).uniform(-20, 20, (500, 4)).astype(np.float32)  # a raw scan
    >>> features = student.extract(points, dataset="nuscenes")
    >>> features.shape, student.project(features).shape
    (torch.Size([500, 96]), torch.Size([500, 1024]))
    """

    def __init__(
        self,
        config: WaffleIronConfig | None = None,
        input_config: InputConfig | None = None,
        standardisation: Standardisation | None = None,
    ) -> None:
        super().__init__()
        self.config = config or WaffleIronConfig()
        self.input_config = input_config or InputConfig()
        self.embed = Embedding(POINT_FEATURES, self.config.width)
        self.waffleiron = WaffleIron(self.config)
        self.classif = _head(self.config)
        self.standardisation = standardisation

    @property
    def width(self) -> int:
        return self.config.width

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
            StudentError: a batch of a single point while training, for which batch norm has no statistics.
        """
        if self.training and batch.num_points < 2:
            raise StudentError("a batch of one point", where="training", fix="Enlarge the batch or drop such scans")
        return self.waffleiron(self.embed(batch.features, batch.neighbours), batch)

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
                f"features are {features.dtype} of shape {tuple(features.shape)}, and the student is {self.width} wide",
                where="project",
                fix=FEATURES_WANTED,
            )
        with _eval_mode(self):
            return self.answers(features.to(next(self.classif.parameters())))

    def compile_layers(self) -> None:
        """Let torch.compile make the kernels of what works point by point, from their next use on.

        The planes are left out: their sizes differ from batch to batch, and their convolutions are kernels already.
        """
        for layer in (self.embed, *self.waffleiron.channel_mix):
            layer.compile(dynamic=True)  # batches differ in their number of points

    def extract(self, points: ArrayLike, dataset: str | IntensityStatistics = "nuscenes") -> torch.Tensor:
        """Features of a raw scan by the official evaluation protocol (`inputs.evaluation_input`).

        Args:
            points: (N, 4) x y z [m] in the lidar frame, raw return intensity; numbers of any kind, taken to float32.
            dataset: whose scan this is: by name, which chooses intensity and field of view (`inputs.inputs_for`), or
                by the statistics of its intensity alone.

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
        statistics, config = dataset, self.input_config
        if isinstance(dataset, str):
            statistics, config = intensity_statistics(dataset), inputs_for(dataset, config)
        waiting: list[tuple[ScanInput, np.ndarray]] = []
        for points in scans:
            scan, _, nearest = evaluation_input(points, statistics, config)
            if waiting and sum(len(each.features) for each, _ in waiting) + len(scan.features) > BATCH_POINTS:
                yield from self._extract_batch(waiting, config)
                waiting = []
            waiting.append((scan, nearest))
        if waiting:
            yield from self._extract_batch(waiting, config)

    @torch.no_grad()
    def _extract_batch(self, scans: Sequence[tuple[ScanInput, np.ndarray]], config: InputConfig) -> list[torch.Tensor]:
        """For each input and the kept row nearest to each of its raw points: features of the raw points."""
        device = self.embed.conv1.weight.device
        batch = pack([scan for scan, _ in scans], config)
        with _eval_mode(self):
            tokens = self.tokens(batch.to(device)).float()
        per_scan = tokens.split(batch.scan_offsets.diff().tolist())
        return [rows[torch.from_numpy(nearest).to(device)] for rows, (_, nearest) in zip(per_scan, scans, strict=True)]


class Embedding(nn.Module):
    """Tokens of the points from their own features and those of their neighbours."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels_in)
        self.conv1 = nn.Linear(channels_in, width)
        self.conv2 = nn.Sequential(
            BatchNorm(channels_in),
            nn.Linear(channels_in, width, bias=False),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width, bias=False),
        )
        self.final = nn.Linear(2 * width, width)

    def forward(self, features: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        """Features (M, 5) and neighbours (M, K) -> (M, C)."""
        x = self.norm(features)
        if not _in_place(self):
            return self._tokens(x, x, neighbours)
        # (M, K, C) is never whole in memory.
        tokens, chunk = x.new_empty(len(x), self.final.out_features), max(1, _chunk(x) // neighbours.shape[1])
        pieces = (tokens.split(chunk), x.split(chunk), neighbours.split(chunk))
        for rows, centres, of_centres in zip(*pieces, strict=True):
            rows.copy_(self._tokens(x, centres, of_centres))
        return tokens

    def _tokens(self, x: torch.Tensor, centres: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        return self.final(torch.cat((self.conv1(centres), self._around(x, centres, neighbours)), dim=1))

    def _around(self, x: torch.Tensor, centres: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        """(m, C): the maximum over the K neighbours of what their offset from the centre gives."""
        offsets = x.index_select(0, neighbours.flatten()).unflatten(0, neighbours.shape) - centres.unsqueeze(1)
        embedded = self.conv2(offsets.flatten(0, 1)).unflatten(0, neighbours.shape)
        # The same values: on CPU, amax is ten times faster forwards, and max twice as fast with its backward.
        return embedded.max(dim=1).values if torch.is_grad_enabled() else embedded.amax(dim=1)


class WaffleIron(nn.Module):
    """`depth` times: mix over a plane's cells, then over channels."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.stochastic_depth = config.stochastic_depth
        self.activation_checkpointing = False  # while training: a layer's activations are computed again, not kept
        self.channel_mix = nn.ModuleList([ChannelMix(config) for _ in range(config.depth)])
        self.spatial_mix = nn.ModuleList([SpatialMix(config) for _ in range(config.depth)])

    def forward(self, tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Tokens (M, C) -> (M, C); layer l works on plane l mod the number of planes."""
        # Compiled loops cannot be traced.
        cells = _OccupiedCells if _on_cpu(tokens) and not torch.compiler.is_compiling() else _CroppedPlane
        dtype = torch.promote_types(tokens.dtype, torch.float32)  # counts do not fit half precision
        planes = [cells.of(batch, plane, dtype) for plane in range(len(batch.crop_shapes))]
        keep = _KeepRows(batch, self.stochastic_depth if self.training else 0.0)
        for layer, mixes in enumerate(zip(self.spatial_mix, self.channel_mix, strict=True)):
            arguments = (mixes, tokens, planes[layer % len(planes)], keep)
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                # Batch norm must count a batch once, though it sees it twice.
                contexts = partial(_recompute_contexts, mixes)
                tokens = checkpoint(_layer, *arguments, use_reentrant=False, context_fn=contexts)
            else:
                tokens = _layer(*arguments)
        return tokens


def _layer(
    mixes: tuple[SpatialMix, ChannelMix], tokens: torch.Tensor, plane: _CroppedPlane | _OccupiedCells, keep: _KeepRows
) -> torch.Tensor:
    spatial, channel = mixes
    return channel(spatial(tokens, plane, keep), keep)


def _recompute_contexts(mixes: Sequence[nn.Module]) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Around the first computation of a layer, and around the second."""
    return nullcontext(), _statistics_frozen([mix.norm for mix in mixes if isinstance(mix.norm, BatchNorm)])


@contextmanager
def _statistics_frozen(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Batch norms normalise by the batch, as they do while training, and leave their running statistics as they are."""
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


class SpatialMix(nn.Module):
    """norm -> mean of each cell -> two depthwise 3x3 convolutions -> each point reads its cell -> scale -> added."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.norm = NORMS[config.norm](config.width)
        self.ffn = nn.Sequential(
            nn.Conv2d(config.width, config.width, 3, padding=1, groups=config.width),
            ACTIVATIONS[config.activation](),
            nn.Conv2d(config.width, config.width, 3, padding=1, groups=config.width),
        )
        self.scale = LayerScale(config.width)

    def forward(self, tokens: torch.Tensor, plane: _CroppedPlane | _OccupiedCells, keep: _KeepRows) -> torch.Tensor:
        # The scale acts on channels alone: applied to the points read, not to every cell of the plane.
        return self.scale.add(tokens, keep(plane.mix(self.norm(tokens), self.ffn)))


class ChannelMix(nn.Module):
    """norm -> linear -> activation -> linear -> scale -> added."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.norm = NORMS[config.norm](config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.width),
            ACTIVATIONS[config.activation](),
            nn.Linear(config.width, config.width),
        )
        self.scale = LayerScale(config.width)

    def forward(self, tokens: torch.Tensor, keep: _KeepRows) -> torch.Tensor:
        if not _in_place(self):
            return self.scale.add(tokens, keep(self.mlp(self.norm(tokens))))
        # Chunk by chunk, what is between the layers stays in the cache.
        first, activation, second = self.mlp
        norm, weight, bias = _fold(self.norm, first)
        scaled, shift = second.weight * self.scale.weight.unsqueeze(1), second.bias * self.scale.weight
        for rows in tokens.split(_chunk(tokens)):
            rows.add_(F.linear(activation(F.linear(norm(rows), weight, bias)), scaled, shift))
        return tokens


def _fold(norm: nn.Module, linear: nn.Linear) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """What remains of a norm in eval mode before a linear layer, and weight and bias of that layer with the rest.

    The statistics of batch norm are constants then: linear(norm(x)) is one linear layer. Layer norm's are not.
    """
    if not isinstance(norm, BatchNorm):
        return norm, linear.weight, linear.bias
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    offset = norm.bias - norm.running_mean * factor
    return nn.Identity(), linear.weight * factor, linear.bias + linear.weight @ offset


class LayerScale(nn.Module):
    """A factor per channel, drawn from (-1, 1): the official one is a depthwise 1x1 convolution as torch draws it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).uniform_(-1, 1))

    def add(self, tokens: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """tokens + scale * residual, in one pass."""
        return torch.addcmul(tokens, residual, self.weight)


@dataclass(frozen=True, eq=False)
class _CroppedPlane:
    """Between points and one plane's dense (B, h, w) grid of crops, the same for every layer on that plane."""

    index: torch.Tensor  # (M,) int64 cell of each point
    weight: torch.Tensor  # (M, 1) 1 / (points in its cell + 1e-6)
    shape: tuple[int, int, int]  # (B, h, w)

    @classmethod
    def of(cls, batch: PackedBatch, plane: int, dtype: torch.dtype) -> _CroppedPlane:
        shape, index = (batch.num_scans, *batch.crop_shapes[plane]), batch.cells[plane]
        counts = torch.zeros(math.prod(shape), dtype=torch.int64, device=index.device)
        counts.index_add_(0, index, torch.ones_like(index))
        return cls(index, _mean_weight(counts[index], dtype), shape)

    def mix(self, rows: torch.Tensor, ffn: nn.Sequential) -> torch.Tensor:
        """(M, C) -> (M, C): means of the cells, zero where empty, through the convolutions, read by each point."""
        grid = rows.new_zeros(*self.shape, rows.shape[1])
        grid.view(-1, rows.shape[1]).index_add_(0, self.index, rows * self.weight.to(rows.dtype))
        mixed = ffn(grid.permute(0, 3, 1, 2))  # channels last, as the rows are added
        return mixed.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.index)


@dataclass(frozen=True, eq=False)
class _OccupiedCells:
    """The same as `_CroppedPlane` on a CPU: only the cells that hold points, and those that they reach."""

    index: torch.Tensor  # (M,) int64 occupied cell of each point
    weight: torch.Tensor  # (M, 1) 1 / (points in its cell + 1e-6)
    to_reached: torch.Tensor  # (T, 9) int32 taps of the first convolution
    to_occupied: torch.Tensor  # (S, 9) int32 taps of the second

    @classmethod
    def of(cls, batch: PackedBatch, plane: int, dtype: torch.dtype) -> _OccupiedCells:
        shape = (batch.num_scans, *batch.crop_shapes[plane])
        index, counts, to_reached, to_occupied = occupied_cells(batch.cells[plane], shape)
        return cls(index, _mean_weight(counts[index], dtype), to_reached, to_occupied)

    def mix(self, rows: torch.Tensor, ffn: nn.Sequential) -> torch.Tensor:
        """(M, C) -> (M, C), as `_CroppedPlane.mix`."""
        first, activation, second = ffn
        means = rows.new_zeros(len(self.to_occupied), rows.shape[1])
        means.index_add_(0, self.index, rows * self.weight.to(rows.dtype))
        means = means.to(first.weight.dtype)  # under autocast these sums stay in single precision
        reached = activation(depthwise(means, first.weight, first.bias, self.to_reached, self.to_occupied))
        mixed = depthwise(reached, second.weight, second.bias, self.to_occupied, self.to_reached)
        return mixed.index_select(0, self.index)


def _mean_weight(counts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(M,) int64 points in each point's cell -> (M, 1) weight in its mean, as the official code has it."""
    return (1 / (counts.to(dtype) + 1e-6)).unsqueeze(1)


class _KeepRows:
    """Stochastic depth: zeroes the residuals of whole scans with the given probability, and scales up the others.

    One draw per scan, layer and mix, as the official DropPath draws per sample of the padded batch.
    """

    def __init__(self, batch: PackedBatch, probability: float) -> None:
        self.probability, self.num_scans = probability, batch.num_scans
        if probability > 0:
            self.scan_of_row = torch.arange(batch.num_scans, device=batch.scan_offsets.device).repeat_interleave(
                batch.scan_offsets.diff(), output_size=batch.num_points
            )

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        if self.probability == 0:
            return residual
        kept = 1 - self.probability
        factor = residual.new_empty(self.num_scans, 1).bernoulli_(kept) / kept
        return residual * factor[self.scan_of_row]


def probe_head(width: int, num_classes: int) -> nn.Module:
    """The head of official probing and finetuning: tokens (M, width) -> logits (M, num_classes), all zero at first."""
    linear = nn.Linear(width, num_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(BatchNorm(width), linear)


def _head(config: WaffleIronConfig) -> nn.Module:
    if config.head == "linear":
        return nn.Linear(config.width, config.out_channels)
    if config.head == "probe":
        return probe_head(config.width, config.out_channels)
    return nn.Sequential(
        nn.Linear(config.width, HEAD_HIDDEN), nn.ReLU(inplace=True), nn.Linear(HEAD_HIDDEN, config.out_channels)
    )


def _in_place(module: nn.Module) -> bool:
    """Whether rows can be worked on chunk by chunk, in place.

    Batch norm needs all rows while training, autograd what was there before, and a traced program has no loop over as
    many chunks as there are.
    """
    return not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling())


def _chunk(rows: torch.Tensor) -> int:
    return CPU_CHUNK if _on_cpu(rows) else DEVICE_CHUNK


def _on_cpu(rows: torch.Tensor) -> bool:
    return rows.device.type == "cpu"


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
