"""Augmentation of point clouds (N, 3) [m], the same for every backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from ..settings import Settings, at_least, up_to


@dataclass(frozen=True)
class AugmentConfig(Settings, section="augmentation"):
    """Rotation about z, flips of x and y, isotropic scale, and removal of the points in a cuboid.

    The defaults are the official ones of ScaLR's pretraining.
    """

    max_rotation_rad: Annotated[float, at_least(0), up_to(math.pi)] = math.pi
    # one: one axis is flipped with this probability, x or y with equal chance (ScaLR). each: x and y independently
    # (SLidR).
    flips: Literal["one", "each"] = "one"
    flip_probability: Annotated[float, at_least(0), up_to(1)] = 2 / 3
    max_scale_change: Annotated[float, at_least(0), up_to(0.99)] = 0.1
    drop_cuboid: Annotated[float, at_least(0), up_to(1)] = 0.0  # largest size, as a fraction of the cloud's extent


@dataclass(frozen=True)
class Motion:
    """One draw of augmentation: a rotation about z, then flips, then an isotropic scale, all about the sensor."""

    angle_rad: float = 0.0
    flipped_axes: tuple[int, ...] = ()  # 0 x, 1 y
    scale: float = 1.0

    def move(self, xyz: np.ndarray) -> np.ndarray:
        """The moved points (N, 3), in the dtype of `xyz` (N, 3) [m]; `xyz` is not changed."""
        cos, sin = math.cos(self.angle_rad), math.sin(self.angle_rad)
        transform = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) * self.scale  # for points as rows
        transform[:, list(self.flipped_axes)] *= -1
        return (xyz @ transform).astype(xyz.dtype)


def draw_motion(rng: np.random.Generator, config: AugmentConfig | None = None) -> Motion:
    """Draw a motion within the limits of `config` (None: official), with a fixed number of draws from `rng`."""
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
    """Rotate, flip and scale a cloud (N, 3) [m] by a motion drawn from `rng`, as in the official pretraining."""
    return draw_motion(rng, config).move(xyz)


def outside_cuboid(xyz: np.ndarray, rng: np.random.Generator, largest_share: float) -> np.ndarray:
    """(N,) bool: True for points outside a cuboid around one random point (SLidR's DropCuboids).

    The size of the cuboid is one fraction, drawn from 0 to `largest_share`, of the cloud's extent along each axis.
    """
    half_size = rng.uniform(0, largest_share) / 2 * np.ptp(xyz, axis=0)
    centre = xyz[rng.integers(len(xyz))]
    return ~(np.abs(xyz - centre) < half_size).all(axis=1)
