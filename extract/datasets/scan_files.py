"""Read scan files of the user's own rig by their suffix: .bin, .pcd.bin, .npy, .npz, .pcd and .ply."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ...checkpoint_files import first_line
from ...errors import DatasetError
from .files import COPY_AGAIN, read_bytes, read_raw_points

MOST_COLUMNS = 64  # an array with more columns is a transposed one, (4, N)
VALUES_PER_POINT = {".pcd.bin": 5, ".bin": 4}  # in files without a header: nuScenes' own, and KITTI's
# Names of the fourth field, in lower case; CloudCompare adds the prefix scalar_.
INTENSITY = ("intensity", "i", "reflectivity", "reflectance", "remission")


def read_scan_file(path: Path, values_per_point: int | None = None) -> np.ndarray:
    """Read a scan, (N, 4 or more) numbers: x y z [m], intensity and further columns, without further checks.

    Args:
        path: of the file.
        values_per_point: float32 values of a point in a .bin file, which has no header; None: VALUES_PER_POINT.

    Raises:
        DatasetError: a missing or broken file, an unknown ending, a missing field, or no package that reads it.
    """
    ending = next((ending for ending in READERS if path.name.lower().endswith(ending)), None)
    if ending in VALUES_PER_POINT:
        return read_raw_points(path, values_per_point or VALUES_PER_POINT[ending])
    if ending is not None:
        return READERS[ending](path)
    raise DatasetError(
        f"scans with the suffix '{path.suffix}' cannot be read",
        where=path,
        fix=f"Write the scan as one of: {', '.join(READERS)}.",
    )


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file, which may not hold objects.

    Raises:
        DatasetError: a missing file, or one that is no such array.
    """
    content = read_bytes(path)
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header makes numpy raise what it likes
        raise DatasetError(f"the file cannot be read as an array ({error})", where=path, fix=COPY_AGAIN) from None


def _npz(path: Path) -> np.ndarray:
    content = read_bytes(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = list(arrays)
            array = arrays[names[0]] if len(names) == 1 else None
    except Exception as error:  # a damaged archive makes zipfile, zlib or numpy raise what they like
        raise _damaged("NPZ", error, path) from None
    if array is None:
        raise DatasetError(
            f"the file has {len(names)} arrays ({', '.join(names[:8])}), and a scan is one",
            where=path,
            fix="Write one array (N, 4) per file: x, y, z and intensity.",
        )
    return _points_of(array, path)


def _npy(path: Path) -> np.ndarray:
    return _points_of(read_array(path), path)


def _points_of(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype.names:
        return _columns({name: array[name] for name in array.dtype.names}, array.size, path)
    is_row_of_columns = array.ndim == 2 and array.shape[1] > max(array.shape[0], MOST_COLUMNS)
    if array.ndim != 2 or array.shape[1] < 4 or is_row_of_columns or array.dtype.kind not in "fiu":
        raise DatasetError(
            f"the scan has shape {array.shape} and dtype {array.dtype}, not (N, 4) numbers",
            where=path,
            fix="Write (N, 4) numbers: x, y, z and intensity.",
        )
    return array


def _pcd(path: Path) -> np.ndarray:
    content = read_bytes(path)
    try:
        from pypcd4 import PointCloud

        cloud = PointCloud.from_fileobj(io.BytesIO(content))
        points = np.atleast_1d(cloud.pc_data)
        fields = {name: points[name] for name in points.dtype.names}
    except ImportError:
        raise _not_installed("pypcd4", path) from None
    except Exception as error:  # a damaged file makes pypcd4, pydantic or numpy raise what they like
        raise _damaged("PCD", error, path) from None
    return _columns(fields, cloud.metadata.points, path)


def _ply(path: Path) -> np.ndarray:
    content = read_bytes(path)
    try:
        from trimesh.exchange.ply import load_ply

        vertex = load_ply(io.BytesIO(content), skip_materials=True)["metadata"]["_ply_raw"]["vertex"]
        fields = {name: vertex["data"][name] for name in vertex["properties"]}
    except ImportError:
        raise _not_installed("trimesh", path) from None
    except Exception as error:  # likewise
        raise _damaged("PLY", error, path) from None
    return _columns(fields, vertex["length"], path)


def _columns(fields: Mapping[str, np.ndarray], num_points: int, path: Path) -> np.ndarray:
    """(N, 4) float64 of the fields x, y, z and intensity."""
    names = {name.lower().removeprefix("scalar_"): name for name in fields}
    intensity = next((name for name in INTENSITY if name in names), INTENSITY[0])
    missing = [name for name in ("x", "y", "z", intensity) if name not in names]
    if missing:
        raise DatasetError(
            f"the scan has no field '{missing[0]}' (it has: {', '.join(fields) or 'none'})",
            where=path,
            fix="Write points with x, y, z and intensity; docs/own_dataset.md lists the accepted field names.",
        )
    try:
        columns = [np.asarray(fields[names[each]]).reshape(num_points) for each in ("x", "y", "z", intensity)]
        if objects := [column.dtype for column in columns if column.dtype.kind not in "fiu"]:
            raise TypeError(f"they are of dtype {objects[0]}")
        return np.stack(columns, axis=1).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"the fields of the scan do not have a number for each of the {num_points} points ({error})",
            where=path,
            fix=COPY_AGAIN,
        ) from None


def _not_installed(package: str, path: Path) -> DatasetError:
    return DatasetError(
        f"{package}, which reads scans of this format, is not installed",
        where=path,
        fix="Install the readers of scans: pip install 'scalr-distill[scans]'.",
    )


def _damaged(kind: str, error: Exception, path: Path) -> DatasetError:
    return DatasetError(f"the file cannot be read as {kind} ({first_line(error)})", where=path, fix=COPY_AGAIN)


READERS: dict[str, Callable[..., np.ndarray]] = {
    **dict.fromkeys(VALUES_PER_POINT, read_raw_points),
    ".npy": _npy,
    ".npz": _npz,
    ".pcd": _pcd,
    ".ply": _ply,
}
