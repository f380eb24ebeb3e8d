"""MinkUNet's input from scans: one feature vector per occupied voxel, and the kernel maps of five grids.

Letters in shapes: N points, M voxels, F features, B scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch

from ....extract.intensity import IntensityStatistics
from ....settings import at_least, up_to
from ..backbone import PackedBatch, PreparedScan, ScanInputs
from .kernel_maps import LEVELS, KernelMap, ScanMaps, occupied_voxels, packed, scan_maps
from .voxels import Voxels, voxel_coordinates, voxel_keys

Features = Literal["intensity", "scalr"]

FEATURE_CHANNELS: dict[Features, int] = {"intensity": 1, "scalr": 5}
COARSEST = 2 ** (LEVELS - 1)  # edge of a voxel of the coarsest grid
REMISSION_OFFSET = 1.0  # SLidR adds it on SemanticKITTI, whose values are 0 to 1 instead of 0 to 255


class VoxelInput(NamedTuple):
    """The network's input for one scan."""

    features: np.ndarray  # (M, F) float32
    voxels: np.ndarray  # (M, 3) int32 coordinates, from 0
    maps: ScanMaps


@dataclass(frozen=True, eq=False)
class VoxelBatch(PackedBatch):
    """The voxels of B scans, concatenated, on each of five grids.

    Attributes:
        features: (M, F) float32, on the finest grid.
        voxels: (M, 4) int32, on the finest grid: number of the scan, and three coordinates in the scan's own frame.
        extent: upper bounds of the coordinates, exclusive; each is a multiple of 16.
        neighbours: per grid, finest first: the map of a kernel of 3 between its voxels.
        children: per grid except the coarsest: the map of a kernel of 2 from its voxels to those of the next grid.
    """

    features: torch.Tensor
    voxels: torch.Tensor
    extent: tuple[int, ...]
    neighbours: tuple[KernelMap, ...]
    children: tuple[KernelMap, ...]

    @property
    def num_points(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class MinkUNetInputs(ScanInputs):
    """Settings of voxels and their features; the defaults are SLidR's.

    The first point of a voxel, in the order of the file, represents it: its features are the voxel's features. Every
    point of the voxel has the network's output for the voxel. The field of view is unlimited.

    Raises:
        StudentError: a value that cannot be used.
    """

    voxels: Voxels = "cylindrical"
    voxel_size_m: Annotated[float, at_least(0.001), up_to(1000)] = 0.1  # azimuth steps are always one degree
    # intensity: raw. scalr: normalised intensity, x, y, z and distance from the sensor, as in ScaLR.
    features: Features = "intensity"
    intensity_offset: Annotated[float, at_least(-1000), up_to(1000)] = 0.0  # added to raw intensity

    @property
    def channels(self) -> int:
        """F, the number of features of a voxel."""
        return FEATURE_CHANNELS[self.features]

    def for_dataset(self, dataset: str, *, finetuning: bool = False) -> Self:
        """On SemanticKITTI, add 1 to raw intensity as in SLidR, unless an offset is set already."""
        if dataset != "semantic_kitti" or self.features != "intensity" or self.intensity_offset:
            return self
        return replace(self, intensity_offset=REMISSION_OFFSET)

    def for_distillation(self, dataset: str) -> Self:
        """The inputs of `for_dataset`, so that training and evaluation have the same intensities."""
        return self.for_dataset(dataset)

    def prepare(
        self, points: np.ndarray, intensity: IntensityStatistics, feature_xyz: np.ndarray | None = None
    ) -> PreparedScan:
        coordinates = voxel_coordinates(points[:, :3], self.voxels, self.voxel_size_m)
        voxels = occupied_voxels(voxel_keys(coordinates))
        first = voxels.first
        if self.features == "intensity":
            features = points[first, 3:] + np.float32(self.intensity_offset)
        else:
            xyz = (points[:, :3] if feature_xyz is None else feature_xyz)[first]
            radius = np.linalg.norm(xyz, axis=1, keepdims=True)
            normalised = (points[first, 3:] - intensity.mean) / intensity.std
            features = np.concatenate([normalised, xyz, radius], axis=1, dtype=np.float32)
        # A shift by complete voxels of the coarsest grid does not change any grid.
        start = coordinates.min(axis=0) // COARSEST * COARSEST
        scan = VoxelInput(features, (coordinates[first] - start).astype(np.int32), scan_maps(voxels.keys))
        return PreparedScan(scan, first, voxels.of_row)

    def pack(self, inputs: Sequence[VoxelInput]) -> VoxelBatch:
        scans = [each.maps for each in inputs]
        voxels = [np.insert(each.voxels, 0, number, axis=1) for number, each in enumerate(inputs)]
        sizes = list(zip(*(scan.sizes for scan in scans), strict=True))  # per grid, one size per scan
        neighbours = zip(*(scan.neighbours for scan in scans), strict=True)
        children = zip(*(scan.children for scan in scans), strict=True)
        return VoxelBatch(
            scan_offsets=torch.from_numpy(np.cumsum([0, *sizes[0]])),
            features=torch.from_numpy(np.concatenate([each.features for each in inputs])),
            voxels=torch.from_numpy(np.concatenate(voxels)),
            extent=tuple(((np.concatenate(voxels)[:, 1:].max(axis=0) // COARSEST + 1) * COARSEST).tolist()),
            neighbours=tuple(packed(pairs, of, of) for pairs, of in zip(neighbours, sizes, strict=True)),
            children=tuple(
                packed(pairs, fine, coarse) for pairs, fine, coarse in zip(children, sizes[:-1], sizes[1:], strict=True)
            ),
        )
