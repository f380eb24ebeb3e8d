"""A small simulated world of street scenes, seen by lidars and cameras on a moving vehicle.

    write_world("synthetic", layout="nuscenes", train_scenes=4)      # a data set in the native layout of a real one
    scene = simulate_scene("scene-0001", seed=0)                     # one of its scenes, with the truth
    image = scene.render("CAM_FRONT", keyframe=3)                    # rgb, depth, category, instance per pixel

The world is built of simple solids (`traffic`, `scenery`), laid out along a street (`street`, `placement`, `populate`,
`world`). One ray caster (`raycast`, `rays`, `surface`) answers lidar and cameras alike, so that both agree on what is
where, and on what hides what. Which sensors look is data (`rigs`), how they look is `sensors`, and native layouts have
modules that write them (`nuscenes_layout`, `kitti_layout`, `pandaset_layout`; `writing` is what they share). The same
scenes go into each, with labels in its own ids.
"""

from __future__ import annotations

from pathlib import Path

from ....errors import DatasetError, did_you_mean
from .kitti_layout import write_semantic_kitti, write_semantic_poss
from .nuscenes_layout import write_nuscenes
from .pandaset_layout import write_pandaset
from .rigs import KITTI_RIG, NUSCENES_RIG, PANDAR64_RIG, PANDARGT_RIG, POSS_RIG, CameraRig, LidarRig, Rig
from .sensors import Image, Scene, Sweep, simulate_scene

LAYOUTS = {
    "nuscenes": write_nuscenes,
    "semantic_kitti": write_semantic_kitti,
    "pandaset": write_pandaset,
    "semantic_poss": write_semantic_poss,
}

__all__ = [
    "KITTI_RIG",
    "LAYOUTS",
    "NUSCENES_RIG",
    "PANDAR64_RIG",
    "PANDARGT_RIG",
    "POSS_RIG",
    "CameraRig",
    "Image",
    "LidarRig",
    "Rig",
    "Scene",
    "Sweep",
    "simulate_scene",
    "write_world",
]


def write_world(root: str | Path, *, layout: str = "nuscenes", **options) -> None:
    """Write simulated scenes in the native layout of a data set.

    Args:
        root: folder to write; must not exist, or be empty.
        layout: a key of `LAYOUTS`.
        options: of the layout's own function; `train_scenes`, `val_scenes`, `keyframes` and `seed` in all of them.

    Raises:
        DatasetError: an unknown layout, or whatever its function does not take.
    """
    if layout not in LAYOUTS:
        raise DatasetError(
            f"no layout '{layout}'{did_you_mean(layout, LAYOUTS)}", where="--layout", fix=f"Use one of {list(LAYOUTS)}."
        )
    LAYOUTS[layout](root, **options)
