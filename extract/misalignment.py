"""Find images that do not belong where the dataset says (mirrored, of another frame or camera), and scans' wrong axes.

A change is reported if image and scan then fit clearly better (`alignment.fit`) than as the dataset declares them. If
nothing fits, at night or with intensities that carry no information, nothing is reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DatasetError, DoubtfulError
from .alignment import PointMap, fit, grid_of, image_map, point_map
from .datasets.frame import Dataset, Frame
from .projection import project
from .sampled_frames import SeenFrame, small_image

# Bounds on the logarithm of `fit`, averaged over views, relative to that of shifted images
CLEAR_GAIN, FEWEST_VIEWS = 0.2, 2
BEYOND_CHANCE = 4.0  # standard deviations of the mean that shifted images give by chance
MOVED = (0.2, 0.4, 0.6, 0.8)  # shifts, as fractions of the image's width
AXES = {
    "with x and y exchanged": ((0, 1), (1, 0)),
    "with the sign of x changed": ((-1, 0), (0, 1)),
    "with the sign of y changed": ((1, 0), (0, -1)),
    "turned by 90 degrees": ((0, -1), (1, 0)),
    "turned by 180 degrees": ((-1, 0), (0, -1)),
    "turned by 270 degrees": ((0, 1), (-1, 0)),
    "with x and y exchanged and their signs changed": ((0, -1), (-1, 0)),
}


@dataclass(frozen=True)
class Evidence:
    """How much better than shifted images the images of one frame fit its scan: a value for each camera.

    Attributes:
        own: with images and scan as the dataset has them.
        chance: the variance of the value among shifted images, which have nothing to do with the scan.
        mirrored, axes, frames: with the images mirrored; with other axes of the scan; with the images of the frame
            before (-1) or after (1).
        cameras: with the image of another camera; the keys are the camera and the other one.
    """

    own: dict[str, float]
    chance: dict[str, float]
    mirrored: dict[str, float]
    axes: dict[str, dict[str, float]]
    frames: dict[int, dict[str, float]]
    cameras: dict[tuple[str, str], float]


def evidence_of(dataset: Dataset, frames: Sequence[Frame], each: SeenFrame) -> Evidence:
    evidence = Evidence({}, {}, {}, {name: {} for name in AXES}, {-1: {}, 1: {}}, {})
    neighbours = {step: _images_of_neighbour(dataset, frames, each, step) for step in evidence.frames}
    for view in each.views:
        grid = grid_of(len(view.pairs.pixel), view.shape)
        if grid is None or view.small is None:
            continue
        camera, image = view.record.camera, image_map(view.small, grid)
        points = point_map(each.points[:, 3], view.pairs, view.shape, grid)
        own, windows = fit(points, image)
        moved = [fit(points, np.roll(image, round(share * grid[1]), axis=2))[0] for share in MOVED]
        if not windows or min(own, *moved) <= 0:
            continue
        usual = float(np.log(moved).mean())
        evidence.own[camera], evidence.chance[camera] = float(np.log(own)) - usual, float(np.log(moved).var(ddof=1))

        def gain(points: PointMap, image: np.ndarray, windows: int = windows, usual: float = usual) -> float | None:
            value, looked_at = fit(points, image)
            return float(np.log(value)) - usual if value > 0 and looked_at > windows / 2 else None

        gains: list[tuple[dict, object, float | None]] = [(evidence.mirrored, camera, gain(points, image[:, :, ::-1]))]
        for name, axes in AXES.items():
            turned = _with_axes(each.points, axes)
            pairs = project(turned, view.record.calibration, view.shape, dataset.visibility)
            if len(pairs.pixel):
                other_points = point_map(turned[:, 3], pairs, view.shape, grid)
                gains.append((evidence.axes[name], camera, gain(other_points, image)))
        for step, images in neighbours.items():
            if camera in images:
                gains.append((evidence.frames[step], camera, gain(points, image_map(images[camera], grid))))
        for other in each.views:
            if other is not view and other.small is not None and other.shape == view.shape:
                value = gain(points, image_map(other.small, grid))
                gains.append((evidence.cameras, (camera, other.record.camera), value))
        for of_what, key, value in gains:
            if value is not None:
                of_what[key] = value
    return evidence


def _with_axes(points: np.ndarray, axes: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
    turned = points.copy()
    turned[:, :2] = points[:, :2] @ np.array(axes, np.float32).T
    return turned


def _images_of_neighbour(
    dataset: Dataset, frames: Sequence[Frame], each: SeenFrame, step: int
) -> dict[str, np.ndarray]:
    """Thumbnails of the frame before or after, by camera; empty if the scene has no such frame."""
    number = each.number + step
    if not 0 <= number < len(frames) or frames[number].scene != each.frame.scene:
        return {}
    images = {}
    for view in frames[number].views:
        try:
            images[view.camera] = small_image(dataset, view, [])[0]
        except DatasetError:
            continue
    return images


def judged(dataset: Dataset, evidence: Sequence[Evidence]) -> Iterator[DatasetError]:
    """Report changes that fit clearly better than the dataset; of changes to all images or scans, only the best one."""
    better: dict[str, tuple[float, float]] = {}
    for name, of in _changes_of_all().items():
        changed = [
            (each.own[camera], of(each)[camera], each.chance[camera])
            for each in evidence
            for camera in each.own
            if camera in of(each)
        ]
        if (gains := _clear_gain(changed)) is not None:
            better[name] = gains
    if better:
        name = max(better, key=lambda name: better[name][1])
        own, other = better[name]
        yield DoubtfulError(
            f"the images fit the scans {np.exp(other - own):.2f} times as well {name}, and best as they are is"
            " expected",
            where=dataset.root,
            fix="Check images, scans and calibration against each other: mirrored, of another frame, or other axes.",
        )
        return
    yield from _of_single_cameras(dataset, evidence)


def _changes_of_all() -> dict[str, Callable[[Evidence], dict[str, float]]]:
    return {
        "with the images mirrored": lambda each: each.mirrored,
        "with the images of the frame before": lambda each: each.frames[-1],
        "with the images of the frame after": lambda each: each.frames[1],
        **{f"with the scans' points {name}": lambda each, name=name: each.axes[name] for name in AXES},
    }


def _of_single_cameras(dataset: Dataset, evidence: Sequence[Evidence]) -> Iterator[DatasetError]:
    cameras = list(dict.fromkeys(itertools.chain.from_iterable(each.own for each in evidence)))
    for camera in cameras:
        changed = [
            (each.own[camera], each.mirrored[camera], each.chance[camera])
            for each in evidence
            if camera in each.mirrored
        ]
        if (gains := _clear_gain(changed)) is not None:
            yield DoubtfulError(
                f"the images of the camera fit the scans {np.exp(gains[1] - gains[0]):.2f} times as well mirrored,"
                " and best as they are is expected",
                where=f"{dataset.root}: camera {camera}",
                fix="Check whether its images are mirrored.",
            )
    for one, other in itertools.combinations(cameras, 2):
        directions = ((one, other), (other, one))
        changed = [
            (each.own[key[0]], each.cameras[key], each.chance[key[0]])
            for each in evidence
            for key in directions
            if all(direction in each.cameras for direction in directions)
        ]
        if (gains := _clear_gain(changed)) is not None:
            yield DoubtfulError(
                f"images of {one} and {other} fit the scans {np.exp(gains[1] - gains[0]):.2f} times as well exchanged,"
                " and best as they are is expected",
                where=dataset.root,
                fix="Check whether images or calibrations of the two cameras are exchanged.",
            )


def _clear_gain(views: Sequence[tuple[float, float, float]]) -> tuple[float, float] | None:
    """Average all views' values (unchanged, changed, variance by chance); None if the change is not clearly better."""
    if len(views) < FEWEST_VIEWS:
        return None
    own, changed, chance = np.array(views).T
    least = max(CLEAR_GAIN, BEYOND_CHANCE * float(np.sqrt(chance.mean() / len(views))))
    gain = changed - own
    is_clear = changed.mean() > least and gain.mean() > least and np.mean(gain > 0) >= 0.75
    return (float(own.mean()), float(changed.mean())) if is_clear else None
