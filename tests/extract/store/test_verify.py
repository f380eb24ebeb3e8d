"""What is wrong with a store is found, named by block, and mended."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from scalr.errors import StoreError
from scalr.extract.store import SCANS, create_store, open_store
from scalr.extract.store.arrays import ArrayWriter
from scalr.extract.store.format import crc32c, read_metadata, read_record, write_index
from scalr.extract.store.repair import repair_store
from scalr.extract.store.verify import open_to_verify, verify_store
from small_store import PROVENANCE, SETTINGS, a_block, filled_store, write_block, write_targets
from store_comparison import assert_same_store


def flip_random_bit(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def files_of_blocks(path: Path) -> list[Path]:
    return sorted(file for file in (path / "blocks").rglob("*") if file.is_file() and file.parent.name != "blocks")


def test_a_record_that_only_one_block_can_tell_is_known(tmp_path):
    path = filled_store(tmp_path / "s.zarr", blocks=(1,)).path
    whole = read_record(path / "teachers/t/zarr.json")
    (path / "teachers/t/zarr.json").unlink()
    found = verify_store(open_to_verify(path))
    assert found.records == {"teachers/t/zarr.json": whole}
    assert [each.kind for each in found.damage] == ["teachers/t/zarr.json"]


def test_a_whole_store_has_no_damage(tmp_path):
    assert verify_store(filled_store(tmp_path / "s.zarr")).whole


@pytest.mark.parametrize("flips", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_flipped_bits_are_found_and_named(tmp_path, flips):
    """One bit at a time in a random file of a block, metadata and indexes included."""
    path, rng = tmp_path / "s.zarr", np.random.default_rng(0)
    filled_store(path)
    candidates = files_of_blocks(path) + sorted((path / "index").rglob("*.parquet"))
    for file in rng.choice(np.array(candidates, dtype=object), flips):
        before = file.read_bytes()
        flip_random_bit(file, rng)
        found = verify_store(open_store(path))
        assert found.damage, f"a flipped bit in {file} was not found"
        inside = file.relative_to(path).parts  # blocks/000001/… or index/scans/000001.parquet
        assert {damage.block for damage in found.damage} == {int(file.stem if inside[0] == "index" else inside[1])}
        file.write_bytes(before)
    assert verify_store(open_store(path)).whole


def test_a_damaged_store_is_mended(tmp_path):
    """A bit flipped in every third file; `--repair`, then the same run again."""
    path, rng = tmp_path / "s.zarr", np.random.default_rng(0)
    filled_store(path)
    for file in files_of_blocks(path)[::3]:
        flip_random_bit(file, rng)
    found = verify_store(open_store(path))
    assert {damage.block for damage in found.damage} == {0, 1}
    repair_store(open_store(path), found)
    again = verify_store(open_store(path))
    assert again.damage == []
    assert not again.whole  # blocks are missing now
    assert_same_store(filled_store(path), filled_store(tmp_path / "whole.zarr"))


def test_a_store_that_may_not_be_changed_is_said(tmp_path, monkeypatch):
    path = filled_store(tmp_path / "s.zarr").path
    (path / "blocks/000001/points/zarr.json").unlink()
    found = verify_store(open_store(path))

    def refuse(source, target):
        if Path(source).parent.name == "scans":
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    rename = os.rename
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StoreError, match=r"blocks/000001: the folder cannot be moved to 'aside' \(Permission denied\)"):
        repair_store(open_store(path), found)
    # Targets go before the scans that they are of, and files after the index that makes them count.
    assert [open_store(path).is_committed(kind, 1) for kind in (SCANS, "t")] == [True, False]
    assert (path / "blocks/000001/targets/t/vectors").is_dir()


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: (path / "blocks/000001/pairs/pixel/c/0/0").unlink(), "is missing"),
        (lambda path: (path / "blocks/000001/index.parquet").unlink(), "is missing"),
        (lambda path: shutil.rmtree(path / "blocks/000001"), "is missing"),
        (lambda path: (path / "index/scans/000001.parquet").unlink(), "is missing"),
        (lambda path: (path / "index/scans/000001.parquet").write_bytes(b""), "differ"),
    ],
)
def test_missing_and_extra_files_are_found(tmp_path, damage, what):
    path = filled_store(tmp_path / "s.zarr").path
    damage(path)
    found = verify_store(open_store(path))
    assert {item.block for item in found.damage} == {1}
    assert any(what in item.what for item in found.damage), found
    repair_store(open_store(path), found)
    assert_same_store(filled_store(path), filled_store(tmp_path / "whole.zarr"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"point_index": np.uint32(12)}, "point_index is beyond its scan"),  # of 12 points
        ({"pixel": np.array([48, 0], np.uint16)}, "pixel is beyond its image"),  # of 48 rows and 64 columns
        ({"pixel": np.array([0, 64], np.uint16)}, "pixel is beyond its image"),
        ({"points": np.float32(np.nan)}, "a point is not finite"),
        ({"vectors": np.float16(np.inf)}, "a vector is not finite"),
    ],
)
def test_values_that_cannot_be_are_found(tmp_path, change, what):
    """Written that way, so that every checksum is right."""
    path = tmp_path / "s.zarr"
    filled_store(path, blocks=(0,))
    writer = create_store(path, "part-0-of-1")
    scans, targets = a_block(1)
    for name, value in change.items():
        array = getattr(targets if name == "vectors" else scans, name)
        array[-1] = value
    write_block(writer, 1, scans, t=targets)
    (found,) = verify_store(open_store(path)).damage
    assert found.block == 1
    assert what in found.what


def test_the_outermost_points_and_pixels_are_no_damage(path):
    writer = create_store(path, "part-0-of-1")
    writer.set_aside(SCANS, 1)
    scans, targets = a_block(1)
    scans.point_index[-1], scans.pixel[-1] = 11, (47, 63)
    write_block(writer, 1, scans, t=targets)
    assert verify_store(open_store(path)).whole


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Path:
    return filled_store(tmp_path_factory.mktemp("untouched") / "s.zarr").path


@pytest.fixture
def path(untouched, tmp_path) -> Path:
    """A filled store of its own; block 0 has views of one pair, one pair and none."""
    return shutil.copytree(untouched, tmp_path / "s.zarr")


def rewrite_index(path: Path, kind: str, **columns) -> None:
    """Give block 0 an index that fits its files as they are now, with other columns."""
    group, published = path / "blocks/000000", path / f"index/{kind}/000000.parquet"
    group = group if kind == "scans" else group / "targets" / kind
    views = pq.read_table(published)
    for name, values in columns.items():
        place = views.schema.get_field_index(name)
        views = views.set_column(place, name, pa.array(values, views.schema.field(name).type))
    views = with_checksums(path, kind, views) if columns else views
    record = read_metadata(published).record
    (group / "index.parquet").unlink()
    write_index(views, kind, 0, group, record)
    shutil.copy(group / "index.parquet", published)


def with_checksums(path: Path, kind: str, views: pa.Table) -> pa.Table:
    """The rows of block 0, whatever ranges they name, with the checksums of what stands there."""
    block = zarr.open_group(path / "blocks/000000", mode="r")
    seeds = pq.read_table(path / "index/scans/000000.parquet")["crc32c"].to_pylist()
    checksums = []
    for row, seed in zip(views.to_pylist(), seeds, strict=True):
        if kind == "scans":
            pairs = slice(row["pairs_start"], row["pairs_stop"])
            parts = [block["points"][row["points_start"] : row["points_stop"]]]
            checksums.append(crc32c(0, *parts, block["pairs/point_index"][pairs], block["pairs/pixel"][pairs]))
        else:
            checksums.append(crc32c(seed, block[f"targets/{kind}/vectors"][row["start"] : row["stop"]]))
    place = views.schema.get_field_index("crc32c")
    return views.set_column(place, "crc32c", pa.array(checksums, pa.uint32()))


@pytest.mark.parametrize(
    ("kind", "columns", "what"),
    [
        ("scans", {"pairs_stop": [1, 2, 3]}, "the index and pairs differ in length"),
        ("scans", {"pairs_start": [1, 1, 2]}, "ranges of pairs do not follow each other"),
        ("scans", {"pairs_start": [0, 2, 2]}, "ranges of pairs do not follow each other"),
        ("scans", {"points_stop": [17, 31, 44]}, "the index and points differ in length"),
        ("scans", {"points_stop": [17, 31, 42]}, "the index and points differ in length"),
        ("t", {"stop": [1, 2, 3]}, "the index and vectors differ in length"),
        ("t", {"start": [0, 1, 3]}, "ranges of vectors do not follow each other"),
        ("t", {"start": [0, 2, 1], "stop": [2, 1, 2]}, "ranges of vectors do not follow each other"),
        ("t", {"start": [0, 2, 2], "stop": [2, 2, 2]}, "vectors and pairs do not match"),
        ("t", {"token": ["0-1", "0-0", "0-2"]}, "its tokens are not those of the scans"),
        ("t", {"camera": ["CAM", "CAM", "MAC"]}, "its cameras are not those of the scans"),
    ],
)
def test_counts_that_do_not_fit_are_found(path, kind, columns, what):
    """An index that says other ranges or views than the arrays have, its files all as listed."""
    rewrite_index(path, kind, **columns)
    (found, *_) = verify_store(open_store(path)).damage
    assert (found.block, found.kind) == (0, kind)
    assert what in found.what


@pytest.mark.parametrize(("kind", "array"), [("scans", "points"), ("scans", "pairs/pixel"), ("t", "vectors")])
def test_arrays_that_cannot_be_read_are_found(path, kind, array):
    """Though every file is as its index lists it."""
    group = path / "blocks/000000" / ("" if kind == "scans" else f"targets/{kind}")
    (chunk,) = [file for file in (group / array).rglob("*") if file.is_file() and file.name != "zarr.json"]
    flip_random_bit(chunk, np.random.default_rng(0))
    rewrite_index(path, kind)
    (found,) = verify_store(open_store(path)).damage
    assert (found.block, found.kind) == (0, kind)
    assert f"block 0 cannot be read: array '{array}', " in found.what


@pytest.mark.parametrize("last", [-1.0, np.nan, np.inf])
def test_scales_that_cannot_be_are_found(path, last):
    add_int8_targets(path, last_scale=last)
    (found,) = verify_store(open_store(path)).damage
    assert (found.block, found.kind, found.what) == (0, "u", "a scale is not finite, or negative")


def test_the_scale_0_is_of_a_vector_of_zeros_alone(path):
    add_int8_targets(path, last_scale=0.0, last_vector=0)
    assert verify_store(open_store(path)).damage == []
    add_int8_targets(path, last_scale=0.0, last_vector=1, name="v")
    (found,) = verify_store(open_store(path)).damage
    assert (found.block, found.kind, found.what) == (0, "v", "a vector is not zero, though its scale is")


@pytest.mark.parametrize(
    ("channels", "what"),
    [
        ([[0, 0, np.inf], [1, 1, 1]], "a channel's offset is not finite, or its scale not positive"),
        ([[0, 0, 0], [1, 0, 1]], "a channel's offset is not finite, or its scale not positive"),
        ([[0, 0, 0], [1, 1, np.nan]], "a channel's offset is not finite, or its scale not positive"),
        ([[0, 0], [1, 1]], "channels are not one of each dimension"),
        ([[0, 0, 0]], "channels are not one of each dimension"),
    ],
)
def test_channels_that_cannot_be_are_found(path, channels, what):
    add_int8_targets(path, channels=channels)
    (found,) = verify_store(open_store(path)).damage
    assert (found.block, found.kind, found.what) == (0, "u", what)


def test_more_scales_than_vectors_are_found(path):
    add_int8_targets(path)
    group = path / "blocks/000000/targets/u"
    shutil.rmtree(group / "scale")
    write_array(group / "scale", np.full(len(a_block(0)[1].vectors) + 1, 0.5, np.float32))
    rewrite_index(path, "u")
    (found,) = verify_store(open_store(path)).damage
    assert (found.block, found.kind, found.what) == (0, "u", "scale and vectors differ in length")


def add_int8_targets(path, last_scale=0.5, last_vector=1, channels=((3, 0, 0), (1, 1, 2)), name="u") -> None:
    """Of another teacher, in both blocks; block 0 has these channels, and ends with this vector and scale."""
    writer = create_store(path, "part-0-of-1")
    writer.add_inputs(SETTINGS, record={}, teachers={name: {**PROVENANCE, "dtype": "int8"}})
    for block, last in ((0, last_scale), (1, 1e-12)):
        exact = a_block(block)[1]
        vectors, scale = np.ones_like(exact.vectors, np.int8), np.full(len(exact.vectors), 0.5, np.float32)
        vectors[-1], scale[-1] = last_vector, last
        kept = np.array(channels if block == 0 else [[0] * 3, [1] * 3], np.float32)
        write_targets(writer, block, name, replace(exact, vectors=vectors, scale=scale, channels=kept))


def write_array(path: Path, values: np.ndarray) -> None:
    array = ArrayWriter(path, values.shape[1:], values.dtype)
    array.append(values)
    array.finish()


def test_point_indices_without_a_pixel_are_found(path):
    group = path / "blocks/000000"
    longer = np.append(open_store(path).read_scans(0).point_index, np.uint32(0))
    shutil.rmtree(group / "pairs/point_index")
    write_array(group / "pairs/point_index", longer)
    rewrite_index(path, SCANS)
    (found,) = verify_store(open_store(path)).damage
    assert (found.block, found.what) == (0, "point_index and pixel differ in length")
