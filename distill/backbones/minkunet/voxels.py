"""The voxel of each point of a scan.

Letters in shapes: N points, M voxels.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from ....errors import StudentError

Voxels = Literal["cylindrical", "cartesian"]

BITS = 21  # per coordinate in a key
HALF = 1 << (BITS - 1)  # added to coordinates; a multiple of 16, so that the four coarser grids do not change
REACH = HALF - 32  # in voxels from the sensor, so that neighbours on the coarsest grid also have keys


def voxel_coordinates(xyz: np.ndarray, voxels: Voxels, size_m: float) -> np.ndarray:
    """Coordinates of each point's voxel, in float32 arithmetic as in SLidR.

    Cylindrical voxels are (radius, azimuth, height); the azimuth step is one degree for every `size_m`. Azimuth steps
    are -180 to 179, and 180 for a point exactly behind the sensor. They are not joined there: voxels on the two sides
    of the seam are not neighbours.

    Args:
        xyz: (N, 3) float32 [m], finite.
        voxels: kind of voxels.
        size_m: edge of a voxel [m].

    Returns:
        (N, 3) int64, rounded down.

    Raises:
        StudentError: a point is more than `REACH` voxels from the sensor along an axis.
    """
    x, y, z = torch.from_numpy(np.ascontiguousarray(xyz.T))
    if voxels == "cylindrical":
        coordinates = torch.stack(((x**2 + y**2).sqrt() / size_m, torch.atan2(y, x) * 180 / math.pi, z / size_m), dim=1)
    else:
        coordinates = torch.stack((x, y, z), dim=1) / size_m
    coordinates = coordinates.floor()
    too_far = int((coordinates.abs() > REACH).any(dim=1).sum())
    if too_far:
        raise StudentError(
            f"{too_far} of {len(xyz)} points lie more than {REACH:,} voxels of {size_m} m from the sensor",
            where="scan",
            fix="Remove these rows, or use larger voxels.",
        )
    return coordinates.long().numpy()


def voxel_keys(coordinates: np.ndarray) -> np.ndarray:
    """Voxel coordinates (N, 3) -> keys (N,) int64: 21 bits per axis, axis 0 in the highest bits."""
    x, y, z = coordinates.T + HALF
    return (x << (2 * BITS)) | (y << BITS) | z
