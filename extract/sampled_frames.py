"""A few frames of a dataset, with all that the plausibility tests need: points, pairs, a small copy of each image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ..errors import DatasetError, DoubtfulError
from .alignment import THUMBNAIL, thumbnail
from .datasets.files import ORIENTATION, as_rgb, has_16_bits_a_colour, opened_view, read_image_shape
from .datasets.frame import Dataset, Frame, View
from .datasets.scans import read_points
from .projection import Pairs, project

AS_STORED = (0, 1)  # orientations; some cameras write 0 if they do not know it
SHALLOW = 8  # factor by which 16-bit values may be smaller than their range


@dataclass(frozen=True, eq=False)
class SeenView:
    """One view of a sampled frame, with properties of its image."""

    record: View
    shape: tuple[int, int]  # (H, W) [px]
    pairs: Pairs
    small: np.ndarray | None = None  # see `thumbnail`; None if the image cannot be used
    sha256: str = ""
    doubts: list[DoubtfulError] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class SeenFrame:
    """One sampled frame."""

    number: int  # the frame's position among those from which the sample was drawn
    frame: Frame
    points: np.ndarray  # (N, 4) float32
    views: list[SeenView]


def seen_frame(dataset: Dataset, frame: Frame, number: int) -> SeenFrame | None:
    try:
        points = read_points(dataset, frame)
        views = [_seen_view(dataset, view, points) for view in frame.views]
    except DatasetError:
        return None
    return SeenFrame(number, frame, points, views)


def _seen_view(dataset: Dataset, view: View, points: np.ndarray) -> SeenView:
    shape = read_image_shape(dataset.root, view)
    pairs = project(points, view.calibration, shape, dataset.visibility)
    doubts: list[DoubtfulError] = []
    try:
        small, digest = small_image(dataset, view, doubts)
    except DatasetError:
        return SeenView(view, shape, pairs)
    return SeenView(view, shape, pairs, small, digest, doubts)


def small_image(dataset: Dataset, view: View, doubts: list[DoubtfulError]) -> tuple[np.ndarray, str]:
    path = dataset.root / view.image
    with opened_view(dataset.root, view) as (image, content):
        has_16_bits = has_16_bits_a_colour(image)
        orientation = image.getexif().get(ORIENTATION, 1)
        if orientation not in AS_STORED:
            doubts.append(
                DoubtfulError(
                    f"EXIF says orientation {orientation}, and 1 is expected: the pixels are taken as they are stored",
                    where=path,
                    fix="Check that the calibration fits the pixels as they are stored, and remove the EXIF"
                    " orientation.",
                )
            )
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))  # decodes a JPEG at reduced size
        if "A" in image.getbands() and (clear := float((np.asarray(image.getchannel("A")) < 255).mean())):
            doubts.append(
                DoubtfulError(
                    f"{clear:.1%} of the pixels are transparent, and none is expected: their colours are taken as"
                    " stored",
                    where=path,
                    fix="Write the image without an alpha channel.",
                )
            )
        if (largest := _largest_of_16_bits(image, has_16_bits)) is not None and largest < 65536 // SHALLOW:
            doubts.append(
                DoubtfulError(
                    f"16-bit values up to {largest}, and up to 65535 are expected: the image is taken for a dark one",
                    where=path,
                    fix="Write the image with values that fill 16 bits, or with 8 bits per channel.",
                )
            )
        small = thumbnail(as_rgb(image, path))
    if is_plain := bool((small == small[0, 0]).all()):
        doubts.append(
            DoubtfulError(
                f"all pixels have the colour {tuple(small[0, 0].tolist())}, and an image of a street is expected",
                where=path,
                fix="Copy the image again, or leave its frame out.",
            )
        )
    return small, "" if is_plain else hashlib.sha256(content).hexdigest()


def _largest_of_16_bits(image: Image.Image, is_colour: bool) -> int | None:
    """The approximate largest value of a 16-bit image; None for other images."""
    if not (is_colour or image.mode.startswith("I")):
        return None
    values = np.asarray(image)[..., :3] if is_colour else np.asarray(image)
    largest = int(values.max(initial=0))
    return largest << 8 | 0xFF if is_colour else largest  # Pillow reads only the upper 8 bits of a colour
