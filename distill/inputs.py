"""From a scan's points to what the student reads: voxels, neighbours, plane cells, packed batches.

Pure functions over arrays. Points are (N, 4): x y z [m] in the lidar frame and raw return intensity.
Letters in shapes: N raw points, M kept points (of one scan, or of a whole batch), K neighbours, P planes, B scans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..checkpoint_files import shortened
from ..errors import StudentError
from ..extract.intensity import IntensityStatistics
from ..settings import Count, Settings, at_least, up_to
from .nearest import Tree, build_tree, nearest_of, nearest_others
from .voxels import one_of_each, voxel_keys

CROP_EPS_M = 1e-4  # kept clear of the field of view's faces, as in the official Crop transform
EVALUATION_REACH_M = {"pandaset_64": 128.0, "pandaset_gt": 128.0}
FINETUNING_REACH_M = EVALUATION_REACH_M | {"pandaset_gt": 96.0}
MAX_CELLS = 8192**2  # of a plane
POINT_FEATURES = 5  # intensity, x, y, z, radius: the order of the official "intensity", "xyz", "radius"


@dataclass(frozen=True)
class Plane(Settings, section="inputs.planes"):
    """A plane that the student projects points to: two axes (0 x, 1 y, 2 z) and its number of (rows, columns)."""

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


@dataclass(frozen=True)
class InputConfig(Settings, section="inputs"):
    """How a scan is cut into voxels, neighbours and plane cells; the defaults are those of ScaLR on every dataset.

    What `dataclasses.asdict` wrote to YAML or JSON comes back equal.

    Raises:
        StudentError: a value that cannot be used.
    """

    voxel_size_m: Annotated[float, at_least(0.001), up_to(1000)] = 0.1
    fov_min_m: tuple[Metres, Metres, Metres] = (-64.0, -64.0, -8.0)
    fov_max_m: tuple[Metres, Metres, Metres] = (64.0, 64.0, 8.0)
    planes: Annotated[tuple[Plane, ...], at_least(1), up_to(16)] = SCALR_PLANES
    num_neighbours: Annotated[int, at_least(1), up_to(1024)] = 16
    max_points: Count = 20_000  # of a scan, while training

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(low + 2 * CROP_EPS_M < high for low, high in zip(self.fov_min_m, self.fov_max_m, strict=True)):
            fix = f"Give three values above fov_min_m, {list(self.fov_min_m)}."
            raise self.refused("fov_max_m", self.fov_max_m, fix)


def inputs_for(dataset: str, config: InputConfig, *, finetuning: bool = False) -> InputConfig:
    """The inputs with which a student is probed and scored on a dataset, or finetuned.

    PandaSet is read farther than a student is pretrained, as in the official configurations: cells keep their size,
    and the planes have more of them (512 x 512 and 512 x 32 cells for +-128 m; finetuning on PandarGT, +-96 m).
    """
    reach = (FINETUNING_REACH_M if finetuning else EVALUATION_REACH_M).get(dataset)
    if reach is None or max(np.abs((*config.fov_min_m[:2], *config.fov_max_m[:2]))) >= reach:
        return config
    low, high = (-reach, -reach, config.fov_min_m[2]), (reach, reach, config.fov_max_m[2])
    wider = np.subtract(high, low) / np.subtract(config.fov_max_m, config.fov_min_m)
    planes = [
        Plane(plane.axes, tuple(math.ceil(n * wider[a]) for n, a in zip(plane.shape, plane.axes, strict=True)))
        for plane in config.planes
    ]
    return replace(config, fov_min_m=low, fov_max_m=high, planes=tuple(planes))


def voxel_representatives(xyz: np.ndarray, voxel_size_m: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """One row of `xyz` for every occupied voxel, voxels in lexicographic order (official Voxelize transform).

    The grid starts at the cloud's own minimum, in the dtype of `xyz`, so that float32 points fall in the official
    voxels.

    Args:
        xyz: (N, 3) [m].
        voxel_size_m: edge of a voxel.
        rng: draws one point of each voxel uniformly; without it the first (lowest row) stands for the voxel.

    Returns:
        (V,) int64.

    Raises:
        StudentError: a coordinate is not finite.
    """
    _check_finite(xyz)
    return one_of_each(voxel_keys(xyz, voxel_size_m), rng)


def inside_field_of_view(xyz: np.ndarray, config: InputConfig) -> np.ndarray:
    """(N,) bool: strictly inside the field of view, by 1e-4 m on every side (official Crop transform)."""
    dtype = np.result_type(xyz.dtype, np.float32)  # the official code compares float32 points with float32 bounds
    low = (np.asarray(config.fov_min_m) + CROP_EPS_M).astype(dtype)
    high = (np.asarray(config.fov_max_m) - CROP_EPS_M).astype(dtype)
    return ((xyz > low) & (xyz < high)).all(axis=1)


def nearest_to(xyz: np.ndarray, centre: np.ndarray, count: int) -> np.ndarray:
    """Rows of the `count` points nearest to `centre` (3,), or of all points where there are fewer; ascending, int64.

    Training cuts a scan of more than `max_points` around one of its points drawn at random.
    """
    if len(xyz) <= count:
        return np.arange(len(xyz))
    distances = np.square(xyz - centre).sum(axis=1)
    return np.sort(np.argpartition(distances, count - 1)[:count])


def at_most(count: int, xyz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of the `count` points nearest to one of them drawn at random (official LimitNumPoints); of all if fewer."""
    return np.arange(len(xyz)) if len(xyz) <= count else nearest_to(xyz, xyz[rng.integers(len(xyz))], count)


@dataclass(frozen=True)
class AugmentConfig(Settings, section="augmentation"):
    """Rotation about z, flips of x and y, isotropic scale, and a cuboid that is left out.

    The defaults are the official ones of ScaLR's pretraining.
    """

    max_rotation_rad: Annotated[float, at_least(0), up_to(math.pi)] = math.pi
    # one: of flipping one axis, x and y being equally likely (ScaLR). each: of either axis, apart (SLidR).
    flips: Literal["one", "each"] = "one"
    flip_probability: Annotated[float, at_least(0), up_to(1)] = 2 / 3
    max_scale_change: Annotated[float, at_least(0), up_to(0.99)] = 0.1
    drop_cuboid: Annotated[float, at_least(0), up_to(1)] = 0.0  # largest share of the cloud's extent along each axis


@dataclass(frozen=True)
class Motion:
    """One draw of augmentation: a rotation about z, then flips, then an isotropic scale, all about the sensor."""

    angle_rad: float = 0.0
    flipped_axes: tuple[int, ...] = ()  # 0 x, 1 y
    scale: float = 1.0

    def move(self, xyz: np.ndarray) -> np.ndarray:
        """(N, 3), in the dtype of `xyz` (N, 3) [m], which is left as it is."""
        cos, sin = math.cos(self.angle_rad), math.sin(self.angle_rad)
        transform = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) * self.scale  # for points as rows
        transform[:, list(self.flipped_axes)] *= -1
        return (xyz @ transform).astype(xyz.dtype)


def draw_motion(rng: np.random.Generator, config: AugmentConfig | None = None) -> Motion:
    """A motion of the sizes of `config` (None: the official ones); `rng` always advances by as many draws."""
    config = config or AugmentConfig()
    angle = rng.uniform(-config.max_rotation_rad, config.max_rotation_rad)
    if config.flips == "one":
        flips, axis = rng.random() < config.flip_probability, int(rng.integers(2))
        flipped = (axis,) if flips else ()
    else:
        flipped = tuple(axis for axis in (0, 1) if rng.random() < config.flip_probability)
    scale = 1 + rng.uniform(-config.max_scale_change, config.max_scale_change)
    return Motion(angle, flipped, scale)


def augment(xyz: np.ndarray, rng: np.random.Generator, config: AugmentConfig | None = None) -> np.ndarray:
    """Rotate, flip and scale a cloud (N, 3) [m] by a motion drawn from `rng`, as the official code pretrains."""
    return draw_motion(rng, config).move(xyz)


def outside_cuboid(xyz: np.ndarray, rng: np.random.Generator, largest_share: float) -> np.ndarray:
    """(N,) bool: all points but those inside a cuboid around one of them drawn at random (SLidR's DropCuboids).

    The cuboid has the same share, drawn from 0 to `largest_share`, of the extent of the cloud (N, 3) along each axis.
    """
    half_size = rng.uniform(0, largest_share) / 2 * np.ptp(xyz, axis=0)
    centre = xyz[rng.integers(len(xyz))]
    return ~(np.abs(xyz - centre) < half_size).all(axis=1)


@dataclass(frozen=True, eq=False)
class ScanInput:
    """One scan as the student reads it.

    Attributes:
        features: (M, 5) float32: normalised intensity, x, y, z, radius.
        neighbours: (M, K) int64, rows of this scan, nearest first, the point itself left out.
        cells: (P, M, 2) int64, row and column on each plane.
    """

    features: np.ndarray
    neighbours: np.ndarray
    cells: np.ndarray


def scan_input(
    points: np.ndarray, statistics: IntensityStatistics, config: InputConfig, feature_xyz: np.ndarray | None = None
) -> ScanInput:
    """The student's inputs for points that are already voxelised, augmented and cropped.

    A scan of K points or fewer repeats the neighbours that it has; a single point is its own neighbour.

    Args:
        points: (M, 4) x y z [m], raw intensity.
        statistics: of the dataset's intensity.
        config: neighbours, field of view, planes.
        feature_xyz: (M, 3) [m] x, y, z of the features, and of their radius, where they were augmented apart from
            those of `points`, which choose neighbours and cells; None takes the same for both.

    Raises:
        StudentError: no points, points outside the field of view, or points of another shape.
    """
    return _scan_input(points, _kept_tree(points), statistics, config, feature_xyz)


def evaluation_input(
    points: ArrayLike, statistics: IntensityStatistics, config: InputConfig
) -> tuple[ScanInput, np.ndarray, np.ndarray]:
    """A raw scan by the official evaluation protocol: first point of each voxel, cropped, undone by the nearest point.

    Args:
        points: (N, 4) x y z [m], raw intensity; numbers of any kind, taken to float32 as in the official code.
        statistics: of the dataset's intensity.
        config: voxels, field of view, neighbours, planes.

    Returns:
        The input of M points; `kept` (M,) int64, their rows in `points`; `nearest` (N,) int64, for every raw point,
        those outside the field of view too, the row of its nearest kept point: `scores[nearest]` scores all.

    Raises:
        StudentError: nothing in the field of view, a coordinate that is not finite, or points of another shape.
    """
    points = as_float32(points, "points", where="scan", wanted="Pass x, y, z in metres and raw intensity")
    _check_points(points)
    kept = voxel_representatives(points[:, :3], config.voxel_size_m)
    kept = kept[inside_field_of_view(points[kept, :3], config)]
    tree = _kept_tree(points[kept])
    nearest = np.empty(len(points), np.int64)
    nearest[kept] = np.arange(len(kept))  # no two kept points coincide, so each is its own nearest
    others = np.setdiff1d(np.arange(len(points)), kept, assume_unique=True)
    nearest[others] = nearest_of(tree, points[others, :3])
    return _scan_input(points[kept], tree, statistics, config), kept, nearest


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """The points of B scans one after the other, without padding.

    Attributes:
        features: (M, 5) float32.
        neighbours: (M, K) int64, rows of the whole batch.
        scan_offsets: (B + 1,) int64; scan b is rows scan_offsets[b] to scan_offsets[b + 1].
        cells: (P, M) int64, each point's index in the plane's dense (B, h, w) grid of crops.
        crop_shapes: (h, w) of each plane's crops in this batch.
    """

    features: torch.Tensor
    neighbours: torch.Tensor
    scan_offsets: torch.Tensor
    cells: torch.Tensor
    crop_shapes: tuple[tuple[int, int], ...]

    @property
    def num_points(self) -> int:
        return len(self.features)

    @property
    def num_scans(self) -> int:
        return len(self.scan_offsets) - 1

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedBatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """Called by torch's DataLoader with `pin_memory=True`."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return PackedBatch(**{k: function(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()})


def pack(scans: Sequence[ScanInput], config: InputConfig) -> PackedBatch:
    """Put scans one after the other, and crop each plane to where their points fall."""
    assert scans, "a batch has one scan at least"
    offsets = np.cumsum([0] + [len(scan.features) for scan in scans])
    neighbours = [scan.neighbours + offset for scan, offset in zip(scans, offsets[:-1], strict=True)]
    crops = [_crop([scan.cells[p] for scan in scans], plane.shape) for p, plane in enumerate(config.planes)]
    return PackedBatch(
        features=torch.from_numpy(np.concatenate([scan.features for scan in scans])),
        neighbours=torch.from_numpy(np.concatenate(neighbours)),
        scan_offsets=torch.from_numpy(offsets),
        cells=torch.from_numpy(np.stack([cells for cells, _ in crops])),
        crop_shapes=tuple(shape for _, shape in crops),
    )


def _crop(cells_of_scans: Sequence[np.ndarray], plane_shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Cells (M, 2) on the whole plane -> (M,) index in the dense (B, h, w) grid of crops, and (h, w).

    A margin of one cell around the occupied rectangle is enough. Only occupied cells are read after the second 3x3
    convolution, which then needs the first one's output one cell further out; that one reads one cell further
    still, outside the crop, where the plane is empty and so equals the zero padding. The output on the margin itself
    is wrong, and never read. Where the rectangle reaches the plane's border there is no margin: the crop ends with
    the plane, so the second convolution finds zero padding there and not the first one's bias, as on the whole plane.

    The crops of a batch share one size, the largest needed, but each lies where its own scan does: moved inwards
    where it would leave the plane, so each of its sides is either the plane's border or a free margin.
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


def _scan_input(
    points: np.ndarray,
    tree: Tree,
    statistics: IntensityStatistics,
    config: InputConfig,
    feature_xyz: np.ndarray | None = None,
) -> ScanInput:
    xyz = points[:, :3] if feature_xyz is None else feature_xyz
    intensity = (points[:, 3:] - statistics.mean) / statistics.std
    radius = np.linalg.norm(xyz, axis=1, keepdims=True)
    return ScanInput(
        features=np.concatenate([intensity, xyz, radius], axis=1, dtype=np.float32),
        neighbours=_neighbours(tree, config.num_neighbours),
        cells=_plane_cells(points[:, :3], config),
    )


def _plane_cells(xyz: np.ndarray, config: InputConfig) -> np.ndarray:
    """(P, M, 2) int64: floor((coordinate - minimum) / resolution), in float64 as in the official code."""
    if not inside_field_of_view(xyz, config).all():
        raise StudentError(
            f"some points lie outside the field of view {list(config.fov_min_m)} to {list(config.fov_max_m)} m",
            where="scan",
            fix="Keep the rows of inside_field_of_view(xyz, config)",
        )
    low, high = np.asarray(config.fov_min_m), np.asarray(config.fov_max_m)
    cells = np.empty((len(config.planes), len(xyz), 2), np.int64)
    for p, plane in enumerate(config.planes):
        axes = list(plane.axes)
        resolution = (high - low)[axes] / plane.shape
        cells[p] = np.floor((xyz[:, axes] - low[axes]) / resolution)
    return cells


def _neighbours(tree: Tree, count: int) -> np.ndarray:
    """(M, count) int64: the nearest other points of every point of the tree, nearest first."""
    if len(tree.row) == 1:
        return np.zeros((1, count), np.int64)
    others = nearest_others(tree, count)
    return others if others.shape[1] == count else others[:, np.arange(count) % others.shape[1]]


def _kept_tree(points: np.ndarray) -> Tree:
    """The k-d tree of the points."""
    _check_points(points)
    if len(points) == 0:
        raise StudentError(
            "no point is left inside the field of view",
            where="scan",
            fix="Leave this scan out, or widen fov_min_m and fov_max_m",
        )
    return build_tree(points[:, :3])


def as_float32(values: ArrayLike, what: str, *, where: str, wanted: str) -> np.ndarray:
    """Numbers of any kind in the machine's byte order: what the compiled loops read.

    Args:
        values: an array, a tensor of the CPU, or rows of numbers.
        what, where, wanted: of errors: what the values are, what they are given to, what to pass instead.

    Raises:
        StudentError: they are no array of numbers, or values are masked.
    """
    try:
        array = np.ma.asanyarray(values) if np.ma.isMaskedArray(values) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths; a tensor of a GPU
        raise StudentError(
            f"{what} are no array ({shortened(error)})", where=where, fix="Pass a numpy array or a list of rows"
        ) from None
    if array.dtype.kind not in "fiu":
        raise StudentError(f"{what} are {array.dtype}, not numbers", where=where, fix=wanted)
    if np.ma.is_masked(array):
        raise StudentError(
            f"{what} have {np.ma.count_masked(array)} masked values", where=where, fix="Remove these rows"
        )
    with np.errstate(over="ignore"):  # what float32 does not hold is not finite then, and refused
        return np.asarray(array).astype(np.float32, copy=False)


def _check_points(points: np.ndarray) -> None:
    if points.ndim != 2 or points.shape[1] != 4:
        raise StudentError(
            f"points have shape {points.shape}", where="scan", fix="Pass (N, 4): x, y, z in metres and raw intensity"
        )
    _check_finite(points)


def _check_finite(values: np.ndarray) -> None:
    # A sum is finite where all are: one pass, and only a sum that overflows needs a second look.
    with np.errstate(invalid="ignore", over="ignore"):
        total = values.sum()
    if not np.isfinite(total) and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).any(axis=1).sum())
        raise StudentError(
            f"{count} of {len(values)} points are not finite", where="scan", fix="Remove these rows before the student"
        )
