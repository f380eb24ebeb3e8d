"""A student as one file that torch runs without scalr: `torch.export` on whole planes.

The exported program reads one prepared scan of any size (`exported_input`); preparing it, voxels and neighbours, is not
part of it. It fills whole planes: crops would have sizes that depend on the points.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..checkpoint_files import written_aside
from ..errors import StudentError
from ..extract.intensity import IntensityStatistics
from .inputs import InputConfig, PackedBatch, ScanInput, scan_input
from .waffleiron import Student

MOST_POINTS = 1_000_000  # of a scan


class _OneScan(nn.Module):
    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.plane_shapes = tuple(plane.shape for plane in student.input_config.planes)

    def forward(
        self, features: torch.Tensor, neighbours: torch.Tensor, cells: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        offsets = torch.zeros(2, dtype=torch.int64)  # which stochastic depth alone would ask for
        tokens = self.student.tokens(PackedBatch(features, neighbours, offsets, cells, self.plane_shapes))
        return tokens, self.student.answers(tokens)


def exported_input(scan: ScanInput, config: InputConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What an exported student reads of a scan: features (M, 5) float32, neighbours (M, K) and cells (P, M) int64."""
    cells = [cells @ [plane.shape[1], 1] for cells, plane in zip(scan.cells, config.planes, strict=True)]
    return torch.from_numpy(scan.features), torch.from_numpy(scan.neighbours), torch.from_numpy(np.stack(cells))


def export_student(student: Student, path: Path) -> None:
    """Write a `.pt2` file: `torch.export.load(path).module()(*exported_input(…))` gives tokens (M, C) and what
    `Student.project` makes of them (M, D).

    Args:
        student: on the CPU; exported in eval mode.
        path: replaced once the file is complete.

    Raises:
        StudentError: the file cannot be written.
    """
    inputs = exported_input(_example(student.input_config), student.input_config)
    points = torch.export.Dim("points", min=2, max=MOST_POINTS)
    with torch.no_grad():
        program = torch.export.export(
            _OneScan(student).eval(), inputs, dynamic_shapes=({0: points}, {0: points}, {1: points})
        )
    content = BytesIO()  # on a full disk, torch's own writer ends the process
    torch.export.save(program, content)
    with written_aside(path, StudentError) as temporary:
        temporary.write_bytes(content.getbuffer())


def _example(config: InputConfig) -> ScanInput:
    """A scan to trace with: its points and their number leave no mark on the program."""
    rng = np.random.default_rng(0)
    low, high = np.asarray(config.fov_min_m), np.asarray(config.fov_max_m)
    xyz = low + (high - low) * rng.uniform(0.1, 0.9, (64, 3))
    points = np.hstack([xyz, np.zeros((64, 1))]).astype(np.float32)
    return scan_input(points, IntensityStatistics(0.0, 1.0), config)
