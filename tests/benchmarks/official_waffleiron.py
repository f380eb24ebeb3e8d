"""The official WaffleIron, of a checkout of valeoai/WaffleIron: a student's weights in it, scans as it reads them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from scalr.distill.backbones.waffleiron.inputs import ScanInput, WaffleIronInputs
from scalr.distill.convert import official_tensors
from scalr.distill.student import Student


def official_model(student: Student, checkout: Path) -> torch.nn.Module:
    """The official model with the weights of a student, on its device."""
    sys.path.insert(0, str(checkout))
    from waffleiron import Segmenter

    config, shapes = student.config, [plane.shape for plane in student.input_config.planes]
    has_layer_norm = config.norm == "layer"
    official = Segmenter(5, config.width, config.out_channels, config.depth, shapes, layer_norm=has_layer_norm)
    official.load_state_dict(official_tensors(student))
    return official.to(student.device)


def padded(scans: Sequence[ScanInput], inputs: WaffleIronInputs) -> tuple[torch.Tensor, ...]:
    """Features (B, 5, N), cells (B, 3, N), which points are real (B, N), neighbours (B, 17, N)."""
    count = max(len(scan.features) for scan in scans)
    features, real = torch.zeros(len(scans), 5, count), torch.zeros(len(scans), count)
    cells = torch.zeros(len(scans), len(inputs.planes), count, dtype=torch.int64)
    neighbours = torch.full((len(scans), 1 + inputs.num_neighbours, count), count - 1)
    for b, scan in enumerate(scans):
        points = len(scan.features)
        features[b, :, :points] = torch.from_numpy(scan.features.T)
        neighbours[b, 0, :points] = torch.arange(points)
        neighbours[b, 1:, :points] = torch.from_numpy(scan.neighbours.T)
        for p, plane in enumerate(inputs.planes):
            cells[b, p, :points] = torch.from_numpy(scan.cells[p] @ [plane.shape[1], 1])
        real[b, :points] = 1
    return features, cells, real, neighbours
