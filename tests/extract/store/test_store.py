"""What is written is read; what does not fit is refused."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

import scalr
from scalr.errors import StoreError
from scalr.extract.store import create_store, open_store
from scalr.extract.store.format import chunking, write_array
from scalr.extract.store.inspect import inspect_store
from small_store import PROVENANCE, SETTINGS, a_block, filled_store
from store_comparison import files


def test_what_is_written_is_read(tmp_path):
    store = filled_store(tmp_path / "s.zarr", blocks=(1, 0))
    assert store.views["block"].to_pylist() == [0, 0, 0, 1, 1, 1]
    for row in range(6):
        block, view = divmod(row, 3)
        scans, targets = a_block(block)
        record = scans.views.slice(view, 1).to_pylist()[0]
        pairs = slice(record["pairs_start"], record["pairs_stop"])
        stored = store.read_view(row, teacher="t")
        np.testing.assert_array_equal(stored.points, scans.points[record["points_start"] : record["points_stop"]])
        np.testing.assert_array_equal(stored.point_index, scans.point_index[pairs])
        np.testing.assert_array_equal(stored.pixel, scans.pixel[pairs])
        np.testing.assert_array_equal(stored.targets, targets.vectors[pairs].astype(np.float32))
        assert stored.targets.dtype == np.float32


def test_a_report_counts_each_vector_once_in_its_mean_cosine(tmp_path):
    """Whatever views and blocks they are in; a view without pairs has no say."""
    path = filled_store(tmp_path / "s.zarr", blocks=()).path
    writer, cosines = create_store(path, "part-0-of-1"), []
    for block in (0, 1):
        scans, targets = a_block(block)
        counts = scans.views["pairs_stop"].to_numpy() - scans.views["pairs_start"].to_numpy()
        mean, worst = np.array([[0.9, 0.5, 0.7], [0.8, 0.4, 0.6]], np.float32)
        cosines += [value for value, count in zip(mean, counts, strict=True) for _ in range(count)]
        views = targets.views.set_column(5, "mean_cosine", [mean]).set_column(6, "worst_cosine", [worst + block / 100])
        writer.write_scans(block, scans)
        writer.write_targets(block, "t", replace(targets, views=views))
    report = inspect_store(open_store(path)).teachers["t"]
    assert report.mean_cosine == pytest.approx(sum(cosines) / len(cosines))
    assert report.worst_cosine == pytest.approx(0.4)
    assert report.vectors == len(cosines)


def test_a_report_counts_what_is_on_disk(tmp_path):
    """Files and bytes as the file system has them, each with what it belongs to."""
    store = filled_store(tmp_path / "s.zarr", blocks=(0,))
    for folder, size in (("part-1-of-2/a", 5), ("part-1-of-2/b", 7), ("repair/c", 1)):
        (store.path / "tmp" / folder).mkdir(parents=True)
        (store.path / "tmp" / folder / "points").write_bytes(bytes(size))
    report = inspect_store(store)
    scans, targets = a_block(0)
    assert (report.frames, report.views, report.points) == (3, 3, len(scans.points))
    assert report.pairs == {"CAM": len(scans.pixel)}
    assert (report.scans.committed_blocks, report.scans.missing_blocks) == (1, [1])
    of_targets = [*store.path.glob("blocks/*/targets/t/**/*"), *store.path.glob("index/t/*")]
    of_scans = [path for path in store.path.glob("blocks/**/*") if "targets/t/" not in str(path)]
    of_scans = [path for path in of_scans if path != store.path / "blocks/zarr.json"]
    of_scans += store.path.glob("index/scans/*")
    everything = store.path.rglob("*")
    for found, paths in ((report.teachers["t"], of_targets), (report.scans, of_scans), (report, everything)):
        sizes = [path.stat().st_size for path in paths if path.is_file()]
        assert (found.files, found.bytes) == (len(sizes), sum(sizes))
    assert report.teachers["t"].bytes_per_pair == pytest.approx(report.teachers["t"].bytes / len(targets.vectors))
    assert report.leftovers == {"part-1-of-2": 12, "repair": 1}


def test_any_zarr_reader_opens_it(tmp_path):
    filled_store(tmp_path / "s.zarr")
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert group.attrs["format"] == "scalr-store"
    assert group["blocks/000000/targets/t/vectors"].dtype == np.float16
    assert sorted(name for name, _ in group["blocks"].members()) == ["000000", "000001"]
    assert group["teachers/t"].attrs["dim"] == 3
    assert group["sources/000"].attrs["split"] == "train"


def test_damage_is_an_error_that_names_the_block(tmp_path):
    """A flipped bit in an array file is never other values."""
    store = filled_store(tmp_path / "s.zarr")
    file = tmp_path / "s.zarr/blocks/000001/points/c/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    store.read_view(0)
    with pytest.raises(StoreError, match=r"block 1: array 'points' cannot be read .*scalr verify"):
        store.read_view(3)
    with pytest.raises(Exception, match="checksum"):
        zarr.open_array(tmp_path / "s.zarr/blocks/000001/points", mode="r")[...]


def test_values_that_a_disk_does_not_keep_are_not_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr, "open_array", lambda path, mode: np.zeros(3))
    with pytest.raises(StoreError, match=r"points: the values read back are not the ones written\. Check the disk"):
        filled_store(tmp_path / "s.zarr")
    assert not open_store(tmp_path / "s.zarr").committed_blocks()


def test_second_teacher_rewrites_nothing(tmp_path):
    path = tmp_path / "s.zarr"
    filled_store(path)
    before = files(path)
    writer = create_store(path, "part-0-of-1")
    writer.add_inputs(SETTINGS, record={}, teachers={"u": {**PROVENANCE, "teacher": "u"}})
    _, targets = a_block(0)
    writer.write_targets(0, "u", replace(targets, vectors=2 * targets.vectors))
    assert before.items() <= files(path).items()
    reopened = open_store(path)
    assert sorted(reopened.teachers) == ["t", "u"]
    np.testing.assert_array_equal(
        reopened.read_view(0, teacher="u").targets, 2 * reopened.read_view(0, teacher="t").targets
    )
    with pytest.raises(StoreError, match="block 1 has no targets of u"):
        reopened.read_view(3, teacher="u")
    assert reopened.rows_with_targets("u").tolist() == [0, 1, 2]


def test_what_is_committed_stays(tmp_path):
    path = tmp_path / "s.zarr"
    filled_store(path)
    before = files(path)
    writer = create_store(path, "part-0-of-1")
    scans, targets = a_block(1)
    assert writer.write_scans(0, replace(scans, points=scans.points + 1)) == 0
    assert writer.write_targets(0, "t", targets) == 0
    assert files(path) == before


def test_other_settings_are_refused_with_both_values(tmp_path):
    filled_store(tmp_path / "s.zarr")
    before = files(tmp_path / "s.zarr")
    add = create_store(tmp_path / "s.zarr", "part-0-of-1").add_inputs
    new, val = {"u": PROVENANCE}, {**SETTINGS, "split": "val"}
    with pytest.raises(StoreError, match="frames_per_block is 3 in the store and 4 now"):
        add({**SETTINGS, "frames_per_block": 4}, {}, new)
    with pytest.raises(StoreError, match=r"image_size is \[24, 32\] in the store and \[48, 64\] now"):
        add(val, {}, {**new, "t": {**PROVENANCE, "image_size": [48, 64]}})
    with pytest.raises(StoreError, match="encoding is 'point' in the store and 'patch' now"):
        add(val, {}, {**new, "t": {**PROVENANCE, "encoding": "patch"}})
    add(SETTINGS, {"root": "another mount"}, {"t": dict(PROVENANCE)})
    assert files(tmp_path / "s.zarr") == before


def test_a_store_travels_to_a_worker_process(tmp_path):
    store = filled_store(tmp_path / "s.zarr")
    store.read_view(0, teacher="t")
    clone = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(clone.read_view(4, "t").targets, store.read_view(4, "t").targets)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: None, "no feature store here"),
        (lambda path: path.mkdir(), "no feature store here"),
        (lambda path: (path.mkdir(), (path / "zarr.json").write_text("{"))[0], "metadata cannot be read"),
        (lambda path: zarr.create_group(path), "not a feature store"),
        (
            lambda path: zarr.create_group(path, attributes={"format": "scalr-store", "format_version": 99}),
            "format version 99",
        ),
    ],
)
def test_what_is_no_store_is_said(tmp_path, break_it, message):
    break_it(tmp_path / "x")
    with pytest.raises(StoreError, match=message):
        scalr.open_store(tmp_path / "x")


def test_a_folder_with_other_things_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(StoreError, match="something else is there"):
            create_store(path, "part-0-of-1")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_unknown_teacher_and_row_are_said(tmp_path):
    store = filled_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"no targets of teacher 'dino' \(it has: t\)"):
        store.read_view(0, teacher="dino")
    for row in (6, -1):
        with pytest.raises(StoreError, match=f"no view {row}, it has 6"):
            store.read_view(row)


def test_what_another_job_adds_meanwhile_is_seen(tmp_path):
    """Two writers that were opened at once: the second finds the first one's settings, and refuses its own."""
    filled_store(tmp_path / "s.zarr")
    first, second = (create_store(tmp_path / "s.zarr", f"part-{part}-of-2") for part in (0, 1))
    assert list(second.store.teachers) == ["t"]
    val = {**SETTINGS, "split": "val"}
    source = first.add_inputs(val, {}, {"u": PROVENANCE})
    assert second.add_inputs(val, {}, {"u": PROVENANCE}) == source
    with pytest.raises(StoreError, match=r"teachers/u: made with other settings: dim is 3 in the store and 4 now"):
        second.add_inputs(val, {}, {"u": {**PROVENANCE, "dim": 4}})
    with pytest.raises(StoreError, match="num_blocks is 2 in the store and 1 now"):
        second.add_inputs({**val, "num_blocks": 1}, {}, {})
    assert (source.first_block, first.batch_size("u", lambda: 5), second.batch_size("u", lambda: 7)) == (2, 5, 5)


def test_targets_that_record_more_are_others(tmp_path):
    """Whichever of the two stores says more."""
    stores = [filled_store(tmp_path / f"{name}.zarr", blocks=()) for name in "ab"]
    stores[0].require_same_targets(stores[1], "t")
    file = stores[1].path / "teachers/t/zarr.json"
    file.write_text(file.read_text().replace('"dim": 3', '"dim": 3, "registers": 4'))
    for one, other, found in ((stores[0], open_store(stores[1].path), "None and 4"),
                              (open_store(stores[1].path), stores[0], "4 and None")):  # fmt: skip
        with pytest.raises(StoreError, match=f"cannot be mixed: registers is {found}"):
            one.require_same_targets(other, "t")


@pytest.mark.parametrize(("rows", "columns", "itemsize"), [(10**7, 1024, 2), (10**6, 4, 4), (300, 768, 1), (0, 2, 2)])
def test_chunks_are_a_megabyte_and_files_large_but_no_larger_than_needed(rows, columns, itemsize):
    """A view of nuScenes is a few chunks; shards spare shared storage small files (at least 64 MB compressed)."""
    (chunk_rows, chunk_columns), (shard_rows, shard_columns) = chunking((rows, columns), itemsize)
    assert chunk_columns == shard_columns == columns
    assert 2**19 < chunk_rows * columns * itemsize <= 2**20
    assert shard_rows % chunk_rows == 0
    assert shard_rows * columns * itemsize <= 2**28
    assert shard_rows * columns * itemsize > 2**27 or rows <= shard_rows < rows + chunk_rows or rows == 0
    assert shard_rows == chunk_rows or rows


def test_a_row_that_is_larger_than_a_chunk_is_one():
    assert chunking((5, 2**21), 2) == ((1, 2**21), (5, 2**21))


@pytest.mark.parametrize(
    ("dtype", "shuffle"), [("float16", "bitshuffle"), ("uint32", "bitshuffle"), ("int8", "noshuffle")]
)
def test_arrays_are_compressed_as_the_page_says(tmp_path, dtype, shuffle):
    """docs/store.md: zstd at level 3 by Blosc, bits shuffled but those of int8, each chunk with its CRC32C."""
    write_array(tmp_path / "a", np.ones((5, 3), dtype))
    (sharding,) = json.loads((tmp_path / "a/zarr.json").read_text())["codecs"]
    blosc, checksum = sharding["configuration"]["codecs"][1:]
    settings = {name: blosc["configuration"][name] for name in ("cname", "clevel", "shuffle", "typesize")}
    expected = {"cname": "zstd", "clevel": 3, "shuffle": shuffle, "typesize": np.dtype(dtype).itemsize}
    assert (blosc["name"], settings, checksum["name"]) == ("blosc", expected, "crc32c")


@pytest.mark.parametrize(("kind", "column"), [("scans", "pairs_stop"), ("scans", "token"), ("t", "start")])
def test_an_index_that_lacks_a_column_is_said(tmp_path, kind, column):
    store = filled_store(tmp_path / "s.zarr")
    path = store.path / f"index/{kind}/000000.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    again = open_store(store.path)
    with pytest.raises(StoreError, match=rf"an index cannot be read .*{column}"):
        again.read_view(0, "t") if column != "token" else again.views


def test_a_damaged_index_is_said(tmp_path):
    store = filled_store(tmp_path / "s.zarr")
    (tmp_path / "s.zarr/index/scans/000001.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(StoreError, match="an index cannot be read"):
        open_store(store.path).views  # noqa: B018


@pytest.mark.parametrize(("group", "key"), [("teachers/t", "encoding"), ("sources/000", "num_blocks")])
def test_metadata_that_lacks_something_is_said(tmp_path, group, key):
    path = filled_store(tmp_path / "s.zarr").path
    file = path / group / "zarr.json"
    file.write_text(file.read_text().replace(f'"{key}"', f'"{key[:-1]}"'))
    with pytest.raises(StoreError, match=rf"{group}/zarr.json: its metadata cannot be read \(KeyError: '{key}'\)"):
        inspect_store(open_store(path))
