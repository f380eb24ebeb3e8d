"""WaffleIron (Puy et al., ICCV 2023) as in ScaLR, on packed points and parts of the planes.

The official code has a padded batch (B, C, N) and complete planes. This code has rows (M, C), the concatenated points
of all scans, and only the occupied cells of the planes (on a GPU, crops: `WaffleIronInputs.pack`). The output is the
same with one deliberate difference: there are no padding points, so none enter the statistics of batch norm.

Parameters have the official names, and are initialised in the official order from the official distributions. A linear
layer's weight is (out, in), where the official 1x1 convolution has (out, in, 1). The official name for a point feature
is token.

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
# Rows per chunk for operations on single rows: on a CPU what fits its cache, else what fits the device's memory.
CPU_CHUNK, DEVICE_CHUNK = 2048, 131072


class WaffleIron(Backbone):
    """An embedding of the points, then layers that mix point features over plane cells and over channels."""

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
        """The embedding and the layers."""
        return 1 + self.config.depth

    def layer_of(self, parameter: str) -> int:
        layer = re.match(r"waffleiron\.(?:channel|spatial)_mix\.(\d+)\.", parameter)
        return 1 + int(layer[1]) if layer else 0

    def compile_layers(self) -> None:
        """Compile the parts that work on single points.

        Planes are left out: their sizes differ between batches, and their convolutions are kernels already.
        """
        for layer in (self.embed, *self.waffleiron.channel_mix):
            layer.compile(dynamic=True)  # batches have different numbers of points

    def exported(self, student: nn.Module) -> Exported:
        return exported(student)


class Embedding(nn.Module):
    """Point features from the inputs of each point and of its neighbours."""

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
        """Inputs (M, 5) and neighbours (M, K) -> point features (M, C)."""
        x = self.norm(features)
        if not _in_place(self):
            return self._tokens(x, x, neighbours)
        # In chunks, since (M, K, C) would need too much memory.
        tokens, chunk = x.new_empty(len(x), self.final.out_features), max(1, _chunk(x) // neighbours.shape[1])
        pieces = (tokens.split(chunk), x.split(chunk), neighbours.split(chunk))
        for rows, centres, of_centres in zip(*pieces, strict=True):
            rows.copy_(self._tokens(x, centres, of_centres))
        return tokens

    def _tokens(self, x: torch.Tensor, centres: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        return self.final(torch.cat((self.conv1(centres), self._around(x, centres, neighbours)), dim=1))

    def _around(self, x: torch.Tensor, centres: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        """(m, C): the maximum over the K neighbours of the features of their offsets from the centre."""
        offsets = x.index_select(0, neighbours.flatten()).unflatten(0, neighbours.shape) - centres.unsqueeze(1)
        embedded = self.conv2(offsets.flatten(0, 1)).unflatten(0, neighbours.shape)
        # Equal values: on a CPU, amax is ten times faster forward, max is twice as fast forward and backward.
        return embedded.max(dim=1).values if torch.is_grad_enabled() else embedded.amax(dim=1)


class Layers(nn.Module):
    """`depth` layers, each a spatial mix over a plane's cells and a channel mix."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.stochastic_depth = config.stochastic_depth
        self.channel_mix = nn.ModuleList([ChannelMix(config) for _ in range(config.depth)])
        self.spatial_mix = nn.ModuleList([SpatialMix(config) for _ in range(config.depth)])

    def forward(
        self, tokens: torch.Tensor, batch: WaffleIronBatch, *, activation_checkpointing: bool = False
    ) -> torch.Tensor:
        """Point features (M, C) -> (M, C). Layer l uses plane l modulo the number of planes."""
        # Numba's loops cannot be traced.
        cells = _OccupiedCells if _on_cpu(tokens) and not torch.compiler.is_compiling() else _CroppedPlane
        dtype = torch.promote_types(tokens.dtype, torch.float32)  # half precision is too small for counts
        planes = [cells.of(batch, plane, dtype) for plane in range(len(batch.crop_shapes))]
        keep = _KeepRows(batch, self.stochastic_depth if self.training else 0.0)
        for layer, mixes in enumerate(zip(self.spatial_mix, self.channel_mix, strict=True)):
            arguments = (mixes, tokens, planes[layer % len(planes)], keep)
            if activation_checkpointing and self.training and torch.is_grad_enabled():
                # Recomputation passes a batch through batch norm twice; its statistics must count it once.
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
    """Contexts for the first computation of a layer, and for its recomputation."""
    return nullcontext(), _statistics_frozen([mix.norm for mix in mixes if isinstance(mix.norm, BatchNorm)])


@contextmanager
def _statistics_frozen(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Batch norms normalise by the batch, as in training, but keep their running statistics."""
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
    """norm -> mean of each cell -> two depthwise 3x3 convolutions -> value of each point's cell -> scale -> added."""

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
        # The scale acts on channels only, so it is applied to points instead of all cells of the plane.
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
        # In chunks, so that values between the layers stay in the cache.
        first, activation, second = self.mlp
        norm, weight, bias = _fold(self.norm, first)
        scaled, shift = second.weight * self.scale.weight.unsqueeze(1), second.bias * self.scale.weight
        for rows in tokens.split(_chunk(tokens)):
            rows.add_(F.linear(activation(F.linear(norm(rows), weight, bias)), scaled, shift))
        return tokens


def _fold(norm: nn.Module, linear: nn.Linear) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Fold a norm in eval mode into the linear layer after it: remaining norm, weight, bias.

    Batch norm's statistics are constants then, so linear(norm(x)) is one linear layer. Layer norm is not folded.
    """
    if not isinstance(norm, BatchNorm):
        return norm, linear.weight, linear.bias
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    offset = norm.bias - norm.running_mean * factor
    return nn.Identity(), linear.weight * factor, linear.bias + linear.weight @ offset


class LayerScale(nn.Module):
    """A factor per channel, initialised in (-1, 1) like the official depthwise 1x1 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).uniform_(-1, 1))

    def add(self, tokens: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """tokens + scale * residual, in one pass."""
        return torch.addcmul(tokens, residual, self.weight)


@dataclass(frozen=True, eq=False)
class _CroppedPlane:
    """Maps points to one plane's dense (B, h, w) grid of crops and back; shared by all layers on that plane."""

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
        """(M, C) -> (M, C): the cells' means, zero in empty cells, convolved, at each point's cell."""
        grid = rows.new_zeros(*self.shape, rows.shape[1])
        grid.view(-1, rows.shape[1]).index_add_(0, self.index, rows * self.weight.to(rows.dtype))
        mixed = ffn(grid.permute(0, 3, 1, 2))  # channels last, the layout of the added rows
        return mixed.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.index)


@dataclass(frozen=True, eq=False)
class _OccupiedCells:
    """`_CroppedPlane` for a CPU: only the cells that hold points and the cells that their convolution reaches."""

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
        means = means.to(first.weight.dtype)  # under autocast these sums have single precision
        reached = activation(depthwise(means, first.weight, first.bias, self.to_reached, self.to_occupied))
        mixed = depthwise(reached, second.weight, second.bias, self.to_occupied, self.to_reached)
        return mixed.index_select(0, self.index)


def _mean_weight(counts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Number of points in each point's cell, (M,) int64 -> weight in the mean, (M, 1), as in the official code."""
    return (1 / (counts.to(dtype) + 1e-6)).unsqueeze(1)


class _KeepRows:
    """Stochastic depth: zeroes the residuals of complete scans with a given probability, and scales up the others.

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
    """Whether rows can be processed in chunks and in place.

    They cannot in training, since batch norm needs all rows, with autograd, which needs the previous values, or in a
    traced program, which has no loop over a variable number of chunks.
    """
    return not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling())


def _chunk(rows: torch.Tensor) -> int:
    return CPU_CHUNK if _on_cpu(rows) else DEVICE_CHUNK


def _on_cpu(rows: torch.Tensor) -> bool:
    return rows.device.type == "cpu"
