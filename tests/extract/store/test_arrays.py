"""Arrays come piece by piece, and are read only where every file of theirs is there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from scalr.errors import StoreError
from scalr.extract.store import arrays
from scalr.extract.store.arrays import ArrayWriter, chunking, create_array, fill_value, open_array


@pytest.fixture
def small_shards(monkeypatch):
    """Chunks of 64 bytes, four of them in a shard: 32 rows of two float32."""
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 64)
    monkeypatch.setattr(arrays, "SHARD_BYTES", 256)


def written(path, pieces: list[np.ndarray]) -> ArrayWriter:
    writer = ArrayWriter(path, (2,), "float32")
    for piece in pieces:
        writer.append(piece)
    writer.finish()
    return writer


@pytest.mark.parametrize("lengths", [[], [0], [5], [32], [31, 1], [33], [10, 30, 50, 7], [64, 0, 1], [200]])
def test_pieces_become_one_array(tmp_path, small_shards, lengths):
    rng = np.random.default_rng(0)
    pieces = [rng.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    writer = written(tmp_path / "a", pieces)
    values = np.concatenate([np.empty((0, 2), np.float32), *pieces])
    assert writer.rows == len(values)
    np.testing.assert_array_equal(open_array(tmp_path / "a")[...], values)
    files = [path for path in (tmp_path / "a/c").rglob("*") if path.is_file()]
    assert len(files) == -(-len(values) // 32)


def test_a_shard_is_written_as_soon_as_it_is_full(tmp_path, small_shards):
    """So that no more than one waits in memory, however long the block."""
    writer = ArrayWriter(tmp_path / "a", (2,), "float32")
    for number in range(20):
        writer.append(np.zeros((10, 2), np.float32))
        assert writer.rows == 10 * (number + 1) // 32 * 32


def test_the_last_shard_of_a_large_array_is_as_large_as_the_others_may_be(tmp_path, small_shards):
    written(tmp_path / "a", [np.zeros((40, 2), np.float32)])
    assert zarr.open_array(tmp_path / "a").shards == (32, 2)
    written(tmp_path / "b", [np.zeros((9, 2), np.float32)])
    assert zarr.open_array(tmp_path / "b").shards == (16, 2)


@pytest.mark.parametrize("break_it", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_an_array_of_which_a_file_is_missing_or_empty_is_not_opened(tmp_path, small_shards, break_it):
    written(tmp_path / "a", [np.zeros((100, 2), np.float32)])
    break_it(tmp_path / "a/c/2/0")
    with pytest.raises(FileNotFoundError) as caught:
        open_array(tmp_path / "a")
    assert caught.value.filename == str(tmp_path / "a/c/2/0")


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint16", "uint32"])
def test_what_other_readers_see_of_a_file_that_is_gone_is_no_value(tmp_path, dtype):
    array = create_array(tmp_path / "a", (5, 2), np.dtype(dtype))
    read = zarr.open_array(tmp_path / "a", mode="r")[...]
    assert read.dtype == array.dtype == np.dtype(dtype)
    expected = {"float16": np.nan, "float32": np.nan, "int8": -128, "uint16": 65535, "uint32": 4294967295}[dtype]
    np.testing.assert_array_equal(read, np.full((5, 2), expected, dtype))
    np.testing.assert_array_equal(fill_value(np.dtype(dtype)), expected)


def test_zeros_are_values_and_are_written(tmp_path, small_shards):
    written(tmp_path / "a", [np.zeros((100, 2), np.float32)])
    assert (open_array(tmp_path / "a")[...] == 0).all()


def test_what_a_disk_loses_is_noticed_in_any_shard(tmp_path, small_shards, monkeypatch):
    real = zarr.open_array

    class Forgetful:
        """Gives the values of another row from the second shard on."""

        def __init__(self, path, mode):
            self._array = real(path, mode=mode)

        def __getitem__(self, rows):
            return self._array[rows] + np.float32(rows.start >= 32)

    monkeypatch.setattr(zarr, "open_array", Forgetful)
    with pytest.raises(StoreError, match=r"a: the values read back differ from the values written\. Check the disk"):
        written(tmp_path / "a", [np.ones((64, 2), np.float32)])


@pytest.mark.parametrize(("rows", "columns", "itemsize"), [(10**7, 1024, 2), (10**6, 4, 4), (300, 768, 1), (0, 2, 2)])
def test_chunks_are_a_megabyte_and_files_large_but_no_larger_than_needed(rows, columns, itemsize):
    """A view of nuScenes is a few chunks; shards spare shared storage small files (at least 64 MB compressed)."""
    (chunk_rows, chunk_columns), (shard_rows, shard_columns) = chunking((rows, columns), itemsize)
    assert chunk_columns == shard_columns == columns
    assert 2**19 < chunk_rows * columns * itemsize <= 2**20
    assert shard_rows % chunk_rows == 0
    assert shard_rows * columns * itemsize <= 2**27
    assert shard_rows * columns * itemsize > 2**26 or rows <= shard_rows < rows + chunk_rows or rows == 0
    assert shard_rows == chunk_rows or rows


def test_a_row_that_is_larger_than_a_chunk_is_one():
    assert chunking((5, 2**21), 2) == ((1, 2**21), (5, 2**21))


@pytest.mark.parametrize(
    ("dtype", "shuffle"), [("float16", "bitshuffle"), ("uint32", "bitshuffle"), ("int8", "noshuffle")]
)
def test_arrays_are_compressed_as_the_page_says(tmp_path, dtype, shuffle):
    """docs/store_format.md: zstd at level 3 by Blosc, bits shuffled but those of int8, each chunk with its CRC32C."""
    array = ArrayWriter(tmp_path / "a", (3,), dtype)
    array.append(np.ones((5, 3), dtype))
    array.finish()
    (sharding,) = json.loads((tmp_path / "a/zarr.json").read_text())["codecs"]
    blosc, checksum = sharding["configuration"]["codecs"][1:]
    settings = {name: blosc["configuration"][name] for name in ("cname", "clevel", "shuffle", "typesize")}
    expected = {"cname": "zstd", "clevel": 3, "shuffle": shuffle, "typesize": np.dtype(dtype).itemsize}
    assert (blosc["name"], settings, checksum["name"]) == ("blosc", expected, "crc32c")
