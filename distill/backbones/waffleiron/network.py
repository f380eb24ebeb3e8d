"""WaffleIron (Puy et al., ICCV 2023) as ScaLR uses it, on packed points and parts of the planes.

Where the official code holds a padded (B, C, N) batch and whole planes, this one holds rows (M, C), the points of all
scans one after the other, and of the planes the cells in use, or crops (`WaffleIronInputs.pack`) where a GPU fills
them. The output is the same but for one deliberate difference: padding points do not exist, so they do not enter the
statistics of batch norm.

Parameters have the official names, are drawn in the official order from the official distributions, and are stored as
rows use them: a linear layer's weight is (out, in) where the official 1x1 convolution has (out, in, 1).

Letters in shapes: M points, C width, K neighbours, B scans, (h, w) cells of a plane's crops.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...processes import BatchNorm
from ..backbone import Backbone, Exported
from .config import WaffleIronConfig
from .export import exported
from .inputs import POINT_FEATURES, WaffleIronBatch, WaffleIronInputs
from .occupied_cells import depthwise, occupied_cells
from .official import WaffleIronFiles

NORMS = {"batch": BatchNorm, "layer": nn.LayerNorm}
ACTIVATIONS = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU}
# Rows at a time where nothing depends on all of them: on a CPU what fits its cache, else what fits its memory.
CPU_CHUNK, DEVICE_CHUNK = 2048, 131072


class WaffleIron(Backbone):
    """An embedding of the points, then layers that mix the tokens of neighbouring cells and the channels of each."""

    Config, Inputs = WaffleIronConfig, WaffleIronInputs
    official = WaffleIronFiles()
    activation_checkpointing = False

    def __init__(self, config: WaffleIronConfig, inputs: WaffleIronInputs) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(POINT_FEATURES, config.width)
        self.waffleiron = Layers(config)

    @property
    def width(self) -> int:
        return self.config.width

    def forward(self, batch: WaffleIronBatch) -> torch.Tensor:
        tokens = self.embed(batch.features, batch.neighbours)
        return self.waffleiron(tokens, batch, activation_checkpointing=self.activation_checkpointing)

    @property
    def num_layers(self) -> int:
        """The embedding, then the layers."""
        return 1 + self.config.depth

    def layer_of(self, parameter: str) -> int:
        layer = re.match(r"waffleiron\.(?:channel|spatial)_mix\.(\d+)\.", parameter)
        return 1 + int(layer[1]) if layer else 0

    def compile_layers(self) -> None:
        """Compile what works point by point.

        The planes are left out: their sizes differ from batch to batch, and their convolutions are kernels already.
        """
        for layer in (self.embed, *self.waffleiron.channel_mix):
            layer.compile(dynamic=True)  # batches differ in their number of points

    def exported(self, student: nn.Module) -> Exported:
        return exported(student)


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


class Layers(nn.Module):
    """`depth` times: mix over a plane's cells, then over channels."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.stochastic_depth = config.stochastic_depth
        self.channel_mix = nn.ModuleList([ChannelMix(config) for _ in range(config.depth)])
        self.spatial_mix = nn.ModuleList([SpatialMix(config) for _ in range(config.depth)])

    def forward(
        self, tokens: torch.Tensor, batch: WaffleIronBatch, *, activation_checkpointing: bool = False
    ) -> torch.Tensor:
        """Tokens (M, C) -> (M, C); layer l works on plane l mod the number of planes."""
        # Compiled loops cannot be traced.
        cells = _OccupiedCells if _on_cpu(tokens) and not torch.compiler.is_compiling() else _CroppedPlane
        dtype = torch.promote_types(tokens.dtype, torch.float32)  # counts do not fit half precision
        planes = [cells.of(batch, plane, dtype) for plane in range(len(batch.crop_shapes))]
        keep = _KeepRows(batch, self.stochastic_depth if self.training else 0.0)
        for layer, mixes in enumerate(zip(self.spatial_mix, self.channel_mix, strict=True)):
            arguments = (mixes, tokens, planes[layer % len(planes)], keep)
            if activation_checkpointing and self.training and torch.is_grad_enabled():
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
    def of(cls, batch: WaffleIronBatch, plane: int, dtype: torch.dtype) -> _CroppedPlane:
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
    def of(cls, batch: WaffleIronBatch, plane: int, dtype: torch.dtype) -> _OccupiedCells:
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

    def __init__(self, batch: WaffleIronBatch, probability: float) -> None:
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
