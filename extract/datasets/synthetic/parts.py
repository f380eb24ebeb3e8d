"""The parts of objects: painted solids in the object's frame, x forward, y left, z up, origin on the ground."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

import numpy as np

from .raycast import Shape

Colour = tuple[float, float, float]


class Pattern(IntEnum):
    """How a part's second colour, the accent, is laid over its first."""

    PLAIN = 0
    FACADE = 1  # windows and ground-floor doors; scale: bay width, storey height [m]
    BANDS = 2  # horizontal bands; scale: band height [m]
    STRIPES = 3  # slanted stripes; scale: stripe width [m]
    CABIN = 4  # glass all around below a painted roof, with posts
    COACH = 5  # a band of windows with posts; scale: its bottom and top as fractions of the height
    LEAVES = 6  # light and dark clumps
    PLANKS = 7  # horizontal joints; scale: plank height [m]


@dataclass(frozen=True)
class Paint:
    """The appearance of a part: colours are albedos for cameras, reflectivities are for lidars, both in [0, 1]."""

    colour: Colour
    accent: Colour = (0.1, 0.1, 0.1)
    pattern: Pattern = Pattern.PLAIN
    scale: tuple[float, float] = (1.0, 1.0)
    reflectivity: float = 0.3
    accent_reflectivity: float = 0.1
    grain: float = 0.05


@dataclass(frozen=True)
class Part:
    """A painted solid: `center` and full `size` [m] and `rotation` in the object's frame, see `Shape` for the rest.

    `taper` lies in [0, 1]: a part never reaches out of its box."""

    shape: Shape
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    paint: Paint
    taper: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)  # yaw, pitch, roll [rad]: Rz Ry Rx
    porosity: float = 0.0

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Part:
        return replace(self, center=(self.center[0] + x, self.center[1] + y, self.center[2] + z))

    def axes(self) -> np.ndarray:
        """(3, 3) float64: columns are the half-extent vectors in the object's frame [m]."""
        half_extent = np.array(self.size) / 2
        return rotation_matrix(*self.rotation) * half_extent if any(self.rotation) else np.diag(half_extent)


@dataclass(frozen=True)
class Body:
    """An object: its nuScenes lidarseg id, its parts, and the nuScenes attribute it has, if any."""

    category: int
    parts: tuple[Part, ...]
    attribute: str = ""

    @cached_property
    def axes(self) -> np.ndarray:
        """(P, 3, 3) float64, `Part.axes` of each part."""
        return np.array([part.axes() for part in self.parts])

    @cached_property
    def part_bounds(self) -> np.ndarray:
        """(P, 2, 3) float64 lowest and highest corner of the box around each part, in the object's frame [m]."""
        centers, reach = np.array([part.center for part in self.parts]), np.abs(self.axes).sum(axis=2)
        return np.stack([centers - reach, centers + reach], axis=1)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner (3,), (3,) of the box around all parts, in the object's frame [m]."""
        return self.part_bounds[:, 0].min(axis=0), self.part_bounds[:, 1].max(axis=0)


def rotation_matrix(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """(3, 3) float64, Rz(yaw) Ry(pitch) Rx(roll)."""
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def box(x, y, bottom, size, paint, **kwargs) -> Part:
    """A box that stands on z = `bottom`; `size` is length, width, height [m]."""
    return Part(Shape.BOX, (x, y, bottom + size[2] / 2), size, paint, **kwargs)


def post(x, y, bottom, diameter, height, paint, taper=0.0, **kwargs) -> Part:
    """An upright cylinder or, tapered, a cone."""
    center, size = (x, y, bottom + height / 2), (diameter, diameter, height)
    return Part(Shape.ROUND, center, size, paint, taper=(taper, 0.0, 0.0), **kwargs)


def ball(x, y, bottom, size, paint, **kwargs) -> Part:
    return Part(Shape.ELLIPSOID, (x, y, bottom + size[2] / 2), size, paint, **kwargs)


def wheel(x, y, radius, width, paint) -> Part:
    """A disc that rolls along x."""
    size = (2 * radius, 2 * radius, width)
    return Part(Shape.ROUND, (x, y, radius), size, paint, rotation=(0.0, 0.0, np.pi / 2))


def rod(start: tuple[float, float, float], end: tuple[float, float, float], thickness: float, paint: Paint) -> Part:
    """A bar between two points."""
    along = np.subtract(end, start)
    length = float(np.linalg.norm(along))
    pitch = -float(np.arcsin(along[2] / length))
    center = tuple((np.add(start, end) / 2).tolist())
    return Part(
        *(Shape.BOX, center, (length, thickness, thickness), paint),
        rotation=(float(np.arctan2(along[1], along[0])), pitch, 0.0),
    )
