"""Which voxel each point of a scan falls into.

Letters in shapes: N points, M voxels.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from ....errors import StudentError

Voxels = Literal["cylindrical", "cartesian"]

BITS = 21  # of a coordinate in a key
HALF = 1 << (BITS - 1)  # added to a coordinate; a multiple of 16, so that the four coarser grids stay where they are
REACH = HALF - 32  # voxels from the sensor: the neighbours on the coarsest grid have a key, too


def voxel_coordinates(xyz: np.ndarray, voxels: Voxels, size_m: float) -> np.ndarray:
    """Coordinates of each point's voxel, in float32 arithmetic as SLidR computes them.

    Cylindrical voxels are (radius, azimuth, height), with an edge of one degree whatever `size_m` is. Azimuths run
    from -180 to 179 (to 180 where a point lies exactly behind the sensor) and are not joined there: voxels on the two
    sides of the seam are no neighbours.

    Args:
        xyz: (N, 3) float32 [m], finite.
        voxels: kind.
        size_m: edge of a voxel.

    Returns:
        (N, 3) int64, in voxels, rounded down.

    Raises:
        StudentError: a point lies more than `REACH` voxels from the sensor along an axis.
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
    """(N, 3) voxel coordinates -> (N,) int64: 21 bits for each axis, those of axis 0 highest."""
    x, y, z = coordinates.T + HALF
    return (x << (2 * BITS)) | (y << BITS) | z
