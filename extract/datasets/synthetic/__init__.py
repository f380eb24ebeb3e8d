"""A small simulated world of street scenes, seen by lidars and cameras on a moving vehicle.

    write_world("synthetic", layout="nuscenes", train_scenes=4)      # a dataset in the native layout of a real one
    scene = simulate_scene("scene-0001", seed=0)                     # one of its scenes, with ground truth
    image = scene.render("CAM_FRONT", keyframe=3)                    # rgb, depth, category, instance per pixel

The world consists of simple solids (`traffic`, `scenery`), laid out along a street (`street`, `placement`, `populate`,
`world`). One ray caster (`raycast`, `rays`, `surface`) serves lidar and cameras, so that both agree on positions and
occlusions. The sensors are data (`rigs`), `sensors` simulates them, and each native layout has a module that writes it
(`nuscenes_layout`, `kitti_layout`, `pandaset_layout`; `writing` is common to them). All layouts get the same scenes,
with labels in their own ids.
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
    """Write simulated scenes in the native layout of a dataset.

    Args:
        root: folder to write; it must not exist, or must be empty.
        layout: a key of `LAYOUTS`.
        options: options of the layout's function; all layouts have `train_scenes`, `val_scenes`, `keyframes`, `seed`.

    Raises:
        DatasetError: an unknown layout, or an option that its function does not accept.
    """
    if layout not in LAYOUTS:
        raise DatasetError(
            f"no layout '{layout}'{did_you_mean(layout, LAYOUTS)}", where="--layout", fix=f"Use one of {list(LAYOUTS)}."
        )
    LAYOUTS[layout](root, **options)
