"""A frame's scan and images, made ready for teachers: its points, the pairs of each view, the teachers' inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import DatasetError
from .datasets.files import read_image, read_image_shape
from .datasets.frame import Dataset, Frame, View
from .datasets.scans import read_points
from .occlusion import hidden_pairs
from .projection import project

if TYPE_CHECKING:  # a scan is checked without torch and zarr
    import torch

    from .store import ScanBlock
    from .teachers.teacher import Teacher

Points = Literal["all", "visible"]
Occlusion = Literal["keep", "drop"]
OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class Selection:
    """What is kept of a scan: all points or those that some view sees; all pairs or those not found hidden."""

    points: Points = "all"
    occlusion: Occlusion = "keep"


@dataclass(frozen=True, eq=False)
class PreparedView:
    """One view, ready for the teachers."""

    image_shape: tuple[int, int]  # (H, W) of the original image [px]
    point_index: np.ndarray  # (R,) uint32
    pixel: np.ndarray  # (R, 2) uint16
    hidden: int  # pairs found behind a nearer surface, whether kept or dropped
    images: list[torch.Tensor] = field(default_factory=list)  # (3, h, w) float32 for each teacher


@dataclass(frozen=True, eq=False)
class PreparedFrame:
    """A scan with its views."""

    frame: Frame
    points: np.ndarray  # (N, 4) float32
    views: list[PreparedView]

    def without_images(self) -> PreparedFrame:
        """All that is needed of it once the teachers have seen it."""
        return replace(self, views=[replace(view, images=[]) for view in self.views])


@dataclass(frozen=True)
class SkippedFrame:
    """A frame that could not be used, and why."""

    token: str
    reason: str


def prepare_or_skip(
    dataset: Dataset,
    frame: Frame,
    teachers: Sequence[Teacher],
    selection: Selection,
    on_error: OnError,
    committed: ScanBlock | None = None,
) -> PreparedFrame | SkippedFrame:
    """`prepare_frame`; with `skip`, a frame that cannot be used is no error."""
    try:
        return prepare_frame(dataset, frame, teachers, selection, committed)
    except DatasetError as error:
        if on_error == "stop":
            raise
        return SkippedFrame(frame.token, str(error))


def prepare_frame(
    dataset: Dataset,
    frame: Frame,
    teachers: Sequence[Teacher],
    selection: Selection,
    committed: ScanBlock | None = None,
) -> PreparedFrame:
    """Read a frame's scan and images; its pairs are computed, or taken from the block that has them already.

    Raises:
        DatasetError: a frame without views, or with files that cannot be used.
    """
    if frame.error is not None:
        raise frame.error
    if not frame.views:
        raise DatasetError(
            f"frame {frame.token} of {frame.dataset} has no image",
            where=dataset.root / frame.scan,
            fix="Leave it out, or give it one.",
        )
    points, views = _committed_views(committed, frame) if committed else _new_views(dataset, frame, selection)
    if teachers:
        views = [
            _with_images(dataset, replace(record, image_shape=view.image_shape), view, teachers)
            for record, view in zip(frame.views, views, strict=True)
        ]
    return PreparedFrame(frame, points, views)


def _with_images(dataset: Dataset, record: View, view: PreparedView, teachers: Sequence[Teacher]) -> PreparedView:
    image = read_image(dataset.root, record)
    prepared = {each: each.apply(image) for each in {teacher.preprocessing for teacher in teachers}}
    return replace(view, images=[prepared[teacher.preprocessing] for teacher in teachers])


def _new_views(dataset: Dataset, frame: Frame, selection: Selection) -> tuple[np.ndarray, list[PreparedView]]:
    """The points to keep of a scan, and the pairs of each view."""
    scan = read_points(dataset, frame)
    views = [_new_view(dataset, view, scan, selection.occlusion) for view in frame.views]
    if selection.points == "all":
        return scan, views
    seen = np.zeros(len(scan), dtype=bool)
    for view in views:
        seen[view.point_index] = True
    row_among_seen = (np.cumsum(seen) - 1).astype(np.uint32)
    return scan[seen], [replace(view, point_index=row_among_seen[view.point_index]) for view in views]


def _new_view(dataset: Dataset, view: View, scan: np.ndarray, occlusion: Occlusion) -> PreparedView:
    shape = read_image_shape(dataset.root, view)
    pairs = project(scan, view.calibration, shape, dataset.visibility)
    hidden = hidden_pairs(pairs.pixel, pairs.depth_m, shape)
    kept = ~hidden if occlusion == "drop" else slice(None)
    return PreparedView(shape, pairs.point_index[kept], pairs.pixel[kept], int(hidden.sum()))


def _committed_views(scans: ScanBlock, frame: Frame) -> tuple[np.ndarray, list[PreparedView]]:
    """A frame's points and the pairs of each view, as they were committed."""
    rows = [row for row in scans.views.to_pylist() if row["token"] == frame.token]
    views = []
    for row in rows:
        pairs = slice(row["pairs_start"], row["pairs_stop"])
        shape = (row["image_height"], row["image_width"])
        views.append(PreparedView(shape, scans.point_index[pairs], scans.pixel[pairs], row["pairs_hidden"]))
    return scans.points[rows[0]["points_start"] : rows[0]["points_stop"]], views
