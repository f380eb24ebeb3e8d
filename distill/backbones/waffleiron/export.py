"""Export of a WaffleIron: the program takes one prepared scan of any size, and uses complete planes instead of crops,
which depend on the points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ....extract.intensity import IntensityStatistics
from ..backbone import Exported
from .inputs import ScanInput, WaffleIronBatch, WaffleIronInputs

MOST_POINTS = 1_000_000  # per scan


class _OneScan(nn.Module):
    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.plane_shapes = tuple(plane.shape for plane in student.input_config.planes)

    def forward(
        self, features: torch.Tensor, neighbours: torch.Tensor, cells: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch = WaffleIronBatch(
            scan_offsets=torch.zeros(2, dtype=torch.int64),  # only stochastic depth would use it
            features=features,
            neighbours=neighbours,
            cells=cells,
            crop_shapes=self.plane_shapes,
        )
        tokens = self.student.tokens(batch)
        return tokens, self.student.answers(tokens)


def exported(student: nn.Module) -> Exported:
    """The program of a student with this backbone, for `torch.export`."""
    points = torch.export.Dim("points", min=2, max=MOST_POINTS)
    inputs = exported_input(_example(student.input_config), student.input_config)
    return Exported(_OneScan(student), inputs, ({0: points}, {0: points}, {1: points}))


def exported_input(scan: ScanInput, inputs: WaffleIronInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The input of an exported student: features (M, 5) float32, neighbours (M, K) and cells (P, M) int64."""
    cells = [cells @ [plane.shape[1], 1] for cells, plane in zip(scan.cells, inputs.planes, strict=True)]
    return torch.from_numpy(scan.features), torch.from_numpy(scan.neighbours), torch.from_numpy(np.stack(cells))


def _example(inputs: WaffleIronInputs) -> ScanInput:
    """A scan to trace with. The program does not depend on its points or their number."""
    rng = np.random.default_rng(0)
    low, high = np.asarray(inputs.fov_min_m), np.asarray(inputs.fov_max_m)
    xyz = low + (high - low) * rng.uniform(0.1, 0.9, (64, 3))
    points = np.hstack([xyz, np.zeros((64, 1))]).astype(np.float32)
    return inputs.prepare(points, IntensityStatistics(0.0, 1.0)).input
