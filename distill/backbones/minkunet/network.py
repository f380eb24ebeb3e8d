"""MinkUNet's Res16UNet34C, with the operations, initial distributions and batch norms of SLidR's model.

A U-Net on five grids: down to voxels of 16 times the size, and up again. On the way up, the features of the same grid
from the way down are concatenated. Residual blocks follow on each grid.

Letters in shapes: M voxels of the finest grid, m of another, C channels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ....errors import StudentError
from ...processes import BatchNorm, num_processes
from ..backbone import Backbone
from .config import STAGES_DOWN, MinkUNetConfig
from .inputs import MinkUNetInputs, VoxelBatch
from .slidr_files import SLidRFiles
from .sparse_convolution import Pairs, PointwiseConvolution, SparseConvolution
from .spconv_grids import SpconvGrids

BLOCK_MOMENTUM = 0.1  # of batch norms within blocks, to which SLidR does not pass `bn_momentum`


class MinkUNet(Backbone):
    """A network that gives a feature to each voxel of packed scans."""

    Config = MinkUNetConfig
    Inputs = MinkUNetInputs
    official = SLidRFiles()

    def __init__(self, config: MinkUNetConfig, inputs: MinkUNetInputs) -> None:
        super().__init__()
        self.config = config
        self.stem = SparseConvolution(inputs.channels, config.stem_width, 27)
        self.stem_norm = BatchNorm(config.stem_width, momentum=config.bn_momentum)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths = [config.stem_width]  # of the grids, finest first
        for width, blocks in zip(config.widths[:STAGES_DOWN], config.blocks[:STAGES_DOWN], strict=True):
            # The convolution to the next grid keeps the width.
            self.down.append(Stage(widths[-1], widths[-1], 0, width, blocks, config.bn_momentum, transposed=False))
            widths.append(width)
        below = widths.pop()
        for width, blocks in zip(config.widths[STAGES_DOWN:], config.blocks[STAGES_DOWN:], strict=True):
            self.up.append(Stage(below, width, widths.pop(), width, blocks, config.bn_momentum, transposed=True))
            below = width

    @property
    def width(self) -> int:
        return self.config.widths[-1]

    def forward(self, batch: VoxelBatch) -> torch.Tensor:
        """Features (M, C) of the voxels of a batch.

        Raises:
            StudentError: a batch with a single voxel on one of the grids in training, for which batch norm has no
                statistics; or spconv is set and not installed.
        """
        if self.training and num_processes() == 1 and batch.children[-1].num_targets < 2:
            raise StudentError(
                "the batch has a single voxel on the coarsest grid",
                where="training",
                fix="Enlarge the batch, or leave out scans with so few points.",
            )
        on_gpu = batch.features.device.type == "cuda"
        return self.through(SpconvGrids(batch) if on_gpu and self.config.convolution == "spconv" else batch, batch)

    def through(self, grids: VoxelBatch | SpconvGrids, batch: VoxelBatch) -> torch.Tensor:
        """Features (M, C), computed with the kernel maps of `grids`."""
        x = F.relu(self.stem_norm(self.stem(batch.features, grids.neighbours[0])), inplace=True)
        of_grids = []
        for stage, children, neighbours in zip(self.down, grids.children, grids.neighbours[1:], strict=True):
            of_grids.append(x)
            x = stage(x, children, neighbours)
        for stage, children, neighbours in zip(self.up, grids.children[::-1], grids.neighbours[-2::-1], strict=True):
            x = stage(x, children.swapped(), neighbours, of_grids.pop())
        return x

    @property
    def num_layers(self) -> int:
        """The stem and the stages."""
        return 1 + len(self.down) + len(self.up)

    def layer_of(self, parameter: str) -> int:
        part, _, rest = parameter.partition(".")
        if part not in ("down", "up"):
            return 0
        return 1 + int(rest.partition(".")[0]) + (len(self.down) if part == "up" else 0)


class Stage(nn.Module):
    """A convolution to the next grid by a kernel of 2, then residual blocks.

    Args:
        below, moved: channels before and after the convolution to the next grid.
        beside: channels from the way down that are concatenated.
        width: channels of the blocks.
        blocks: number of blocks.
        momentum: momentum of the batch norms outside the blocks' main branch.
        transposed: whether the next grid is finer.
    """

    def __init__(
        self, below: int, moved: int, beside: int, width: int, blocks: int, momentum: float, *, transposed: bool
    ) -> None:
        super().__init__()
        self.conv = SparseConvolution(below, moved, 8, transposed=transposed)
        self.norm = BatchNorm(moved, momentum=momentum)
        channels = [moved + beside] + [width] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(c, d, momentum) for c, d in pairwise(channels))

    def forward(
        self, x: torch.Tensor, to_grid: Pairs, neighbours: Pairs, beside: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x, to_grid)), inplace=True)
        if beside is not None:
            x = torch.cat((x, beside), dim=1)
        for block in self.blocks:
            x = block(x, neighbours)
        return x


class ResidualBlock(nn.Module):
    """Two kernels of 3, each with a batch norm, plus the input, which a matrix maps if widths differ."""

    def __init__(self, channels_in: int, channels_out: int, momentum: float) -> None:
        super().__init__()
        self.conv1 = SparseConvolution(channels_in, channels_out, 27)
        self.norm1 = BatchNorm(channels_out, momentum=BLOCK_MOMENTUM)
        self.conv2 = SparseConvolution(channels_out, channels_out, 27)
        self.norm2 = BatchNorm(channels_out, momentum=BLOCK_MOMENTUM)
        self.downsample = nn.Identity()
        if channels_in != channels_out:
            self.downsample = nn.Sequential(
                PointwiseConvolution(channels_in, channels_out), BatchNorm(channels_out, momentum=momentum)
            )

    def forward(self, x: torch.Tensor, neighbours: Pairs) -> torch.Tensor:
        out = F.relu(self.norm1(self.conv1(x, neighbours)), inplace=True)
        out = self.norm2(self.conv2(out, neighbours))
        return F.relu(out.add_(self.downsample(x)), inplace=True)  # in place: norms save their input, not their output
