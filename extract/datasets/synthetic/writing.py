"""Common to all layouts: the names of the scenes, and a folder that is written atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image as PilImage

from ....errors import DatasetError, remedy
from ....paths import expanded
from ....progress import progress
from ..devkit_splits import devkit_splits
from ..simulated import mark_as_simulated
from .rigs import Rig
from .sensors import MAX_KEYFRAMES, Scene, simulate_scene

JPEG = {"quality": 95, "subsampling": 0}


class Writer(Protocol):
    """Writes scenes in one layout into a folder."""

    def write_scene(self, scene: Scene, keyframes: int, done: Callable[[], object]) -> None:
        """Simulate and write all keyframes of a scene, calling `done` after each."""
        ...

    def finish(self) -> None:
        """Write the files that need all scenes."""
        ...


def write_scenes(
    root: str | Path, writer: Callable[[Path], Writer], rig: Rig, scenes: Sequence[str], keyframes: int, seed: int
) -> None:
    """Write scenes to a temporary folder next to `root`, which is renamed at the end, so `root` is always complete.

    Raises:
        DatasetError: an argument out of range, a `root` that is in use, or a folder that cannot be written.
    """
    root = expanded(root, DatasetError).resolve()
    _check_range("keyframes", keyframes, 1, MAX_KEYFRAMES)
    _check_range("seed", seed, 0, 2**63)
    _check_root(root)
    partial = root.parent / f".{root.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        writing = writer(partial)
        with progress(len(scenes) * keyframes, "synth", "keyframe") as bar:
            for name in scenes:
                writing.write_scene(simulate_scene(name, seed=seed, rig=rig), keyframes, bar.update)
        writing.finish()
        mark_as_simulated(partial)
        partial.replace(root)
    except OSError as error:
        raise DatasetError(
            f"the folder cannot be written ({error.strerror or error})",
            where=root,
            fix=f"{remedy(error, 'Check the storage there')}, or choose another --out.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def scene_names(
    train_scenes: int, val_scenes: int, most_train: int | None = None, most_val: int | None = None
) -> tuple[list[str], list[str]]:
    """The first names of nuScenes' train and val splits; a scene depends on its name, so all layouts have the same.

    Raises:
        DatasetError: fewer than one scene of train, a negative number, or more than the layout has room for.
    """
    train, val = devkit_splits()["train"], devkit_splits()["val"]
    _check_range("train_scenes", train_scenes, 1, most_train or len(train))
    _check_range("val_scenes", val_scenes, 0, len(val) if most_val is None else most_val)
    return train[:train_scenes], val[:val_scenes]


def with_images(rig: Rig, image_shape: tuple[int, int] | None) -> Rig:
    """The rig with images of (H, W) [px]; None keeps the rig's size.

    Raises:
        DatasetError: not two integers, or out of range.
    """
    if image_shape is None:
        return rig
    if not isinstance(image_shape, Sequence) or len(image_shape) != 2:
        raise DatasetError(
            f"the image shape {image_shape!r} cannot be used", where="image_shape", fix="Use (height, width)."
        )
    for size in image_shape:
        _check_range("image_shape", size, 16, 4096)
    return rig.with_image_shape(tuple(image_shape))


def save_jpeg(rgb: np.ndarray, path: Path) -> None:
    """Save an image (H, W, 3) uint8 as JPEG of high quality."""
    PilImage.fromarray(rgb).save(path, **JPEG)


def _check_range(argument: str, value: int, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise DatasetError(
            f"{value!r} cannot be used", where=argument, fix=f"Use a whole number from {lowest} to {highest}."
        )


def _check_root(root: Path) -> None:
    fix = "Remove it, or write to another folder."
    if root.is_dir():
        if any(root.iterdir()):
            raise DatasetError("the folder exists and is not empty", where=root, fix=fix)
    elif root.exists():
        raise DatasetError("a file has this name", where=root, fix=fix)
