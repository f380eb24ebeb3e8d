from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr

import scalr
from scalr.errors import StoreError
from scalr.extract.store import SCANS_SCHEMA, TARGETS_SCHEMA, ScanBlock, create_store, open_store

SETTINGS = {"dataset": "nuscenes", "split": "train", "num_blocks": 2}
PROVENANCE = {"teacher": "t", "dim": 3, "image_size": [24, 32]}


def scan_block(block: int, views: int = 3) -> tuple[ScanBlock, np.ndarray, pa.Table]:
    """A block of `views` frames of one view each, its targets and their index."""
    rng = np.random.default_rng(block)
    num_points, num_pairs = rng.integers(5, 20, views), rng.integers(0, 5, views)
    points_stop, pairs_stop = np.cumsum(num_points), np.cumsum(num_pairs)
    rows = [
        {
            "dataset": "nuscenes", "scene": "s", "token": f"{block}-{view}", "timestamp": view, "camera": "CAM",
            "image": "i.jpg", "image_height": 48, "image_width": 64,
            "points_start": int(points_stop[view] - num_points[view]), "points_stop": int(points_stop[view]),
            "pairs_start": int(pairs_stop[view] - num_pairs[view]), "pairs_stop": int(pairs_stop[view]),
        }
        for view in range(views)
    ]  # fmt: skip
    views_table = pa.Table.from_pylist(rows, schema=SCANS_SCHEMA)
    scans = ScanBlock(
        points=rng.normal(size=(points_stop[-1], 4)).astype(np.float32),
        point_index=rng.integers(0, 5, pairs_stop[-1]).astype(np.uint32),
        pixel=rng.integers(0, 48, (pairs_stop[-1], 2)).astype(np.uint16),
        views=views_table,
    )
    ranges = {name: views_table[name] for name in ("token", "camera")}
    ranges |= {"start": views_table["pairs_start"], "stop": views_table["pairs_stop"]}
    vectors = rng.normal(size=(pairs_stop[-1], 3)).astype(np.float16)
    return scans, vectors, pa.table(ranges, schema=TARGETS_SCHEMA)


def filled_store(path: Path, blocks=(0, 1), teacher: str = "t"):
    store = create_store(path, SETTINGS, record={})
    store.add_teacher(teacher, PROVENANCE)
    for block in blocks:
        scans, vectors, ranges = scan_block(block)
        store.write_scans(block, scans)
        store.write_targets(block, teacher, vectors, ranges)
    return open_store(path)


def files(path: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in path.rglob("*")
        if file.is_file()
    }


def test_what_is_written_is_read(tmp_path):
    store = filled_store(tmp_path / "s.zarr", blocks=(1, 0))
    assert store.views["block"].to_pylist() == [0, 0, 0, 1, 1, 1]
    for row in range(6):
        block, view = divmod(row, 3)
        scans, vectors, _ = scan_block(block)
        record = scans.views.slice(view, 1).to_pylist()[0]
        pairs = slice(record["pairs_start"], record["pairs_stop"])
        stored = store.read_view(row, teacher="t")
        np.testing.assert_array_equal(stored.points, scans.points[record["points_start"] : record["points_stop"]])
        np.testing.assert_array_equal(stored.point_index, scans.point_index[pairs])
        np.testing.assert_array_equal(stored.pixel, scans.pixel[pairs])
        np.testing.assert_array_equal(stored.targets, vectors[pairs].astype(np.float32))
        assert stored.targets.dtype == np.float32


def test_any_zarr_reader_opens_it(tmp_path):
    filled_store(tmp_path / "s.zarr")
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert group.attrs["format"] == "scalr-store"
    assert group["blocks/000000/targets/t/vectors"].dtype == np.float16
    assert sorted(name for name, _ in group["blocks"].members()) == ["000000", "000001"]
    assert group["teachers/t"].attrs["dim"] == 3


def test_chunks_carry_a_checksum(tmp_path):
    """A flipped bit in an array file is an error, never other values."""
    filled_store(tmp_path / "s.zarr", blocks=(0,))
    file = tmp_path / "s.zarr/blocks/000000/points/c/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(Exception, match="checksum"):
        zarr.open_array(tmp_path / "s.zarr/blocks/000000/points", mode="r")[...]


def test_second_teacher_rewrites_nothing(tmp_path):
    path = tmp_path / "s.zarr"
    store = filled_store(path)
    before = files(path)
    store.add_teacher("u", {**PROVENANCE, "teacher": "u"})
    _, vectors, ranges = scan_block(0)
    store.write_targets(0, "u", 2 * vectors, ranges)
    assert before.items() <= files(path).items()
    reopened = open_store(path)
    assert sorted(reopened.teachers) == ["t", "u"]
    np.testing.assert_array_equal(
        reopened.read_view(0, teacher="u").targets, 2 * reopened.read_view(0, teacher="t").targets
    )
    with pytest.raises(StoreError, match="block 1 has no targets of u"):
        reopened.read_view(3, teacher="u")
    assert reopened.rows_with_targets("u").tolist() == [0, 1, 2]


def test_other_settings_are_refused_with_both_values(tmp_path):
    store = filled_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="split is 'train' in the store and 'val' now"):
        create_store(tmp_path / "s.zarr", {**SETTINGS, "split": "val"}, record={})
    with pytest.raises(StoreError, match=r"image_size is \[24, 32\] in the store and \[48, 64\] now"):
        store.add_teacher("t", {**PROVENANCE, "image_size": [48, 64]})
    store.add_teacher("t", dict(PROVENANCE))
    create_store(tmp_path / "s.zarr", SETTINGS, record={"root": "another mount"})


def test_a_run_that_dies_anywhere_leaves_whole_blocks_only(tmp_path, monkeypatch):
    """Fail at the n-th durable step for every n: readers see whole blocks, and the same run again completes."""
    whole = filled_store(tmp_path / "whole.zarr")
    steps = count_durable_steps(tmp_path / "count.zarr", monkeypatch)
    assert steps > 50
    for fatal in range(0, steps, 3):
        path = tmp_path / f"{fatal}.zarr"
        with monkeypatch.context() as patch:
            fail_at_step(patch, fatal)
            with pytest.raises(KeyboardInterrupt):
                filled_store(path)
        if (path / "zarr.json").exists():
            broken = open_store(path)
            for block in broken.committed_blocks("t"):
                for view in range(3):
                    broken.read_view(3 * block + view, teacher="t")
        assert_same_views(filled_store(path), whole)


def count_durable_steps(path: Path, monkeypatch) -> int:
    calls = []
    with monkeypatch.context() as patch:
        real = os.fsync
        patch.setattr(os, "fsync", lambda descriptor: (calls.append(0), real(descriptor))[1])
        filled_store(path)
    return len(calls)


def fail_at_step(patch, fatal: int) -> None:
    """Make the `fatal`-th fsync raise what a signal would raise."""
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(0)
        if len(calls) > fatal:
            raise KeyboardInterrupt
        real(descriptor)

    patch.setattr(os, "fsync", fsync)


def assert_same_views(store, expected) -> None:
    assert store.views.equals(expected.views)
    for row in range(expected.views.num_rows):
        ours, theirs = store.read_view(row, teacher="t"), expected.read_view(row, teacher="t")
        for name in ("points", "point_index", "pixel", "targets"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


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
    with pytest.raises(StoreError, match="something else is there"):
        create_store(tmp_path, SETTINGS, record={})
    with pytest.raises(StoreError, match="something else is there"):
        create_store(tmp_path / "thesis.tex", SETTINGS, record={})
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_unknown_teacher_and_row_are_said(tmp_path):
    store = filled_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"no targets of teacher 'dino' \(it has: t\)"):
        store.read_view(0, teacher="dino")
    with pytest.raises(StoreError, match="no view 6, it has 6"):
        store.read_view(6)
