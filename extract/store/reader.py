"""Reading a feature store."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ...errors import StoreError
from ..encoding import Encoding
from ..intensity import IntensityStatistics
from . import format as fmt
from .format import SCANS

if TYPE_CHECKING:  # torch and zarr are loaded where targets and arrays are read: views are told without them
    import zarr

    from ..targets import EncodedTargets, Footprint

MAKE_ONE = "Pass the folder of a store; 'scalr extract' makes one."
OPEN_ARRAYS = 512  # handles that a reader keeps
NEEDED_OF_TEACHER = ("dim", "image_size", "patch_size", "encoding", "dtype")
COLUMNS = (
    *("block", "dataset", "split", "image_height", "image_width"),
    *("points_start", "points_stop", "pairs_start", "pairs_stop"),
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of one dataset in the store, and its blocks."""

    dataset: str
    split: str
    frames_per_block: int
    first_block: int
    num_blocks: int
    attributes: dict  # as recorded: all of the above and what else the scans depend on

    @property
    def blocks(self) -> range:
        return range(self.first_block, self.first_block + self.num_blocks)

    @property
    def intensity(self) -> IntensityStatistics:
        return IntensityStatistics(**self.attributes["intensity"])


@dataclass(frozen=True, eq=False)
class ScanBlock:
    """The scans and pairs of one block, concatenated; `views` has format.SCANS_SCHEMA."""

    points: np.ndarray  # (P, 4) float32
    point_index: np.ndarray  # (R,) uint32, row in the view's scan
    pixel: np.ndarray  # (R, 2) uint16
    views: pa.Table
    skipped: dict[str, str] = field(default_factory=dict)  # frames that could not be used: token -> why


@dataclass(frozen=True, eq=False)
class TargetBlock:
    """One teacher's targets of a block, encoded and concatenated; `views` has format.TARGETS_SCHEMA."""

    vectors: np.ndarray  # (T, D) float16 or int8
    scale: np.ndarray | None  # (T,) float32 with int8
    views: pa.Table


@dataclass(frozen=True, eq=False)
class StoredView:
    """What `FeatureStore.read_view` gives: one view with its scan.

    `targets` is decoded when it is first asked for; a training step decodes `encoded` on its own device instead.
    """

    dataset: str
    intensity: IntensityStatistics
    points: np.ndarray  # (N, 4) float32, lidar frame [m] and raw intensity
    point_index: np.ndarray  # (R,) int64, row in `points`
    pixel: np.ndarray  # (R, 2) uint16, row and column
    encoded: EncodedTargets | None  # R pairs; None when no teacher was asked for

    @functools.cached_property
    def targets(self) -> np.ndarray | None:
        """(R, D) float32, in pair order."""
        return None if self.encoded is None else self.encoded.decode().numpy()


class FeatureStore:
    """A store on disk, to read; `open_store` gives one.

    It shows what was committed when its `views` were first asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = functools.lru_cache(OPEN_ARRAYS)(self._open_array)
        self._target_ranges = functools.lru_cache(OPEN_ARRAYS)(self._read_target_ranges)

    def __reduce__(self) -> tuple:
        # Open handles and tables stay behind: a DataLoader worker opens its own.
        return open_store, (self.path,)

    @functools.cached_property
    def sources(self) -> list[Source]:
        """The splits of datasets that are, or will be, in the store."""
        return [_read_source(path) for path in sorted((self.path / "sources").glob("*/zarr.json"))]

    @functools.cached_property
    def teachers(self) -> dict[str, dict]:
        """The provenance of each teacher in the store."""
        paths = sorted((self.path / "teachers").glob("*/zarr.json"))
        return {path.parent.name: fmt.read_attributes(path, NEEDED_OF_TEACHER) for path in paths}

    def forget_inputs(self) -> None:
        """Look again which sources and teachers there are, when they are next asked for."""
        for name in ("sources", "teachers"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def views(self) -> pa.Table:
        """One row per committed view, in block order: format.SCANS_SCHEMA."""
        return self._read_indexes(SCANS, self._blocks)

    def column(self, name: str) -> np.ndarray:
        """One of COLUMNS of `views`, without reading the others.

        A reader draws views by these alone; the paths and tokens of a large store would take most of its memory.
        """
        return self._columns[name]

    @property
    def num_blocks(self) -> int:
        """Blocks of the finished store."""
        return sum(source.num_blocks for source in self.sources)

    def read_target_views(self, teacher: str) -> pa.Table:
        """One row per view that has this teacher's targets, in block order: format.TARGETS_SCHEMA."""
        self._teacher(teacher)
        return self._read_indexes(teacher, sorted(self.committed_blocks(teacher)))

    def committed_blocks(self, kind: str = SCANS) -> set[int]:
        """The blocks whose scans (or, with a teacher's name, whose targets) are there."""
        return {int(path.stem) for path in (self.path / "index" / kind).glob("*.parquet")}

    def is_committed(self, kind: str, block: int) -> bool:
        return fmt.index_path(self.path, kind, block).exists()

    def target_dim(self, teacher: str) -> int:
        """The dimension D of a teacher's targets."""
        return self._teacher(teacher)["dim"]

    def encoding(self, teacher: str) -> Encoding:
        """How a teacher's targets are kept."""
        provenance = self._teacher(teacher)
        return Encoding(provenance["encoding"], provenance["dtype"])

    def rows_with_targets(self, teacher: str) -> np.ndarray:
        """The rows of `views` that have this teacher's targets.

        Raises:
            StoreError: the store has no such teacher.
        """
        self._teacher(teacher)
        return np.flatnonzero(np.isin(self.column("block"), list(self.committed_blocks(teacher))))

    def read_view(self, row: int, teacher: str | None = None) -> StoredView:
        """Read row `row` of `views`, with the targets of `teacher` if one is named.

        Raises:
            StoreError: no such row, no such teacher, targets that are not there, or damaged data.
        """
        num_views = len(self.column("block"))
        if not 0 <= row < num_views:
            raise StoreError(f"no view {row}, it has {num_views}", where=self.path, fix="Use a row of .views.")
        block = int(self.column("block")[row])
        points, pairs = self._rows("points", row), self._rows("pairs", row)
        pixel = self._read(SCANS, block, "pairs/pixel", pairs)
        return StoredView(
            dataset=str(self.column("dataset")[row]),
            intensity=self._source_of(block).intensity,
            points=self._read(SCANS, block, "points", points),
            point_index=self._read(SCANS, block, "pairs/point_index", pairs).astype(np.int64),
            pixel=pixel,
            encoded=None if teacher is None else self.read_targets_of(row, teacher, pixel),
        )

    def read_scans(self, block: int) -> ScanBlock:
        """The scans and pairs of a committed block.

        Raises:
            StoreError: damaged data.
        """
        everything = slice(None)
        return ScanBlock(
            points=self._read(SCANS, block, "points", everything),
            point_index=self._read(SCANS, block, "pairs/point_index", everything),
            pixel=self._read(SCANS, block, "pairs/pixel", everything),
            views=fmt.read_index(fmt.index_path(self.path, SCANS, block), SCANS),
            skipped=self.skipped_frames(block),
        )

    def skipped_frames(self, block: int) -> dict[str, str]:
        """The frames that a block was committed without, since they could not be used: token -> why."""
        return fmt.skipped_frames(fmt.index_path(self.path, SCANS, block))

    def read_targets(self, block: int, teacher: str) -> TargetBlock:
        """One teacher's targets of a committed block, as they are kept.

        Raises:
            StoreError: no such teacher, or damaged data.
        """
        everything = slice(None)
        has_scale = self.encoding(teacher).dtype == "int8"
        return TargetBlock(
            vectors=self._read(teacher, block, "vectors", everything),
            scale=self._read(teacher, block, "scale", everything) if has_scale else None,
            views=fmt.read_index(fmt.index_path(self.path, teacher, block), teacher),
        )

    def footprint(self, teacher: str, pixel: np.ndarray, image_shape: tuple[int, int]) -> Footprint:
        """What the pairs at `pixel` (R, 2) of an (H, W) image read of a teacher's patch map."""
        import torch

        from ..targets import footprint

        provenance = self._teacher(teacher)
        patch_size = provenance["patch_size"]
        map_shape = tuple(side // patch_size for side in provenance["image_size"])
        return footprint(torch.from_numpy(pixel.astype(np.int64)), image_shape, map_shape, patch_size)

    def read_targets_of(self, row: int, teacher: str, pixel: np.ndarray) -> EncodedTargets:
        """The targets of row `row` of `views`, whose pairs read `pixel` (R, 2).

        Raises:
            StoreError: no such teacher, targets that are not there, or damaged data.
        """
        import torch

        from ..targets import encoded_targets

        block, encoding = int(self.column("block")[row]), self.encoding(teacher)
        if not self.is_committed(teacher, block):
            raise StoreError(
                f"block {block} has no targets of {teacher}",
                where=self.path,
                fix=f"Run 'scalr extract --teacher {teacher}' on this store again.",
            )
        first_row = int(np.searchsorted(self.column("block"), block))
        vectors = slice(*self._target_ranges(teacher, block)[row - first_row].tolist())
        scale = self._read(teacher, block, "scale", vectors) if encoding.dtype == "int8" else None
        image_shape = (int(self.column("image_height")[row]), int(self.column("image_width")[row]))
        return encoded_targets(
            torch.from_numpy(self._read(teacher, block, "vectors", vectors)),
            None if scale is None else torch.from_numpy(scale),
            self.footprint(teacher, pixel, image_shape),
            encoding,
        )

    def _source_of(self, block: int) -> Source:
        return next(source for source in self.sources if block in source.blocks)

    def _rows(self, what: str, row: int) -> slice:
        return slice(int(self.column(f"{what}_start")[row]), int(self.column(f"{what}_stop")[row]))

    def _read(self, kind: str, block: int, name: str, rows: slice) -> np.ndarray:
        try:
            return self._array(kind, block, name)[rows]
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:  # zarr's own and its codecs'
            raise StoreError(
                f"block {block}: array '{name}' cannot be read ({type(error).__name__}: {error})",
                where=fmt.group_path(self.path, kind, block),
                fix=f"Run 'scalr verify {self.path} --repair', then the same 'scalr extract' again.",
            ) from error

    def _open_array(self, kind: str, block: int, name: str) -> zarr.Array:
        import zarr

        return zarr.open_array(fmt.group_path(self.path, kind, block) / name, mode="r")

    def _read_target_ranges(self, teacher: str, block: int) -> np.ndarray:
        table = self._read_indexes(teacher, [block], ("start", "stop"))
        return np.stack([table["start"].to_numpy(), table["stop"].to_numpy()], axis=1)

    def _teacher(self, name: str) -> dict:
        if name not in self.teachers:
            raise StoreError(
                f"no targets of teacher '{name}' (it has: {', '.join(self.teachers) or 'none'})",
                where=self.path,
                fix=f"Run 'scalr extract --teacher {name}' on this store, or choose one it has.",
            )
        return self.teachers[name]

    def only_teacher(self) -> str:
        """The name of the store's teacher.

        Raises:
            StoreError: it has none, or several.
        """
        if len(self.teachers) == 1:
            return next(iter(self.teachers))
        found = ", ".join(self.teachers) or "none"
        raise StoreError(
            f"which teacher? The store has: {found}", where=self.path, fix="Pass --teacher with one or several of them."
        )

    def require_same_targets(self, other: FeatureStore, teacher: str) -> None:
        """Targets of two stores can only be used together where all that they depend on is the same.

        Raises:
            StoreError: what differs, with both values; or one of them has no targets of this teacher.
        """
        ours, theirs = self._teacher(teacher), other._teacher(teacher)
        pairs = [(key, ours.get(key), theirs.get(key)) for key in sorted({*ours, *theirs})]
        differing = "; ".join(f"{key} is {left!r} and {right!r}" for key, left, right in pairs if left != right)
        if differing:
            raise StoreError(
                f"targets of {teacher} that cannot be mixed: {differing}",
                where=f"{self.path} and {other.path}",
                fix="Extract both with the same teacher and settings.",
            )

    @functools.cached_property
    def _blocks(self) -> list[int]:
        """The blocks that this reader shows, while jobs may commit more."""
        return sorted(self.committed_blocks())

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        table = self._read_indexes(SCANS, self._blocks, COLUMNS)
        return {name: _as_numpy(table[name]) for name in COLUMNS}

    def _read_indexes(self, kind: str, blocks: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        paths = [fmt.index_path(self.path, kind, block) for block in blocks]
        schema = fmt.schema_of(kind)
        if not paths:
            return schema.empty_table().select(columns or schema.names)
        try:
            with ThreadPoolExecutor() as pool:  # pyarrow.dataset would do the same, and takes a second to import
                tables = pool.map(lambda path: fmt.read_index(path, kind, columns), paths)
                return pa.concat_tables(tables).combine_chunks()
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise StoreError(
                f"an index cannot be read ({error})",
                where=self.path / "index" / kind,
                fix=f"Run 'scalr verify {self.path} --repair', then the same 'scalr extract' again.",
            ) from error


def open_store(path: str | Path) -> FeatureStore:
    """Open an existing store to read.

    Raises:
        StoreError: nothing there, not a store, or a format version this release does not know.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise StoreError("no feature store here", where=path, fix=MAKE_ONE)
    attributes = fmt.read_attributes(path / "zarr.json")
    if attributes.get("format") != fmt.FORMAT:
        raise StoreError("a zarr group, but not a feature store", where=path, fix=MAKE_ONE)
    if attributes.get("format_version") != fmt.FORMAT_VERSION:
        raise StoreError(
            f"format version {attributes.get('format_version')}, this release reads {fmt.FORMAT_VERSION}",
            where=path,
            fix="Use the release that wrote it, or extract again.",
        )
    return FeatureStore(path)


def _as_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Equal strings become one object."""
    return (column.dictionary_encode() if pa.types.is_string(column.type) else column).to_numpy(zero_copy_only=False)


def _read_source(path: Path) -> Source:
    names = [name for name in Source.__dataclass_fields__ if name != "attributes"]
    attributes = fmt.read_attributes(path, [*names, "intensity"])
    return Source(**{name: attributes[name] for name in names}, attributes=attributes)
