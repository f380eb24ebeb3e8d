"""Read a feature store."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ...checkpoint_files import first_line
from ...errors import DamagedError, StoreError, UnreadableError
from ...paths import expanded
from ..encoding import Encoding
from ..statistics import TeacherStatistics
from ..teachers.registry import keeps_only_segments
from . import format as fmt
from .arrays import open_array
from .contents import ScanBlock, Segments, Source, StoredView, TargetBlock, source_of
from .files import indexed_blocks, is_folder, is_there, names_in, readable, size_of
from .format import SCANS
from .gathered import GatheredIndexes, open_gathered
from .index_rows import IndexRows
from .shared_arrays import SharedArrays
from .statistics_group import STATISTICS, read_statistics, statistics_name

if TYPE_CHECKING:  # torch and zarr are loaded when targets and arrays are read; listing views needs neither
    import zarr

    from ..targets import EncodedTargets, Footprint

logger = logging.getLogger(__name__)

OPEN_ARRAYS = 512  # open arrays that a reader keeps
LOOKING_THREADS = 4  # each size is a request to a server on shared storage; on a local disk, more only contend
OTHER_VALUES = "its values are not those that were written (CRC32C)"
OTHER_VIEWS = "it has targets of other views than its scans have"
SCAN_ARRAYS = ("points", "pairs/point_index", "pairs/pixel")
NEEDED_OF_SOURCE = ("dataset", "split", "frames_per_block", "first_block", "num_blocks", "intensity")
NEEDED_OF_TEACHER = ("dim", "image_size", "patch_size", "encoding", "dtype")
# The index columns that reading views needs; they are kept in memory for all views.
COLUMNS = (
    *("block", "image_height", "image_width"),
    *("points_start", "points_stop", "pairs_start", "pairs_stop", "crc32c"),
)
OF_TARGETS = ("start", "stop", "crc32c")
OF_SEGMENTS = ("segments_start", "segments_stop", "segments_crc32c")


class FeatureStore:
    """A store on disk for reading; `open_store` opens one.

    A store is a snapshot: blocks that are committed after `views` was first read are invisible. All data are compared
    with the checksums of the index, so that a file that is missing, truncated, altered or from another block raises an
    error and never returns wrong values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known_records: set[tuple[str, int]] = set()  # (kind, block) whose index has the current record
        self._gathered: dict[str, GatheredIndexes | None] = {}  # by kind
        self._in_memory: dict[str, IndexRows] = {}  # by kind: the index columns that are in memory
        self._array = functools.lru_cache(OPEN_ARRAYS)(self._open_array)
        self._channels = functools.lru_cache(OPEN_ARRAYS)(self._read_channels)
        self._rows_of_targets = functools.lru_cache(2 * OPEN_ARRAYS)(self._read_rows_of_targets)

    def __reduce__(self) -> tuple:
        # Open handles and tables are not sent: a DataLoader worker opens its own. It shares the columns in memory.
        shared = {kind: rows.share() for kind, rows in self._in_memory.items()}
        return _open_again, (self.path, self.__dict__.get("_blocks"), shared)

    @property
    def sources(self) -> list[Source]:
        """The recorded splits of datasets, complete or not, in the order of their blocks."""
        return sorted(self.named_sources.values(), key=lambda source: source.first_block)

    @functools.cached_property
    def named_sources(self) -> dict[str, Source]:
        """The sources by the names of their folders, as first read."""
        return {name: source_of(found) for name, found in self.records("sources", NEEDED_OF_SOURCE).items()}

    @functools.cached_property
    def teachers(self) -> dict[str, dict]:
        """The provenance of each teacher in the store, by the teacher's name."""
        return self.records("teachers", NEEDED_OF_TEACHER)

    def forget_inputs(self) -> None:
        """Forget sources and teachers, so that they are read again on the next access."""
        for name in ("named_sources", "teachers"):
            self.__dict__.pop(name, None)
        self._known_records.clear()
        self._gathered.clear()

    def take_for_recorded(self, sources: dict[str, Source], teachers: dict[str, dict]) -> None:
        """Use these sources and teachers instead of the store's records, some of which are damaged or lost."""
        self.forget_inputs()
        self.__dict__.update(named_sources=sources, teachers=teachers)

    @functools.cached_property
    def views(self) -> pa.Table:
        """The table of committed views, one row per view, in block order: format.SCANS_SCHEMA."""
        return self.read_views()

    def read_views(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the table of committed views with all or some columns."""
        return self._read_indexes(SCANS, self._blocks, columns)

    def column(self, name: str) -> np.ndarray:
        """Return one of COLUMNS of `views`, in the smallest unsigned type that holds it, without reading the others.

        Drawing views needs only these columns; the paths and frame IDs of a large store would take most of the memory.
        """
        return self._scans[name]

    @property
    def blocks(self) -> list[int]:
        """The numbers of all blocks of the complete store, committed or not."""
        return [block for source in self.sources for block in source.blocks]

    def read_target_views(self, teacher: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one row per view with this teacher's targets, in block order: format.TARGETS_SCHEMA, or some columns."""
        self.teacher(teacher)
        blocks = sorted(self.committed_blocks(teacher).intersection(self._blocks))
        return self._read_indexes(teacher, blocks, columns)

    def committed_blocks(self, kind: str = SCANS) -> set[int]:
        """The blocks whose scans (or, with a teacher's name, whose targets) are committed.

        Raises:
            UnreadableError: the folder of their indexes cannot be listed now.
        """
        return indexed_blocks(self.path / "index" / kind)

    def indexed_kinds(self) -> list[str]:
        """SCANS and the names of teachers that have a folder of indexes."""
        return [name for name in names_in(self.path / "index") if is_folder(self.path / "index" / name)]

    def record_of(self, kind: str, block: int) -> dict | None:
        """The record of a teacher, or, for SCANS, of the source that a block belongs to."""
        if kind != SCANS:
            return self.teachers.get(kind)
        return next((source.attributes for source in self.sources if block in source.blocks), None)

    def is_committed(self, kind: str, block: int) -> bool:
        return is_there(fmt.index_path(self.path, kind, block))

    def read_frames(self, source: Source) -> pa.Table:
        """Read the dataset's table of a source's frames, as recorded: frame_identity.SCHEMA.

        Raises:
            FileNotFoundError: the table is lost.
            StoreError, UnreadableError: it is damaged, or cannot be read now.
        """
        return fmt.read_frames(self.folder_of(source))

    def folder_of(self, source: Source) -> Path:
        """The folder of a source's record."""
        return self.path / "sources" / next(name for name, each in self.named_sources.items() if each == source)

    def teachers_without_record(self) -> list[str]:
        """Names of teachers with committed targets whose record is lost."""
        unknown = [kind for kind in self.indexed_kinds() if kind not in (SCANS, *self.teachers)]
        return [kind for kind in unknown if self.committed_blocks(kind)]

    def blocks_without_source(self) -> list[int]:
        """Committed blocks that belong to no recorded source."""
        return sorted(self.committed_blocks() - set(self.blocks))

    def require_records(self) -> None:
        """Check that every committed block has the record of its source, and all targets that of their teacher.

        Raises:
            DamagedError: a record is lost; it is named.
            UnreadableError: something cannot be read now.
        """
        if lost := self.teachers_without_record():
            raise self._lost_record(lost[0])
        if lost := self.blocks_without_source():
            raise self._lost_record(SCANS, lost[0])

    def require_files(self, teachers: Iterable[str], sources: Iterable[Source]) -> None:
        """Compare number and size of the files of some blocks with their indexes, without reading the files.

        Raises:
            DamagedError: a file is missing, or has another size; it is named.
            UnreadableError: something cannot be read now.
        """
        teachers = list(teachers)
        groups = [(kind, block) for source in sources for block in source.blocks for kind in (SCANS, *teachers)]
        with ThreadPoolExecutor(LOOKING_THREADS) as pool:
            for wrong in pool.map(self._first_wrong_file, (groups[n::LOOKING_THREADS] for n in range(LOOKING_THREADS))):
                if wrong is not None:
                    raise self._wrong(*wrong)

    def target_dim(self, teacher: str) -> int:
        """The dimension D of a teacher's targets."""
        return self.teacher(teacher)["dim"]

    def encoding(self, teacher: str) -> Encoding:
        """How a teacher's targets are stored."""
        provenance = self.teacher(teacher)
        return Encoding(provenance["encoding"], provenance["dtype"])

    def statistics(self, teacher: str, sources: Sequence[Source] | None = None) -> TeacherStatistics:
        """Read the statistics of a teacher's vectors, pooled over the samples of several sources.

        Args:
            teacher: name of the teacher.
            sources: sources to pool; None takes all that have statistics.

        Raises:
            StoreError: the store has no such teacher, or no statistics of it.
            DamagedError, UnreadableError: the statistics are damaged, or cannot be read now.
        """
        record = self.teacher(teacher)
        if sources is None:
            names = [name for name in self.named_sources if self.has_statistics(teacher, name)]
        else:
            names = [self.folder_of(source).name for source in sources]
        try:
            found = [
                read_statistics(self.path / statistics_name(teacher, name), record, self.named_sources[name].attributes)
                for name in names
            ]
        except FileNotFoundError:
            found = []
        if not found:
            raise StoreError(
                f"the store has no statistics of {teacher}",
                where=self.path / "teachers" / teacher / STATISTICS,
                fix=f"Repeat the 'scalr extract --teacher {teacher}' command that wrote the store: it computes them.",
            )
        return TeacherStatistics.pooled(found)

    def has_statistics(self, teacher: str, source: str) -> bool:
        """Whether there are statistics of a teacher for a source, which is given by the name of its folder."""
        return is_there(self.path / statistics_name(teacher, source) / "zarr.json")

    def rows_with_targets(self, teacher: str) -> np.ndarray:
        """The numbers of the rows of `views` that have this teacher's targets.

        Raises:
            StoreError: the store has no such teacher.
        """
        self.teacher(teacher)
        self._keep_gathered_rows(teacher)  # before workers start, so that they share the rows
        return np.flatnonzero(np.isin(self.column("block"), list(self.committed_blocks(teacher))))

    def read_view(self, row: int, teacher: str | None = None) -> StoredView:
        """Read one view: its scan, its pairs and, if a teacher is named, that teacher's targets.

        Args:
            row: row of `views`, from 0.
            teacher: name of a teacher of the store; None reads no targets.

        Returns:
            A StoredView with `points` (N, 4) float32, `point_index` (R,) int64, `pixel` (R, 2) uint16 and `targets`
            (R, D) float32 or None; see StoredView for all fields.

        Raises:
            StoreError: no such row, no such teacher, missing targets, or damaged data.
        """
        num_views = len(self.column("block"))
        if not 0 <= row < num_views:
            raise StoreError(
                f"the store has no view {row}, but {num_views} views",
                where=self.path,
                fix=f"Use a row of store.views, 0 to {num_views - 1}.",
            )
        block = int(self.column("block")[row])
        source = self._source_of(block)
        names, pairs = self._scan_arrays(source), self._rows("pairs", row)
        arrays = [self._read(SCANS, block, name, pairs) for name in names[1:]]
        arrays.insert(0, self._read(SCANS, block, names[0], self._rows("points", row)))
        if fmt.crc32c(0, *arrays) != self.column("crc32c")[row]:
            raise self._damaged(SCANS, block, OTHER_VALUES)
        points, point_index, pixel, *superpixel = arrays
        return StoredView(
            dataset=source.dataset,
            intensity=source.intensity,
            points=points,
            point_index=point_index.astype(np.int64),
            pixel=pixel,
            encoded=None if teacher is None else self.read_targets_of(row, teacher, pixel),
            superpixel=superpixel[0] if superpixel else None,
        )

    def read_scans(self, block: int) -> ScanBlock:
        """Read the scans and pairs of a committed block.

        Raises:
            StoreError: damaged data.
        """
        everything = slice(None)
        names = self._scan_arrays(self._source_of(block))
        points, point_index, pixel, *superpixel = (self._read(SCANS, block, name, everything) for name in names)
        index = fmt.index_path(self.path, SCANS, block)
        views, skipped = self._read_index(index, SCANS), fmt.read_metadata(index).skipped
        scans = ScanBlock(points, point_index, pixel, views, skipped, *superpixel)
        if any(fmt.crc32c(0, *arrays) != row["crc32c"] for arrays, row in scans.by_view()):
            raise self._damaged(SCANS, block, OTHER_VALUES)
        return scans

    def skipped_frames(self, block: int) -> dict[str, str]:
        """The frames that a committed block lacks, since they could not be used: frame ID -> reason.

        Meant for callers that ask for many blocks: the first call looks at the indexes of all blocks.
        """
        gathered = self.gathered_indexes(SCANS)
        if gathered is not None and block in gathered and gathered.still_stands(block):
            return gathered.skipped(block)
        return fmt.read_metadata(fmt.index_path(self.path, SCANS, block)).skipped

    def read_targets(self, block: int, teacher: str) -> TargetBlock:
        """Read one teacher's targets of a committed block, as they are stored.

        Raises:
            StoreError: no such teacher, or damaged data.
        """
        everything = slice(None)
        encoding, has_segments = self.encoding(teacher), self._source_of(block).superpixels is not None
        is_int8 = encoding.dtype == "int8"
        targets = TargetBlock(
            vectors=self._read(teacher, block, "vectors", everything) if encoding.of_pairs else None,
            scale=self._read(teacher, block, "scale", everything) if is_int8 else None,
            channels=self._read(teacher, block, "channels", everything) if is_int8 else None,
            views=self._read_index(fmt.index_path(self.path, teacher, block), teacher),
            segments=self._read_segments(teacher, block, everything) if has_segments else None,
        )
        scans = fmt.read_index(fmt.index_path(self.path, SCANS, block), SCANS, ("crc32c",))
        if len(scans) != len(targets.views):
            raise self._damaged(teacher, block, OTHER_VIEWS)
        seeds = scans["crc32c"].to_pylist()
        for seed, (arrays, row) in zip(seeds, targets.by_view(), strict=True):
            if fmt.crc32c(seed, *arrays) != row["crc32c"]:
                raise self._damaged(teacher, block, OTHER_VALUES)
        for seed, (segments, row) in zip(seeds, targets.segments_by_view(), strict=has_segments):
            if fmt.crc32c(seed, *segments.arrays) != row["segments_crc32c"]:
                raise self._damaged(teacher, block, OTHER_VALUES)
        return targets

    def footprint(self, teacher: str, pixel: np.ndarray, image_shape: tuple[int, int]) -> Footprint:
        """The patches of a teacher's map that the pairs at `pixel` (R, 2) of an (H, W) image need."""
        import torch

        from ..targets import footprint

        provenance = self.teacher(teacher)
        patch_size = provenance["patch_size"]
        map_shape = tuple(side // patch_size for side in provenance["image_size"])
        return footprint(torch.from_numpy(pixel.astype(np.int64)), image_shape, map_shape, patch_size)

    def read_targets_of(self, row: int, teacher: str, pixel: np.ndarray) -> EncodedTargets:
        """Read the targets of row `row` of `views`, whose pairs are at `pixel` (R, 2).

        Raises:
            StoreError: no such teacher, missing targets, or damaged data.
        """
        import torch

        from ..targets import encoded_targets

        self.require_targets_of_pairs(teacher)
        block, encoding = self._committed_block(row, teacher), self.encoding(teacher)
        start, stop, checksum = self._target_row(row, teacher, block, OF_TARGETS)
        arrays = [self._read(teacher, block, "vectors", slice(start, stop)), None, None]
        if encoding.dtype == "int8":
            arrays[1:] = self._read(teacher, block, "scale", slice(start, stop)), self._channels(teacher, block)
        if fmt.crc32c(int(self.column("crc32c")[row]), *(each for each in arrays if each is not None)) != checksum:
            raise self._damaged(teacher, block, OTHER_VALUES)
        image_shape = (int(self.column("image_height")[row]), int(self.column("image_width")[row]))
        return encoded_targets(
            *(None if each is None else torch.from_numpy(each) for each in arrays),
            self.footprint(teacher, pixel, image_shape),
            encoding,
        )

    def require_targets_of_pairs(self, teacher: str, instead: str = "Use a store of another teacher") -> None:
        """Check that a teacher has targets of pairs.

        Args:
            teacher: name of the teacher.
            instead: the advice of the error: what the user can do without these targets.

        Raises:
            StoreError: no such teacher, or only vectors of segments are stored.
        """
        if not self.encoding(teacher).of_pairs:
            extract = "" if keeps_only_segments(teacher) else ", or extract with --encoding patch into another --out"
            raise StoreError(
                f"the store holds only segments of {teacher}, and no targets of points",
                where=self.path,
                fix=f"{instead}{extract}.",
            )

    def require_superpixels(self, source: Source) -> None:
        """Check that a source has superpixels.

        Raises:
            StoreError: the source was extracted without superpixels.
        """
        if source.superpixels is None:
            raise StoreError(
                f"{source.dataset} {source.split} has no superpixels",
                where=self.path,
                fix="Run 'scalr extract --superpixels slic' with another --out, and use that store.",
            )

    def read_segments(self, row: int, teacher: str) -> Segments:
        """Read a teacher's vectors of the segments that hold a pair in row `row` of `views`, as float32.

        The ids of the segments are the values of `read_view(row).superpixel`, each once, ascending.

        Raises:
            StoreError: no such teacher, missing targets or superpixels, or damaged data.
        """
        block = self._committed_block(row, teacher)
        self.require_superpixels(self._source_of(block))
        start, stop, checksum = self._target_row(row, teacher, block, OF_SEGMENTS)
        segments = self._read_segments(teacher, block, slice(start, stop))
        if fmt.crc32c(int(self.column("crc32c")[row]), *segments.arrays) != checksum:
            raise self._damaged(teacher, block, OTHER_VALUES)
        mean, direction = (each.astype(np.float32) for each in (segments.mean, segments.direction))
        return Segments(segments.id, segments.pixels, mean, direction)

    def stored_cosine(self, row: int, teacher: str) -> float:
        """The mean cosine between stored and exact vectors of row `row` of `views`."""
        block = int(self.column("block")[row])
        means = self._read_indexes(teacher, [block], ("mean_cosine",))["mean_cosine"]
        return means[row - self._scans.of_block(block).start].as_py()

    def _committed_block(self, row: int, teacher: str) -> int:
        """The block of a row of `views`, after checking that this teacher's targets of it are committed."""
        self.teacher(teacher)
        block = int(self.column("block")[row])
        if not self.is_committed(teacher, block):
            raise StoreError(
                f"block {block} has no targets of {teacher}",
                where=self.path,
                fix=f"Repeat the 'scalr extract --teacher {teacher}' command that wrote the store.",
            )
        return block

    def _scan_arrays(self, source: Source) -> tuple[str, ...]:
        return SCAN_ARRAYS if source.superpixels is None else (*SCAN_ARRAYS, fmt.SUPERPIXEL)

    def _read_segments(self, teacher: str, block: int, rows: slice) -> Segments:
        return Segments(*(self._read(teacher, block, f"{fmt.SEGMENTS}/{name}", rows) for name in fmt.SEGMENT_ARRAYS))

    def _source_of(self, block: int) -> Source:
        for source in self.sources:
            if block in source.blocks:
                return source
        raise self._lost_record(SCANS, block)

    def _rows(self, what: str, row: int) -> slice:
        return slice(int(self.column(f"{what}_start")[row]), int(self.column(f"{what}_stop")[row]))

    def _read(self, kind: str, block: int, name: str, rows: slice) -> np.ndarray:
        group = fmt.group_path(self.path, kind, block)
        try:
            with readable(group / name):
                return self._array(kind, block, name)[rows]
        except UnreadableError:
            raise
        except Exception as error:  # damaged files can raise any error in zarr and its codecs
            raise self._damaged(kind, block, f"array '{name}', {first_line(error)}") from error

    def _open_array(self, kind: str, block: int, name: str) -> zarr.Array:
        return open_array(fmt.group_path(self.path, kind, block) / name)

    def _damaged(self, kind: str, block: int, what: str) -> DamagedError:
        """The error for a block that cannot be read; it names the damaged file, if one can be found."""
        wrong = self._wrong_file(kind, block, read=True)
        if wrong is not None:
            return self._wrong(*wrong)
        return DamagedError(
            f"block {block} cannot be read: {what}", where=fmt.group_path(self.path, kind, block), fix=self._repair
        )

    def _wrong(self, path: Path, how: str) -> DamagedError:
        return DamagedError(f"the file of the store is {how}", where=path, fix=self._repair)

    def _first_wrong_file(self, groups: Iterable[tuple[str, int]]) -> tuple[Path, str] | None:
        found = (self._wrong_file(kind, block, read=False) for kind, block in groups)
        return next((wrong for wrong in found if wrong is not None), None)

    def _wrong_file(self, kind: str, block: int, *, read: bool) -> tuple[Path, str] | None:
        """Find the first file of a group that differs from its index, by size or, with `read`, SHA-256; and say how."""
        group, index = fmt.group_path(self.path, kind, block), fmt.index_path(self.path, kind, block)
        gathered = self.gathered_indexes(kind)
        if not read and gathered is not None and block in gathered:
            return next(_of_other_size(group, gathered.files(block)), None)
        metadata = fmt.read_metadata(index)
        if wrong := self.wrong_metadata(kind, block, metadata):
            return index, wrong
        for other in _of_other_size(group, {name: listed.bytes for name, listed in metadata.files.items()}):
            return other
        for name, listed in metadata.files.items() if read else ():
            if fmt.describe_file(group / name) != listed:
                return group / name, "changed since it was written (SHA-256)"
        return None

    def wrong_metadata(self, kind: str, block: int, metadata: fmt.IndexMetadata) -> str | None:
        """Describe how an index differs from the group's name and the current record; None if it does not."""
        if metadata.group != fmt.group_name(kind, block):
            return f"that of {metadata.group}"
        recorded = self.record_of(kind, block)
        if recorded is None:
            raise self._lost_record(kind, block)
        if metadata.record != recorded:
            return "of a block that was made with other settings than are recorded"
        self._known_records.add((kind, block))
        return None

    def _target_row(self, row: int, teacher: str, block: int, columns: tuple[str, ...]) -> list[int]:
        """Values of some columns of a teacher's index for row `row` of `views`, which is in `block`."""
        of_scans, kept = self._scans.of_block(block), self._in_memory.get(teacher)
        of_targets = None if kept is None else kept.of_block(block)
        rows = self._rows_of_targets(teacher, block, columns) if of_targets is None else of_targets
        if len(rows) != len(of_scans):
            raise self._damaged(teacher, block, OTHER_VIEWS)
        found = rows[row - of_scans.start]
        return found.tolist() if of_targets is None else [int(kept[name][found]) for name in columns]

    def _read_channels(self, teacher: str, block: int) -> np.ndarray:
        return self._read(teacher, block, "channels", slice(None))

    def _read_rows_of_targets(self, teacher: str, block: int, columns: Sequence[str]) -> np.ndarray:
        """Read C columns of a teacher's index for the V views of a block, (V, C) int64."""
        table = self._read_indexes(teacher, [block], columns)
        return np.stack([table[name].to_numpy().astype(np.int64) for name in columns], axis=1)

    def _keep_gathered_rows(self, teacher: str) -> None:
        """Load a teacher's gathered index rows; the rows of other blocks are loaded when their first view is read."""
        gathered = self.gathered_indexes(teacher)
        if gathered is not None and teacher not in self._in_memory:
            blocks = [block for block in self._blocks if block in gathered]
            columns = ("block", *OF_TARGETS, *OF_SEGMENTS)
            self._in_memory[teacher] = self._index_rows(teacher, blocks, columns)

    def records(self, folder: str, required: Sequence[str] = ()) -> dict[str, dict]:
        """Read the attributes of all records in the folder `sources` or `teachers`, by name."""
        found = {}
        for name in names_in(self.path / folder):
            with suppress(FileNotFoundError):  # a stray file, or a record that another job has just replaced
                found[name] = fmt.read_record(self.path / folder / name / "zarr.json", required)
        return found

    def _lost_record(self, kind: str, block: int | None = None) -> DamagedError:
        if kind == SCANS:
            where, whose = self.path / "sources", f"block {block}"
        else:
            where, whose = self.path / "teachers" / kind / "zarr.json", f"the targets of {kind}"
        return DamagedError(f"the settings of {whose} are not recorded any more", where=where, fix=self._repair)

    @property
    def _repair(self) -> str:
        return f"Run 'scalr verify {self.path} --repair', then repeat the 'scalr extract' command that wrote the store."

    def teacher(self, name: str) -> dict:
        """The record of a teacher: everything that its targets depend on.

        Raises:
            StoreError: the store has no such teacher, or its record is lost.
        """
        if name in self.teachers:
            return self.teachers[name]
        if name in self.teachers_without_record():
            raise self._lost_record(name)
        raise StoreError(
            f"the store has no targets of teacher '{name}' (it has: {', '.join(self.teachers) or 'none'})",
            where=self.path,
            fix=f"Run 'scalr extract --teacher {name}' on this store, or choose a teacher that it has.",
        )

    def only_teacher(self) -> str:
        """The name of the store's only teacher.

        Raises:
            StoreError: the store has no teacher, or several.
        """
        if len(self.teachers) == 1:
            return next(iter(self.teachers))
        found = ", ".join(self.teachers) or "none"
        raise StoreError(
            f"no --teacher is given, and the store has the teachers: {found}",
            where=self.path,
            fix="Pass --teacher with one or several of them.",
        )

    def require_same_targets(self, other: FeatureStore, teacher: str) -> None:
        """Check that two stores' targets can be used together: everything that they depend on must be equal.

        Raises:
            StoreError: a value differs, and both are named; or one store has no targets of this teacher.
        """
        ours, theirs = self.teacher(teacher), other.teacher(teacher)
        pairs = [(key, ours.get(key), theirs.get(key)) for key in sorted({*ours, *theirs})]
        differing = "; ".join(f"{key} is {left!r} and {right!r}" for key, left, right in pairs if left != right)
        if differing:
            raise StoreError(
                f"the targets of {teacher} in these stores cannot be mixed: {differing}",
                where=f"{self.path} and {other.path}",
                fix="Extract both stores with the same teacher and settings.",
            )

    @functools.cached_property
    def _blocks(self) -> list[int]:
        """The blocks of this snapshot; jobs may commit more meanwhile."""
        return self._in_memory[SCANS].blocks if SCANS in self._in_memory else sorted(self.committed_blocks())

    @property
    def _scans(self) -> IndexRows:
        if SCANS not in self._in_memory:
            self._in_memory[SCANS] = self._index_rows(SCANS, self._blocks, COLUMNS)
        return self._in_memory[SCANS]

    def _index_rows(self, kind: str, blocks: Sequence[int], columns: Sequence[str]) -> IndexRows:
        rows = IndexRows(blocks, columns, self._index_parts(kind, blocks, columns))
        pa.default_memory_pool().release_unused()  # frees the tables of a large store, which are small integers now
        return rows

    def gathered_indexes(self, kind: str) -> GatheredIndexes | None:
        """The gathered indexes of a kind, limited to indexes that had not changed when this was first called."""
        if kind not in self._gathered:
            found = open_gathered(self.path, kind)
            if found is not None:
                found.keep_what_stands(functools.partial(self.record_of, kind))
            self._gathered[kind] = found
        return self._gathered[kind]

    def _read_indexes(self, kind: str, blocks: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Read the index rows of some blocks, ascending: from the gathered file as far as it has them."""
        schema = fmt.schema_of(kind)
        empty = schema.empty_table().select(columns or schema.names)
        return pa.concat_tables([empty, *self._index_parts(kind, blocks, columns)]).combine_chunks()

    def _index_parts(self, kind: str, blocks: Sequence[int], columns: Sequence[str] | None) -> list[pa.Table]:
        parts = self.read_gathered(kind, blocks, columns)
        found = [block for inside, _ in parts for block in inside]
        if len(found) == len(blocks):
            return [table for _, table in parts]
        others = sorted(set(blocks).difference(found))
        tables = self.rows_of_each(kind, parts) | self._read_each_index(kind, others, columns)
        return [tables[block] for block in blocks]

    def rows_of_each(self, kind: str, parts: Iterable[tuple[list[int], pa.Table]]) -> dict[int, pa.Table]:
        """Split the result of `read_gathered` by block."""
        rows = {}
        for inside, table in parts:
            first = 0
            for block in inside:
                count = self._gathered[kind].rows(block)
                rows[block] = table.slice(first, count)
                first += count
        return rows

    def read_gathered(
        self, kind: str, blocks: Sequence[int], columns: Sequence[str] | None = None
    ) -> list[tuple[list[int], pa.Table]]:
        """Read the gathered rows of some blocks, part by part; nothing if the file cannot be read."""
        gathered = self.gathered_indexes(kind)
        there = [] if gathered is None else [block for block in blocks if block in gathered]
        if not there:
            return []
        try:
            return gathered.read(there, columns)
        except Exception as error:  # damaged pages can raise any error in arrow; the indexes themselves remain
            logger.debug("the gathered indexes of %s cannot be read (%s): each is read by itself", kind, error)
            self._gathered[kind] = None
            return []

    def _read_each_index(self, kind: str, blocks: Sequence[int], columns: Sequence[str] | None) -> dict[int, pa.Table]:
        paths = [fmt.index_path(self.path, kind, block) for block in blocks]
        try:
            with ThreadPoolExecutor() as pool:  # pyarrow.dataset would do the same, but takes a second to import
                tables = pool.map(lambda path: self._read_index(path, kind, columns), paths)
                return dict(zip(blocks, tables, strict=True))
        except FileNotFoundError as error:
            raise StoreError(
                "an index file was removed since the store was opened",
                where=error.filename,
                fix="Run the same command again: it opens the store again.",
            ) from None

    def _read_index(self, path: Path, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
        block = int(path.stem)
        if (kind, block) not in self._known_records:  # compares once: a large store has thousands of blocks
            wrong = self.wrong_metadata(kind, block, fmt.read_metadata(path))
            if wrong is not None:
                raise self._wrong(path, wrong)
        return fmt.read_index(path, kind, columns)


def open_store(path: str | Path) -> FeatureStore:
    """Open an existing store for reading.

    Raises:
        StoreError: the path does not exist, is no store, or has a format version that this release does not know.
        UnreadableError: the path exists, but cannot be read (now).
    """
    path = expanded(path, StoreError)
    try:
        fmt.check_root(path / "zarr.json")
    except FileNotFoundError:
        if any(name in names_in(path) for name in (*fmt.SKELETON, "index")):
            raise StoreError(
                "the zarr.json of the store is missing",
                where=path,
                fix="Run 'scalr verify' with --repair: it restores the file.",
            ) from None
        raise StoreError("no feature store exists here", where=path, fix=fmt.MAKE_ONE) from None
    require_folders(path)
    return FeatureStore(path)


def _open_again(path: Path, blocks: list[int] | None, shared: dict[str, SharedArrays | None]) -> FeatureStore:
    """Reopen in a worker the store of the process that started it, with the columns that the two can share.

    The worker always sees the blocks that its parent sees: blocks committed since would change the numbers of rows.
    """
    store = open_store(path)
    if blocks is not None:
        store._blocks = blocks
    store._in_memory = {kind: IndexRows.of_another_process(each) for kind, each in shared.items() if each is not None}
    return store


def _of_other_size(group: Path, files: Mapping[str, int]) -> Iterator[tuple[Path, str]]:
    """Yield the files of a group that are missing or have another size than in `files`, and say how."""
    for name, listed in files.items():
        size = size_of(f"{group}/{name}")
        if size != listed:
            how = "missing" if size is None else "empty" if size == 0 else f"of {size} bytes, not {listed}"
            yield group / name, how


def require_folders(store: Path) -> None:
    """Check that the folders of indexes are folders: a file in their place would look like blocks never extracted.

    Raises:
        DamagedError: there is a file in place of a folder.
        UnreadableError: something cannot be read.
    """
    for name in (*fmt.SKELETON, "index", *(f"index/{kind}" for kind in (SCANS, *names_in(store / "teachers")))):
        if is_there(store / name) and not is_folder(store / name):
            raise DamagedError(
                "a file has the name of a folder of the store",
                where=store / name,
                fix="Remove the file, then repeat the 'scalr extract' command that wrote the store.",
            )
