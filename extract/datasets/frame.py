"""The interface of dataset readers: frames with their views, and points and labels on demand (see `scans`)."""

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
    """One camera image of a frame, with its calibration."""

    camera: str
    image: str  # path relative to the dataset's root
    calibration: Calibration
    image_shape: tuple[int, int] | None = None  # (H, W) [px] to which the calibration refers; None: the image's size
    image_token: str | None = None  # ID of the image's record in the dataset's tables, if any


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """A scan with its synchronised images, identified by dataset, scene and `token`, the frame ID."""

    dataset: str
    scene: str
    token: str
    timestamp: int  # of the scan [us]
    scan: str  # path relative to the dataset's root
    labels: str | None  # path relative to the dataset's root; None if the frame has no labels
    views: tuple[View, ...]
    error: DatasetError | None = None  # why the views cannot be used; `views` is then empty


class Dataset(Protocol):
    """An opened dataset: what a dataset reader returns when it is called with the dataset's top folder and a split.

    `frames` is metadata only; points, labels and images are read on demand, from several threads at once.
    """

    name: str
    root: Path
    split: str
    class_names: tuple[str, ...]
    visibility: Visibility
    intensity: IntensityStatistics | None  # None if no statistics are published: they are measured then
    frames: Sequence[Frame]

    def read_points(self, frame: Frame) -> np.ndarray:
        """Read a frame's scan, (N, 4) float32: x y z in the lidar frame [m] and the raw return intensity."""
        ...

    def read_labels(self, frame: Frame) -> np.ndarray:
        """Read a frame's labels, (N,) uint8 train ids: an index into `class_names`, or labels.IGNORE_LABEL."""
        ...
