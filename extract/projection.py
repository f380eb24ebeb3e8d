"""Project lidar points to pixels and select the pairs: pure geometry, in float64.

Frames: `lidar` is the sensor frame of the scan, `cam` has x right, y down, z forward (depth). A pixel is
(row, column) = (floor(v), floor(u)) at the image's own resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import DatasetError
from ..settings import Amount, CountOrZero, checked

LENGTH_TOLERANCE = 0.01  # for the length of a quaternion: files contain rounded ones
WORST_CONDITION = 1e9  # of a projection: about the focal length in pixels for a camera, 1e16 for a singular matrix


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """The rule for visible points: depth > `min_depth_m`, 0 < u < W - `border_px` and 0 < v < H - `border_px`.

    The defaults are those of the official nuScenes reader; the datasets differ (DESIGN: "The target, exactly").

    Attributes:
        min_x_m: if given, x in the lidar frame must also be larger than this, as in the official SemanticKITTI reader.

    Raises:
        DatasetError: a value that is no number, or a negative depth or border.
    """

    min_depth_m: float = 1.0
    border_px: int = 1
    min_x_m: float | None = None

    def __post_init__(self) -> None:
        for name, kind in {"min_depth_m": Amount, "border_px": CountOrZero, "min_x_m": float | None}.items():
            value = checked(getattr(self, name), kind, f"visibility.{name}", DatasetError)
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """A pinhole camera and its pose relative to the lidar.

    Attributes:
        cam_from_lidar: (4, 4) float64, from the lidar at the scan's time to the camera at the image's time [m].
        intrinsics: (3, 3) float64 [px].
    """

    cam_from_lidar: np.ndarray
    intrinsics: np.ndarray

    @classmethod
    def from_projection(cls, matrix: np.ndarray) -> Calibration:
        """Decompose a (3, 4) matrix that takes homogeneous lidar points [m] to homogeneous pixels.

        Any positive scale of the matrix is accepted. Depths are in metres if the matrix is that of a camera. The
        product of intrinsics and pose equals the matrix, up to its scale.

        Raises:
            ValueError: the left (3, 3) part cannot be inverted, or mirrors.
        """
        from scipy.linalg import rq  # the import takes a quarter of a second

        left = matrix[:, :3]
        if not np.isfinite(left).all() or np.linalg.cond(left) > WORST_CONDITION:
            raise ValueError("it is not a projection: its left 3x3 part cannot be inverted")
        determinant = np.linalg.det(left)
        if determinant < 0:
            raise ValueError(
                f"its left 3x3 part has the determinant {determinant:.4g}, and a camera's is above 0: it mirrors the"
                " image, or all of its signs are changed"
            )
        scale = np.cbrt(determinant)  # rotation and intrinsics have positive determinants
        intrinsics, rotation = rq(left / scale)
        signs = np.diag(np.sign(np.diag(intrinsics)))
        intrinsics, rotation = intrinsics @ signs, signs @ rotation
        translation = np.linalg.solve(intrinsics, matrix[:, 3] / scale)
        return cls(cam_from_lidar=rigid_transform(rotation, translation), intrinsics=intrinsics / intrinsics[2, 2])


class Pairs(NamedTuple):
    """The visible points of one scan in one view, in the order of the scan."""

    point_index: np.ndarray  # (R,) uint32, row in the scan
    pixel: np.ndarray  # (R, 2) uint16, row and column
    depth_m: np.ndarray  # (R,) float64


def rigid_transform(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """The (4, 4) float64 matrix x -> `rotation` (3, 3) x + `translation` (3,)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def pose(quaternion: Sequence[float], position: Sequence[float]) -> np.ndarray:
    """The (4, 4) float64 matrix from the frame of a sensor or vehicle to the frame in which its pose is given.

    Args:
        quaternion: w, x, y, z of its rotation.
        position: x, y, z [m].

    Raises:
        TypeError, ValueError: values that are not such numbers, or a quaternion that is no rotation.
    """
    from pyquaternion import Quaternion

    rotation = Quaternion(np.asarray(quaternion, dtype=np.float64))
    if not abs(rotation.norm - 1) < LENGTH_TOLERANCE:
        raise ValueError(f"the quaternion of a rotation has the length {rotation.norm:.4g}, not 1")
    return rigid_transform(rotation.rotation_matrix, np.asarray(position, dtype=np.float64))


def inverse_rigid(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a (4, 4) rotation and translation."""
    rotation, translation = matrix[:3, :3], matrix[:3, 3]
    return rigid_transform(rotation.T, -rotation.T @ translation)


def project(
    points: np.ndarray, calibration: Calibration, image_shape: tuple[int, int], visibility: Visibility | None = None
) -> Pairs:
    """Find the points that a view sees, and their pixels.

    Float64 throughout: the official float32 chain moves 0.3 % of the nuScenes pixels by one.

    Args:
        points: (N, 3 or more), x y z first, lidar frame [m].
        calibration: the view's camera.
        image_shape: (H, W) of the image [px].
        visibility: the dataset's rule for visible points; that of nuScenes by default.

    Raises:
        DatasetError: a border as large as the image.

    >>> matrix = np.array([[50.0, -100, 0, 0], [40, 0, -100, 0], [1, 0, 0, 0]])  # looks along x, 100 px x 80 px
    >>> pairs = project(np.array([[10.0, 0.95, -0.05], [-10, 0, 0]]), Calibration.from_projection(matrix), (80, 100))
    >>> pairs.point_index, pairs.pixel
    (array([0], dtype=uint32), array([[40, 40]], dtype=uint16))
    """
    visibility = visibility or Visibility()
    height, width = image_shape
    if visibility.border_px >= min(image_shape):
        raise DatasetError(
            f"a border of {visibility.border_px} px leaves no pixel of an image of {height}x{width} pixels",
            where="visibility.border_px",
            fix="Give a smaller border.",
        )
    points_cam = points[:, :3].astype(np.float64) @ calibration.cam_from_lidar[:3, :3].T
    points_cam += calibration.cam_from_lidar[:3, 3]
    ahead = points_cam[:, 2] > visibility.min_depth_m
    if visibility.min_x_m is not None:
        ahead &= points[:, 0] > visibility.min_x_m
    index = np.flatnonzero(ahead)
    homogeneous = points_cam[index] @ calibration.intrinsics.T
    u, v = homogeneous[:, 0] / homogeneous[:, 2], homogeneous[:, 1] / homogeneous[:, 2]
    inside = (u > 0) & (u < width - visibility.border_px) & (v > 0) & (v < height - visibility.border_px)
    index = index[inside]
    pixel = np.stack([v[inside], u[inside]], axis=1).astype(np.uint16)  # truncation is floor: both are positive
    return Pairs(index.astype(np.uint32), pixel, points_cam[index, 2])
