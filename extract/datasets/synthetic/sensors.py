"""Drive the ego vehicle through a world and take its lidar sweeps and images.

A sweep is motion compensated: all of its rays start at the lidar's pose at the sweep's timestamp and see the world
of that instant. A camera fires at its own timestamp, from the ego vehicle's position at that time; moving objects have
moved on.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from ....errors import DatasetError
from ...projection import rigid_transform
from .palette import tinted
from .parts import rotation_matrix
from .populate import invent_world
from .rays import PinholeRays, SpinningRays
from .rigs import NUSCENES_RIG, CameraRig, LidarRig, Rig
from .surface import SKY, Surface, View, look
from .world import Light, Placed, World

KEYFRAME_US = 500_000  # 2 Hz, as in nuScenes
MAX_KEYFRAMES = 40  # the world is long enough for the 20 s of a nuScenes scene
IMAGE_NOISE = 0.008
NO_INSTANCE = 0
_WORLD, _SWEEP, _IMAGE = range(3)  # purposes of random streams


class Sweep(NamedTuple):
    """One lidar sweep, in firing order: azimuth by azimuth, from the lowest ring up."""

    points: np.ndarray  # (N, 4) float32: x y z in the lidar frame [m], intensity in the lidar's own units
    ring: np.ndarray  # (N,) uint8
    category: np.ndarray  # (N,) uint8 nuScenes lidarseg id
    instance: np.ndarray  # (N,) uint16, object + 1, or 0 for the ground


class Image(NamedTuple):
    """One camera image, with the ground truth at each pixel's centre."""

    rgb: np.ndarray  # (H, W, 3) uint8
    depth: np.ndarray  # (H, W) float32, along the optical axis [m]; inf for the sky
    category: np.ndarray  # (H, W) uint8 nuScenes lidarseg id; 255 for the sky
    instance: np.ndarray  # (H, W) uint16, object + 1, or 0 for ground and sky


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A drive through a simulated world. Nothing is stored: every call computes its result again, always the same.

    Attributes:
        name: the scene's name; together with the seed, it determines the content.
        seed: the seed of all scenes of a dataset.
        rig: the sensors.
        world: the content of the scene; object i has instance id i + 1.
        ego: the track of the ego vehicle's origin.
        global_from_world: (4, 4) float64, from the scene's own coordinates to a map's.
        start_us: timestamp of the first sweep [us].
    """

    name: str
    seed: int
    rig: Rig
    world: World
    ego: Placed
    global_from_world: np.ndarray
    start_us: int

    def time_us(self, keyframe: int, channel: str | None = None) -> int:
        """Timestamp of a keyframe's sweep or, given its channel, of one of its images [us]."""
        delay = 0 if channel in (None, self.rig.lidar.channel) else self.rig.camera(channel).delay_us
        return self.start_us + keyframe * KEYFRAME_US + delay

    def world_from_ego(self, timestamp_us: int) -> np.ndarray:
        """(4, 4) float64 pose of the ego vehicle, which pitches and rolls a little as it drives."""
        seconds = self._seconds(timestamp_us)
        x, y, heading = self.world.street.pose(self.ego.s + self.ego.speed * seconds, self.ego.d)
        pitch, roll = 0.006 * np.sin(4.1 * seconds + self.ego.d), 0.005 * np.sin(2.7 * seconds + self.ego.speed)
        return rigid_transform(rotation_matrix(float(heading), pitch, roll), np.array([float(x), float(y), 0.0]))

    def sweep(self, keyframe: int) -> Sweep:
        """Take the lidar sweep of a keyframe."""
        rng = self._rng(_SWEEP, keyframe, *self.rig.lidar.noise_stream)
        timestamp = self.time_us(keyframe)
        world_from_lidar = self.world_from_ego(timestamp) @ self.rig.lidar.ego_from_lidar
        return _sweep(self.rig.lidar, self.world, world_from_lidar, self._seconds(timestamp), rng)

    def render(self, channel: str, keyframe: int) -> Image:
        """Take the image of a camera at a keyframe."""
        camera = self.rig.camera(channel)
        timestamp = self.time_us(keyframe, channel)
        rng = self._rng(_IMAGE, keyframe, self.rig.cameras.index(camera))
        world_from_cam = self.world_from_ego(timestamp) @ camera.ego_from_cam
        return _image(camera, self.world, world_from_cam, self._seconds(timestamp), rng)

    def boxes(self, timestamp_us: int, margin_m: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The boxes of all objects: `World.boxes` at a timestamp."""
        return self.world.boxes(self._seconds(timestamp_us), margin_m)

    def part_centers(self, timestamp_us: int) -> np.ndarray:
        """World positions of the centres of all parts at a timestamp, (P, 3) [m]; `world.part_object` names objects."""
        return self.world.solids(self._seconds(timestamp_us)).center

    def _seconds(self, timestamp_us: int) -> float:
        return (timestamp_us - self.start_us) * 1e-6

    def _rng(self, *stream: int) -> np.random.Generator:
        return _generator(self.name, self.seed, *stream)


def simulate_scene(name: str, *, seed: int = 0, rig: Rig = NUSCENES_RIG) -> Scene:
    """Generate the scene of a name.

        scene = simulate_scene("scene-0001", seed=0)
        image = scene.render("CAM_FRONT", keyframe=3)

    Args:
        name: any text; each name gives another scene.
        seed: random seed; the same seed gives the same scenes.
        rig: the sensors; the world does not depend on them.

    Raises:
        DatasetError: a negative seed.
    """
    if seed < 0:
        raise DatasetError(f"the seed {seed} cannot be used", where="seed", fix="Use a whole number, at least 0.")
    rng = _generator(name, seed, _WORLD)
    world, ego = invent_world(rng)
    x, y, heading = rng.uniform(300, 2000), rng.uniform(300, 2000), rng.uniform(-np.pi, np.pi)
    return Scene(
        name=name,
        seed=seed,
        rig=rig,
        world=world,
        ego=ego,
        global_from_world=rigid_transform(rotation_matrix(heading), np.array([x, y, 0.0])),
        start_us=1_600_000_000_000_000 + int(rng.integers(0, 30_000_000_000_000)),
    )


def _generator(name: str, seed: int, *stream: int) -> np.random.Generator:
    """A random generator for one purpose: independent streams keep each result independent of other computations."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), *stream])


def _sweep(rig: LidarRig, world: World, world_from_lidar: np.ndarray, time_s: float, rng: np.random.Generator) -> Sweep:
    first, last = np.radians(rig.field_deg)
    step = (last - first) / rig.azimuths
    elevations = np.radians(rig.elevations_deg)
    first += step * rng.random()  # real heads do not stop at the same angle twice
    rays = SpinningRays(world_from_lidar, elevations, first, step, rig.azimuths, rig.max_range_m)
    view = look(world, rays, time_s)
    surface, distance = view.surface, view.distance.ravel()[view.seen]
    forth = (surface.points - world_from_lidar[:3, 3:]) / distance
    strength, kept = _echo(rig, surface, forth, distance, rng)
    noise = rig.range_noise_m * np.clip(rng.standard_normal(len(distance)), -2, 2)
    ring, azimuth = np.divmod(view.seen, rig.azimuths)
    kept = kept[np.lexsort((ring[kept], azimuth[kept]))]
    points_lidar = (forth * (distance + noise))[:, kept].T @ world_from_lidar[:3, :3]
    intensity = rig.intensity_floor + np.clip(strength[kept], 0, 1) * rig.intensity_scale
    intensity = np.round(np.minimum(intensity, rig.intensity_max) / rig.intensity_step) * rig.intensity_step
    return Sweep(
        np.column_stack([points_lidar, intensity]).astype(np.float32),
        ring[kept].astype(np.uint8),
        surface.category[kept],
        surface.instance[kept],
    )


def _echo(
    rig: LidarRig, surface: Surface, forth: np.ndarray, distance: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The strength (N,) of the returns along rays `forth` (3, N), 1 for a perfect reflector, and which returns are
    detected: weak and far ones are lost more often."""
    in_range = (distance > rig.min_range_m) & (distance < rig.max_range_m)
    incidence = np.clip(-(forth * surface.normal).sum(axis=0), 0, 1)
    strength = surface.reflectivity * (0.25 + 0.75 * incidence) * rng.lognormal(0, 0.35, len(distance))
    lost = rng.random(len(distance)) < rig.drop_out + 0.5 * np.exp(-strength / 0.02) * distance / rig.max_range_m
    return strength, np.flatnonzero(in_range & ~lost)


def _image(
    camera: CameraRig, world: World, world_from_cam: np.ndarray, time_s: float, rng: np.random.Generator
) -> Image:
    height, width = camera.image_shape
    rays = PinholeRays(world_from_cam, camera.intrinsics, camera.image_shape)
    view = look(world, rays, time_s)
    colour = np.empty((3, height * width), dtype=np.float32)
    colour[:, view.seen] = _lit(world.light, view.surface, world_from_cam[:3, 3])
    sky = np.flatnonzero(np.isinf(view.distance))
    directions = rays.directions(np.eye(3), slice(None), slice(None)).reshape(3, -1)
    colour[:, sky] = _sky(world.light, directions[:, sky])
    colour += _sensor_noise(colour.shape, rng)
    np.clip(colour, 0, 1, out=colour)
    return Image(
        np.ascontiguousarray((colour * 255 + np.float32(0.5)).astype(np.uint8).T).reshape(height, width, 3),
        view.distance,
        _spread(view.surface.category, view, SKY),
        _spread(view.surface.instance, view, NO_INSTANCE),
    )


def _sensor_noise(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """float32 noise of standard deviation `IMAGE_NOISE`, read from a random position of a fixed table, which is far
    faster than drawing random numbers."""
    count = shape[0] * shape[1]
    start = int(rng.integers(len(_noise_table())))
    return np.resize(np.roll(_noise_table(), -start), count).reshape(shape)


@cache
def _noise_table() -> np.ndarray:
    return IMAGE_NOISE * np.random.default_rng(2).standard_normal(2**18 + 7, dtype=np.float32)


def _spread(values: np.ndarray, view: View, missing: int) -> np.ndarray:
    """`values` of the rays that end on a surface on the full grid, `missing` elsewhere."""
    grid = np.full(view.distance.size, missing, dtype=values.dtype)
    grid[view.seen] = values
    return grid.reshape(view.distance.shape)


def _sky(light: Light, directions: np.ndarray) -> np.ndarray:
    """(3, N) float32: from the horizon's colour to the zenith's."""
    dx, dy, dz = directions
    height = np.sqrt(np.clip(dz / np.sqrt(dx * dx + dy * dy + dz * dz), 0, 1))
    horizon, zenith = (colour.astype(np.float32)[:, None] for colour in (light.horizon, light.zenith))
    return horizon + height * (zenith - horizon)


def _lit(light: Light, surface: Surface, eye: np.ndarray) -> np.ndarray:
    """(3, N) float32 colours of surfaces under sun and sky, through haze."""
    sun_colour, sky_light, horizon = (
        colour.astype(np.float32)[:, None] for colour in (light.sun_colour, light.sky_light, light.horizon)
    )
    facing = np.clip(sum(float(sun) * axis for sun, axis in zip(light.sun, surface.normal, strict=True)), 0, 1)
    from_above = np.float32(0.65) + np.float32(0.35) * surface.normal[2]
    x, y, z = (axis - np.float32(start) for axis, start in zip(surface.points, eye, strict=True))
    clear = np.exp(np.sqrt(x * x + y * y + z * z) * np.float32(-1 / light.haze_m))
    colour = tinted(surface.colour, surface.category)
    return colour * (facing * sun_colour + from_above * sky_light) * clear + horizon * (1 - clear)
