"""What every dataset reader gives: frames, their views, and the files behind them, checked while they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ...errors import DatasetError
from ..projection import Calibration, Visibility

IGNORE_LABEL = 255  # train id of points that no metric and no loss counts


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One camera's image of a frame, with its calibration."""

    camera: str
    image: str  # path relative to the dataset's root
    image_shape: tuple[int, int]  # (H, W) that the calibration refers to [px]
    calibration: Calibration


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """A scan with its synchronised images, identified by (dataset, scene, token)."""

    dataset: str
    scene: str
    token: str
    timestamp: int  # of the scan [us]
    scan: str  # path relative to the dataset's root
    labels: str | None  # likewise; None where the frame has none
    views: tuple[View, ...]


class Dataset(Protocol):
    """A dataset reader. `frames` is metadata only; points, labels and images are read on demand."""

    name: str
    root: Path
    split: str
    class_names: tuple[str, ...]
    visibility: Visibility
    frames: Sequence[Frame]

    def read_points(self, frame: Frame) -> np.ndarray:
        """(N, 4) float32: x y z in the lidar frame [m] and the raw return intensity."""
        ...

    def read_labels(self, frame: Frame) -> np.ndarray:
        """(N,) uint8 train ids, an index into `class_names` or IGNORE_LABEL."""
        ...


def read_scan(path: Path, columns: int) -> np.ndarray:
    """Read a headerless float32 scan file, as nuScenes and KITTI write them.

    Args:
        path: the file.
        columns: values per point in the file; the first four are x, y, z and intensity.

    Returns:
        (N, 4) float32.

    Raises:
        DatasetError: missing, empty or truncated file, or values that are not finite.
    """
    values = np.frombuffer(read_bytes(path), dtype=np.uint8)
    point_bytes = 4 * columns
    if len(values) == 0 or len(values) % point_bytes:
        raise DatasetError(
            f"{len(values)} bytes are not a whole number of points ({point_bytes} bytes each): empty or truncated",
            where=path,
            fix="Copy the file again from the dataset's archive.",
        )
    points = values.view(np.float32).reshape(-1, columns)[:, :4].copy()
    bad = int((~np.isfinite(points).all(axis=1)).sum())
    if bad:
        raise DatasetError(
            f"{bad} of {len(points)} points are not finite", where=path, fix="Copy the file again, or remove the frame."
        )
    return points


def read_image(root: Path, view: View) -> np.ndarray:
    """Decode a view's image, (H, W, 3) uint8 RGB.

    Raises:
        DatasetError: a missing or unreadable file, or another size than the calibration was made for.
    """
    path = root / view.image
    try:
        with Image.open(path) as image:
            rgb = np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(
            f"the image cannot be decoded ({error})",
            where=path,
            fix="Copy the file again from the dataset's archive.",
        ) from None
    if rgb.shape[:2] != tuple(view.image_shape):
        height, width = view.image_shape
        raise DatasetError(
            f"the image is {rgb.shape[0]}x{rgb.shape[1]} pixels, its calibration is for {height}x{width}",
            where=path,
            fix="Use the images at the dataset's own resolution.",
        )
    return rgb


def read_bytes(path: Path) -> bytes:
    """The content of a dataset file; a DatasetError where it is missing or unreadable."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise missing_file(path) from None
    except OSError as error:
        raise DatasetError(
            f"the file cannot be read ({error.strerror})", where=path, fix="Check its permissions."
        ) from None


def missing_file(path: Path) -> DatasetError:
    return DatasetError(
        "the file is missing", where=path, fix="Check that the dataset is complete and --root is its top folder."
    )
