"""The format on disk: names, schemas, arrays and indexes. docs/store.md is its description for people.

    store.zarr/
      zarr.json                     format and version
      sources/000/zarr.json         a split of a dataset: its settings and its range of blocks
      teachers/NAME/zarr.json       what one teacher's targets depend on
      blocks/000017/                points, pairs/point_index, pairs/pixel, index.parquet
      blocks/000017/targets/NAME/   vectors, scale (int8 only), index.parquet
      index/scans/000017.parquet    the copy of a group's index.parquet that makes the group count: one row per view
      index/NAME/000017.parquet
      tmp/OWNER/                    what running jobs have not committed yet; readers never look there

A group's index lists, besides the views, every file of the group with its SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...checkpoint_files import sha256_of_file
from ...errors import StoreError

FORMAT, FORMAT_VERSION = "scalr-store", 1

# Chosen with tests/benchmarks/store_layout.py; docs/store.md has the figures.
CHUNK_BYTES = 1 << 20  # of raw values: a view of nuScenes is a few chunks
SHARD_BYTES = 1 << 28  # of raw values: above 64 MB when compressed, one file for a block of ordinary size
COMPRESSION_LEVEL = 3

SCANS = "scans"  # the kind of index that is no teacher's name
GROUP_INDEX = "index.parquet"
# Of an index's metadata:
FILES_KEY = b"scalr.files"  # path in the group -> SHA-256
SKIPPED_KEY = b"scalr.skipped"  # scans only: token of a frame that could not be used -> why

SCANS_SCHEMA = pa.schema(
    [
        ("block", pa.int32()),
        *((name, pa.string()) for name in ("dataset", "split", "scene", "token")),
        ("timestamp", pa.int64()),
        *((name, pa.string()) for name in ("camera", "image")),
        *((name, pa.int32()) for name in ("image_height", "image_width")),
        *((name, pa.int64()) for name in ("points_start", "points_stop", "pairs_start", "pairs_stop")),
        ("pairs_hidden", pa.int64()),
    ]
)
TARGETS_SCHEMA = pa.schema(
    [
        ("block", pa.int32()),
        *((name, pa.string()) for name in ("token", "camera")),
        *((name, pa.int64()) for name in ("start", "stop")),
        *((name, pa.float32()) for name in ("mean_cosine", "worst_cosine")),  # of stored and exact vectors
    ]
)


def schema_of(kind: str) -> pa.Schema:
    return SCANS_SCHEMA if kind == SCANS else TARGETS_SCHEMA


def block_name(block: int) -> str:
    return f"{block:06d}"


def group_path(store: Path, kind: str, block: int) -> Path:
    """The folder of a block's scans, or of one teacher's targets in it."""
    path = store / "blocks" / block_name(block)
    return path if kind == SCANS else path / "targets" / kind


def index_path(store: Path, kind: str, block: int) -> Path:
    return store / "index" / kind / f"{block_name(block)}.parquet"


def write_group(path: Path, attributes: dict) -> None:
    import zarr  # what only looks at a store needs none

    path.mkdir(parents=True, exist_ok=True)
    zarr.create_group(path, attributes=attributes, overwrite=False)


def read_attributes(path: Path, required: Iterable[str] = ()) -> dict:
    """The attributes in a zarr.json.

    Raises:
        StoreError: it cannot be read, or lacks one that is required.
    """
    try:
        attributes = json.loads(path.read_text())["attributes"]
        for name in required:
            attributes[name]
        return attributes
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"its metadata cannot be read ({type(error).__name__}: {error})",
            where=path,
            fix="Restore the file, or extract into a new store.",
        ) from None


def write_array(path: Path, values: np.ndarray) -> None:
    """Write an array and read it back: what is about to be committed is what was meant."""
    import zarr
    from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

    chunk, shard = chunking(values.shape, values.itemsize)
    array = zarr.create_array(
        path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunk,
        shards=shard,
        compressors=[
            BloscCodec(
                cname="zstd",
                clevel=COMPRESSION_LEVEL,
                shuffle=BloscShuffle.noshuffle if values.itemsize == 1 else BloscShuffle.bitshuffle,
                typesize=values.itemsize,
            ),
            Crc32cCodec(),
        ],
    )
    array[...] = values
    read = zarr.open_array(path, mode="r")[...]
    if read.tobytes() != np.ascontiguousarray(values).tobytes():  # bytes: NaN equals itself, and float16 is fast
        raise StoreError(
            "the values read back are not the ones written", where=path, fix="Check the disk, then run again."
        )


def chunking(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of a chunk and of a shard; all columns together, since a view reads whole rows."""
    row_bytes = itemsize * int(np.prod(shape[1:]))
    chunk_rows = max(1, CHUNK_BYTES // row_bytes)
    chunks_per_shard = max(1, SHARD_BYTES // CHUNK_BYTES)
    chunks_needed = max(1, -(-shape[0] // chunk_rows))
    shard_rows = chunk_rows * min(chunks_per_shard, chunks_needed)
    return (chunk_rows, *shape[1:]), (shard_rows, *shape[1:])


def write_index(views: pa.Table, kind: str, group: Path, skipped: dict[str, str] | None = None) -> None:
    """Write a group's own index, last of its files; it lists the others."""
    metadata = {FILES_KEY: json.dumps(file_digests(group, kind))}
    if skipped:
        metadata[SKIPPED_KEY] = json.dumps(skipped)
    schema = schema_of(kind)
    table = views.select(schema.names).cast(schema).replace_schema_metadata(metadata)
    pq.write_table(table, group / GROUP_INDEX)


def read_index(path: Path, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All columns of a kind of index, or some; those that a later release may add stay unread."""
    schema = schema_of(kind)
    wanted = pa.schema([schema.field(name) for name in columns or schema.names])
    return pq.ParquetFile(path).read(wanted.names).select(wanted.names).cast(wanted)


def listed_files(index: Path) -> dict[str, str]:
    """The files that an index lists, with their SHA-256."""
    return json.loads(pq.read_schema(index).metadata[FILES_KEY])


def skipped_frames(index: Path) -> dict[str, str]:
    """The frames that a block of scans was committed without: token -> why."""
    return json.loads(pq.read_schema(index).metadata.get(SKIPPED_KEY, b"{}"))


def file_digests(group: Path, kind: str) -> dict[str, str]:
    """SHA-256 of each file of a group, its index left out."""
    return {str(path.relative_to(group)): sha256_of_file(path) for path in sorted(files_of_group(group, kind))}


def files_of_group(group: Path, kind: str) -> Iterator[Path]:
    """The files of a block's scans without its targets, or those of one teacher's targets; the index left out."""
    for path in group.rglob("*"):
        inside = path.relative_to(group).parts
        belongs_to_targets = kind == SCANS and inside[0] == "targets" and len(inside) > 2
        if path.is_file() and inside != (GROUP_INDEX,) and not belongs_to_targets:
            yield path
