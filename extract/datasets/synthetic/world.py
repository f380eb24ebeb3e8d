"""A scene's content as arrays: the street, its objects and their motion, and the light.

World coordinates are local to the scene: z up, the street's s = 0 at the origin, heading along x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .parts import Body, Paint
from .raycast import Solids
from .street import Street

WALKERS = (2, 3, 4)  # lidarseg ids of people, who step on and off kerbs


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An object at s, d in street coordinates [m], turned by `turn` from the street's heading [rad].

    It moves along the street at `speed` [m/s], d kept; a negative speed goes towards lower s.
    """

    body: Body
    s: float
    d: float
    turn: float = 0.0
    speed: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Light:
    """Sun and sky of a scene as its cameras expose and white-balance them; colours are linear factors, (3,) each."""

    sun: np.ndarray  # (3,) unit vector towards the sun, world
    sun_colour: np.ndarray
    sky_light: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    haze_m: float


@dataclass(frozen=True, eq=False)
class Paints:
    """The `Paint` of each of P parts, one array per field; see there."""

    colour: np.ndarray  # (P, 3) float32
    accent: np.ndarray  # (P, 3) float32
    pattern: np.ndarray  # (P,) uint8
    scale: np.ndarray  # (P, 2) float32
    reflectivity: np.ndarray  # (P,) float32
    accent_reflectivity: np.ndarray  # (P,) float32
    grain: np.ndarray  # (P,) float32

    @classmethod
    def of(cls, paints: list[Paint]) -> Paints:
        def column(field: str, dtype=np.float32) -> np.ndarray:
            return np.array([getattr(paint, field) for paint in paints], dtype=dtype)

        return cls(
            *(column("colour"), column("accent"), column("pattern", np.uint8), column("scale")),
            *(column("reflectivity"), column("accent_reflectivity"), column("grain")),
        )


@dataclass(frozen=True, eq=False)
class World:
    """Everything that the sensors of one scene see. Object i has instance id i + 1; 0 is ground and sky."""

    street: Street
    light: Light
    objects: tuple[Placed, ...]

    @cached_property
    def category(self) -> np.ndarray:
        """(O,) uint8 nuScenes lidarseg id of each object."""
        return np.array([placed.body.category for placed in self.objects], dtype=np.uint8)

    @cached_property
    def part_object(self) -> np.ndarray:
        """(P,) int32, the object that each part belongs to."""
        counts = [len(placed.body.parts) for placed in self.objects]
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    @cached_property
    def paints(self) -> Paints:
        return Paints.of([part.paint for placed in self.objects for part in placed.body.parts])

    @cached_property
    def is_moving(self) -> np.ndarray:
        """Which objects move, (O,) bool."""
        return self._tracks[:, 3] != 0

    def object_poses(self, time_s: float) -> tuple[np.ndarray, np.ndarray]:
        """The poses of all objects in the world: position (O, 3) [m] of their origins, and heading (O,) [rad]."""
        s, d, turn, speed = self._tracks.T
        x, y, heading = self.street.pose(s + speed * time_s, d)
        on_road = ~np.isin(self.category, WALKERS) & self.is_moving
        z = np.where(on_road, 0.0, self.street.height(x, y))
        return np.stack([x, y, z], axis=1), heading + turn

    def solids(self, time_s: float) -> Solids:
        """All parts of all objects, at one instant."""
        position, heading = self.object_poses(time_s)
        rotation = _about_z(heading)[self.part_object]
        shape, center, axes, taper, porosity = self._object_solids
        return Solids(
            *(shape, (rotation @ center[:, :, None])[:, :, 0] + position[self.part_object], rotation @ axes),
            *(taper, porosity),
        )

    def boxes(self, time_s: float, margin_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The boxes around all objects: center (O, 3), size (O, 3) length, width, height [m], heading (O,) [rad]."""
        position, heading = self.object_poses(time_s)
        lower, upper = self._bounds
        center = (_about_z(heading) @ ((lower + upper) / 2)[:, :, None])[:, :, 0] + position
        return center, upper - lower + 2 * margin_m, heading

    @cached_property
    def _tracks(self) -> np.ndarray:
        return np.array([(placed.s, placed.d, placed.turn, placed.speed) for placed in self.objects], dtype=np.float64)

    @cached_property
    def _bounds(self) -> np.ndarray:
        return np.array([placed.body.bounds() for placed in self.objects]).transpose(1, 0, 2)

    @cached_property
    def _object_solids(self) -> tuple[np.ndarray, ...]:
        """shape, center, axes, taper, porosity of all parts, each in the frame of its object."""
        parts = [part for placed in self.objects for part in placed.body.parts]
        return (
            np.array([part.shape for part in parts], dtype=np.uint8),
            np.array([part.center for part in parts], dtype=np.float64),
            np.concatenate([placed.body.axes for placed in self.objects]),
            np.array([part.taper for part in parts], dtype=np.float64),
            np.array([part.porosity for part in parts], dtype=np.float64),
        )


def _about_z(angle: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations by `angle` (N,) around z."""
    rotation = np.zeros((len(angle), 3, 3))
    rotation[:, 0, 0] = rotation[:, 1, 1] = np.cos(angle)
    rotation[:, 1, 0] = np.sin(angle)
    rotation[:, 0, 1] = -rotation[:, 1, 0]
    rotation[:, 2, 2] = 1
    return rotation
