"""The two ray grids: a pinhole camera's pixels, and the firings of a lidar's revolution."""

from __future__ import annotations

import itertools

import numpy as np

from .raycast import Solids, Window

CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))  # (8, 3) of the unit box
EDGES = np.array([(i, j) for i, j in itertools.combinations(range(8), 2) if np.abs(CORNERS[i] - CORNERS[j]).sum() == 2])
NEAR_PLANE_M = 0.05  # nothing of the world comes that close to a lens
MARGIN = 1e-3  # of a pixel, an azimuth step, a radian: windows are a little too large rather than too small


class PinholeRays:
    """One ray through each pixel centre, float32, with direction z = 1 in the camera frame: t is depth [m].

    Pixel (row, column) is floor(v), floor(u), so its centre is at (u, v) = (column + 0.5, row + 0.5).

    Args:
        world_from_cam: (4, 4) float64; the camera frame has x right, y down, z forward.
        intrinsics: (3, 3) float64 [px].
        shape: (H, W) [px].
    """

    dtype = np.float32

    def __init__(self, world_from_cam: np.ndarray, intrinsics: np.ndarray, shape: tuple[int, int]) -> None:
        self.origin = world_from_cam[:3, 3]
        self.shape = shape
        self._world_from_pixel = world_from_cam[:3, :3] @ np.linalg.inv(intrinsics)
        self._pixel_from_world = intrinsics @ world_from_cam[:3, :3].T
        self._u = np.arange(shape[1]) + 0.5
        self._v = np.arange(shape[0]) + 0.5

    def directions(self, matrix: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """See `RayGrid`. A direction is linear in (u, v): one sum per pixel and component is all it takes."""
        m = matrix @ self._world_from_pixel
        along_u = (m[:, :1] * self._u[columns]).astype(np.float32)
        along_v = (m[:, 1:2] * self._v[rows] + m[:, 2:]).astype(np.float32)
        return along_u[:, None, :] + along_v[:, :, None]

    def windows(self, solids: Solids) -> list[Window]:
        """See `RayGrid`. The pixel rectangle around the projected bounding box, cut at the near plane."""
        candidates = self._in_frustum(solids)
        corners = solids.center[candidates, None] + CORNERS @ np.swapaxes(solids.axes[candidates], 1, 2)  # (P, 8, 3)
        homogeneous = _cut_at_near_plane((corners - self.origin) @ self._pixel_from_world.T)
        depth = homogeneous[..., 2]
        pixels = homogeneous[..., :2] / depth[..., None]
        lower, upper = np.fmin.reduce(pixels, axis=1), np.fmax.reduce(pixels, axis=1)  # fmin, fmax leave nan out
        first = np.maximum(np.ceil(lower - 0.5 - MARGIN), 0)
        last = np.minimum(np.floor(upper - 0.5 + MARGIN), np.array(self.shape[::-1]) - 1.0)
        kept = np.flatnonzero((first <= last).all(axis=1))  # nan, where all is behind the camera, compares false
        bounds = np.concatenate([first, last + 1], axis=1)[kept].astype(int).tolist()
        nearest = np.fmin.reduce(depth, axis=1)[kept].tolist()
        return [
            Window(solid, slice(top, bottom), slice(left, right), closest)
            for solid, (left, top, right, bottom), closest in zip(
                candidates[kept].tolist(), bounds, nearest, strict=True
            )
        ]

    def _in_frustum(self, solids: Solids) -> np.ndarray:
        """The solids whose bounding sphere reaches into the camera's field of view: few of all."""
        center = (solids.center - self.origin) @ self._pixel_from_world.T
        radius = np.linalg.norm(solids.half_extent, axis=1)
        inside = center[:, 2] + radius > NEAR_PLANE_M
        for axis, size in enumerate(self.shape[::-1]):
            for plane in (np.eye(3)[axis], np.array([0, 0, size]) - np.eye(3)[axis]):  # u >= 0, u <= size times depth
                inside &= center @ plane > -radius * np.linalg.norm(plane @ self._pixel_from_world)
        return np.flatnonzero(inside)


def _cut_at_near_plane(corners: np.ndarray) -> np.ndarray:
    """(P, 8, 3) box corners with depth last -> (P, 20, 3): the corners in front of the near plane, and the points
    where the box's edges cross it; nan elsewhere."""
    depth = corners[..., 2]
    start, end = corners[:, EDGES[:, 0]], corners[:, EDGES[:, 1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (NEAR_PLANE_M - start[..., 2]) / (end[..., 2] - start[..., 2])
    crossing = start + share[..., None] * (end - start)
    crossing[~((share > 0) & (share < 1))] = np.nan
    return np.concatenate([np.where((depth >= NEAR_PLANE_M)[..., None], corners, np.nan), crossing], axis=1)


class SpinningRays:
    """One ray per beam (row) and azimuth step (column), float64, of unit length: t is range [m].

    Args:
        world_from_lidar: (4, 4) float64.
        elevations: (B,) ascending [rad].
        first_azimuth: of column 0, counter-clockwise from the lidar's x axis [rad].
        step: between columns [rad].
        columns: number of azimuth steps.
        max_range_m: solids beyond are left out.
    """

    dtype = np.float64

    def __init__(
        self,
        world_from_lidar: np.ndarray,
        elevations: np.ndarray,
        first_azimuth: float,
        step: float,
        columns: int,
        max_range_m: float,
    ) -> None:
        self.origin = world_from_lidar[:3, 3]
        self.shape = (len(elevations), columns)
        self._rotation = world_from_lidar[:3, :3]
        self._elevations, self._first, self._step, self._max_range_m = elevations, first_azimuth, step, max_range_m
        azimuths = first_azimuth + step * np.arange(columns)
        self._cos, self._sin = np.cos(azimuths), np.sin(azimuths)

    def directions(self, matrix: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """See `RayGrid`."""
        m = matrix @ self._rotation
        around = m[:, 0, None] * self._cos[columns] + m[:, 1, None] * self._sin[columns]
        level, height = np.cos(self._elevations[rows]), np.sin(self._elevations[rows])
        return level[:, None] * around[:, None, :] + height[:, None] * m[:, 2, None, None]

    def windows(self, solids: Solids) -> list[Window]:
        """See `RayGrid`. The sector and the beams around a cylinder that holds the solid."""
        center = (solids.center - self.origin) @ self._rotation
        axes = np.abs(self._rotation.T @ solids.axes)
        radius = np.linalg.norm(axes[:, :2].sum(axis=2), axis=1)
        height = axes[:, 2].sum(axis=1)
        level = np.hypot(center[:, 0], center[:, 1])
        nearest = np.maximum(level - radius, 1e-3)
        low, high = self._beams(center[:, 2] - height, center[:, 2] + height, nearest, level + radius)
        middle = np.arctan2(center[:, 1], center[:, 0])
        spread = np.where(level > radius, np.arcsin(np.minimum(radius / np.maximum(level, 1e-9), 1)), np.pi)
        near_enough = (nearest < self._max_range_m) & (low < high)
        windows = []
        for turn in (-2 * np.pi, 0.0, 2 * np.pi):  # a sector that wraps around makes two windows
            start = (middle - spread + turn - self._first) / self._step
            end = (middle + spread + turn - self._first) / self._step
            left = np.maximum(np.ceil(start - MARGIN), 0).astype(int)
            right = np.minimum(np.floor(end + MARGIN), self.shape[1] - 1.0).astype(int) + 1
            solid = np.flatnonzero(near_enough & (left < right))
            bounds = np.stack([solid, low[solid], high[solid], left[solid], right[solid]], axis=1).tolist()
            windows += [
                Window(index, slice(bottom, top), slice(first, last), closest)
                for (index, bottom, top, first, last), closest in zip(bounds, nearest[solid].tolist(), strict=True)
            ]
        return windows

    def _beams(self, bottom, top, nearest, farthest) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 of the beams between heights `bottom` and `top` at distances `nearest`..`farthest`."""
        lowest = np.arctan(bottom / np.where(bottom < 0, nearest, farthest))
        highest = np.arctan(top / np.where(top > 0, nearest, farthest))
        return (
            np.searchsorted(self._elevations, lowest - MARGIN),
            np.searchsorted(self._elevations, highest + MARGIN, side="right"),
        )
