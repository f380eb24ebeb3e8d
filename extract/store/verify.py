"""Finding damage: every file, every chunk, every count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...errors import StoreError
from ...progress import progress
from ..targets import num_vectors
from . import format as fmt
from .format import SCANS
from .reader import FeatureStore, ScanBlock
from .writer import StoreWriter


@dataclass(frozen=True)
class Damage:
    """What is wrong with a block's scans, or with its targets of one teacher."""

    block: int
    kind: str  # "scans" or a teacher's name
    what: str

    def __str__(self) -> str:
        whose = "scans" if self.kind == SCANS else f"targets of {self.kind}"
        return f"block {self.block}, {whose}: {self.what}"


def verify_store(store: FeatureStore) -> list[Damage]:
    """Read everything that is committed and check it.

    Checked are each file's SHA-256, each chunk's CRC32C, the counts against the index, the ranges of indices and
    pixels, and that all values are finite.

    Raises:
        StoreError: the store's own metadata is damaged, so that its blocks cannot be told.
    """
    found: list[Damage] = []
    blocks = sorted(store.committed_blocks().union(*(store.committed_blocks(name) for name in store.teachers)))
    with progress(len(blocks), "verify", "block") as bar:
        for block in blocks:
            found.extend(_verify_block(store, block))
            bar.update()
    return found


def repair_store(store: FeatureStore, found: list[Damage]) -> None:
    """Take damaged targets, and damaged scans with all their targets, out of the store; `extract` makes them anew."""
    writer = StoreWriter(store, owner="repair")
    writer.clear_leftovers()
    for damage in found:
        writer.remove(damage.kind, damage.block)


def _verify_block(store: FeatureStore, block: int) -> Iterator[Damage]:
    kinds = [SCANS, *(name for name in store.teachers if store.is_committed(name, block))]
    scans = None
    for kind in kinds:
        try:
            _check_files(store, kind, block)
            if kind == SCANS:
                scans = store.read_scans(block)
                _check_scans(scans)
            elif scans is not None:
                _check_targets(store, kind, block, scans)
        except _FoundError as error:
            yield Damage(block, kind, str(error))
        except StoreError as error:
            yield Damage(block, kind, error.what)


class _FoundError(Exception):
    """One thing that is wrong."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _FoundError(what)


def _check_files(store: FeatureStore, kind: str, block: int) -> None:
    group, index = fmt.group_path(store.path, kind, block), fmt.index_path(store.path, kind, block)
    try:
        _require(index.is_file(), f"{index} is missing")
        own = group / fmt.GROUP_INDEX
        _require(own.is_file(), f"{own} is missing")
        _require(index.read_bytes() == own.read_bytes(), f"{index} and {own} differ")
        listed, there = fmt.listed_files(index), fmt.file_digests(group, kind)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise _FoundError(f"its files cannot be read ({type(error).__name__}: {error})") from None
    for name in sorted(listed.keys() | there.keys()):
        _require(name in there, f"{group / name} is missing")
        _require(name in listed, f"{group / name} does not belong here")
        _require(listed[name] == there[name], f"{group / name} has changed since it was written (SHA-256)")


def _check_scans(scans: ScanBlock) -> None:
    column = {name: scans.views[name].to_numpy() for name in ("points_start", "points_stop")}
    _check_ranges("pairs", scans.views["pairs_start"].to_numpy(), scans.views["pairs_stop"].to_numpy(), scans.pixel)
    _require(len(scans.point_index) == len(scans.pixel), "point_index and pixel differ in length")
    _require(column["points_stop"].max(initial=0) == len(scans.points), "the index and points differ in length")
    _require(bool(np.isfinite(scans.points).all()), "a point is not finite")
    per_view = scans.views["pairs_stop"].to_numpy() - scans.views["pairs_start"].to_numpy()
    num_points = np.repeat(column["points_stop"] - column["points_start"], per_view)
    _require(bool((scans.point_index < num_points).all()), "a point_index is beyond its scan")
    for axis, name in enumerate(("image_height", "image_width")):
        limit = np.repeat(scans.views[name].to_numpy(), per_view)
        _require(bool((scans.pixel[:, axis] < limit).all()), "a pixel is beyond its image")


def _check_targets(store: FeatureStore, teacher: str, block: int, scans: ScanBlock) -> None:
    targets = store.read_targets(block, teacher)
    start, stop = targets.views["start"].to_numpy(), targets.views["stop"].to_numpy()
    _check_ranges("vectors", start, stop, targets.vectors)
    for name in ("token", "camera"):
        _require(targets.views[name].equals(scans.views[name]), f"its {name}s are not those of the scans")
    if targets.scale is not None:
        _require(len(targets.scale) == len(targets.vectors), "scale and vectors differ in length")
        _require(bool((np.isfinite(targets.scale) & (targets.scale > 0)).all()), "a scale is not finite and positive")
    else:
        _require(bool(np.isfinite(targets.vectors).all()), "a vector is not finite")
    _require((stop - start).tolist() == _expected_vectors(store, teacher, scans), "vectors and pairs do not match")


def _check_ranges(name: str, start: np.ndarray, stop: np.ndarray, values: np.ndarray) -> None:
    joined = start[:1].sum() == 0 and (start[1:] == stop[:-1]).all() and (start <= stop).all()
    _require(bool(joined), f"the index' ranges of {name} do not follow each other")
    _require(stop.max(initial=0) == len(values), f"the index and {name} differ in length")


def _expected_vectors(store: FeatureStore, teacher: str, scans: ScanBlock) -> list[int]:
    numbers = []
    for row in scans.views.to_pylist():
        pixel = scans.pixel[row["pairs_start"] : row["pairs_stop"]]
        reads = store.footprint(teacher, pixel, (row["image_height"], row["image_width"]))
        numbers.append(num_vectors(reads, store.encoding(teacher)))
    return numbers
