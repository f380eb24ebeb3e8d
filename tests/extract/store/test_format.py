"""Records and indexes that are damaged or lack something."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr.errors import StoreError
from scalr.extract.store import open_store
from scalr.extract.store.format import read_record, write_frames, write_record
from scalr.extract.store.inspect import inspect_store
from small_store import filled_store


@pytest.mark.parametrize(("kind", "column"), [("scans", "pairs_stop"), ("scans", "token"), ("t", "start")])
def test_an_index_that_lacks_a_column_is_said(tmp_path, kind, column):
    store = filled_store(tmp_path / "s.zarr")
    path = store.path / f"index/{kind}/000000.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    again = open_store(store.path)
    with pytest.raises(StoreError, match=rf"the index file cannot be read .*{column}"):
        again.read_view(0, "t") if column != "token" else again.views


def test_tables_are_compressed_as_the_page_says(tmp_path):
    store = filled_store(tmp_path / "s.zarr")
    frames = write_frames(pa.table({"token": ["a"]}), tmp_path)
    for file in (store.path / "index/scans/000001.parquet", store.path / "index/t/000000.parquet", frames):
        columns = pq.read_metadata(file).row_group(0)
        assert {columns.column(number).compression for number in range(columns.num_columns)} == {"ZSTD"}


def test_a_damaged_index_is_said(tmp_path):
    store = filled_store(tmp_path / "s.zarr")
    (tmp_path / "s.zarr/index/scans/000001.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(StoreError, match="the index file cannot be read"):
        open_store(store.path).views  # noqa: B018


@pytest.mark.parametrize(("group", "key"), [("teachers/t", "encoding"), ("sources/000", "num_blocks")])
def test_metadata_that_lacks_something_is_said(tmp_path, group, key):
    path = filled_store(tmp_path / "s.zarr").path
    attributes = read_record(path / group / "zarr.json")
    del attributes[key]
    shutil.rmtree(path / group)
    write_record(path / group, attributes)
    with pytest.raises(StoreError, match=rf"{group}/zarr.json: the metadata cannot be used .no '{key}'."):
        inspect_store(open_store(path))
