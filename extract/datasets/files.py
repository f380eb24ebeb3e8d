"""Read the files of datasets and check them: scans, labels, images, JSON."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DatasetError, remedy
from ...paths import URL, expanded
from .frame import View
from .scan_layout import refuse_other_layout

OTHER_FOLDERS = "SCALR_FOLDERS"  # environment variable: other folders in which tables may name files
COPY_AGAIN = "Copy the file again."
TURNED = {5, 6, 7, 8}  # values of EXIF's orientation that swap rows and columns
ORIENTATION = 0x0112


def file_of(root: Path, name: str) -> Path:
    """Return the path of a file that a dataset's table names.

    Args:
        root: the dataset's top folder.
        name: path relative to `root`, or one that begins with `~/` or an environment variable, as `$IMAGES/`.

    Raises:
        DatasetError: a path that leads out of its folder, and not into one of those in $SCALR_FOLDERS; an unknown
            variable, a URL.
    """
    start, _, rest = name.partition("/")
    if URL.match(name):
        folder = expanded(name, DatasetError)  # raises for a URL
    elif start.startswith(("~", "$")):
        folder = expanded(start, DatasetError)
    else:
        folder, rest = root, name
    path = expanded(folder / rest, DatasetError)
    # Links may lead anywhere, since the owner of the folder made them: only the written path is checked.
    written = os.path.abspath(path)
    allowed = [folder, *filter(None, os.environ.get(OTHER_FOLDERS, "").split(os.pathsep))]
    if not any(Path(written).is_relative_to(os.path.abspath(expanded(each, DatasetError))) for each in allowed):
        raise DatasetError(
            f"'{name}' leads out of the folder",
            where=folder,
            fix=f"Put or link the file below this folder, or name its folder in the variable {OTHER_FOLDERS}.",
        )
    return Path(written) if ".." in rest else path


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
    return checked_points(read_raw_points(path, columns), path)


def read_raw_points(path: Path, columns: int) -> np.ndarray:
    """Read a headerless float32 scan file, (N, columns), without checking that values are finite.

    Raises:
        DatasetError: a missing, empty or truncated file, or one of another layout.
    """
    fix = "Copy the file again; if a point has another number of values, pass --columns to 'scalr predict'."
    points = _read_values(path, np.dtype(np.float32), columns, "points", fix).reshape(-1, columns)
    refuse_other_layout(points, path)
    return points


def checked_points(points: np.ndarray, path: Path) -> np.ndarray:
    """Return a scan's first four columns as float32; refuse empty scans and non-finite values, naming `path`."""
    if points.ndim != 2 or points.shape[1] < 4 or len(points) == 0:
        raise DatasetError(
            f"the scan has shape {points.shape}, not (N, 4): x, y, z and intensity of one point or more",
            where=path,
            fix=COPY_AGAIN,
        )
    points = points[:, :4].astype(np.float32)
    bad = int((~np.isfinite(points).all(axis=1)).sum())
    if bad:
        raise DatasetError(
            f"{bad} of {len(points)} points are not finite", where=path, fix="Copy the file again, or remove the frame."
        )
    return points


def read_raw_labels(path: Path, dtype: type) -> np.ndarray:
    """Read a headerless label file of one integer per point, (N,) of `dtype`.

    Raises:
        DatasetError: missing, empty or truncated file.
    """
    return _read_values(path, np.dtype(dtype), 1, "labels")


def read_image(root: Path, view: View) -> np.ndarray:
    """Decode a view's image, (H, W, 3) uint8 RGB.

    Pixels keep their stored order, whatever EXIF's orientation; 16 bits are scaled to 8; transparent pixels keep their
    colour.

    Raises:
        DatasetError: a missing or unreadable file, pixels of unknown scale, or another size than the calibration's.
    """
    return read_image_file(root, view)[0]


def read_image_file(root: Path, view: View) -> tuple[np.ndarray, bytes]:
    """Decode a view's image as `read_image` does, and return it with the SHA-256 of its file.

    Raises:
        DatasetError: as in `read_image`.
    """
    with opened_view(root, view) as (image, content):
        return np.array(as_rgb(image, file_of(root, view.image))), hashlib.sha256(content).digest()


@contextmanager
def opened_view(root: Path, view: View) -> Iterator[tuple[Image.Image, bytes]]:
    """Open a view's image without decoding it, check its size, and yield it with the content of its file.

    Raises:
        DatasetError: as in `read_image`, also for errors inside the `with` block while the image is decoded.
    """
    path = file_of(root, view.image)
    content = read_bytes(path)
    with _opened_image(path, io.BytesIO(content)) as image:
        if image.format == "PNG":
            image.verify()  # compares checksums, which decoding ignores; JPEG has none
    with _opened_image(path, io.BytesIO(content)) as image:
        _check_size(image, root, view)
        yield image, content


def has_16_bits_a_colour(image: Image.Image) -> bool:
    """Whether a file that is not decoded yet has 16-bit colours, of which Pillow returns the upper 8 bits."""
    return image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in image.tile)


def as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Convert an image to RGB with 8 bits per channel; errors name `path`.

    Raises:
        DatasetError: pixels of unknown scale.
    """
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DatasetError(
            f"the pixels are {values.dtype} from {values.min():g} to {values.max():g}, not 8 or 16 bits per channel",
            where=path,
            fix="Write the image with 8 or 16 bits per channel.",
        )
    return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8)).convert("RGB")


def read_image_shape(root: Path, view: View) -> tuple[int, int]:
    """(H, W) of a view's image [px], without decoding it.

    Raises:
        DatasetError: as in `read_image`.
    """
    if view.image_shape is not None:
        return view.image_shape
    with _opened_image(file_of(root, view.image)) as image:
        return image.height, image.width


def read_json(path: Path) -> object:
    """Parse a JSON file.

    Raises:
        DatasetError: missing, unreadable or broken.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise DatasetError(f"the file is not valid JSON ({error})", where=path, fix=COPY_AGAIN) from None


def read_bytes(path: Path) -> bytes:
    """Return the content of a dataset file.

    Raises:
        DatasetError: the file is missing, a folder or unreadable.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise missing_file(path) from None
    except IsADirectoryError:
        raise DatasetError("a folder has the name of this file", where=path, fix="Put the file in its place.") from None
    except OSError as error:
        raise DatasetError(
            f"the file cannot be read ({error.strerror})", where=path, fix="Check the permissions of the file."
        ) from None


def missing_file(path: Path) -> DatasetError:
    return DatasetError(
        "the file is missing",
        where=path,
        fix="Check the path; for a dataset, check that it is complete and that --root is its top folder.",
    )


def numbered_files(folder: Path, *endings: str) -> dict[str, str]:
    """Map the numbers of a folder's numbered files to their suffixes: {"000017": ".png"} for 000017.png or 000017.PNG.

    The result is empty if the folder does not exist. If several files have one number, the first of `endings` wins.
    """
    if not folder.is_dir():
        return {}
    names = [file.name for file in folder.iterdir()]
    found = {
        name[: -len(ending)]: name[-len(ending) :]
        for ending in reversed(endings)
        for name in names
        if name.lower().endswith(ending)
    }
    return {number: ending for number, ending in found.items() if number.isdecimal() and number.isascii()}


def _read_values(path: Path, dtype: np.dtype, columns: int, noun: str, fix: str = COPY_AGAIN) -> np.ndarray:
    content, item_bytes = read_bytes(path), dtype.itemsize * columns
    if len(content) == 0 or len(content) % item_bytes:
        raise DatasetError(
            f"{len(content)} bytes are not a whole number of {noun} ({item_bytes} bytes each): empty or truncated",
            where=path,
            fix=fix,
        )
    return np.frombuffer(content, dtype=dtype)


@contextmanager
def _opened_image(path: Path, content: io.BytesIO | None = None) -> Iterator[Image.Image]:
    try:
        with Image.open(content or path) as image:
            yield image
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split(" <_io.")[0]  # without the memory address
        raise DatasetError(
            f"the image cannot be decoded ({reason})", where=path, fix=remedy(error, COPY_AGAIN)
        ) from None


def _check_size(image: Image.Image, root: Path, view: View) -> None:
    found = (image.height, image.width)
    if (
        view.image_shape is not None
        and found[::-1] == tuple(view.image_shape) != found
        and image.getexif().get(ORIENTATION) in TURNED
    ):
        raise DatasetError(
            f"the image is stored as {found[0]}x{found[1]} pixels, its calibration is for the image as EXIF turns it"
            f" (orientation {image.getexif()[ORIENTATION]})",
            where=root / view.image,
            fix="Write the image with rotated pixels, and without the EXIF orientation.",
        )
    if view.image_shape is not None and found != tuple(view.image_shape):
        height, width = view.image_shape
        raise DatasetError(
            f"the image is {found[0]}x{found[1]} pixels, its calibration is for {height}x{width}",
            where=root / view.image,
            fix="Use the images at the dataset's own resolution.",
        )
