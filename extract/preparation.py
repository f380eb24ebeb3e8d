"""Prepare a frame's scan and images for teachers: its points, the pairs of each view, the teachers' inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import DatasetError, StoreError
from .datasets.files import read_image_file, read_image_shape
from .datasets.frame import Dataset, Frame, View
from .datasets.scans import read_points
from .occlusion import hidden_pairs
from .projection import project
from .superpixels import Superpixels, map_sha256, resized

if TYPE_CHECKING:  # `scalr check` loads neither torch nor zarr
    import torch

    from .store import ScanBlock
    from .teachers.teacher import Teacher

Points = Literal["all", "visible"]
Occlusion = Literal["keep", "drop"]
OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class Selection:
    """What is kept: all points of a scan or those that some view sees; all pairs or those not occluded; superpixels."""

    points: Points = "all"
    occlusion: Occlusion = "keep"
    superpixels: Superpixels | None = None


@dataclass(frozen=True, eq=False)
class PreparedView:
    """One view, ready for the teachers."""

    record: View
    image_shape: tuple[int, int]  # (H, W) of the original image [px]
    point_index: np.ndarray  # (R,) uint32
    pixel: np.ndarray  # (R, 2) uint16
    hidden: int  # pairs that were found occluded, whether kept or dropped
    images: list[torch.Tensor] = field(default_factory=list)  # (3, h, w) float32 for each teacher
    image_sha256: bytes = b""  # of the image file; empty if none was read
    # Set if the split has superpixels, once the image has been read:
    superpixel: np.ndarray | None = None  # (R,) uint16
    segment_maps: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)  # (h, w) uint16, by teachers' sizes
    superpixels_sha256: bytes | None = None  # of the complete map


@dataclass(frozen=True, eq=False)
class PreparedFrame:
    """A scan with its views."""

    frame: Frame
    points: np.ndarray  # (N, 4) float32
    views: list[PreparedView]
    scan_sha256: bytes  # of the bytes of all points that were read, whether kept or not

    def without_images(self) -> PreparedFrame:
        """A copy without images, for use after the teachers have seen them."""
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
    """Call `prepare_frame`; with `skip`, return a SkippedFrame for a frame that cannot be used."""
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
    """Read a frame's scan and images; compute its pairs, or take them from a committed block.

    Raises:
        DatasetError: a frame without views, or with files or superpixel maps that cannot be used.
        StoreError: the committed block has other cameras, images or superpixels.
    """
    if frame.error is not None:
        raise frame.error
    if not frame.views:
        raise DatasetError(
            f"frame {frame.token} of {frame.dataset} has no image",
            where=dataset.root / frame.scan,
            fix="Leave the frame out, or give it an image.",
        )
    prepared = _committed_frame(committed, frame) if committed else _new_frame(dataset, frame, selection)
    if teachers:
        views = [_with_images(dataset, view, teachers, selection.superpixels) for view in prepared.views]
        prepared = replace(prepared, views=views)
    if committed:
        _refuse_other_inputs(committed, prepared, dataset)
    return prepared


def _with_images(
    dataset: Dataset, view: PreparedView, teachers: Sequence[Teacher], superpixels: Superpixels | None
) -> PreparedView:
    image, digest = read_image_file(dataset.root, replace(view.record, image_shape=view.image_shape))
    prepared = {each: each.apply(image) for each in {teacher.preprocessing for teacher in teachers}}
    view = replace(view, images=[prepared[teacher.preprocessing] for teacher in teachers], image_sha256=digest)
    if superpixels is None:
        return view
    segment_map = superpixels.map_of(view.record, image)
    return replace(
        view,
        superpixel=segment_map[view.pixel[:, 0], view.pixel[:, 1]],
        segment_maps={size: resized(segment_map, size) for size in {teacher.image_size for teacher in teachers}},
        superpixels_sha256=map_sha256(segment_map),
    )


def _refuse_other_inputs(committed: ScanBlock, prepared: PreparedFrame, dataset: Dataset) -> None:
    """Refuse images or superpixels that differ from those that the first teacher saw."""
    rows = _rows_of(committed, prepared.frame)
    for row, view in zip(rows, prepared.views, strict=True):
        if view.image_sha256 not in (b"", row["image_sha256"]):
            raise StoreError(
                f"the image has changed since frame {prepared.frame.token}, camera {view.record.camera}, was stored"
                f" (SHA-256 {row['image_sha256'].hex()[:12]} then, {view.image_sha256.hex()[:12]} now)",
                where=dataset.root / view.record.image,
                fix="Put the image back as it was, or extract into another --out.",
            )
        if view.superpixels_sha256 not in (None, row["superpixels_sha256"]):
            raise StoreError(
                f"the superpixels have changed since frame {prepared.frame.token}, camera"
                f" {view.record.camera}, was stored",
                where=dataset.root / view.record.image,
                fix="Put the map back as it was (SLIC: use a machine of the same kind), or extract into another --out.",
            )


def _new_frame(dataset: Dataset, frame: Frame, selection: Selection) -> PreparedFrame:
    """Read a scan, select its points, and compute the pairs of each view."""
    scan = read_points(dataset, frame)
    digest = hashlib.sha256(np.ascontiguousarray(scan)).digest()
    views = [_new_view(dataset, view, scan, selection.occlusion) for view in frame.views]
    if selection.points == "all":
        return PreparedFrame(frame, scan, views, digest)
    seen = np.zeros(len(scan), dtype=bool)
    for view in views:
        seen[view.point_index] = True
    row_among_seen = (np.cumsum(seen) - 1).astype(np.uint32)
    views = [replace(view, point_index=row_among_seen[view.point_index]) for view in views]
    return PreparedFrame(frame, scan[seen], views, digest)


def _new_view(dataset: Dataset, view: View, scan: np.ndarray, occlusion: Occlusion) -> PreparedView:
    matrices = (view.calibration.cam_from_lidar, view.calibration.intrinsics)
    if not all(np.isfinite(matrix).all() for matrix in matrices):  # else no point would be visible, without an error
        raise DatasetError(
            f"the calibration of camera {view.camera} has values that are not finite",
            where=dataset.root / view.image,
            fix="Correct the calibration, or leave the frame out.",
        )
    shape = read_image_shape(dataset.root, view)
    pairs = project(scan, view.calibration, shape, dataset.visibility)
    hidden = hidden_pairs(pairs.pixel, pairs.depth_m, shape)
    kept = ~hidden if occlusion == "drop" else slice(None)
    return PreparedView(view, shape, pairs.point_index[kept], pairs.pixel[kept], int(hidden.sum()))


def _committed_frame(scans: ScanBlock, frame: Frame) -> PreparedFrame:
    """Take a frame's points and the pairs of each view from a committed block; cameras are matched by name."""
    rows, records = _rows_of(scans, frame), {view.camera: view for view in frame.views}
    views = []
    for row in rows:
        if row["camera"] not in records:
            raise StoreError(
                f"camera {row['camera']} of frame {frame.token} is in the store, but not in the dataset",
                where=frame.scan,
                fix="Use the dataset that the store was made from, or another --out.",
            )
        pairs = slice(row["pairs_start"], row["pairs_stop"])
        views.append(
            PreparedView(
                records[row["camera"]],
                (row["image_height"], row["image_width"]),
                scans.point_index[pairs],
                scans.pixel[pairs],
                row["pairs_hidden"],
            )
        )
    points = scans.points[rows[0]["points_start"] : rows[0]["points_stop"]]
    return PreparedFrame(frame, points, views, rows[0]["scan_sha256"])


def _rows_of(scans: ScanBlock, frame: Frame) -> list[dict]:
    rows = scans.rows_by_token.get(frame.token)
    if not rows:
        raise StoreError(
            f"frame {frame.token} is not among those of its block",
            where=frame.scan,
            fix="Use the dataset that the store was made from, or another --out.",
        )
    return rows
