"""What every dataset reader gives: frames and their views, and points and labels on demand (`scans` reads those)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ...errors import DatasetError
from ..intensity import IntensityStatistics
from ..projection import Calibration, Visibility


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One camera's image of a frame, with its calibration."""

    camera: str
    image: str  # path relative to the dataset's root
    calibration: Calibration
    image_shape: tuple[int, int] | None = None  # (H, W) that the calibration is for [px]; None: the image's own
    image_token: str | None = None  # of the image's record in the dataset's tables, where it has one


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
    error: DatasetError | None = None  # why its views cannot be used; it has none then


class Dataset(Protocol):
    """A dataset reader: called with the dataset's top folder and a split, it gives this.

    `frames` is metadata only; points, labels and images are read on demand, from several threads at once.
    """

    name: str
    root: Path
    split: str
    class_names: tuple[str, ...]
    visibility: Visibility
    intensity: IntensityStatistics | None  # None where nothing is published: it is measured then
    frames: Sequence[Frame]

    def read_points(self, frame: Frame) -> np.ndarray:
        """(N, 4) float32: x y z in the lidar frame [m] and the raw return intensity."""
        ...

    def read_labels(self, frame: Frame) -> np.ndarray:
        """(N,) uint8 train ids, an index into `class_names` or labels.IGNORE_LABEL."""
        ...
