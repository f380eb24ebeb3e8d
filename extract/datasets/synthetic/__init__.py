"""A small simulated world of street scenes, seen by a spinning lidar and cameras on a moving vehicle.

    write_nuscenes("synthetic", train_scenes=4, val_scenes=2)        # a data set in the native nuScenes layout
    scene = simulate_scene("scene-0001", seed=0)                     # one of its scenes, with the truth
    image = scene.render("CAM_FRONT", keyframe=3)                    # rgb, depth, category, instance per pixel

The world is built of simple solids (`traffic`, `scenery`), laid out along a street (`street`, `placement`, `populate`,
`world`). One ray caster (`raycast`, `rays`, `surface`) answers lidar and cameras alike, so that both agree on what is
where, and on what hides what. Which sensors look is data (`rigs`), how they look is `sensors`, and each native layout
has a module that writes it (`nuscenes_layout`).
"""

from .nuscenes_layout import write_nuscenes
from .rigs import NUSCENES_RIG, CameraRig, LidarRig, Rig
from .sensors import Image, Scene, Sweep, simulate_scene

__all__ = [
    "NUSCENES_RIG",
    "CameraRig",
    "Image",
    "LidarRig",
    "Rig",
    "Scene",
    "Sweep",
    "simulate_scene",
    "write_nuscenes",
]
