"""The feature store: every zarr and parquet detail of the format, and nothing else knows them.

    store.zarr/
      zarr.json                     what the whole store depends on (attributes)
      teachers/NAME/zarr.json       what one teacher's targets depend on (attributes)
      blocks/000017/                points, pairs/point_index, pairs/pixel, targets/NAME/vectors
      index/scans/000017.parquet    one row per view: identity, image, row ranges
      index/NAME/000017.parquet     one row per view: its row range in the teacher's targets
      tmp/                          what running jobs have not committed yet; readers never look there

What a job writes for a block is written under `tmp/`, read back, fsynced and renamed into place, its parquet index
last: a block's scans or targets exist if and only if their index does.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from ..errors import StoreError
from .encoding import decode_point

FORMAT, FORMAT_VERSION = "scalr-store", 1
CHUNK_BYTES = 1 << 20  # of raw values: a view of nuScenes is a few chunks
SHARD_BYTES = 1 << 28  # of raw values: above 64 MB when compressed, one file for a block of ordinary size

SCANS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("dataset", "scene", "token")),
        ("timestamp", pa.int64()),
        *((name, pa.string()) for name in ("camera", "image")),
        *((name, pa.int32()) for name in ("image_height", "image_width")),
        *((name, pa.int64()) for name in ("points_start", "points_stop", "pairs_start", "pairs_stop")),
    ]
)
TARGETS_SCHEMA = pa.schema(
    [("token", pa.string()), ("camera", pa.string()), ("start", pa.int64()), ("stop", pa.int64())]
)
SCANS = "scans"  # the name of the scans' own index, so no teacher may have it


@dataclass(frozen=True, eq=False)
class ScanBlock:
    """The scans and pairs of one block, concatenated; `views` has SCANS_SCHEMA."""

    points: np.ndarray  # (P, 4) float32
    point_index: np.ndarray  # (R,) uint32, row in the view's scan
    pixel: np.ndarray  # (R, 2) uint16
    views: pa.Table


@dataclass(frozen=True, eq=False)
class StoredView:
    """What `FeatureStore.read_view` gives: one view with its scan."""

    dataset: str
    points: np.ndarray  # (N, 4) float32, lidar frame [m] and raw intensity
    point_index: np.ndarray  # (R,) int64, row in `points`
    pixel: np.ndarray  # (R, 2) uint16, row and column
    targets: np.ndarray | None  # (R, D) float32, in pair order; None when no teacher was asked for


class FeatureStore:
    """A store on disk. `open_store` gives one to read, `create_store` one to add blocks to."""

    def __init__(self, path: Path, attributes: dict) -> None:
        self.path = path
        self.attributes = attributes
        self._array = functools.cache(self._open_array)
        self._target_ranges = functools.cache(self._read_target_ranges)

    def __reduce__(self):
        # Open handles and tables stay behind: a DataLoader worker opens its own.
        return open_store, (self.path,)

    @property
    def num_blocks(self) -> int:
        return self.attributes["num_blocks"]

    @functools.cached_property
    def views(self) -> pa.Table:
        """One row per committed view, in block order: SCANS_SCHEMA and `block`."""
        return self._read_index(SCANS, SCANS_SCHEMA)

    @functools.cached_property
    def teachers(self) -> dict[str, dict]:
        """The provenance of each teacher in the store."""
        paths = sorted((self.path / "teachers").glob("*/zarr.json"))
        return {path.parent.name: _read_attributes(path) for path in paths}

    def committed_blocks(self, kind: str = SCANS) -> set[int]:
        """The blocks whose scans (or, with a teacher's name, whose targets) are there."""
        return {int(path.stem) for path in (self.path / "index" / kind).glob("*.parquet")}

    def target_dim(self, teacher: str) -> int:
        """The dimension D of a teacher's targets."""
        return self._teacher(teacher)["dim"]

    def rows_with_targets(self, teacher: str) -> np.ndarray:
        """The rows of `views` that have this teacher's targets.

        Raises:
            StoreError: the store has no such teacher.
        """
        self._teacher(teacher)
        return np.flatnonzero(np.isin(self._columns["block"], list(self.committed_blocks(teacher))))

    def read_view(self, row: int, teacher: str | None = None) -> StoredView:
        """Read row `row` of `views`, with the targets of `teacher` if one is named.

        Raises:
            StoreError: no such row, no such teacher, or targets that are not there.
        """
        if not 0 <= row < self.views.num_rows:
            raise StoreError(
                f"no view {row}, it has {self.views.num_rows}", where=self.path, fix="Use a row of .views."
            )
        column = {name: values[row] for name, values in self._columns.items()}
        block = column["block"]
        pairs = slice(column["pairs_start"], column["pairs_stop"])
        return StoredView(
            dataset=column["dataset"],
            points=self._array(block, "points")[column["points_start"] : column["points_stop"]],
            point_index=self._array(block, "pairs/point_index")[pairs].astype(np.int64),
            pixel=self._array(block, "pairs/pixel")[pairs],
            targets=None if teacher is None else self._read_targets(row, block, teacher),
        )

    def write_scans(self, block: int, scans: ScanBlock) -> None:
        """Commit the scans and pairs of a block; one that is committed stays as it is."""
        if block in self.committed_blocks():
            return
        arrays = {"points": scans.points, "pairs/point_index": scans.point_index, "pairs/pixel": scans.pixel}
        with self._temporary() as temporary:
            group = temporary / _block_name(block)
            for name in (".", "pairs", "targets"):
                _write_group(group / name, {})
            _write_arrays(group, arrays)
            _replace(group, self._block_path(block))
            self._commit_index(temporary, SCANS, block, scans.views.cast(SCANS_SCHEMA))

    def write_targets(self, block: int, teacher: str, vectors: np.ndarray, views: pa.Table) -> None:
        """Commit one teacher's targets of a block, encoding `point`.

        Args:
            block: whose scans are committed.
            teacher: one that `add_teacher` has recorded.
            vectors: (R, D) float16, in pair order.
            views: TARGETS_SCHEMA, the rows of each view.
        """
        if block in self.committed_blocks(teacher):
            return
        with self._temporary() as temporary:
            group = temporary / teacher
            _write_group(group, {"encoding": "point", "dtype": "float16"})
            _write_arrays(group, {"vectors": vectors})
            _replace(group, self._block_path(block) / "targets" / teacher)
            self._commit_index(temporary, teacher, block, views.cast(TARGETS_SCHEMA))

    def add_teacher(self, name: str, provenance: dict) -> None:
        """Record a teacher, or check that the one recorded under this name is the same.

        Raises:
            StoreError: the store holds targets of this teacher made with other settings.
        """
        path = self.path / "teachers" / name
        with self._temporary() as temporary:
            _write_group(temporary / name, provenance)
            if not _claim(temporary / name, path):
                _refuse_other_settings(path, _read_attributes(path / "zarr.json"), provenance)
        self.__dict__.pop("teachers", None)

    @functools.cached_property
    def _columns(self) -> dict[str, list]:
        names = ("block", "dataset", "points_start", "points_stop", "pairs_start", "pairs_stop")
        return {name: self.views[name].to_pylist() for name in names}

    def _read_target_ranges(self, teacher: str, block: int) -> np.ndarray:
        table = pq.read_table(self._index_path(teacher, block), schema=TARGETS_SCHEMA)
        return np.stack([table["start"].to_numpy(), table["stop"].to_numpy()], axis=1)

    @functools.cached_property
    def _first_row(self) -> dict[int, int]:
        return {block: row for row, block in reversed(list(enumerate(self._columns["block"])))}

    def _open_array(self, block: int, name: str) -> zarr.Array:
        return zarr.open_array(self._block_path(block) / name, mode="r")

    def _read_targets(self, row: int, block: int, teacher: str) -> np.ndarray:
        self._teacher(teacher)
        if not self._index_path(teacher, block).exists():
            raise StoreError(
                f"block {block} has no targets of {teacher}",
                where=self.path,
                fix=f"Run 'scalr extract --teacher {teacher}' on this store again.",
            )
        start, stop = self._target_ranges(teacher, block)[row - self._first_row[block]]
        return decode_point(self._array(block, f"targets/{teacher}/vectors")[start:stop])

    def _teacher(self, name: str) -> dict:
        if name not in self.teachers:
            raise StoreError(
                f"no targets of teacher '{name}' (it has: {', '.join(self.teachers) or 'none'})",
                where=self.path,
                fix=f"Run 'scalr extract --teacher {name}' on this store, or choose one it has.",
            )
        return self.teachers[name]

    def _read_index(self, kind: str, schema: pa.Schema) -> pa.Table:
        blocks = sorted(self.committed_blocks(kind))
        tables = [
            (table := pq.read_table(self._index_path(kind, block), schema=schema)).append_column(
                "block", pa.array(np.full(table.num_rows, block), pa.int64())
            )
            for block in blocks
        ]
        return pa.concat_tables(tables) if tables else schema.append(pa.field("block", pa.int64())).empty_table()

    def _commit_index(self, temporary: Path, kind: str, block: int, views: pa.Table) -> None:
        path = self._index_path(kind, block)
        path.parent.mkdir(exist_ok=True)
        pq.write_table(views, temporary / path.name)
        _replace(temporary / path.name, path)

    def _block_path(self, block: int) -> Path:
        return self.path / "blocks" / _block_name(block)

    def _index_path(self, kind: str, block: int) -> Path:
        return self.path / "index" / kind / f"{_block_name(block)}.parquet"

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A folder of our own on the store's file system, gone afterwards whatever happens."""
        path = self.path / "tmp" / uuid.uuid4().hex
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def open_store(path: str | Path) -> FeatureStore:
    """Open an existing store to read.

    Raises:
        StoreError: nothing there, not a store, or a format version this release does not know.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise StoreError("no feature store here", where=path, fix="Make one with 'scalr extract', or check the path.")
    attributes = _read_attributes(path / "zarr.json")
    if attributes.get("format") != FORMAT:
        raise StoreError("a zarr group, but not a feature store", where=path, fix="Check the path.")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"format version {attributes.get('format_version')}, this release reads {FORMAT_VERSION}",
            where=path,
            fix="Use the release that wrote it, or extract again.",
        )
    return FeatureStore(path, attributes)


def create_store(path: str | Path, settings: dict, record: dict) -> FeatureStore:
    """Make a store, or open the one that is there if it was made with the same settings.

    Args:
        path: the store's folder; its parent is made if it is missing.
        settings: what the scans and pairs depend on, plain JSON values; compared with an existing store.
        record: what is worth knowing besides (dataset folder, versions), written but not compared.

    Raises:
        StoreError: the path holds something else, or a store made with other settings.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and not (path / "zarr.json").exists() and any(path.iterdir())):
        raise StoreError("something else is there, not a feature store", where=path, fix="Choose another --out.")
    attributes = {"format": FORMAT, "format_version": FORMAT_VERSION, **settings, "record": record}
    if not (path / "zarr.json").exists():
        _create_skeleton(path, attributes)
    store = open_store(path)
    _refuse_other_settings(path, {key: store.attributes.get(key) for key in settings}, settings)
    return store


def _create_skeleton(path: Path, attributes: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
        _write_group(temporary, attributes)
        for name in ("teachers", "blocks"):
            _write_group(temporary / name, {})
        (temporary / "index" / SCANS).mkdir(parents=True)
        if not _claim(temporary, path):
            shutil.rmtree(temporary)
    except OSError as error:
        raise StoreError(
            f"the store cannot be made ({error.strerror})", where=path, fix="Choose an --out that can be written."
        ) from None


def _refuse_other_settings(path: Path, there: dict, now: dict) -> None:
    differing = [key for key in now if there.get(key) != now[key]]
    if differing:
        pairs = "; ".join(f"{key} is {there.get(key)!r} in the store and {now[key]!r} now" for key in differing)
        raise StoreError(f"made with other settings: {pairs}", where=path, fix="Use these settings or another --out.")


def _read_attributes(path: Path) -> dict:
    try:
        return json.loads(path.read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"its metadata cannot be read ({type(error).__name__}: {error})",
            where=path,
            fix="Restore the file, or extract into a new store.",
        ) from None


def _write_group(path: Path, attributes: dict) -> None:
    path.mkdir(parents=True, exist_ok=True)
    zarr.create_group(path, attributes=attributes, overwrite=False)


def _write_arrays(group: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays and read them back: what is about to be committed is what was meant."""
    for name, values in arrays.items():
        chunk, shard = _chunking(values)
        array = zarr.create_array(
            group / name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=chunk,
            shards=shard,
            compressors=[
                BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.bitshuffle, typesize=values.itemsize),
                Crc32cCodec(),
            ],
        )
        array[...] = values
        read = zarr.open_array(group / name, mode="r")[...]
        if read.tobytes() != np.ascontiguousarray(values).tobytes():  # bytes: NaN equals itself, and float16 is fast
            raise StoreError(
                "the values read back are not the ones written",
                where=group / name,
                fix="Check the disk, then run again.",
            )


def _chunking(values: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows per chunk and per shard; all columns together, since a view reads whole rows."""
    row_bytes = values.itemsize * int(np.prod(values.shape[1:]))
    chunk_rows = max(1, CHUNK_BYTES // row_bytes)
    chunks_per_shard = max(1, SHARD_BYTES // CHUNK_BYTES)
    chunks_needed = max(1, -(-len(values) // chunk_rows))
    shard_rows = chunk_rows * min(chunks_per_shard, chunks_needed)
    return (chunk_rows, *values.shape[1:]), (shard_rows, *values.shape[1:])


def _replace(source: Path, target: Path) -> None:
    """Make `source` durable, then move it into place; an uncommitted leftover there is thrown away."""
    _fsync_tree(source)
    if target.is_dir():
        os.rename(target, source.parent / f"{target.name}.leftover")
    os.replace(source, target)
    _fsync(target.parent)


def _claim(source: Path, target: Path) -> bool:
    """Move a folder into place unless another job has put one there first."""
    _fsync_tree(source)
    try:
        os.rename(source, target)
    except OSError:
        if not target.is_dir():
            raise
        return False
    _fsync(target.parent)
    return True


def _fsync_tree(path: Path) -> None:
    for child in [*path.rglob("*"), path]:
        _fsync(child)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _block_name(block: int) -> str:
    return f"{block:06d}"
