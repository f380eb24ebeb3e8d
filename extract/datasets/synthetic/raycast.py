"""Rays against simple solids: which one does each ray of a sensor meet first, and how far away?

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

NOTHING = -1  # entry of `Hits.solid` where a ray meets no solid

Vector = tuple[np.ndarray, np.ndarray, np.ndarray]


class Shape(IntEnum):
    """Unit shapes; `taper` is the share of the extent that is lost between bottom (z = -1) and top (z = 1)."""

    BOX = 0  # taper (front, rear, sides): (0, 0, 0) is a box, (0, 0, 1) a gable roof
    ROUND = 1  # around z; taper (radius, -, -): 0 is a cylinder, 1 a cone
    ELLIPSOID = 2  # with `porosity`: the share of the surface that is holes, in cells of `PORE_SIZE_M`


PORE_SIZE_M = 0.22


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

    def directions(self, matrix: np.ndarray, rows: slice, columns: slice) -> Vector:
        """x, y, z of `matrix` (3, 3) @ the world directions of a window's rays, each (rows, columns) in `dtype`."""
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
    origin = np.einsum("pij,pj->pi", solids.local_from_world, rays.origin - solids.center)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for window in sorted(rays.windows(solids), key=lambda window: window.nearest):
            behind = distance[window.rows, window.columns]
            if behind.max() <= window.nearest:
                continue  # all of it is hidden by what is drawn already
            direction = rays.directions(solids.local_from_world[window.solid], window.rows, window.columns)
            reached = intersect(solids, window.solid, tuple(origin[window.solid].tolist()), direction)
            closer = reached < behind
            np.copyto(behind, reached, where=closer)
            np.copyto(solid[window.rows, window.columns], window.solid, where=closer)
    return Hits(distance, solid)


def intersect(solids: Solids, index: int, origin: tuple[float, float, float], direction: Vector) -> np.ndarray:
    """t > 0 at which rays enter one solid, inf where they miss it or start inside; all in its local coordinates."""
    shape = solids.shape[index]
    if shape == Shape.BOX:
        return intersect_box(origin, direction, solids.taper[index].tolist())
    if shape == Shape.ROUND:
        return intersect_round(origin, direction, float(solids.taper[index, 0]))
    near, far = intersect_ball(origin, direction)
    porosity = float(solids.porosity[index])
    if porosity == 0:
        return near
    cells_per_unit = (solids.half_extent[index] / PORE_SIZE_M).tolist()
    near = np.where(_is_pore(origin, direction, near, cells_per_unit, porosity), far, near)
    return np.where((near == far) & _is_pore(origin, direction, far, cells_per_unit, porosity), np.inf, near)


def intersect_box(
    origin: tuple[float, float, float], direction: Vector, taper: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> np.ndarray:
    """Entry into the unit box, whose four side planes lean inwards by `taper` (see `Shape`).

    A ray enters through planes that its origin is outside of and leaves through the others, so that the sign of the
    origin's gap to a plane, one number for all rays, says which of the two bounds the plane moves.
    """
    dx, dy, dz = direction
    near, far = np.zeros_like(dx), np.full_like(dx, np.inf)
    for (nx, ny, nz), offset in box_planes(taper):
        gap = offset - (nx * origin[0] + ny * origin[1] + nz * origin[2])
        closing = nx * dx if nx else ny * dy if ny else nz * dz
        if nz and (nx or ny):
            closing = closing + nz * dz
        reached = gap / closing
        if gap < 0:
            near = np.where(closing < 0, np.maximum(near, reached), np.inf)
        else:
            far = np.where(closing > 0, np.minimum(far, reached), far)
    return np.where((near <= far) & (near > 0), near, np.inf)


def box_planes(taper: tuple[float, float, float]) -> list[tuple[tuple[float, float, float], float]]:
    """The six half-spaces normal · local <= offset of a tapered unit box: front, rear, left, right, top, bottom."""
    front, rear, sides = (value / 2 for value in taper)
    return [
        ((1.0, 0.0, front), 1.0 - front),
        ((-1.0, 0.0, rear), 1.0 - rear),
        ((0.0, 1.0, sides), 1.0 - sides),
        ((0.0, -1.0, sides), 1.0 - sides),
        ((0.0, 0.0, 1.0), 1.0),
        ((0.0, 0.0, -1.0), 1.0),
    ]


def intersect_round(origin: tuple[float, float, float], direction: Vector, taper: float = 0.0) -> np.ndarray:
    """Entry into the unit cylinder or truncated cone around z: x² + y² <= (1 - taper (z + 1) / 2)², |z| <= 1.

    The quadratic is solved from the point nearest to the centre, not from the origin: in float32 a far origin would
    cancel all digits.
    """
    dx, dy, dz = direction
    slope, middle = -taper / 2, 1 - taper / 2
    start = _nearest_to_center(origin, direction)
    x, y, z = (o + start * d for o, d in zip(origin, direction, strict=True))
    radius = middle + slope * z
    a = dx * dx + dy * dy - (slope * slope) * dz * dz
    b = x * dx + y * dy - slope * radius * dz
    root = np.sqrt(b * b - a * (x * x + y * y - radius * radius))  # nan where the ray misses
    best = np.full_like(dx, np.inf)
    for step in ((-b - root) / a, (-b + root) / a):
        t = start + step
        best = np.where((np.abs(z + step * dz) <= 1) & (t > 0) & (t < best), t, best)
    if abs(origin[2]) <= 1:
        return best
    end = 1.0 if origin[2] > 0 else -1.0  # the only end face that can be entered
    t = (end - origin[2]) / dz
    inside = (origin[0] + t * dx) ** 2 + (origin[1] + t * dy) ** 2 <= (middle + slope * end) ** 2
    return np.where(inside & (t > 0) & (t < best), t, best)


def intersect_ball(origin: tuple[float, float, float], direction: Vector) -> tuple[np.ndarray, np.ndarray]:
    """Entry into and exit from the unit ball; inf, both, where a ray misses it or starts inside."""
    start = _nearest_to_center(origin, direction)
    dx, dy, dz = direction
    x, y, z = (o + start * d for o, d in zip(origin, direction, strict=True))
    half_chord = np.sqrt((1 - (x * x + y * y + z * z)) / (dx * dx + dy * dy + dz * dz))  # nan where the ray misses
    hit = start > half_chord
    return np.where(hit, start - half_chord, np.inf), np.where(hit, start + half_chord, np.inf)


def _nearest_to_center(origin: tuple[float, float, float], direction: Vector) -> np.ndarray:
    dx, dy, dz = direction
    return -(origin[0] * dx + origin[1] * dy + origin[2] * dz) / (dx * dx + dy * dy + dz * dz)


def _is_pore(
    origin: tuple[float, float, float],
    direction: Vector,
    distance: np.ndarray,
    cells_per_unit: list[float],
    porosity: float,
) -> np.ndarray:
    """Whether the surface point at `distance` falls in a hole: a fixed random choice per cell of the solid."""
    distance = np.where(np.isfinite(distance), distance, 0)
    cells = [
        np.floor((o + distance * d) * scale).astype(np.int32)
        for o, d, scale in zip(origin, direction, cells_per_unit, strict=True)
    ]
    return hash_cells(*cells) < porosity


def hash_cells(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A fixed pseudo-random float32 in [0, 1) per integer cell."""
    mixed = x.astype(np.uint32) * np.uint32(0x8DA6B343)
    mixed ^= y.astype(np.uint32) * np.uint32(0xD8163841)
    mixed ^= z.astype(np.uint32) * np.uint32(0xCB1AB31F)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0x5BD1E995)
    mixed ^= mixed >> np.uint32(15)
    return (mixed >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
