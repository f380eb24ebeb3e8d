"""A backbone of one's own: one row for each voxel, whose points' mean goes through a few layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from scalr.distill.backbones.backbone import Backbone, BackboneConfig, PackedBatch, PreparedScan, ScanInputs

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
        voxels = np.floor(points[:, :3] / self.voxel_size_m).astype(np.int64)
        _, first, row = np.unique(voxels, axis=0, return_index=True, return_inverse=True)
        xyz = points[:, :3] if feature_xyz is None else feature_xyz
        features = np.hstack([xyz / 10, (points[:, 3:] - intensity.mean) / intensity.std]).astype(np.float32)
        sums = np.zeros((len(first), 4), np.float32)
        np.add.at(sums, row.ravel(), features)
        means = sums / np.bincount(row.ravel())[:, None].astype(np.float32)
        return PreparedScan(means, first, row.ravel())

    def pack(self, inputs):
        offsets = torch.tensor([0, *map(len, inputs)]).cumsum(0)
        return ToyBatch(scan_offsets=offsets, features={"mean": torch.from_numpy(np.concatenate(inputs))})


@dataclass(frozen=True, eq=False)
class ToyBatch(PackedBatch):
    features: dict[str, torch.Tensor]


class Toy(Backbone):
    Config, Inputs = ToyConfig, ToyInputs

    def __init__(self, config, inputs):
        super().__init__()
        self.config = config
        self.stem = nn.Linear(4, config.width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(config.width), nn.Linear(config.width, config.width), nn.ReLU())
            for _ in range(config.depth)
        )

    @property
    def width(self):
        return self.config.width

    def forward(self, batch):
        x = self.stem(batch.features["mean"])
        for layer in self.layers:
            x = x + layer(x)
        return x

    @property
    def num_layers(self):
        return 1 + self.config.depth

    def layer_of(self, parameter):
        return int(parameter.split(".")[1]) + 1 if parameter.startswith("layers.") else 0
