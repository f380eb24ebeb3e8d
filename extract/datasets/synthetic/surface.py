"""The surface at the end of a ray: its class, object, orientation, colour and reflectivity.

Cameras and lidars both use this module, so that they cannot disagree.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .parts import Pattern
from .raycast import NOTHING, RayGrid, Shape, Solids, cast, hash_cells
from .street import REGION_CATEGORY, Region
from .texture import solid_noise
from .world import World

SKY = 255  # category of rays that meet nothing; nuScenes does not use this id


class Surface(NamedTuple):
    """The surfaces at the ends of N rays. Vectors have their axis first, so that x, y, z are separate arrays."""

    points: np.ndarray  # (3, N) world [m]
    normal: np.ndarray  # (3, N) float32, unit, world
    category: np.ndarray  # (N,) uint8, nuScenes lidarseg id
    instance: np.ndarray  # (N,) uint16, object + 1, or 0 for the ground
    colour: np.ndarray  # (3, N) float32 albedo
    reflectivity: np.ndarray  # (N,) float32


class View(NamedTuple):
    """The rays of a grid, followed to their ends."""

    distance: np.ndarray  # (rows, columns) t, inf for sky
    seen: np.ndarray  # (N,) int64: the rays that end on `surface`, as indices into the flattened grid
    surface: Surface


def look(world: World, rays: RayGrid, time_s: float) -> View:
    """Follow every ray of a grid at one instant."""
    everywhere = slice(None)
    directions = rays.directions(np.eye(3), everywhere, everywhere)
    solids = world.solids(time_s)
    hits = cast(solids, rays, world.street.cast(rays.origin, directions))
    seen = np.flatnonzero(np.isfinite(hits.distance))
    directions = directions.reshape(3, -1)[:, seen]
    distance = hits.distance.ravel()[seen]
    points = rays.origin.astype(rays.dtype)[:, None] + distance * directions
    return View(hits.distance, seen, _surface(world, solids, points, directions, hits.solid.ravel()[seen]))


def _surface(world: World, solids: Solids, points: np.ndarray, directions: np.ndarray, part: np.ndarray) -> Surface:
    on_ground, on_part = np.flatnonzero(part == NOTHING), np.flatnonzero(part != NOTHING)
    merged = []
    for ground, parts in zip(
        _ground(world, points[:, on_ground], directions[:, on_ground]),
        _parts(world, solids, part[on_part], points[:, on_part]),
        strict=True,
    ):
        values = np.empty((*ground.shape[:-1], len(part)), dtype=ground.dtype)
        values[..., on_ground], values[..., on_part] = ground, parts
        merged.append(values)
    return Surface(points, *merged)


def _ground(world: World, points: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, ...]:
    """normal, category, instance, colour, reflectivity of points on the ground."""
    street = world.street
    x, y, z = points
    is_face = np.flatnonzero((z > 0.003) & (z < street.kerb_height - 0.003))
    level = directions[:2, is_face] / np.hypot(*directions[:2, is_face])
    x, y = x.copy(), y.copy()
    x[is_face] += 0.02 * level[0]  # a kerb's face belongs to the ground behind it
    y[is_face] += 0.02 * level[1]
    region = street.region(x, y)
    region[is_face[region[is_face] == Region.ROAD]] = Region.SIDEWALK  # rounding left the point before the kerb
    normal = np.zeros(points.shape, dtype=np.float32)
    normal[2] = 1
    normal[:2, is_face], normal[2, is_face] = -level, 0
    colour, reflectivity = street.look(x, y, region)
    colour[:, is_face] *= 0.75
    return normal, REGION_CATEGORY[region], np.zeros(len(x), np.uint16), colour, reflectivity


def _parts(world: World, solids: Solids, part: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, ...]:
    """normal, category, instance, colour, reflectivity of points on the solids `part` (N,)."""
    paints, dtype = world.paints, points.dtype
    from_world = [[solids.local_from_world[:, i, j].astype(dtype)[part] for j in range(3)] for i in range(3)]
    x, y, z = (points[axis] - solids.center[:, axis].astype(dtype)[part] for axis in range(3))
    local = np.stack([row[0] * x + row[1] * y + row[2] * z for row in from_world]).astype(np.float32)
    gradient = _gradient(local, solids.shape[part], solids.taper.astype(np.float32), part)
    normal = np.stack([sum(from_world[i][j] * gradient[i] for i in range(3)) for j in range(3)])
    normal *= 1 / np.sqrt((normal * normal).sum(axis=0))
    half_extent = np.stack([axis[part] for axis in solids.half_extent.T.astype(np.float32)])
    offset = np.float32(0.7) * (part & 63).astype(np.float32)  # so that no two parts are grained alike
    noise = solid_noise(local * half_extent + offset)
    accent = _accent(world, part, local, half_extent, gradient, noise)
    colour = _blend(paints.colour.T, paints.accent.T, part, accent)
    colour *= 1 + paints.grain[part] * noise
    reflectivity = _blend(paints.reflectivity[None], paints.accent_reflectivity[None], part, accent)[0]
    owner = world.part_object[part]
    return normal.astype(np.float32), world.category[owner], (owner + 1).astype(np.uint16), colour, reflectivity


def _blend(first: np.ndarray, second: np.ndarray, part: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(C, N) values between those of two tables (C, P), read at `part` (N,)."""
    return np.stack([a[part] + share * (b - a)[part] for a, b in zip(first, second, strict=True)])


def _gradient(local: np.ndarray, shape: np.ndarray, taper: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Outward direction at surface points (3, N) of unit shapes, in the shape's own coordinates, of any length."""
    gradient = local.copy()  # right for ellipsoids
    flat = np.flatnonzero(shape == Shape.BOX)
    gradient[:, flat] = _box_gradient(local[:, flat], [axis[part[flat]] / 2 for axis in taper.T])
    radial = np.flatnonzero(shape == Shape.ROUND)
    x, y, z = local[:, radial]
    slope = taper[:, 0][part[radial]] / 2
    radius = 1 - slope - slope * z
    on_end = np.hypot(x, y) < radius * np.float32(0.9999)
    gradient[:, radial] = np.where(on_end, [0 * x, 0 * y, np.sign(z)], [x, y, slope * radius])
    return gradient


def _box_gradient(local: np.ndarray, lean: list[np.ndarray]) -> np.ndarray:
    """The normal of the plane that each point is nearest to; the planes are those of `raycast.box_planes`."""
    x, y, z = local
    front, rear, sides = lean
    toward_x = np.where(x > 0, front, rear)  # the plane of the other end is always farther
    from_end = np.abs(x) + toward_x * (z + 1) - 1
    from_side = np.abs(y) + sides * (z + 1) - 1
    from_top = np.abs(z) - 1
    is_end = (from_end >= from_side) & (from_end >= from_top)
    is_side = ~is_end & (from_side >= from_top)
    return np.stack(
        [
            is_end * np.sign(x),
            is_side * np.sign(y),
            np.where(is_end, toward_x, np.where(is_side, sides, np.sign(z))),
        ]
    )


def _accent(world: World, part, local, half_extent, gradient, noise) -> np.ndarray:
    """Fraction of the second colour at each point, (N,) float32."""
    accent = np.zeros(len(part), dtype=np.float32)
    pattern = world.paints.pattern[part]
    patterned = np.flatnonzero(pattern)
    pattern = pattern[patterned]
    for kind, share in _PATTERNS.items():
        chosen = patterned[pattern == kind]
        if len(chosen):
            scale = world.paints.scale[part[chosen]].T
            vectors = (local[:, chosen], half_extent[:, chosen], np.abs(gradient[:, chosen]))
            accent[chosen] = share(*vectors, scale, noise[chosen], part[chosen])
    return accent


def _facade(local, half_extent, gradient, scale, noise, part) -> np.ndarray:
    """Windows in bays and storeys on the four sides, doors on the ground floor; lit and curtained ones differ."""
    bay_width, storey = scale
    on_end = gradient[0] > gradient[1]
    along = np.where(on_end, (local[1] + 1) * half_extent[1], (local[0] + 1) * half_extent[0])
    up = (local[2] + 1) * half_extent[2]
    bay, floor = np.floor(along / bay_width), np.floor(up / storey)
    across, height = along / bay_width - bay, up / storey - floor
    chance = hash_cells(bay.astype(np.int32), floor.astype(np.int32), part.astype(np.int32) * 2 + on_end)
    door = (floor == 0) & (chance < 0.3)
    window = (np.abs(across - 0.5) < 0.27) & (height > np.where(door, 0.0, 0.3)) & (height < 0.8)
    whole = (floor + 1) * storey < 2 * half_extent[2] + 0.3
    return (window & whole & (gradient[2] < 0.5)) * (0.7 + 0.3 * chance)


def _bands(local, half_extent, gradient, scale, noise, part) -> np.ndarray:
    return np.floor((local[2] + 1) * half_extent[2] / scale[0]) % 2


def _stripes(local, half_extent, gradient, scale, noise, part) -> np.ndarray:
    return np.floor((local[0] * half_extent[0] + local[2] * half_extent[2]) / scale[0]) % 2


def _cabin(local, half_extent, gradient, scale, noise, part) -> np.ndarray:
    """Windows on the sides, framed at the roof, at the corners and, seen from the side, between the doors."""
    glass = (local[2] < 0.82) & (gradient[2] < 0.9)
    from_side = gradient[1] > gradient[0]
    post = np.where(from_side, np.abs(np.abs(local[0] + 0.05) - 0.04) < 0.05, np.abs(local[1]) > 0.88)
    return glass & ~post


def _coach(local, half_extent, gradient, scale, noise, part) -> np.ndarray:
    height, along = (
        (local[2] + 1) / 2,
        np.where(gradient[1] > 0.5, local[0] * half_extent[0], local[1] * half_extent[1]),
    )
    post = np.mod(along, 1.3) < 0.12
    return (height > scale[0]) & (height < scale[1]) & ~post & (gradient[2] < 0.5)


def _leaves(local, half_extent, gradient, scale, noise, part) -> np.ndarray:
    return np.clip(0.35 - 0.25 * local[2] + 0.35 * noise, 0, 1)


def _planks(local, half_extent, gradient, scale, noise, part) -> np.ndarray:
    return np.mod((local[2] + 1) * half_extent[2], scale[0]) < 0.14 * scale[0]


_PATTERNS = {
    Pattern.FACADE: _facade,
    Pattern.BANDS: _bands,
    Pattern.STRIPES: _stripes,
    Pattern.CABIN: _cabin,
    Pattern.COACH: _coach,
    Pattern.LEAVES: _leaves,
    Pattern.PLANKS: _planks,
}
