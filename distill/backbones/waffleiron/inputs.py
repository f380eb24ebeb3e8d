"""WaffleIron's input from a scan's points: voxels, neighbours, plane cells, packed batches.

Points are (N, 4): x y z [m] in the lidar frame and raw return intensity.
Letters in shapes: N given points, M kept points (of one scan, or of a whole batch), K neighbours, P planes, B scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
import torch

from ....errors import StudentError
from ....extract.intensity import IntensityStatistics
from ....settings import Count, Settings, at_least, up_to
from ...inputs import check_finite, require_points
from ...voxels import one_of_each, voxel_keys
from ..backbone import PackedBatch, PreparedScan, ScanInputs, VoxelPoint
from .nearest import Tree, build_tree, nearest_of, nearest_others

CROP_EPS_M = 1e-4  # margin at the faces of the field of view, as in the official Crop transform
EVALUATION_REACH_M = {"pandaset_64": 128.0, "pandaset_gt": 128.0}
FINETUNING_REACH_M = EVALUATION_REACH_M | {"pandaset_gt": 96.0}
MAX_CELLS = 8192**2  # per plane
POINT_FEATURES = 5  # intensity, x, y, z, radius: the order of the official "intensity", "xyz", "radius"


@dataclass(frozen=True)
class Plane(Settings, section="inputs.planes"):
    """A plane onto which points are projected: two axes (0 x, 1 y, 2 z) and the number of (rows, columns)."""

    axes: tuple[int, int]
    shape: tuple[Count, Count]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axes not in {(0, 1), (0, 2), (1, 2)}:
            raise self.refused("axes", self.axes, "Use [0, 1], [0, 2] or [1, 2] (0 x, 1 y, 2 z).")
        if math.prod(self.shape) > MAX_CELLS:
            raise self.refused("shape", self.shape, f"Give at most {MAX_CELLS:,} cells in all.")


SCALR_PLANES = (Plane((0, 1), (256, 256)), Plane((0, 2), (256, 32)), Plane((1, 2), (256, 32)))
Metres = Annotated[float, at_least(-10_000), up_to(10_000)]


@dataclass(frozen=True, eq=False)
class ScanInput:
    """The network's input for one scan.

    Attributes:
        features: (M, 5) float32: normalised intensity, x, y, z, radius.
        neighbours: (M, K) int64, rows of this scan, nearest first, without the point itself.
        cells: (P, M, 2) int64, row and column on each plane.
    """

    features: np.ndarray
    neighbours: np.ndarray
    cells: np.ndarray


@dataclass(frozen=True, eq=False)
class WaffleIronBatch(PackedBatch):
    """The points of B scans, concatenated without padding.

    Attributes:
        features: (M, 5) float32.
        neighbours: (M, K) int64, rows of the whole batch.
        cells: (P, M) int64, each point's index in the plane's dense (B, h, w) grid of plane crops.
        crop_shapes: (h, w) of each plane's crops in this batch.
    """

    features: torch.Tensor
    neighbours: torch.Tensor
    cells: torch.Tensor
    crop_shapes: tuple[tuple[int, int], ...]

    @property
    def num_points(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class WaffleIronInputs(ScanInputs):
    """Settings of voxels, neighbours and plane cells; the defaults are those of ScaLR on every dataset.

    `dataclasses.asdict`, written to YAML or JSON and read again, gives equal settings.

    Raises:
        StudentError: a value that cannot be used.
    """

    voxel_size_m: Annotated[float, at_least(0.001), up_to(1000)] = 0.1
    fov_min_m: tuple[Metres, Metres, Metres] = (-64.0, -64.0, -8.0)
    fov_max_m: tuple[Metres, Metres, Metres] = (64.0, 64.0, 8.0)
    planes: Annotated[tuple[Plane, ...], at_least(1), up_to(16)] = SCALR_PLANES
    num_neighbours: Annotated[int, at_least(1), up_to(1024)] = 16
    max_points: Count = 20_000  # per scan in training

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(low + 2 * CROP_EPS_M < high for low, high in zip(self.fov_min_m, self.fov_max_m, strict=True)):
            fix = f"Give three values above fov_min_m, {list(self.fov_min_m)}."
            raise self.refused("fov_max_m", self.fov_max_m, fix)

    def for_dataset(self, dataset: str, *, finetuning: bool = False) -> Self:
        """The inputs for probing, scoring or finetuning a student on a dataset.

        On PandaSet the field of view is larger than in pretraining, as in the official configurations. Cells keep their
        size, so planes have more of them (512 x 512 and 512 x 32 for +-128 m; finetuning on PandarGT has +-96 m).
        """
        reach = (FINETUNING_REACH_M if finetuning else EVALUATION_REACH_M).get(dataset)
        if reach is None or max(np.abs((*self.fov_min_m[:2], *self.fov_max_m[:2]))) >= reach:
            return self
        low, high = (-reach, -reach, self.fov_min_m[2]), (reach, reach, self.fov_max_m[2])
        wider = np.subtract(high, low) / np.subtract(self.fov_max_m, self.fov_min_m)
        planes = [
            Plane(plane.axes, tuple(math.ceil(n * wider[a]) for n, a in zip(plane.shape, plane.axes, strict=True)))
            for plane in self.planes
        ]
        return replace(self, fov_min_m=low, fov_max_m=high, planes=tuple(planes))

    def drawn(
        self, xyz: np.ndarray, seen: np.ndarray | None, rng: np.random.Generator, voxel_point: VoxelPoint = "random"
    ) -> np.ndarray:
        """One point of each voxel of the scan; of these, the seen ones, at most `max_points` around one random point.

        The order of these steps is that of the official code.
        """
        kept = voxel_representatives(xyz, self.voxel_size_m, rng if voxel_point == "random" else None)
        kept = kept if seen is None else kept[seen[kept]]
        return kept[at_most(self.max_points, xyz[kept], rng)]

    def inside(self, xyz: np.ndarray) -> np.ndarray:
        """(N,) bool: whether points are inside the field of view, by 1e-4 m on every side (official Crop transform)."""
        dtype = np.result_type(xyz.dtype, np.float32)  # the official code compares float32 points with float32 bounds
        low = (np.asarray(self.fov_min_m) + CROP_EPS_M).astype(dtype)
        high = (np.asarray(self.fov_max_m) - CROP_EPS_M).astype(dtype)
        return ((xyz > low) & (xyz < high)).all(axis=1)

    def prepare(
        self, points: np.ndarray, intensity: IntensityStatistics, feature_xyz: np.ndarray | None = None
    ) -> PreparedScan:
        """The network's input for all given points, which belong to different voxels.

        In a scan of K points or fewer, neighbours are repeated; a single point is its own neighbour.

        Args:
            points: (M, 4) x y z [m], raw intensity.
            intensity: statistics of the dataset.
            feature_xyz: (M, 3) [m], the coordinates for x, y, z and radius in the features, if they were augmented
                separately from those of `points`, which choose neighbours and cells; None uses `points` for both.

        Raises:
            StudentError: no points, points outside the field of view, or points of another shape.
        """
        scan = self._input(points, _tree(points), intensity, feature_xyz)
        return PreparedScan(scan, np.arange(len(points)), np.arange(len(points)))

    def prepare_whole(self, points: np.ndarray, intensity: IntensityStatistics) -> PreparedScan:
        """The network's input for a raw scan: the first point of each voxel, inside the field of view.

        Every raw point is represented by the nearest of these points.

        Raises:
            StudentError: no point in the field of view.
        """
        kept = voxel_representatives(points[:, :3], self.voxel_size_m)
        kept = kept[self.inside(points[kept, :3])]
        tree = _tree(points[kept])
        nearest = np.empty(len(points), np.int64)
        nearest[kept] = np.arange(len(kept))  # no two kept points coincide, so each is nearest to itself
        others = np.setdiff1d(np.arange(len(points)), kept, assume_unique=True)
        nearest[others] = nearest_of(tree, points[others, :3])
        return PreparedScan(self._input(points[kept], tree, intensity), kept, nearest)

    def pack(self, inputs: Sequence[ScanInput]) -> WaffleIronBatch:
        """Concatenate scans, and crop each plane to the cells around their points."""
        assert inputs, "a batch has one scan at least"
        offsets = np.cumsum([0] + [len(scan.features) for scan in inputs])
        neighbours = [scan.neighbours + offset for scan, offset in zip(inputs, offsets[:-1], strict=True)]
        crops = [_crop([scan.cells[p] for scan in inputs], plane.shape) for p, plane in enumerate(self.planes)]
        return WaffleIronBatch(
            features=torch.from_numpy(np.concatenate([scan.features for scan in inputs])),
            neighbours=torch.from_numpy(np.concatenate(neighbours)),
            scan_offsets=torch.from_numpy(offsets),
            cells=torch.from_numpy(np.stack([cells for cells, _ in crops])),
            crop_shapes=tuple(shape for _, shape in crops),
        )

    def _input(
        self, points: np.ndarray, tree: Tree, intensity: IntensityStatistics, feature_xyz: np.ndarray | None = None
    ) -> ScanInput:
        xyz = points[:, :3] if feature_xyz is None else feature_xyz
        normalised = (points[:, 3:] - intensity.mean) / intensity.std
        radius = np.linalg.norm(xyz, axis=1, keepdims=True)
        return ScanInput(
            features=np.concatenate([normalised, xyz, radius], axis=1, dtype=np.float32),
            neighbours=_neighbours(tree, self.num_neighbours),
            cells=self._cells(points[:, :3]),
        )

    def _cells(self, xyz: np.ndarray) -> np.ndarray:
        """(P, M, 2) int64: floor((coordinate - minimum) / resolution), in float64 as in the official code."""
        if not self.inside(xyz).all():
            raise StudentError(
                f"some points lie outside the field of view {list(self.fov_min_m)} to {list(self.fov_max_m)} m",
                where="scan",
                fix="Keep the rows of student.input_config.inside(xyz)",
            )
        low, high = np.asarray(self.fov_min_m), np.asarray(self.fov_max_m)
        cells = np.empty((len(self.planes), len(xyz), 2), np.int64)
        for p, plane in enumerate(self.planes):
            axes = list(plane.axes)
            resolution = (high - low)[axes] / plane.shape
            cells[p] = np.floor((xyz[:, axes] - low[axes]) / resolution)
        return cells


def voxel_representatives(xyz: np.ndarray, voxel_size_m: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """One row of `xyz` per occupied voxel, with voxels in lexicographic order (official Voxelize transform).

    The grid starts at the minimum of the cloud and is computed in the dtype of `xyz`, so that float32 points have the
    official voxels.

    Args:
        xyz: (N, 3) [m].
        voxel_size_m: edge of a voxel.
        rng: draws one point of each voxel uniformly. None takes the first point, the one with the lowest row.

    Returns:
        (V,) int64 rows.

    Raises:
        StudentError: a coordinate that is not finite.
    """
    check_finite(xyz)
    return one_of_each(voxel_keys(xyz, voxel_size_m), rng)


def nearest_to(xyz: np.ndarray, centre: np.ndarray, count: int) -> np.ndarray:
    """Rows of the `count` points nearest to `centre` (3,), ascending, int64; all rows if there are fewer points.

    Training keeps `max_points` points of a larger scan, around one random point.
    """
    if len(xyz) <= count:
        return np.arange(len(xyz))
    distances = np.square(xyz - centre).sum(axis=1)
    return np.sort(np.argpartition(distances, count - 1)[:count])


def at_most(count: int, xyz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of the `count` points nearest to a random one (official LimitNumPoints); all rows if there are fewer."""
    return np.arange(len(xyz)) if len(xyz) <= count else nearest_to(xyz, xyz[rng.integers(len(xyz))], count)


def _crop(cells_of_scans: Sequence[np.ndarray], plane_shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Cells (M, 2) on the complete plane -> (M,) index in the dense (B, h, w) grid of plane crops, and (h, w).

    A margin of one cell around the occupied rectangle suffices. Only occupied cells are used after the second 3x3
    convolution. It needs the first convolution's output one cell further out. The first convolution reads one cell
    further still, outside the crop, where the plane is empty and so equals the zero padding. The second convolution's
    output on the margin is wrong and never used. If the rectangle reaches the border of the plane, there is no margin:
    the crop ends with the plane, and the second convolution finds zero padding there, as on the complete plane.

    All crops of a batch have one size, the largest needed, and each is placed around its own scan. A crop that would
    leave the plane is moved inwards, so each of its sides is either the plane's border or a free margin.
    """
    margin = 1
    lows = np.stack([np.maximum(cells.min(axis=0) - margin, 0) for cells in cells_of_scans])
    highs = np.stack([np.minimum(cells.max(axis=0) + margin + 1, plane_shape) for cells in cells_of_scans])
    height, width = (highs - lows).max(axis=0).tolist()
    origins = np.minimum(lows, np.subtract(plane_shape, (height, width)))
    index = [
        (scan * height + cells[:, 0] - row) * width + cells[:, 1] - column
        for scan, (cells, (row, column)) in enumerate(zip(cells_of_scans, origins, strict=True))
    ]
    return np.concatenate(index), (height, width)


def _neighbours(tree: Tree, count: int) -> np.ndarray:
    """(M, count) int64: the nearest other points of each point in the tree, nearest first."""
    if len(tree.row) == 1:
        return np.zeros((1, count), np.int64)
    others = nearest_others(tree, count)
    return others if others.shape[1] == count else others[:, np.arange(count) % others.shape[1]]


def _tree(points: np.ndarray) -> Tree:
    """A k-d tree of the points."""
    require_points(points)
    return build_tree(points[:, :3])
