"""Sensor rigs as data: the positions of lidars and cameras on the ego vehicle, and how they sample the world.

The ego frame has its origin on the ground below the rear axle: x forward, y left, z up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...projection import rigid_transform
from .parts import rotation_matrix

CAM_FROM_BODY = np.array(
    [[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]
)  # forward, left, up -> right, down, forward


@dataclass(frozen=True, kw_only=True)
class LidarRig:
    """A lidar that sweeps a fan of beams around its z axis.

    Attributes:
        channel: name of the sensor.
        position: position in the ego frame [m].
        rotation_deg: yaw, pitch, roll of the lidar frame in the ego frame.
        elevations_deg: elevations of the beams, ascending; ring 0 is the lowest.
        azimuths: firings of each beam per sweep.
        field_deg: azimuths that are swept, (from, to) counter-clockwise from the lidar's x axis; 360 wide, or a sector.
        min_range_m, max_range_m: returns outside are lost.
        range_noise_m: standard deviation of the range; noise is truncated at twice that.
        drop_out: fraction of the returns that are lost at random.
        intensity_floor: intensity of the weakest return.
        intensity_scale: additional intensity of a perfect reflector at right angles.
        intensity_max: largest reported intensity.
        intensity_step: intensities are integer multiples of it.
        noise_stream: number that separates the random numbers of lidars in the same scene.
    """

    channel: str
    position: tuple[float, float, float]
    rotation_deg: tuple[float, float, float]
    elevations_deg: tuple[float, ...]
    azimuths: int
    field_deg: tuple[float, float] = (-180.0, 180.0)
    min_range_m: float = 1.0
    max_range_m: float = 80.0
    range_noise_m: float = 0.02
    drop_out: float = 0.03
    intensity_floor: float = 0.0
    intensity_scale: float = 255.0
    intensity_max: float = 255.0
    intensity_step: float = 1.0
    noise_stream: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        width = self.field_deg[1] - self.field_deg[0]
        if list(self.elevations_deg) != sorted(self.elevations_deg) or self.azimuths < 1 or not 0 < width <= 360:
            raise ValueError(f"{self.channel}: needs ascending elevations, an azimuth and a field of up to 360 degrees")

    @property
    def ego_from_lidar(self) -> np.ndarray:
        """(4, 4) float64."""
        return rigid_transform(rotation_matrix(*np.radians(self.rotation_deg)), np.array(self.position))


@dataclass(frozen=True, kw_only=True)
class CameraRig:
    """A pinhole camera.

    Attributes:
        channel: name of the sensor.
        position: position in the ego frame [m].
        yaw_deg, pitch_deg, roll_deg: viewing direction; positive pitch looks down.
        field_deg: horizontal field of view.
        image_shape: (H, W) [px].
        delay_us: delay of the exposure after the lidar's timestamp.
    """

    channel: str
    position: tuple[float, float, float]
    yaw_deg: float
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    field_deg: float = 70.0
    image_shape: tuple[int, int] = (224, 400)
    delay_us: int = 0

    def __post_init__(self) -> None:
        if min(self.image_shape) < 1 or not 0 < self.field_deg < 180:
            raise ValueError(f"{self.channel}: needs pixels, and a field of view between 0 and 180 degrees")

    @property
    def ego_from_cam(self) -> np.ndarray:
        """(4, 4) float64."""
        body = rotation_matrix(*np.radians([self.yaw_deg, self.pitch_deg, self.roll_deg]))
        return rigid_transform(body @ CAM_FROM_BODY.T, np.array(self.position))

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) float64 [px]; the principal point is a little off the centre, as real ones are."""
        height, width = self.image_shape
        focal = width / 2 / np.tan(np.radians(self.field_deg) / 2)
        return np.array([[focal, 0, 0.509 * width], [0, focal, 0.541 * height], [0, 0, 1.0]])


@dataclass(frozen=True, kw_only=True)
class Rig:
    """All sensors of a vehicle; the lidar's timestamps are those of the keyframes."""

    lidar: LidarRig
    cameras: tuple[CameraRig, ...]

    def camera(self, channel: str) -> CameraRig:
        return {camera.channel: camera for camera in self.cameras}[channel]

    def with_image_shape(self, image_shape: tuple[int, int]) -> Rig:
        return replace(self, cameras=tuple(replace(camera, image_shape=image_shape) for camera in self.cameras))


# As on the nuScenes cars: a 32-beam lidar whose x axis points right, and six cameras that fire as its beam sweeps by.
NUSCENES_RIG = Rig(
    lidar=LidarRig(
        channel="LIDAR_TOP",
        position=(0.94, 0.0, 1.84),
        rotation_deg=(-90.0, 0.4, -0.6),
        elevations_deg=tuple(np.linspace(-30.67, 10.67, 32).tolist()),
        azimuths=600,
    ),
    cameras=tuple(
        CameraRig(
            channel=channel,
            position=position,
            yaw_deg=yaw,
            pitch_deg=pitch,
            roll_deg=roll,
            field_deg=field,
            delay_us=delay,
        )
        for channel, position, yaw, pitch, roll, field, delay in (
            ("CAM_FRONT", (1.70, 0.016, 1.51), 0.0, 0.3, -0.2, 70.0, -35_000),
            ("CAM_FRONT_RIGHT", (1.55, -0.49, 1.50), -55.0, 0.1, 0.3, 70.0, -27_000),
            ("CAM_BACK_RIGHT", (1.01, -0.48, 1.56), -110.0, 0.4, 0.1, 70.0, -20_000),
            ("CAM_BACK", (0.03, 0.003, 1.58), 180.0, 0.6, -0.3, 110.0, -10_000),
            ("CAM_BACK_LEFT", (1.04, 0.48, 1.59), 110.0, -0.2, -0.4, 70.0, 6_000),
            ("CAM_FRONT_LEFT", (1.52, 0.49, 1.51), 55.0, 0.2, 0.2, 70.0, -43_000),
        )
    ),
)

# As on KITTI's car: an HDL-64E, whose lower half is spread wider, and the left colour camera, fired when the beam faces
# forward.
KITTI_RIG = Rig(
    lidar=LidarRig(
        channel="velodyne",
        position=(0.76, 0.0, 1.73),
        rotation_deg=(0.2, 0.3, -0.4),
        elevations_deg=(*np.linspace(-24.33, -8.83, 32).tolist(), *np.linspace(-8.33, 2.0, 32).tolist()),
        azimuths=900,
        max_range_m=80.0,
        # Chosen such that normalised intensities of a surface equal those on the other rigs, with the statistics that
        # are published for each dataset. A model that is trained on one lidar and used on another assumes this.
        intensity_floor=0.17,
        intensity_scale=1.63,
        intensity_max=1.0,
        intensity_step=0.01,
    ),
    cameras=(
        CameraRig(
            channel="image_2",
            position=(1.03, 0.06, 1.65),
            yaw_deg=0.0,
            pitch_deg=0.4,
            field_deg=81.4,
            image_shape=(120, 400),
        ),
    ),
)

# As on PandaSet's cars: x points right and y forward. The Pandar64 is dense around the horizon.
_PANDASET_CAMERAS = tuple(
    CameraRig(
        channel=channel,
        position=position,
        yaw_deg=yaw,
        pitch_deg=pitch,
        field_deg=field,
        image_shape=(216, 384),
        delay_us=delay,
    )
    for channel, position, yaw, pitch, field, delay in (
        ("front", (1.85, 0.0, 2.24), 0.0, 0.2, 52.0, 0),
        ("front_right", (2.48, -0.60, 2.03), -58.0, -0.8, 91.8, 8_000),
        ("right", (1.59, -0.70, 1.98), -89.0, -0.9, 91.8, 16_000),
        ("back", (0.74, -0.03, 2.08), 179.0, 0.3, 91.6, -5_000),
        ("left", (1.54, 0.53, 2.01), 91.5, -1.0, 91.8, -16_000),
        ("front_left", (2.51, 0.64, 1.96), 58.0, 0.1, 91.9, -8_000),
    )
)
PANDAR64_RIG = Rig(
    lidar=LidarRig(
        channel="pandar64",
        position=(1.0, 0.0, 2.03),
        rotation_deg=(-90.0, 0.5, -0.3),
        elevations_deg=(-25.0, -19.0, *range(-14, -6), *np.linspace(-6, 2, 49).tolist(), 3.0, 5.0, 8.0, 11.0, 15.0),
        azimuths=900,
        max_range_m=150.0,
    ),
    cameras=_PANDASET_CAMERAS,
)
PANDARGT_RIG = Rig(
    lidar=LidarRig(
        channel="pandargt",
        position=(1.4, 0.0, 1.8),
        rotation_deg=(-90.0, 0.0, 0.2),
        elevations_deg=tuple(np.linspace(-12.0, 7.5, 150).tolist()),
        azimuths=240,
        field_deg=(60.0, 120.0),
        max_range_m=200.0,
        range_noise_m=0.03,
        noise_stream=(1,),
    ),
    cameras=_PANDASET_CAMERAS[:1],
)

# As on SemanticPOSS' car: a Pandora with 40 beams; its cameras are not part of the dataset.
POSS_RIG = Rig(
    lidar=LidarRig(
        channel="pandora",
        position=(0.8, 0.0, 1.75),
        rotation_deg=(0.0, 0.2, 0.3),
        elevations_deg=(
            -16.0,
            -13.0,
            -10.0,
            *range(-9, -6),
            *np.linspace(-6, 2, 25).tolist(),
            *np.linspace(2.5, 7, 9).tolist(),
        ),
        azimuths=900,
        max_range_m=100.0,
    ),
    cameras=(),
)
