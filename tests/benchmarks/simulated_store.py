"""A store for machines without zarr: simulated scans of a street, views and targets, in files that NumPy reads.

Sizes are those of nuScenes: 32 beams of 1,084 points, six cameras of 900 x 1600, targets as patch int8. A view is read
from compressed files, as from a store. A few frames stand for many, as if the files of the others were links to theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import checkout  # noqa: F401  # before scalr
import numpy as np
import torch

from scalr.extract.encoding import Encoding
from scalr.extract.intensity import intensity_statistics
from scalr.extract.store import StoredView
from scalr.extract.targets import EncodedTargets, Footprint, encoded_targets, footprint

TEACHER = "simulated"  # the name of the targets
IMAGE_SHAPE, FOCAL_PX = (900, 1600), 1266.0
CAMERAS = 6  # 60 degrees apart
MAP_SHAPE, PATCH_SIZE = (16, 32), 14  # of a ViT/14 at 224 x 448
ENCODING = Encoding("patch", "int8")
LIDAR_HEIGHT_M, RANGE_M, NOISE_M = 1.84, 100.0, 0.02
BOXES = 24


@dataclass(frozen=True)
class Lidar:
    """How many points a scan has at most: `beams` times `azimuths`."""

    beams: int = 32
    azimuths: int = 1084


NUSCENES_LIDAR = Lidar()


def simulated_scan(rng: np.random.Generator, lidar: Lidar = NUSCENES_LIDAR) -> np.ndarray:
    """(N, 4) float32: x y z [m] in the lidar frame, and intensities from 0 to 255, of a street with houses and cars."""
    elevation, azimuth = np.meshgrid(
        np.radians(np.linspace(-30.67, 10.67, lidar.beams)),
        np.linspace(0, 2 * np.pi, lidar.azimuths, endpoint=False),
        indexing="ij",
    )
    across = np.cos(elevation)
    rays = np.stack([across * np.cos(azimuth), across * np.sin(azimuth), np.sin(elevation)], axis=-1).reshape(-1, 3)
    rays = np.where(np.abs(rays) < 1e-9, 1e-9, rays)  # none is parallel to a side of a box
    inverse = 1 / rays
    distance = np.where(rays[:, 2] < 0, -LIDAR_HEIGHT_M * inverse[:, 2], np.inf)
    for low, high in _boxes(rng):
        to_low, to_high = low * inverse, high * inverse
        first, last = np.minimum(to_low, to_high).max(axis=1), np.maximum(to_low, to_high).min(axis=1)
        distance = np.where((first <= last) & (first > 0), np.minimum(distance, first), distance)
    seen = distance < RANGE_M
    xyz = rays[seen] * (distance[seen] + rng.normal(scale=NOISE_M, size=seen.sum()))[:, None]
    return np.column_stack([xyz, rng.integers(0, 256, len(xyz))]).astype(np.float32)


def _boxes(rng: np.random.Generator) -> np.ndarray:
    """(BOXES + 2, 2, 3): lowest and highest corners [m] of cars, poles and trees, and of two rows of houses."""
    centre = rng.uniform([-40, -6], [40, 6], (BOXES, 2))
    centre[:, 1] += np.where(centre[:, 1] < 0, -3, 3)  # the street itself is free
    half, height = rng.uniform(0.2, 2.2, (BOXES, 2)), rng.uniform(1.2, 6, BOXES)
    ground = np.full(BOXES, -LIDAR_HEIGHT_M)
    low = np.column_stack([centre - half, ground])
    high = np.column_stack([centre + half, ground + height])
    left, right = rng.uniform(8, 12, 2)
    houses = [
        [[-120, left, -LIDAR_HEIGHT_M], [120, left + 10, 12]],
        [[-120, -right - 10, -LIDAR_HEIGHT_M], [120, -right, 12]],
    ]
    return np.concatenate([np.stack([low, high], axis=1), houses])


def pairs_of_camera(points: np.ndarray, camera: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (R,) int64 of the points that a camera sees, and their pixels (R, 2) uint16, row and column."""
    yaw = 2 * np.pi * camera / CAMERAS
    ahead = points[:, 0] * np.cos(yaw) + points[:, 1] * np.sin(yaw)
    left = points[:, 1] * np.cos(yaw) - points[:, 0] * np.sin(yaw)
    depth = np.maximum(ahead, 1e-6)
    height, width = IMAGE_SHAPE
    row, column = height / 2 - FOCAL_PX * points[:, 2] / depth, width / 2 - FOCAL_PX * left / depth
    seen = (ahead > 1) & (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return np.flatnonzero(seen), np.stack([row[seen], column[seen]], axis=1).astype(np.uint16)


def write_frames(folder: Path, frames: int, dim: int, lidar: Lidar = NUSCENES_LIDAR) -> None:
    """Write files of scans and views, for `SimulatedStore`, with targets of `dim` dimensions."""
    for frame in range(frames):
        rng = np.random.default_rng(frame)
        points = simulated_scan(rng, lidar)
        np.savez_compressed(folder / f"{frame}.npz", points=points)
        for camera in range(CAMERAS):
            index, pixel = pairs_of_camera(points, camera)
            count = len(reads_of(pixel).touched)
            vectors = rng.integers(-127, 128, (count, dim), dtype=np.int8)
            scale = rng.uniform(0.5, 1, count).astype(np.float32)
            arrays = {"point_index": index, "pixel": pixel, "vectors": vectors, "scale": scale}
            np.savez_compressed(folder / f"{frame}_{camera}.npz", **arrays)


def reads_of(pixel: np.ndarray) -> Footprint:
    return footprint(torch.from_numpy(pixel.astype(np.int64)), IMAGE_SHAPE, MAP_SHAPE, PATCH_SIZE)


class SimulatedStore:
    """What a `DistillDataset` asks of a `FeatureStore`, of `num_frames` frames that the files of `frames` stand for."""

    def __init__(self, path: Path, frames: int, dim: int, num_frames: int) -> None:
        self.path, self.frames, self.dim, self.num_frames = path, frames, dim, num_frames
        self.sources = ()

    @cached_property
    def views(self) -> dict[str, np.ndarray]:
        """Columns of the index: one row per view."""
        frame, camera = np.divmod(np.arange(CAMERAS * self.num_frames), CAMERAS)
        return {"token": frame.astype(str), "camera": camera.astype(str)}

    def column(self, name: str) -> np.ndarray:
        frame = np.arange(CAMERAS * self.num_frames) // CAMERAS
        return {"block": frame // 64, "points_start": frame, "pairs_start": 0 * frame, "pairs_stop": 0 * frame + 1}[
            name
        ]

    def rows_with_targets(self, teacher: str) -> np.ndarray:
        return np.arange(CAMERAS * self.num_frames)

    def require_targets_of_pairs(self, teacher: str, instead: str = "") -> None:
        """There are."""

    def read_view(self, row: int) -> StoredView:
        frame, arrays = self._frame_of(row), self._arrays_of(row)
        with np.load(self.path / f"{frame}.npz") as scan:
            points = scan["points"]
        intensity = intensity_statistics("nuscenes")
        return StoredView("nuscenes", intensity, points, arrays["point_index"], arrays["pixel"], encoded=None)

    def read_targets_of(self, row: int, teacher: str, pixel: np.ndarray) -> EncodedTargets:
        arrays = self._arrays_of(row)
        vectors, scale = (torch.from_numpy(arrays[name]) for name in ("vectors", "scale"))
        channels = torch.stack([torch.zeros(self.dim), torch.ones(self.dim)])
        return encoded_targets(vectors, scale, channels, reads_of(pixel), ENCODING)

    def _frame_of(self, row: int) -> int:
        return row // CAMERAS % self.frames

    def _arrays_of(self, row: int) -> dict[str, np.ndarray]:
        with np.load(self.path / f"{self._frame_of(row)}_{row % CAMERAS}.npz") as arrays:
            return dict(arrays)
