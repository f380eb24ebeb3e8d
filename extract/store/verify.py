"""Find what is wrong with a store: damaged, unreadable, stray and missing parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import DamagedError, StoreError, UnreadableError
from ...progress import progress
from ..frame_identity import frames_sha256
from ..targets import num_vectors
from . import format as fmt
from .contents import ScanBlock, TargetBlock, source_of
from .files import NUMBERED_INDEX, is_folder, is_litter, is_there, names_in, read_bytes
from .format import SCANS
from .gathering import agrees_with_indexes
from .reader import NEEDED_OF_SOURCE, NEEDED_OF_TEACHER, FeatureStore, open_store, require_folders
from .statistics_group import STATISTICS, read_statistics, statistics_name

LONGEST = 1 + 1e-3  # maximum length of a unit vector, or of a mean of unit vectors, in float16


@dataclass(frozen=True)
class Damage:
    """A damaged or lost part: a block's scans, its targets of one teacher, or a record."""

    block: int | None  # None: a record
    kind: str  # "scans", a teacher's name, or the record's path in the store
    what: str

    def __str__(self) -> str:
        if self.block is None:
            return f"{self.kind}: {self.what}"
        whose = "scans" if self.kind == SCANS else f"targets of {self.kind}"
        return f"block {self.block}, {whose}: {self.what}"


@dataclass
class Findings:
    """The result of `verify_store`."""

    blocks: int = 0  # blocks that were checked
    damage: list[Damage] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # paths that cannot be read now, and why
    stray: list[str] = field(default_factory=list)  # paths in the store of files that do not belong to it
    missing: dict[str, list[int]] = field(default_factory=dict)  # blocks that are not committed, by kind
    without_statistics: list[str] = field(default_factory=list)  # teachers that lack statistics, and the split
    records: dict[str, dict | None] = field(default_factory=dict)  # the correct content of damaged records, by path
    closed: set[int] = field(default_factory=set)  # blocks that cannot be read completely now

    @property
    def whole(self) -> bool:
        """Whether the store is complete, and every file was read and is correct."""
        return not (self.damage or self.unreadable or self.missing or self.without_statistics)


def open_to_verify(path: Path) -> FeatureStore:
    """Open a store as `open_store` does, also if the zarr.json at its top is damaged or lost.

    Raises:
        StoreError: the path does not exist, is no store, or has a format version that this release does not know.
        UnreadableError: the path exists, but cannot be read (now).
    """
    try:
        return open_store(path)
    except UnreadableError:
        raise
    except StoreError as error:
        damaged = isinstance(error, DamagedError) or not is_there(path / "zarr.json")
        if damaged and all(name in names_in(path) for name in ("blocks", "index")):
            require_folders(path)
            return FeatureStore(path)
        raise


def verify_store(store: FeatureStore) -> Findings:
    """Read everything that is committed and check it.

    The check covers the records that describe the store, the statistics of teachers, each file's size and SHA-256, each
    chunk's CRC32C, the checksum of each view, the counts against the index, the ranges of indices and pixels, and that
    all values are finite.

    Raises:
        UnreadableError: the indexes cannot be listed now, so that nothing can be checked.
    """
    found = Findings()
    _check_records(store, found)
    kinds = [SCANS, *store.teachers]
    committed = {kind: store.committed_blocks(kind) for kind in kinds}
    blocks = sorted(set().union(*committed.values()))
    found.blocks = len(blocks)
    with progress(len(blocks), "verify", "block") as bar:
        for block in blocks:
            teachers = [kind for kind in store.teachers if block in committed[kind]]
            _check_block(store, block, teachers, found)
            bar.update()
    for kind in kinds:
        if missing := sorted(set(store.blocks) - committed[kind]):
            found.missing[kind] = missing
    found.stray += sorted(_strays_beside_blocks(store))
    return found


# --- records -------------------------------------------------------------------------------------------------------


def _check_records(store: FeatureStore, found: Findings) -> None:
    """Find damaged and lost records, and let `store` use the records in its blocks instead."""
    for name in (f"{group}/zarr.json" for group in fmt.SKELETON):
        with _noted(found, None, name):
            found.records[name] = None
            _require(not fmt.read_group(store.path / name), "it has attributes")
            del found.records[name]
    said = _records_in_blocks(store)
    teachers = _checked_records(store, "teachers", NEEDED_OF_TEACHER, said, found)
    sources = _checked_records(store, "sources", NEEDED_OF_SOURCE, said, found)
    store.take_for_recorded(
        {path.split("/")[1]: source_of(record) for path, record in sources.items()},
        {path.split("/")[1]: record for path, record in teachers.items()},
    )
    _check_root(store, found)
    for name, record in sources.items():
        path = f"{name}/{fmt.FRAMES_TABLE}"
        with _noted(found, None, path):
            digest = record.get("frames_sha256")  # the temporary store of an estimate has none
            same = digest is None or frames_sha256(fmt.read_frames(store.path / name)) == digest
            _require(same, "it is not the table that the source records")
    for name in store.teachers:
        for device in names_in(store.path / "teachers" / name / "batch"):
            path = f"teachers/{name}/batch/{device}/zarr.json"
            if is_there(store.path / path):
                with _noted(found, None, path):
                    fmt.read_record(store.path / path, ["batch_size"])
        _check_statistics(store, name, found)


def _check_statistics(store: FeatureStore, teacher: str, found: Findings) -> None:
    committed = store.committed_blocks(teacher)
    for name, source in store.named_sources.items():
        path = statistics_name(teacher, name)
        if is_folder(store.path / path):
            with _noted(found, None, path):
                read_statistics(store.path / path, store.teachers[teacher], source.attributes)
        elif not committed.isdisjoint(source.blocks):
            found.without_statistics.append(f"{teacher} of {source.dataset} {source.split}")


def _check_root(store: FeatureStore, found: Findings) -> None:
    name, with_superpixels = "zarr.json", any(source.superpixels for source in store.sources)
    root = fmt.root_attributes(with_superpixels=with_superpixels)
    with _noted(found, None, name):
        found.records[name] = root
        fmt.check_root(store.path / name)
        is_enough = fmt.read_record(store.path / name)["format_version"] >= root["format_version"]
        _require(is_enough, "it lets releases read the store that do not know superpixels")
        del found.records[name]


def _records_in_blocks(store: FeatureStore) -> dict[str, list[dict]]:
    """Collect the records that committed blocks repeat, by kind, the most frequent record first."""
    said: dict[str, list[dict]] = {}
    for kind in store.indexed_kinds():
        records = [_record_in_block(store, kind, block) for block in sorted(store.committed_blocks(kind))]
        records = [record for record in records if record is not None]
        said[kind] = sorted(_unique(records), key=records.count, reverse=True)
    return said


def _unique(records: list[dict]) -> list[dict]:
    """Remove duplicates and keep the order."""
    found: dict[str, dict] = {}
    for record in records:  # as many as blocks
        found.setdefault(fmt.digest(record), record)
    return list(found.values())


def _record_in_block(store: FeatureStore, kind: str, block: int) -> dict | None:
    """Read the record in a block's index; None if the index is damaged, which the check of the block reports."""
    index, own = fmt.index_path(store.path, kind, block), fmt.group_path(store.path, kind, block) / fmt.GROUP_INDEX
    try:
        metadata = fmt.read_metadata(index)
        is_sound = metadata.group == fmt.group_name(kind, block) and read_bytes(index) == read_bytes(own)
    except (FileNotFoundError, DamagedError, UnreadableError):
        return None
    return metadata.record if is_sound else None


def _checked_records(
    store: FeatureStore, folder: str, required: Iterable[str], said: dict[str, list[dict]], found: Findings
) -> dict[str, dict]:
    """Return the records of a folder by path in the store; those in the blocks replace damaged and lost ones."""
    sound: dict[str, dict] = {}
    damaged: list[str] = []
    for name in names_in(store.path / folder):
        path = f"{folder}/{name}"
        if not is_folder(store.path / path) or (is_litter(name) and not is_there(store.path / path / "zarr.json")):
            continue
        with _noted(found, None, f"{path}/zarr.json"):
            damaged.append(path)
            sound[path] = fmt.read_record(store.path / path / "zarr.json", required)
            damaged.pop()
    if folder == "teachers":
        of_path = {f"teachers/{kind}": records for kind, records in said.items() if kind != SCANS and records}
        foreign = [path for path, record in sound.items() if record not in of_path.get(path, [record])]
        wanted = {path: records[0] for path, records in of_path.items() if path not in sound or path in foreign}
    else:
        foreign = _foreign_sources(store, sound, said.get(SCANS, []))
        kept = [record for path, record in sound.items() if path not in foreign]
        wanted = _lost_sources([*foreign, *damaged], sound, kept, said.get(SCANS, []))
    for path in {*wanted, *foreign} - set(damaged):
        what = "not what its blocks were made with" if path in foreign else "missing, though blocks were made with it"
        found.damage.append(Damage(None, f"{path}/zarr.json", f"it is {what}"))
    found.records |= {f"{path}/zarr.json": record for path, record in wanted.items()}
    return {path: record for path, record in sound.items() if path not in foreign} | wanted


def _foreign_sources(store: FeatureStore, sound: dict[str, dict], said: list[dict]) -> list[str]:
    """Find records of sources whose blocks all repeat another record, and second copies of a record; return paths."""
    unknown = [record for record in said if record not in sound.values()]
    foreign = [path for path, record in sound.items() if record not in said and _meets(record, unknown)]
    for record in _unique(list(sound.values())):
        copies = [path for path in sound if sound[path] == record]
        genuine = next((path for path in copies if _has_table_of(store.path / path, record)), copies[-1])
        foreign += [path for path in copies if path not in (genuine, *foreign)]
    return foreign


def _has_table_of(source: Path, record: dict) -> bool:
    try:
        return frames_sha256(fmt.read_frames(source)) == record.get("frames_sha256")
    except (FileNotFoundError, DamagedError, UnreadableError):
        return False


def _lost_sources(paths: list[str], sound: dict[str, dict], kept: list[dict], said: list[dict]) -> dict[str, dict]:
    """Find records that blocks repeat but the store lacks, by the path at which they are to be restored."""
    lost: list[dict] = []
    # The most frequent record comes first: another record of the same blocks comes from blocks of another store.
    for record in said:
        if not _meets(record, [*kept, *lost]):
            lost.append(record)
    lost.sort(key=lambda record: record["first_block"])
    free = (f"sources/{number:03d}" for number in range(1000) if f"sources/{number:03d}" not in {*sound, *paths})
    return dict(zip([*sorted(paths), *itertools.islice(free, len(lost))], lost, strict=False))


def _meets(record: dict, others: list[dict]) -> bool:
    return any(_blocks_of(record) & _blocks_of(other) for other in others)


def _blocks_of(record: dict) -> set[int]:
    return set(source_of(record).blocks)


# --- blocks --------------------------------------------------------------------------------------------------------


def _check_block(store: FeatureStore, block: int, teachers: list[str], found: Findings) -> None:
    scans = None
    for kind in (SCANS, *teachers):
        with _noted(found, block, kind):
            _check_files(store, kind, block, found)
            if kind == SCANS:
                scans = store.read_scans(block)
                _check_scans(scans)
            elif scans is not None:
                _check_targets(store, kind, block, scans)


@contextmanager
def _noted(found: Findings, block: int | None, kind: str) -> Iterator[None]:
    """Record errors raised inside the context in `found`."""
    try:
        yield
    except UnreadableError as error:
        found.unreadable.append(f"{error.where}: {error.what}")
        if block is not None:
            found.closed.add(block)
    except FileNotFoundError as error:
        what = "it is missing" if block is None else f"{error.filename} is missing"
        found.damage.append(Damage(block, kind, what))
    except DamagedError as error:
        found.damage.append(Damage(block, kind, error.what))
    except _WrongError as error:
        found.damage.append(Damage(block, kind, str(error)))


class _WrongError(Exception):
    """A check failed."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _WrongError(what)


def _check_files(store: FeatureStore, kind: str, block: int, found: Findings) -> None:
    group, index = fmt.group_path(store.path, kind, block), fmt.index_path(store.path, kind, block)
    own = group / fmt.GROUP_INDEX
    _require(read_bytes(index) == read_bytes(own), f"{index} and {own} differ")
    metadata = fmt.read_metadata(index)
    _require(metadata.group == fmt.group_name(kind, block), f"{index} is that of {metadata.group}")
    same = metadata.record == store.record_of(kind, block)
    _require(same, f"{index} names other settings than are recorded")
    there = {path.relative_to(group).as_posix() for path in fmt.files_of_group(group, kind)}
    for name, listed in sorted(metadata.files.items()):
        _require(name in there, f"{group / name} is missing")
        _require(
            fmt.describe_file(group / name) == listed, f"{group / name} has changed since it was written (SHA-256)"
        )
    found.stray += sorted(f"{fmt.group_name(kind, block)}/{name}" for name in there - metadata.files.keys())


def _check_scans(scans: ScanBlock) -> None:
    names = ("points_start", "points_stop", "pairs_start", "pairs_stop")
    column = {name: scans.views[name].to_numpy() for name in names}
    _check_ranges("pairs", column["pairs_start"], column["pairs_stop"], len(scans.pixel))
    _require(len(scans.point_index) == len(scans.pixel), "point_index and pixel differ in length")
    if scans.superpixel is not None:
        _require(len(scans.superpixel) == len(scans.pixel), "superpixel and pixel differ in length")
        _require(scans.views["superpixels_sha256"].null_count == 0, "a view has no digest of its superpixels")
    _require(column["points_stop"].max(initial=0) == len(scans.points), "the index and points differ in length")
    _require(bool(np.isfinite(scans.points).all()), "a point is not finite")
    per_view = column["pairs_stop"] - column["pairs_start"]
    num_points = np.repeat(column["points_stop"] - column["points_start"], per_view)
    _require(bool((scans.point_index < num_points).all()), "a point_index is beyond its scan")
    for axis, name in enumerate(("image_height", "image_width")):
        limit = np.repeat(scans.views[name].to_numpy(), per_view)
        _require(bool((scans.pixel[:, axis] < limit).all()), "a pixel is beyond its image")


def _check_targets(store: FeatureStore, teacher: str, block: int, scans: ScanBlock) -> None:
    targets = store.read_targets(block, teacher)
    start, stop = targets.views["start"].to_numpy(), targets.views["stop"].to_numpy()
    _check_ranges("vectors", start, stop, 0 if targets.vectors is None else len(targets.vectors))
    for name in ("token", "camera"):
        _require(targets.views[name].equals(scans.views[name]), f"its {name}s are not those of the scans")
    _check_segments(store, teacher, scans, targets)
    if targets.vectors is None:
        return
    if targets.scale is not None:
        _require(len(targets.scale) == len(targets.vectors), "scale and vectors differ in length")
        is_scale = np.isfinite(targets.scale) & (targets.scale >= 0)
        _require(bool(is_scale.all()), "a scale is not finite, or negative")
        _require(not targets.vectors[targets.scale == 0].any(), "a vector is not zero, though its scale is")
        _require(targets.channels.shape == (2, store.target_dim(teacher)), "channels are not one of each dimension")
        are_channels = np.isfinite(targets.channels).all() and (targets.channels[1] > 0).all()
        _require(bool(are_channels), "a channel's offset is not finite, or its scale not positive")
    else:
        _require(bool(np.isfinite(targets.vectors).all()), "a vector is not finite")
    _require((stop - start).tolist() == _expected_vectors(store, teacher, scans), "vectors and pairs do not match")


def _check_segments(store: FeatureStore, teacher: str, scans: ScanBlock, targets: TargetBlock) -> None:
    segments = targets.segments
    if segments is None:
        return
    start, stop = (targets.views[f"segments_{end}"].to_numpy() for end in ("start", "stop"))
    _check_ranges("segments", start, stop, len(segments))
    _require({len(each) for each in segments.arrays} == {len(segments)}, "arrays of segments differ in length")
    for name, vectors in (("mean", segments.mean), ("direction", segments.direction)):
        _require(vectors.shape[1:] == (store.target_dim(teacher),), f"{name} of segments has another dimension")
        lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
        _require(bool((lengths <= LONGEST).all()), f"{name} of a segment is not finite, or longer than 1")  # no NaN
    _require(not segments.mean[segments.pixels == 0].any(), "the mean of a segment is not zero, though it has no pixel")
    for (ours, row), scan in zip(targets.segments_by_view(), scans.views.to_pylist(), strict=True):
        held = np.unique(scans.superpixel[scan["pairs_start"] : scan["pairs_stop"]])
        _require(np.array_equal(ours.id, held), f"segments of frame {row['token']} are not those of its pairs")


def _check_ranges(name: str, start: np.ndarray, stop: np.ndarray, length: int) -> None:
    joined = start[:1].sum() == 0 and (start[1:] == stop[:-1]).all() and (start <= stop).all()
    _require(bool(joined), f"the index' ranges of {name} do not follow each other")
    _require(stop.max(initial=0) == length, f"the index and {name} differ in length")


def _expected_vectors(store: FeatureStore, teacher: str, scans: ScanBlock) -> list[int]:
    numbers = []
    for row in scans.views.to_pylist():
        pixel = scans.pixel[row["pairs_start"] : row["pairs_stop"]]
        reads = store.footprint(teacher, pixel, (row["image_height"], row["image_width"]))
        numbers.append(num_vectors(reads, store.encoding(teacher)))
    return numbers


# --- strays --------------------------------------------------------------------------------------------------------


def _strays_beside_blocks(store: FeatureStore) -> Iterator[str]:
    """Yield names in the store's folders, down to the blocks, that do not belong to it."""
    sources = {name for name in names_in(store.path / "sources") if is_folder(store.path / "sources" / name)}
    sources = {name for name in sources if not is_litter(name)}
    expected = {
        "": {"zarr.json", "index", fmt.GATHERED, fmt.TMP, fmt.ASIDE, *fmt.SKELETON},
        "sources": {"zarr.json", *sources},
        "teachers": {"zarr.json", *store.teachers},
        "index": {SCANS, *store.teachers},
        fmt.GATHERED: {f"{kind}.parquet" for kind in (SCANS, *store.teachers) if agrees_with_indexes(store, kind)},
        **{f"sources/{name}": {"zarr.json", fmt.FRAMES_TABLE} for name in sources},
        **{f"teachers/{name}": {"zarr.json", "batch", STATISTICS} for name in store.teachers},
        **{f"teachers/{name}/{STATISTICS}": set(store.named_sources) for name in store.teachers},
    }
    for folder, names in expected.items():
        there = names_in(store.path / folder) if is_folder(store.path / folder) else []
        yield from (f"{folder}/{name}".lstrip("/") for name in there if name not in names)
    for kind in (SCANS, *store.teachers):
        names = names_in(store.path / "index" / kind)
        yield from (f"index/{kind}/{name}" for name in names if not NUMBERED_INDEX.fullmatch(name))
    for name in names_in(store.path / "blocks"):
        if name != "zarr.json" and not (name.isdigit() and len(name) >= 6):
            yield f"blocks/{name}"
