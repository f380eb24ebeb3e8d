"""A teacher's statistics on disk: a group of three arrays with attributes that reveal any change.

teachers/NAME/statistics/000/
  zarr.json     attributes: count and frames_left_out; mean_unit_length and effective_rank, for `scalr inspect`;
                SHA-256 of the arrays' values, and of the teacher's and the source's record
  mean          (D,) float32
  covariance    (D, D) float32
  mean_unit     (D,) float32
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...checkpoint_files import first_line
from ...errors import DamagedError, UnreadableError
from ..statistics import TeacherStatistics
from . import format as fmt
from .arrays import ArrayWriter, open_array
from .files import readable

STATISTICS = "statistics"  # folder inside a teacher's folder
ARRAYS = ("mean", "covariance", "mean_unit")
NEEDED = ("count", "frames_left_out", "mean_unit_length", "effective_rank", "sha256_of")
MAKE_ANEW = "Run 'scalr verify' with --repair, then repeat the 'scalr extract' command that wrote the store."


def statistics_name(teacher: str, source: str) -> str:
    """The path in the store of a teacher's statistics for a source, which is given by the name of its folder."""
    return f"teachers/{teacher}/{STATISTICS}/{source}"


def write_statistics(group: Path, statistics: TeacherStatistics, teacher: Mapping, source: Mapping) -> None:
    """Write statistics into a new group, with the digests of the records that they belong to.

    float32 is more precise than a sample, and hides the order in which a machine sums float64 values.
    """
    values = {name: getattr(statistics, name).astype(np.float32) for name in ARRAYS}
    digests = {name: _sha256(value) for name, value in values.items()}
    # Few digits, since the last bits of an eigenvalue depend on the number of threads.
    summary = {name: float(f"{getattr(statistics, name):.6g}") for name in ("mean_unit_length", "effective_rank")}
    counts = {name: getattr(statistics, name) for name in ("count", "frames_left_out")}
    attributes = {**counts, **summary, "sha256_of": digests}
    fmt.write_record(group, attributes | _belongs_to(teacher, source))
    for name, value in values.items():
        array = ArrayWriter(group / name, value.shape[1:], value.dtype)
        array.append(value)
        array.finish()


def read_statistics(group: Path, teacher: Mapping, source: Mapping) -> TeacherStatistics:
    """Read statistics.

    Raises:
        FileNotFoundError, UnreadableError: they do not exist, or cannot be read now.
        DamagedError: they were altered, or belong to another teacher or source than these records.
    """
    attributes = read_summary(group, teacher, source)
    values = [_read_array(group, name, attributes["sha256_of"].get(name)) for name in ARRAYS]
    return TeacherStatistics(attributes["count"], *values, attributes["frames_left_out"])


def read_summary(group: Path, teacher: Mapping, source: Mapping) -> dict:
    """Read the attributes without the arrays.

    Raises:
        FileNotFoundError, UnreadableError, DamagedError: as in `read_statistics`.
    """
    try:
        attributes = fmt.read_record(group / "zarr.json", NEEDED)
    except DamagedError as error:
        raise _damaged(group, error.what) from None
    belongs_to = _belongs_to(teacher, source)
    if any(attributes.get(name) != digest for name, digest in belongs_to.items()):
        raise _damaged(group, "made with other settings than are recorded")
    return attributes


def _read_array(group: Path, name: str, digest: str | None) -> np.ndarray:
    try:
        with readable(group / name):
            values = open_array(group / name)[...]
    except UnreadableError:
        raise
    except Exception as error:  # damaged files can raise any error in zarr and its codecs
        raise _damaged(group, f"array '{name}', {first_line(error)}") from error
    if _sha256(values) != digest:
        raise _damaged(group, f"array '{name}', {fmt.ALTERED}")
    return values.astype(np.float64)


def _belongs_to(teacher: Mapping, source: Mapping) -> dict[str, str]:
    return {"teacher_sha256": fmt.digest(teacher), "source_sha256": fmt.digest(source)}


def _sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _damaged(group: Path, reason: str) -> DamagedError:
    return DamagedError(f"the statistics of a teacher cannot be used ({reason})", where=group, fix=MAKE_ANEW)
