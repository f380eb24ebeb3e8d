"""A backbone of one's own, for tests: the mean of the points of each voxel goes through some layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from scalr.distill.backbones.backbone import Backbone, BackboneConfig, PackedBatch, PreparedScan, ScanInputs
from scalr.distill.processes import BatchNorm

NAME = "toy_backbone:Toy"


@dataclass(frozen=True)
class ToyConfig(BackboneConfig):
    backbone: str = NAME
    width: int = 12
    depth: int = 2


@dataclass(frozen=True)
class ToyInputs(ScanInputs):
    voxel_size_m: float = 2.0

    def prepare(self, points, intensity, feature_xyz=None):
        voxels = np.floor(points[:, :3] / self.voxel_size_m)
        _, kept, row = np.unique(voxels, axis=0, return_index=True, return_inverse=True)
        row = row.ravel()
        xyz = points[:, :3] if feature_xyz is None else feature_xyz
        features = np.hstack([xyz / 10, (points[:, 3:] - intensity.mean) / intensity.std])
        sums = np.zeros((len(kept), 4))
        np.add.at(sums, row, features)
        return PreparedScan((sums / np.bincount(row)[:, None]).astype(np.float32), kept, row)

    def pack(self, inputs):
        offsets = torch.tensor([0, *map(len, inputs)]).cumsum(0)
        return ToyBatch(scan_offsets=offsets, nested={"means": [torch.from_numpy(np.concatenate(inputs))]})


@dataclass(frozen=True, eq=False)
class ToyBatch(PackedBatch):
    nested: dict[str, list[torch.Tensor]]


class Toy(Backbone):
    Config, Inputs = ToyConfig, ToyInputs

    def __init__(self, config, inputs):
        super().__init__()
        width = config.width
        self.config = config
        self.stem = nn.Linear(4, width)
        self.layers = nn.ModuleList(
            nn.Sequential(BatchNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(config.depth)
        )

    @property
    def width(self):
        return self.config.width

    def forward(self, batch):
        x = self.stem(batch.nested["means"][0])
        for layer in self.layers:
            x = x + layer(x)
        return x

    @property
    def num_layers(self):
        return 1 + self.config.depth

    def layer_of(self, parameter):
        return 1 + int(parameter.split(".")[1]) if parameter.startswith("layers.") else 0
