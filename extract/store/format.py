"""The format on disk: names, schemas, records and indexes. docs/store_format.md specifies it.

    store.zarr/
      zarr.json                     format and version
      sources/000/zarr.json         a split of a dataset: its settings and its range of blocks
      sources/000/frames.parquet    the dataset's tables of its frames
      teachers/NAME/zarr.json       everything that one teacher's targets depend on
      teachers/NAME/statistics/000/ mean, covariance, mean_unit of its vectors in a sample of source 000
      blocks/000017/                points, pairs/point_index, pairs/pixel, index.parquet
                                    and pairs/superpixel, if the source has superpixels
      blocks/000017/targets/NAME/   vectors, scale and channels (int8 only), index.parquet
                                    and segments/, if the source has superpixels
      index/scans/000017.parquet    the copy of a group's index.parquet that commits the group: one row per view
      index/NAME/000017.parquet
      gathered/scans.parquet        the rows of all indexes of a kind, for faster reading; never needed
      aside/                        what was removed; it may be inspected or deleted
      tmp/OWNER/                    what running jobs have not committed yet; readers ignore it

A group's index lists, besides the views, every file of the group with its size and SHA-256, and repeats the record of
the source or teacher with which it was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...checkpoint_files import sha256_of_file
from ...errors import DamagedError, StoreError
from .files import files_below, read_bytes, readable

FORMAT = "scalr-store"
# A store has the lowest version that suffices: without superpixels, earlier releases read and write it.
FORMAT_VERSION, SUPERPIXELS_VERSION = 3, 4
SKELETON = ("teachers", "sources", "blocks")  # zarr groups without attributes

SCANS = "scans"  # the kind of index for scans; all other kinds are names of teachers
GROUP_INDEX = "index.parquet"
FRAMES_TABLE = "frames.parquet"
ASIDE, TMP = "aside", "tmp"
GATHERED = "gathered"
DIGEST = "sha256"  # attribute of a record with the digest of the others, which reveals changes
ALTERED = "altered since it was written"
MAKE_ONE = "Pass the folder of a store, which 'scalr extract' writes."
SUPERPIXEL = "pairs/superpixel"  # array of a block's scans, if the source has superpixels
SEGMENTS = "segments"  # group of a teacher's targets, if the source has superpixels; two of its arrays have D columns:
SEGMENT_ARRAYS = {"id": "uint16", "pixels": "uint32", "mean": "float16", "direction": "float16"}
# Keys of an index's metadata; each value is JSON:
GROUP_KEY = b"scalr.group"  # the group's path in the store
FILES_KEY = b"scalr.files"  # path in the group -> bytes and SHA-256
RECORD_KEY = b"scalr.record"  # the attributes of the group's source or teacher
SKIPPED_KEY = b"scalr.skipped"  # scans only: ID of a frame that could not be used -> reason
SIGNED_KEYS = (GROUP_KEY, FILES_KEY, RECORD_KEY, SKIPPED_KEY)
SIGNATURE_KEY = b"scalr.sha256"  # digest of the other keys: pages of the file have checksums, its metadata have none

SCANS_SCHEMA = pa.schema(
    [
        ("block", pa.int32()),
        *((name, pa.string()) for name in ("dataset", "split", "scene", "token")),
        ("timestamp", pa.int64()),
        *((name, pa.string()) for name in ("camera", "image")),
        *((name, pa.int32()) for name in ("image_height", "image_width")),
        *((name, pa.int64()) for name in ("points_start", "points_stop", "pairs_start", "pairs_stop")),
        ("pairs_hidden", pa.int64()),
        *((name, pa.binary(32)) for name in ("image_sha256", "scan_sha256")),
        ("crc32c", pa.uint32()),  # of the view's points, point_index, pixel and superpixel
        ("superpixels_sha256", pa.binary(32)),  # of the complete map; optional, as below
    ]
)
# Cosines between stored and exact vectors, as they are and after subtracting the teacher's mean from both.
COSINES = ("mean_cosine", "worst_cosine", "mean_cosine_centred", "worst_cosine_centred")
TARGETS_SCHEMA = pa.schema(
    [
        ("block", pa.int32()),
        *((name, pa.string()) for name in ("token", "camera")),
        *((name, pa.int64()) for name in ("start", "stop")),
        *((name, pa.float32()) for name in COSINES),
        ("crc32c", pa.uint32()),  # of the view's crc32c, vectors, scale and channels
        *((name, pa.int64()) for name in ("segments_start", "segments_stop")),
        ("segments_crc32c", pa.uint32()),  # of the view's crc32c and its rows of the arrays of segments
    ]
)
# Tables in memory always have these columns; a file has them if its source has superpixels.
OPTIONAL_COLUMNS = frozenset({"superpixels_sha256", "segments_start", "segments_stop", "segments_crc32c"})


def schema_of(kind: str) -> pa.Schema:
    return SCANS_SCHEMA if kind == SCANS else TARGETS_SCHEMA


def root_attributes(*, with_superpixels: bool) -> dict:
    """The attributes in the zarr.json at the top of a store."""
    return {"format": FORMAT, "format_version": SUPERPIXELS_VERSION if with_superpixels else FORMAT_VERSION}


def block_name(block: int) -> str:
    return f"{block:06d}"


def group_name(kind: str, block: int) -> str:
    """The path in the store of a block's scans, or of one teacher's targets of the block."""
    path = f"blocks/{block_name(block)}"
    return path if kind == SCANS else f"{path}/targets/{kind}"


def group_path(store: Path, kind: str, block: int) -> Path:
    return store / group_name(kind, block)


def index_path(store: Path, kind: str, block: int) -> Path:
    return store / "index" / kind / f"{block_name(block)}.parquet"


def gathered_path(store: Path, kind: str) -> Path:
    return store / GATHERED / f"{kind}.parquet"


def crc32c(start: int, *arrays: np.ndarray) -> int:
    """CRC32C over the concatenated bytes of arrays, continuing from `start`."""
    import google_crc32c  # not needed to inspect a store

    for array in arrays:
        start = google_crc32c.extend(start, np.ascontiguousarray(array))
    return start


# --- records: what describes the store -----------------------------------------------------------------------------


def write_record(path: Path, attributes: Mapping) -> None:
    """Write a zarr group whose attributes include their digest, which reveals changes."""
    write_group(path, {**attributes, DIGEST: digest(attributes)})


def write_group(path: Path, attributes: dict) -> None:
    import zarr  # not needed to inspect a store

    path.mkdir(parents=True, exist_ok=True)
    zarr.create_group(path, attributes=attributes, overwrite=False)


def read_record(path: Path, required: Iterable[str] = ()) -> dict:
    """Read the attributes in a record's zarr.json, without their digest.

    Raises:
        FileNotFoundError: the record does not exist.
        UnreadableError: the record cannot be read now.
        DamagedError: the record was altered, or lacks a required attribute.
    """
    attributes, signature = _parse_record(read_bytes(path), path)
    if signature != digest(attributes):
        raise damaged(path, ALTERED)
    for name in required:
        if name not in attributes:
            raise damaged(path, f"no '{name}'")
    return attributes


def read_group(path: Path) -> dict:
    """Read the attributes in the zarr.json of a group that is no record.

    Raises:
        FileNotFoundError, UnreadableError, DamagedError: as in `read_record`.
    """
    return _parse_record(read_bytes(path), path)[0]


def _parse_record(content: bytes, path: Path) -> tuple[dict, str | None]:
    """Parse a zarr.json to its attributes and their digest."""
    try:
        attributes = dict(json.loads(content)["attributes"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None
    return attributes, attributes.pop(DIGEST, None)


def check_root(path: Path) -> None:
    """Check that the zarr.json at the top of a folder is that of a store which this release reads.

    Raises:
        FileNotFoundError, UnreadableError: as in `read_bytes`.
        DamagedError: it was altered.
        StoreError: it belongs to something else, or to another version.
    """
    attributes, signature = _parse_record(read_bytes(path), path)
    version, known = attributes.get("format_version"), (FORMAT_VERSION, SUPERPIXELS_VERSION)
    if signature is None and attributes.get("format") != FORMAT:
        raise StoreError("the folder is a zarr group, but not a feature store", where=path.parent, fix=MAKE_ONE)
    if signature != digest(attributes) and (signature is not None or version in known):
        raise damaged(path, ALTERED)
    if version not in known:
        raise StoreError(
            f"the store has format version {version}; this release reads {FORMAT_VERSION} and {SUPERPIXELS_VERSION}",
            where=path.parent,
            fix="Use the release of scalr that wrote the store, or extract again into a new store.",
        )


def digest(attributes: Mapping) -> str:
    """SHA-256 over attributes as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(
        f"the metadata cannot be used ({reason})",
        where=path,
        fix="Run 'scalr verify' with --repair: it restores the file from the blocks.",
    )


def write_frames(frames: pa.Table, source: Path) -> Path:
    """Write the table of frames next to a source's record; return the file."""
    _write_table(frames, source / FRAMES_TABLE)
    return source / FRAMES_TABLE


def read_frames(source: Path) -> pa.Table:
    """Read the table of a source's frames.

    Raises:
        FileNotFoundError, UnreadableError, DamagedError: as in `open_index`.
    """
    path = source / FRAMES_TABLE
    file = open_index(path)
    try:
        return file.read(use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged_index(path, error) from None


# --- indexes: what is in a group -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListedFile:
    """The entry of a file in an index."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexMetadata:
    """The metadata of an index: everything besides its rows."""

    group: str  # path in the store
    files: dict[str, ListedFile]  # by path in the group, without the index itself
    record: dict  # attributes of the source or teacher
    skipped: dict[str, str]  # scans only: ID of a frame that could not be used -> reason


def write_index(
    views: pa.Table, kind: str, block: int, group: Path, record: Mapping, skipped: Mapping[str, str] | None = None
) -> None:
    """Write a group's own index, after all its other files, which it lists."""
    listed = {name: vars(file) for name, file in list_files(group, kind).items()}
    metadata = {GROUP_KEY: group_name(kind, block), FILES_KEY: listed, RECORD_KEY: dict(record)}
    if skipped:
        metadata[SKIPPED_KEY] = dict(skipped)
    metadata[SIGNATURE_KEY] = _signature(metadata)
    schema = pa.schema([field for field in schema_of(kind) if _is_written(field.name, views)])
    table = views.select(schema.names).cast(schema)
    table = table.replace_schema_metadata({key: json.dumps(value) for key, value in metadata.items()})
    _write_table(table, group / GROUP_INDEX)


def _write_table(table: pa.Table, path: Path) -> None:
    with path.open("wb") as file:  # arrow accepts only paths in UTF-8
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def _is_written(name: str, views: pa.Table) -> bool:
    if name not in OPTIONAL_COLUMNS:
        return True
    return name in views.column_names and views[name].null_count < len(views)


def open_index(path: Path) -> pq.ParquetFile:
    """Open an index for reading; its pages are compared with their checksums.

    Raises:
        FileNotFoundError: the index does not exist.
        UnreadableError: the index cannot be read now.
        DamagedError: the file is no index any more.
    """
    content = read_bytes(path)
    try:
        return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged_index(path, error) from None


def read_index(path: Path, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all or some columns of an index; unknown columns of later releases are ignored, optional ones may be null.

    Raises:
        FileNotFoundError, UnreadableError, DamagedError: as in `open_index`.
    """
    file = open_index(path)
    try:
        return read_columns(file, kind, columns, range(file.num_row_groups))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _damaged_index(path, error) from None


def read_columns(file: pq.ParquetFile, kind: str, columns: Sequence[str] | None, row_groups: Sequence[int]) -> pa.Table:
    """Read all or some columns of some row groups of an open file."""
    schema = schema_of(kind)
    wanted = pa.schema([schema.field(name) for name in columns or schema.names])
    absent = (OPTIONAL_COLUMNS & {*wanted.names}) - {*file.schema_arrow.names}
    # Without arrow's threads: a reader of many indexes has threads of its own.
    present = [name for name in wanted.names if name not in absent]
    table = file.read_row_groups(list(row_groups), present, use_threads=False)
    for name in absent:
        table = table.append_column(name, pa.nulls(len(table), wanted.field(name).type))
    return table.select(wanted.names).cast(wanted)


def read_metadata(path: Path) -> IndexMetadata:
    """Read the metadata of an index.

    Raises:
        FileNotFoundError, UnreadableError, DamagedError: as in `open_index`.
    """
    found = open_index(path).schema_arrow.metadata or {}
    try:
        metadata = {
            key: json.loads(found[key]) for key in (GROUP_KEY, FILES_KEY, RECORD_KEY, SKIPPED_KEY) if key in found
        }
        if json.loads(found[SIGNATURE_KEY]) != _signature(metadata):
            raise ValueError("its metadata have been altered")
        files = {name: ListedFile(**listed) for name, listed in metadata[FILES_KEY].items()}
        return IndexMetadata(metadata[GROUP_KEY], files, metadata[RECORD_KEY], metadata.get(SKIPPED_KEY, {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged_index(path, error) from None


def _signature(metadata: Mapping[bytes, object]) -> str:
    return digest({key.decode(): value for key, value in metadata.items()})


def _damaged_index(path: Path, error: object) -> DamagedError:
    reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return DamagedError(
        f"the index file cannot be read ({reason})",
        where=path,
        fix="Run 'scalr verify' with --repair, then repeat the 'scalr extract' command that wrote the store.",
    )


def list_files(group: Path, kind: str) -> dict[str, ListedFile]:
    """Return size and SHA-256 of each file of a group, without its index.

    Raises:
        UnreadableError: a file cannot be read now.
    """
    return {path.relative_to(group).as_posix(): describe_file(path) for path in files_of_group(group, kind)}


def files_are_as_listed(group: Path, metadata: IndexMetadata) -> bool:
    """Whether a group's files equal those that an index lists, bit by bit; additional files are ignored.

    Raises:
        FileNotFoundError, UnreadableError: as in `read_bytes`.
    """
    return all(describe_file(group / name) == listed for name, listed in metadata.files.items())


def describe_file(path: Path) -> ListedFile:
    """Return size and SHA-256 of a file.

    Raises:
        FileNotFoundError, UnreadableError: as in `read_bytes`.
    """
    with readable(path):
        return ListedFile(path.stat().st_size, sha256_of_file(path))


def files_of_group(group: Path, kind: str) -> Iterator[Path]:
    """Yield the files of a block's scans without its targets, or those of one teacher's targets; without the index."""
    for path in files_below(group):
        inside = path.relative_to(group).parts
        belongs_to_targets = kind == SCANS and inside[0] == "targets" and len(inside) > 2
        if inside != (GROUP_INDEX,) and not belongs_to_targets:
            yield path
