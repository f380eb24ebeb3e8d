"""What is written is read, and what does not fit is refused."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import zarr

import scalr
from scalr.errors import StoreError
from scalr.extract.store import open_store
from scalr.extract.store.format import write_record
from small_store import PROVENANCE, a_block, filled_store


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
    with pytest.raises(
        StoreError, match=r"000001/points/c/0/0: the file of the store is changed since it was written .*scalr verify"
    ):
        store.read_view(3)
    with pytest.raises(Exception, match="checksum"):
        zarr.open_array(tmp_path / "s.zarr/blocks/000001/points", mode="r")[...]


def test_a_store_travels_to_a_worker_process(tmp_path):
    store = filled_store(tmp_path / "s.zarr")
    store.read_view(0, teacher="t")
    clone = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(clone.read_view(4, "t").targets, store.read_view(4, "t").targets)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: None, "no feature store exists here"),
        (lambda path: path.mkdir(), "no feature store exists here"),
        (lambda path: (path.mkdir(), (path / "zarr.json").write_text("{"))[0], "metadata cannot be used"),
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


def test_unknown_teacher_and_row_are_said(tmp_path):
    store = filled_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"no targets of teacher 'dino' \(it has: t\)"):
        store.read_view(0, teacher="dino")
    for row in (6, -1):
        with pytest.raises(StoreError, match=f"no view {row}, but 6 views"):
            store.read_view(row)


def test_targets_that_record_more_are_others(tmp_path):
    """Whichever of the two stores says more."""
    stores = [filled_store(tmp_path / f"{name}.zarr", blocks=()) for name in "ab"]
    stores[0].require_same_targets(stores[1], "t")
    shutil.rmtree(stores[1].path / "teachers/t")
    write_record(stores[1].path / "teachers/t", PROVENANCE | {"registers": 4})
    for one, other, found in ((stores[0], open_store(stores[1].path), "None and 4"),
                              (open_store(stores[1].path), stores[0], "4 and None")):  # fmt: skip
        with pytest.raises(StoreError, match=f"cannot be mixed: registers is {found}"):
            one.require_same_targets(other, "t")


def test_an_index_that_goes_while_a_reader_looks_is_said(tmp_path):
    """As where a block is taken out; the reader showed it a moment ago."""
    store = filled_store(tmp_path / "s.zarr")
    assert store.views.num_rows == 6
    (store.path / "index/scans/000001.parquet").unlink()
    with pytest.raises(StoreError, match=r"000001.parquet: an index file was removed since the store was opened\. Run"):
        store.column("block")
