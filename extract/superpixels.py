"""Superpixels: the segment of each pixel of a view's image, computed by SLIC or read from a folder of PNG files.

A map is (H, W) uint16 at the image's own resolution. The ids of two images are unrelated.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import DatasetError, ScalrError
from ..paths import below, expanded
from .datasets.frame import Dataset, View
from .plan import spread

SLIC, FOLDER = "slic", "folder"  # kinds of superpixels
# From SLidR's superpixel_segmenter.py; other parameters are scikit-image's defaults.
SLIC_PARAMETERS = {"n_segments": 150, "compactness": 6, "sigma": 3, "start_label": 0}
LARGEST_ID = 65_534  # one less than uint16 holds: the largest is the store's fill value for lost files
SAMPLED_FRAMES = 64  # their maps' names and sizes identify a folder
ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # Pillow's names of images with one integer per pixel
# Possible file names of a view's map, relative to its folder; the first that exists is used for all maps.
NAMES: dict[str, Callable[[View], Path | None]] = {
    "path": lambda view: _below_a_folder(Path(view.image)),
    "stem": lambda view: Path(f"{Path(view.image).stem}.png"),
    "token": lambda view: None if view.image_token is None else Path(f"{view.image_token}.png"),
}


def _below_a_folder(image: Path) -> Path | None:
    """The path of an image inside the dataset's folder; None for images in other folders that the user allows."""
    return None if ".." in image.parts else image.relative_to(image.anchor).with_suffix(".png")


class Superpixels(Protocol):
    """A source of superpixel maps.

    Attributes:
        settings: everything that the maps depend on, in plain JSON values, as a store records it.
    """

    settings: dict

    def map_of(self, view: View, image: np.ndarray) -> np.ndarray:
        """Return the map (H, W) uint16 of a view's image (H, W, 3) uint8 RGB; called from several threads.

        Raises:
            DatasetError: the map is missing or cannot be used.
        """
        ...


class SlicSuperpixels:
    """Superpixels computed from the image by SLIC, as in SLidR.

    Raises:
        ScalrError: scikit-image is not installed.
    """

    def __init__(self) -> None:
        try:
            from skimage.segmentation import slic
        except ImportError:
            raise ScalrError(
                "SLIC needs scikit-image, which is not installed",
                where="--superpixels slic",
                fix="Install scikit-image: pip install 'scalr-distill[superpixels]', or pass a folder of maps.",
            ) from None
        self._slic = slic
        version = importlib.metadata.version("scikit-image")
        self.settings = {"method": SLIC, **SLIC_PARAMETERS, "scikit-image": version}

    def map_of(self, view: View, image: np.ndarray) -> np.ndarray:
        return self._slic(image, **SLIC_PARAMETERS).astype(np.uint16)  # far fewer segments than uint16 holds


class SuperpixelFolder:
    """Maps from a folder: a PNG file per image, 8 or 16 bits, grey or with a palette, whose indices are used.

    Args:
        folder: the folder of the maps.
        dataset: the dataset of the images.

    Raises:
        ScalrError: the folder does not exist.
        DatasetError: the folder has no map of any sampled image.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        if not os.path.isdir(folder):  # pathlib's raises without permission
            raise ScalrError(
                "the folder of superpixel maps does not exist",
                where=folder,
                fix="Pass --superpixels slic, or a folder of PNG files.",
            )
        self.folder = folder
        names, sizes = self._chosen_names(dataset)
        self._name = NAMES[names]
        digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()
        self.settings = {"method": FOLDER, "names": names, "sample_sha256": digest}

    def map_of(self, view: View, image: np.ndarray) -> np.ndarray:
        return read_map(self.path_of(view), image.shape[:2])

    def path_of(self, view: View) -> Path:
        """The path of a view's map."""
        name = self._name(view)
        return self.folder if name is None else below(self.folder, str(name), DatasetError)

    def _chosen_names(self, dataset: Dataset) -> tuple[str, dict[str, int | None]]:
        """Find out how maps are named; return it with the size of each sampled view's map, which identify a folder."""
        views = list(_sampled_views(dataset))
        for names, name_of in NAMES.items():
            named = [str(name) for name in map(name_of, views) if name is not None]
            found = {name: _size_of(below(self.folder, name, DatasetError)) for name in named}
            if any(size is not None for size in found.values()):
                if names == "stem":
                    _refuse_equal_stems(dataset, self.folder)
                return names, found
        tried = [str(name_of(views[0])) for name_of in NAMES.values() if views and name_of(views[0]) is not None]
        raise DatasetError(
            f"the folder has no map of {len(views)} sampled images; tried for the first:"
            f" {' or '.join(dict.fromkeys(tried))}",
            where=self.folder,
            fix="Name the maps as docs/datasets.md says, or check --superpixels.",
        )


def open_superpixels(choice: str | Path | None, dataset: Dataset) -> Superpixels | None:
    """Open the superpixels that `--superpixels` names: "slic", a folder, or None.

    Raises:
        ScalrError: see `SlicSuperpixels` and `SuperpixelFolder`.
    """
    if choice is None:
        return None
    return SlicSuperpixels() if choice == SLIC else SuperpixelFolder(expanded(choice), dataset)


def read_map(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a map (H, W) uint16 from a PNG file.

    Args:
        path: path of the file.
        shape: (H, W) of its image.

    Raises:
        DatasetError: the file is missing, no PNG or of another size, or its pixels are no ids.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(
            "the superpixel map is missing",
            where=path,
            fix="Make the map, or check that the folder of --superpixels is complete.",
        ) from None
    except OSError as error:
        raise DatasetError(
            f"the superpixel map cannot be read ({error.strerror})",
            where=path,
            fix="Check that the map is a file, and its permissions.",
        ) from None
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode not in ID_MODES:
                raise DatasetError(
                    f"the superpixel map holds colours ({image.mode}), not ids",
                    where=path,
                    fix="Write the map with one channel of 8 or 16 bits, or with a palette.",
                )
            ids = np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split(" <_io.")[0]  # without the memory address
        raise DatasetError(
            f"the superpixel map is not a PNG that can be decoded ({reason})", where=path, fix="Make the map again."
        ) from None
    if ids.shape != tuple(shape):
        raise DatasetError(
            f"the superpixel map is {ids.shape[0]}x{ids.shape[1]} pixels, its image {shape[0]}x{shape[1]}",
            where=path,
            fix="Make the maps at the resolution of the images.",
        )
    if ids.max(initial=0) > LARGEST_ID:
        raise DatasetError(
            f"the superpixel map has the id {ids.max()}, and the largest valid id is {LARGEST_ID}",
            where=path,
            fix="Count the segments of each image from 0.",
        )
    return ids.astype(np.uint16)


def resized(segment_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a map (H, W) to (h, w): row i is row floor(i H / h), and columns likewise, computed in integers."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, segment_map.shape, strict=True))
    return segment_map[rows[:, None], columns]


def map_sha256(segment_map: np.ndarray) -> bytes:
    """SHA-256 of a map's ids: (H, W) uint16, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(segment_map, "<u2")).digest()


def _sampled_views(dataset: Dataset) -> Iterator[View]:
    for number in itertools.islice(spread(len(dataset.frames)), SAMPLED_FRAMES):
        yield from dataset.frames[number].views


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # the extraction reports it when it reads this map
        return None


def _refuse_equal_stems(dataset: Dataset, folder: Path) -> None:
    images: dict[str, str] = {}
    for view in itertools.chain.from_iterable(frame.views for frame in dataset.frames):
        before = images.setdefault(Path(view.image).stem, view.image)
        if before != view.image:
            raise DatasetError(
                f"the images {before} and {view.image} would have the same map, because maps are named after images",
                where=folder,
                fix="Put the maps into folders like those of the images, below --superpixels.",
            )
