"""Labelled scans as batches: what probes and heads are trained on and scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from ..distill.inputs import (
    AugmentConfig,
    InputConfig,
    PackedBatch,
    ScanInput,
    augment,
    inside_field_of_view,
    pack,
    scan_input,
    voxel_representatives,
)
from ..distill.training import Batch
from ..extract.datasets.frame import Dataset
from ..extract.datasets.scans import intensity_of, read_labelled_scan


@dataclass(frozen=True, eq=False)
class LabelledBatch(Batch):
    """Labelled scans packed: M points in all."""

    inputs: PackedBatch
    labels: torch.Tensor  # (M,) int64 train ids

    @property
    def num_points(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> LabelledBatch:
        inputs = self.inputs.to(device, non_blocking=True)
        return replace(self, inputs=inputs, labels=self.labels.to(device, non_blocking=True))

    def pin_memory(self) -> LabelledBatch:
        """Called by torch's DataLoader with `pin_memory=True`."""
        return replace(self, inputs=self.inputs.pin_memory(), labels=self.labels.pin_memory())


class AugmentedScans(TorchDataset):
    """Training scans, augmented as in distillation; all that is random is drawn from (seed, visit, frame)."""

    def __init__(self, dataset: Dataset, inputs: InputConfig, seed: int) -> None:
        self.dataset, self.inputs, self.seed = dataset, inputs, seed
        self.intensity = intensity_of(dataset)

    def __len__(self) -> int:
        return len(self.dataset.frames)

    def __getitem__(self, key: tuple[int, int]) -> tuple[ScanInput, np.ndarray]:
        """Network input of M points and their (M,) labels, of `key` = (visit, frame)."""
        visit, index = key
        rng = np.random.default_rng([self.seed, visit, index])
        points, labels = read_labelled_scan(self.dataset, self.dataset.frames[index])
        kept = voxel_representatives(points[:, :3], self.inputs.voxel_size_m, rng)
        points, labels = points[kept], labels[kept]
        points[:, :3] = augment(points[:, :3], rng, AugmentConfig())
        inside = inside_field_of_view(points[:, :3], self.inputs)
        return scan_input(points[inside], self.intensity, self.inputs), labels[inside]


@dataclass(frozen=True)
class LabelledCollate:
    """Pack labelled scans into a batch (a class, so that spawned workers can be sent it)."""

    inputs: InputConfig

    def __call__(self, samples: Sequence[tuple[ScanInput, np.ndarray]]) -> LabelledBatch:
        scans, labels = zip(*samples, strict=True)
        return LabelledBatch(pack(scans, self.inputs), torch.from_numpy(np.concatenate(labels).astype(np.int64)))
