"""Test a few frames of a dataset for plausibility, for `scalr check` and before an extraction.

What is certainly wrong is reported as a DatasetError, what is doubtful as a `DoubtfulError`. Bounds leave a wide margin
to real lidars, cameras and cars: nuScenes, SemanticKITTI, PandaSet and their simulated versions stay far inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import DatasetError, DoubtfulError
from .datasets.frame import Dataset, Frame, View
from .datasets.scans import read_labels
from .intensity import INTENSITY_STATISTICS
from .misalignment import FEWEST_VIEWS, evidence_of, judged
from .plan import spread
from .projection import Calibration, Visibility
from .sampled_frames import SeenFrame, SeenView, seen_frame

SAMPLED_FRAMES = 8
COMPARED_VIEWS = 24  # approximate number of views whose images are compared with the scans

# Scans
LONGEST_RANGE_M, SHORTEST_RANGE_M = 1_000.0, 1.0  # bounds on the range within which 99 % of the points lie
FEWEST_POINTS = 100  # fewer points have no meaningful spread
FLATNESS = 0.7  # maximum spread of heights, as a fraction of the horizontal spread
AT_ORIGIN = 0.1  # maximum fraction of points at the origin
SPREADS, MEANS = 8.0, 4.0  # largest factor between deviations; largest distance of means, in deviations
# Calibrations
NARROWEST, WIDEST = 0.05, 20.0  # focal length as a fraction of the image's width: fields of view of 169 and 3 degrees
OFF_CENTRE = 1.5  # maximum distance of the principal point, as a fraction of the image's centre
TILTED_DEG = 60.0
LEVEL = 0.87  # vertical component of the optical axis, 60 degrees: the lower edge of a steeper camera says nothing
FARTHEST_CAMERA_M = 20.0
FEWEST_SEEN = 0.05  # minimum fraction of the points in a camera's horizontal field of view that it sees
# Labels
NEIGHBOUR_M, SAME_LABEL, FEWEST_NEIGHBOURS = 0.5, 0.75, 200


def findings(dataset: Dataset, frames: Sequence[Frame], compared_views: int = COMPARED_VIEWS) -> list[DatasetError]:
    """Test a sample that is spread over `frames`; return what is wrong or doubtful (`DoubtfulError`), each once.

    Frames that cannot be read are left out: the caller reads all frames and reports those.

    Args:
        dataset: the dataset of the frames.
        frames: the frames to draw the sample from, in their order.
        compared_views: approximate number of views whose images are compared with their scans.
    """
    if not len(frames):
        return []
    with ThreadPoolExecutor() as pool:
        numbers = sorted(spread(len(frames))[:SAMPLED_FRAMES])
        seen = [each for each in pool.map(lambda number: seen_frame(dataset, frames[number], number), numbers) if each]
        views = max((len(each.views) for each in seen), default=1)
        compared = [seen[number] for number in spread(len(seen))[: max(FEWEST_VIEWS, compared_views // max(1, views))]]
        evidence = list(pool.map(lambda each: evidence_of(dataset, frames, each), compared))
    found = [
        *_of_times(dataset, frames),
        *findings_of_scans(dataset, [(each.points, dataset.root / each.frame.scan) for each in seen]),
        *_of_cameras(dataset, seen),
        *_of_images(dataset, seen),
        *_of_labels(dataset, seen),
        *judged(dataset, evidence),
    ]
    return list({str(each): each for each in found}.values())


def _of_times(dataset: Dataset, frames: Sequence[Frame]) -> Iterator[DatasetError]:
    for before, after in itertools.pairwise(frame for frame in frames if frame.error is None):
        if after.scene == before.scene and after.timestamp < before.timestamp:
            yield DoubtfulError(
                f"frame {after.token} has the timestamp {after.timestamp}, which is before {before.timestamp} of the"
                f" frame above it, {before.token}, and frames of a scene are expected in the order of time",
                where=dataset.root,
                fix="Put the frames of each scene in the order of their timestamps.",
            )
            return  # one report stands for all


# --- scans ----------------------------------------------------------------------------------------------------------


def findings_of_scans(dataset: Dataset, scans: Sequence[tuple[np.ndarray, Path]]) -> Iterator[DatasetError]:
    """What cannot be, or hardly, in the points (N, 4) of a dataset's scans, each with the path of its file."""
    for points, path in scans:
        yield from findings_of_points(points, path)
    if scans:
        yield from _of_intensities(dataset, np.concatenate([points[:, 3] for points, _ in scans]))


def findings_of_points(points: np.ndarray, path: Path) -> Iterator[DatasetError]:
    """What cannot be, or hardly, in the coordinates of one scan (N, 4)."""
    ranges = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
    reach = float(np.quantile(ranges, 0.99))
    if reach > LONGEST_RANGE_M:
        yield DatasetError(
            f"1 % of the points are farther than {reach:,.4g} m, and a lidar's reach of less than"
            f" {LONGEST_RANGE_M:,.0f} m is expected",
            where=path,
            fix="Give x, y, z in metres, in the lidar's own frame.",
        )
    elif reach < SHORTEST_RANGE_M:
        yield DoubtfulError(
            f"99 % of the points are within {reach:.2g} m, and more than {SHORTEST_RANGE_M:g} m are expected",
            where=path,
            fix="Give x, y, z in metres, in the lidar's own frame.",
        )
    at_origin = float((ranges == 0).mean())
    if at_origin > AT_ORIGIN:
        yield DoubtfulError(
            f"{at_origin:.0%} of the points are at (0, 0, 0), and less than {AT_ORIGIN:.0%} are expected",
            where=path,
            fix="Leave out rays without a return: with --dataset frames, 'no_returns: drop' in dataset.yaml does.",
        )
    spreads = np.subtract(*np.quantile(points[:, :3], [0.98, 0.02], axis=0))
    is_tall = spreads[2] > max(FLATNESS * spreads[:2].max(), spreads[:2].min())  # a small room nearly is
    if len(points) >= FEWEST_POINTS and (is_tall or spreads.min() == 0):
        yield DoubtfulError(
            f"96 % of the points spread over {spreads[0]:.3g} m in x, {spreads[1]:.3g} m in y and {spreads[2]:.3g} m in"
            " z, and z, which points up, is expected to spread least but not by 0",
            where=path,
            fix="Give x, y, z in the lidar's own frame, z up.",
        )


def _of_intensities(dataset: Dataset, values: np.ndarray) -> Iterator[DatasetError]:
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    known = getattr(dataset, "intensity", None)
    if deviation == 0:
        yield DoubtfulError(
            f"all intensities are {mean:g}, and different ones are expected",
            where=dataset.root,
            fix="Check that the fourth value of a point is its intensity.",
        )
    elif known is not None and (
        not known.std / SPREADS <= deviation <= known.std * SPREADS or abs(mean - known.mean) > MEANS * known.std
    ):
        yield DoubtfulError(
            f"intensities have mean {mean:.4g} and standard deviation {deviation:.4g}, and about {known.mean:.4g} and"
            f" {known.std:.4g} are expected of {dataset.name}",
            where=dataset.root,
            fix="Check the scale of the intensities, such as 0 to 1 or 0 to 255, and the statistics.",
        )


# --- calibrations ---------------------------------------------------------------------------------------------------


def _of_cameras(dataset: Dataset, seen: Sequence[SeenFrame]) -> Iterator[DatasetError]:
    by_camera: dict[str, list[tuple[SeenFrame, SeenView]]] = {}
    for each in seen:
        for view in each.views:
            by_camera.setdefault(view.record.camera, []).append((each, view))
    for camera, views in by_camera.items():
        where = f"{dataset.root}: camera {camera}"
        for _, view in views:
            yield from _of_calibration(view.record.calibration, view.shape, where, dataset.name in INTENSITY_STATISTICS)
    pairs = {camera: sum(len(view.pairs.pixel) for _, view in views) for camera, views in by_camera.items()}
    if pairs and not any(pairs.values()):
        yield DatasetError(
            f"no camera sees any point of {len(seen)} sampled frames, and each is expected to see some",
            where=dataset.root,
            fix="Check the calibration: it leads from the lidar to each camera, with x right, y down, z forward.",
        )
        return
    for camera, views in by_camera.items():
        where = f"{dataset.root}: camera {camera}"
        if not pairs[camera]:
            yield DoubtfulError(
                f"the camera sees no point of {len(views)} sampled frames, and is expected to see some",
                where=where,
                fix="Check the calibration of the camera, or leave the camera out.",
            )
            continue
        ahead = sum(_points_ahead(each.points, view, dataset.visibility) for each, view in views)
        if pairs[camera] < FEWEST_SEEN * ahead:
            yield DoubtfulError(
                f"{pairs[camera] / ahead:.1%} of the points in the camera's horizontal field of view are in"
                " its images, and more"
                f" than {FEWEST_SEEN:.0%} are expected",
                where=where,
                fix="Check the calibration of the camera.",
            )


def _of_calibration(
    calibration: Calibration, shape: tuple[int, int], where: str, is_published: bool
) -> Iterator[DatasetError]:
    rotation, translation = calibration.cam_from_lidar[:3, :3], calibration.cam_from_lidar[:3, 3]
    (height, width), intrinsics = shape, calibration.intrinsics
    if not (np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0):
        yield DatasetError(
            f"the left 3x3 part of cam_from_lidar has the determinant {np.linalg.det(rotation):.4g}, and a rotation's 1"
            " is expected, with rows and columns of length 1 at right angles",
            where=where,
            fix="Give a rotation, in right-handed frames.",
        )
        return
    focal = float(min(intrinsics[0, 0], intrinsics[1, 1]))
    if not focal >= NARROWEST * width:
        yield DatasetError(
            f"a focal length of {focal:.4g} px for an image {width} px wide, and more than {NARROWEST * width:.4g} px"
            " is expected",
            where=where,
            fix="Give the calibration's own intrinsics in pixels.",
        )
        return
    if focal > WIDEST * width:
        yield DoubtfulError(
            f"a focal length of {focal:.4g} px for an image {width} px wide, and less than {WIDEST * width:.4g} px"
            " is expected",
            where=where,
            fix="Check the intrinsics, in pixels.",
        )
    centre = intrinsics[:2, 2] / (width / 2, height / 2)
    if (centre > OFF_CENTRE).all() or (centre < 1 / OFF_CENTRE).all() or (centre < 0).any() or (centre > 2).any():
        yield DoubtfulError(
            f"the principal point is ({intrinsics[0, 2]:.4g}, {intrinsics[1, 2]:.4g}) px, and about"
            f" ({width / 2:g}, {height / 2:g}) px is expected in an image of {height}x{width} px",
            where=where,
            fix="Use the images at the size that the calibration is for, or scale the calibration as the images.",
        )
    tilt = float(np.degrees(np.arccos(np.clip(-rotation[1, 2], -1, 1))))  # of the downward axes
    looks_up_or_down = abs(rotation[2, 2]) > LEVEL and not np.allclose(rotation, np.eye(3), atol=0.2)
    if tilt > TILTED_DEG and (is_published or not looks_up_or_down):
        yield (DatasetError if is_published else DoubtfulError)(
            f"the lower edge of the camera's images is {tilt:.0f} degrees from the lidar's down, and less"
            f" than {TILTED_DEG:.0f} are"
            " expected",
            where=where,
            fix="Check whether the calibration is transposed or inverted, unless the camera is mounted like"
            " this: it leads"
            " from the lidar, z up, to the camera, y down.",
        )
    distance = float(np.linalg.norm(translation))
    if not distance <= FARTHEST_CAMERA_M:
        yield DoubtfulError(
            f"{distance:,.0f} m between lidar and camera, and less than {FARTHEST_CAMERA_M:.0f} m are expected",
            where=where,
            fix="Check the translation of its calibration: metres, from the lidar to the camera.",
        )


def _points_ahead(points: np.ndarray, view: SeenView, visibility: Visibility) -> int:
    """The number of points in a view's horizontal field of view, at any height."""
    calibration, width = view.record.calibration, view.shape[1]
    level = points[:, :3].astype(np.float64) @ calibration.cam_from_lidar[:3, :3].T + calibration.cam_from_lidar[:3, 3]
    ahead = level[:, 2] > visibility.min_depth_m
    if visibility.min_x_m is not None:
        ahead &= points[:, 0] > visibility.min_x_m
    u = calibration.intrinsics[0, 0] * level[ahead, 0] / level[ahead, 2] + calibration.intrinsics[0, 2]
    return int(((u > 0) & (u < width)).sum())


# --- images and labels ----------------------------------------------------------------------------------------------


def _of_images(dataset: Dataset, seen: Sequence[SeenFrame]) -> Iterator[DatasetError]:
    before: dict[str, tuple[Frame, View]] = {}
    for each in seen:
        for view in each.views:
            yield from view.doubts
            if not view.sha256:
                continue
            other = before.setdefault(view.sha256, (each.frame, view.record))
            if other[1] is not view.record:
                yield DoubtfulError(
                    f"{_named(each.frame, view.record)} has the same image as {_named(*other)}, and two cameras or"
                    " frames are expected to have different ones",
                    where=dataset.root / view.record.image,
                    fix="Check the names of the images.",
                )


def _named(frame: Frame, view: View) -> str:
    return f"camera {view.camera} of frame {frame.token}"


def _of_labels(dataset: Dataset, seen: Sequence[SeenFrame]) -> Iterator[DatasetError]:
    for each in seen:
        if each.frame.labels is None:
            continue
        try:
            labels = read_labels(dataset, each.frame, len(each.points))
        except DatasetError:
            continue
        same, neighbours = _labels_of_neighbours(each.points, labels)
        if neighbours >= FEWEST_NEIGHBOURS and same < SAME_LABEL:
            yield DoubtfulError(
                f"{same:.0%} of the points have the label of a point next to them, and more than {SAME_LABEL:.0%} are"
                " expected to",
                where=dataset.root / str(each.frame.labels),
                fix="Check that the labels are of this scan, in its order.",
            )


def _labels_of_neighbours(points: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """The fraction of points that share the label of their nearest point not adjacent in the file, and their number."""
    from scipy.spatial import cKDTree

    step = -(-len(points) // 5_000)
    some = np.arange(0, len(points), step)
    distance, nearest = cKDTree(points[some, :3]).query(points[some, :3], k=6, distance_upper_bound=NEIGHBOUR_M)
    apart = np.isfinite(distance) & (np.abs(nearest - np.arange(len(some))[:, None]) > 10)
    has, first = apart.any(axis=1), apart.argmax(axis=1)
    other = nearest[has, first[has]]
    return float((labels[some[has]] == labels[some[other]]).mean()) if has.any() else 1.0, int(has.sum())
