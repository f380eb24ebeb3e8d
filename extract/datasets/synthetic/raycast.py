"""Ray casting against simple solids: find the first solid on each ray of a sensor, and its distance.

Everything is pure numpy over arrays; no scene content lives here. A solid is the affine image of a unit shape in
[-1, 1]^3, so the ray parameter t is the same before and after moving a ray to the solid's own coordinates. Lidars
and cameras go through the same `cast`, with their rays laid out as a grid (`rays.py`); each solid is tested only
against the window of rays that can meet it, nearest solids first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

NOTHING = -1  # entry of `Hits.solid` for rays that meet no solid


class Shape(IntEnum):
    """Unit shapes; `taper` is the fraction of the extent that is lost between bottom (z = -1) and top (z = 1)."""

    BOX = 0  # taper (front, rear, sides): (0, 0, 0) is a box, (0, 0, 1) a gable roof
    ROUND = 1  # around z; taper (radius, -, -): 0 is a cylinder, 1 a cone
    ELLIPSOID = 2  # with `porosity`: the fraction of the surface that is holes, in cells of `PORE_SIZE_M`


PORE_SIZE_M = 0.22
_BOX, _ROUND = int(Shape.BOX), int(Shape.ROUND)  # enumerations compare slowly


@dataclass(frozen=True, eq=False)
class Solids:
    """P solids, in world coordinates at one instant.

    Attributes:
        shape: (P,) uint8, a `Shape`.
        center: (P, 3) float64 [m].
        axes: (P, 3, 3) float64; columns are the half-extent vectors [m], at right angles to each other:
            world = center + axes @ local.
        taper: (P, 3) float64, see `Shape`.
        porosity: (P,) float64 in [0, 1), see `Shape`.
    """

    shape: np.ndarray
    center: np.ndarray
    axes: np.ndarray
    taper: np.ndarray
    porosity: np.ndarray

    @cached_property
    def half_extent(self) -> np.ndarray:
        """(P, 3) float64 [m]."""
        return np.linalg.norm(self.axes, axis=1)

    @cached_property
    def local_from_world(self) -> np.ndarray:
        """(P, 3, 3) float64: local = local_from_world @ (world - center)."""
        return np.swapaxes(self.axes, 1, 2) / self.half_extent[:, :, None] ** 2


class Window(NamedTuple):
    """The rays of a grid that can meet a solid: a rectangle, and a lower bound of t for each of its rays."""

    solid: int
    rows: slice
    columns: slice
    nearest: float


class RayGrid(Protocol):
    """Rays from one origin, laid out in rows and columns."""

    origin: np.ndarray  # (3,) float64, world [m]
    shape: tuple[int, int]
    dtype: type

    def windows(self, solids: Solids) -> list[Window]:
        """The solids that some ray of the grid may meet, with the rays that may meet them."""
        ...

    def directions(self, matrix: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """`matrix` (3, 3) @ the world directions of a window's rays: (3, rows, columns) in `dtype`."""
        ...


class Hits(NamedTuple):
    """For each ray of a grid: t of the first surface (inf: none) and the solid it belongs to (or `NOTHING`)."""

    distance: np.ndarray  # (rows, columns) in the grid's dtype; in units of the ray's direction vector
    solid: np.ndarray  # (rows, columns) int32


def cast(solids: Solids, rays: RayGrid, background: np.ndarray) -> Hits:
    """Find the first solid on each ray.

    Args:
        solids: what can be hit.
        rays: the grid.
        background: (rows, columns) t of whatever lies behind the solids (the ground), inf where nothing does.
    """
    distance = background.astype(rays.dtype)
    solid = np.full(rays.shape, NOTHING, dtype=np.int32)
    origin = np.einsum("pij,pj->pi", solids.local_from_world, rays.origin - solids.center).astype(rays.dtype)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for window in sorted(rays.windows(solids), key=lambda window: window.nearest):
            behind = distance[window.rows, window.columns]
            if behind.max() <= window.nearest:
                continue  # nearer solids occlude it completely
            direction = rays.directions(solids.local_from_world[window.solid], window.rows, window.columns)
            reached = intersect(solids, window.solid, origin[window.solid], direction)
            closer = reached < behind
            np.copyto(behind, reached, where=closer)
            np.copyto(solid[window.rows, window.columns], window.solid, where=closer)
    return Hits(distance, solid)


def intersect(solids: Solids, index: int, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """t > 0 at which rays enter one solid, inf for rays that miss it or start inside; all in its local coordinates.

    Args:
        solids, index: the solids, and the number of one of them.
        origin: (3,) in the dtype of the rays.
        direction: (3, ...), any shape.
    """
    shape, taper = solids.shape[index], solids.taper[index]
    if shape == _BOX:
        return intersect_tapered_box(origin, direction, taper) if taper.any() else intersect_box(origin, direction)
    if shape == _ROUND:
        return intersect_round(origin, direction, float(taper[0]))
    near, far = intersect_ball(origin, direction)
    porosity = float(solids.porosity[index])
    if porosity > 0:
        cells_per_unit = (solids.half_extent[index] / PORE_SIZE_M).astype(origin.dtype)
        return _through_pores(near, far, origin, direction, cells_per_unit, porosity)
    return near


def intersect_box(origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Entry into the unit box."""
    start, inverse = _column(origin, direction), 1 / direction
    lower, upper = (-1 - start) * inverse, (1 - start) * inverse
    near, far = np.minimum(lower, upper).max(axis=0), np.maximum(lower, upper).min(axis=0)
    return np.where((near <= far) & (near > 0), near, np.inf)


def intersect_tapered_box(origin: np.ndarray, direction: np.ndarray, taper: np.ndarray) -> np.ndarray:
    """Entry into the unit box, whose four side planes lean inwards by `taper` (3,) (see `Shape`).

    A ray enters through planes that its origin is outside of and leaves through the others, so that the sign of the
    origin's gap to a plane, one number for all rays, says which of the two bounds the plane moves.
    """
    normal, offset = box_planes(taper)
    gap = (offset - normal @ origin.astype(np.float64)).astype(direction.dtype)
    closing = np.einsum("ki,i...->k...", normal.astype(direction.dtype), direction)
    reached = _column(gap, direction) / closing
    outside = gap < 0
    near = np.where(closing[outside] < 0, reached[outside], np.inf).max(axis=0, initial=0)
    far = np.where(closing[~outside] > 0, reached[~outside], np.inf).min(axis=0, initial=np.inf)
    return np.where((near <= far) & (near > 0), near, np.inf)


def box_planes(taper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The six half-spaces normal (6, 3) · local <= offset (6,): front, rear, left, right, top, bottom."""
    front, rear, sides = (float(share) / 2 for share in taper)
    normal = np.array([[1, 0, front], [-1, 0, rear], [0, 1, sides], [0, -1, sides], [0, 0, 1], [0, 0, -1]])
    return normal, np.array([1 - front, 1 - rear, 1 - sides, 1 - sides, 1, 1])


def intersect_round(origin: np.ndarray, direction: np.ndarray, taper: float = 0.0) -> np.ndarray:
    """Entry into the unit cylinder or truncated cone around z: x² + y² <= (1 - taper (z + 1) / 2)², |z| <= 1.

    The quadratic is solved from the point nearest to the centre, not from the origin: in float32 a far origin would
    cancel all digits.
    """
    slope, middle = -taper / 2, 1 - taper / 2
    start = _nearest_to_center(origin, direction)
    nearest = _column(origin, direction) + start * direction
    dz, z = direction[2], nearest[2]
    radius = middle + slope * z
    a = _dot(direction[:2], direction[:2]) - slope * slope * dz * dz
    b = _dot(nearest[:2], direction[:2]) - slope * radius * dz
    root = np.sqrt(b * b - a * (_dot(nearest[:2], nearest[:2]) - radius * radius))  # nan where the ray misses
    best = np.full_like(dz, np.inf)
    for step in ((-b - root) / a, (-b + root) / a) if taper else ((-b - root) / a,):
        t = start + step
        best = np.where((np.abs(z + step * dz) <= 1) & (t > 0) & (t < best), t, best)
    if abs(origin[2]) <= 1:
        return best
    end = 1.0 if origin[2] > 0 else -1.0  # the only end face that can be entered
    t = (end - float(origin[2])) / dz
    inside = (float(origin[0]) + t * direction[0]) ** 2 + (float(origin[1]) + t * direction[1]) ** 2
    return np.where((inside <= (middle + slope * end) ** 2) & (t > 0) & (t < best), t, best)


def intersect_ball(origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry into and exit from the unit ball; inf, both, where a ray misses it or starts inside."""
    start = _nearest_to_center(origin, direction)
    nearest = _column(origin, direction) + start * direction
    half_chord = np.sqrt((1 - _dot(nearest, nearest)) / _dot(direction, direction))  # nan where the ray misses
    hit = start > half_chord
    return np.where(hit, start - half_chord, np.inf), np.where(hit, start + half_chord, np.inf)


def _nearest_to_center(origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return -np.einsum("i,i...->...", origin, direction) / _dot(direction, direction)


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("i...,i...->...", first, second)


def _column(values: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """`values` (n,) in a shape that broadcasts over rays (n, ...)."""
    return values.reshape(-1, *[1] * (rays.ndim - 1))


def _through_pores(
    near: np.ndarray,
    far: np.ndarray,
    origin: np.ndarray,
    direction: np.ndarray,
    cells_per_unit: np.ndarray,
    porosity: float,
) -> np.ndarray:
    """Where rays through a porous shell end: at its front, through a hole there at its back, or (inf) not at all.

    A hole is a fixed random choice per cell of the surface.
    """
    reached, rays = near.ravel(), direction.reshape(3, -1)

    def fall_through(candidates: np.ndarray) -> np.ndarray:
        points = origin[:, None] + reached[candidates] * rays[:, candidates]
        cells = np.floor(points * cells_per_unit[:, None]).astype(np.int32)
        return candidates[hash_cells(*cells) < porosity]

    front_holes = fall_through(np.flatnonzero(np.isfinite(reached)))
    reached[front_holes] = far.ravel()[front_holes]
    reached[fall_through(front_holes)] = np.inf
    return reached.reshape(near.shape)


def hash_cells(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A fixed pseudo-random float32 in [0, 1) per integer cell."""
    mixed = x.astype(np.uint32) * np.uint32(0x8DA6B343)
    mixed ^= y.astype(np.uint32) * np.uint32(0xD8163841)
    mixed ^= z.astype(np.uint32) * np.uint32(0xCB1AB31F)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0x5BD1E995)
    mixed ^= mixed >> np.uint32(15)
    return (mixed >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
