"""Gathered indexes make a large store faster to open, and nothing depends on them."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr.errors import DamagedError
from scalr.extract.store import SCANS, FeatureStore, create_store, gathering, open_store
from scalr.extract.store import format as fmt
from scalr.extract.store.gathered import GatheredIndexes, open_gathered, write_gathered
from scalr.extract.store.inspect import inspect_store
from scalr.extract.store.remove import removal_of_split, removal_of_teacher
from scalr.extract.store.verify import verify_store
from scalr.extract.verification import VerifyConfig, verify
from small_store import PROVENANCE, SETTINGS, a_block, add_inputs, write_block

KINDS = (SCANS, "t")
BLOCKS = range(5)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Blocks that are few elsewhere are many here, and more than one part."""
    monkeypatch.setattr(gathering, "FEW_BLOCKS", 1)
    monkeypatch.setattr(gathering, "PART_BLOCKS", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A store of five blocks, one of which lacks a frame; not gathered."""
    path = tmp_path_factory.mktemp("made") / "s.zarr"
    writer = create_store(path, "part-0-of-1")
    add_inputs(writer, SETTINGS | {"num_blocks": len(BLOCKS)}, t=PROVENANCE)
    for block in BLOCKS:
        scans, targets = a_block(block, views=1 if block == 3 else 3)
        if block == 1:
            scans.skipped["1-9"] = "no image"
        write_block(writer, block, scans, t=targets)
    return path


@pytest.fixture
def path(made, tmp_path) -> Path:
    """A copy of it that is gathered."""
    copy = shutil.copytree(made, tmp_path / "s.zarr")
    create_store(copy, "part-0-of-1").gather_indexes()
    return copy


def all_of(path: Path, rows: int = 1) -> dict:
    """What a reader is told of a store, and the targets of its first view."""
    store = open_store(path)
    report = inspect_store(store).as_json()
    for name in ("path", "files", "bytes"):  # the gathered files are among them
        del report[name]
    columns = {name: store.column(name).tolist() for name in ("block", "points_stop", "pairs_stop", "crc32c")}
    if not report["scans"]["missing_blocks"]:
        store.require_files(["t"], store.sources)
    targets = [store.read_view(row, "t").targets.tolist() for row in range(rows)]
    tables = store.views.to_pylist(), store.read_target_views("t").to_pylist()
    return {"report": report, "columns": columns, "targets": targets, "tables": tables}


def opened_indexes(monkeypatch, path: Path) -> list[str]:
    """The blocks' own indexes that a reader opens."""
    found, open_index = [], fmt.open_index
    with monkeypatch.context() as patch:
        patch.setattr(fmt, "open_index", lambda path: (found.append(path.stem), open_index(path))[1])
        all_of(path)
    return sorted(set(found))


def test_a_reader_is_told_the_same_and_opens_no_other_index(made, path, monkeypatch):
    assert all_of(path, rows=13) == all_of(made, rows=13)
    assert opened_indexes(monkeypatch, made) == [fmt.block_name(block) for block in BLOCKS]
    assert opened_indexes(monkeypatch, path) == []


def test_it_is_gathered_again_only_where_something_has_changed(path):
    files = [fmt.gathered_path(path, kind) for kind in KINDS]
    before = [file.stat().st_ino for file in files]
    create_store(path, "part-0-of-1").gather_indexes()
    assert [file.stat().st_ino for file in files] == before
    os.utime(fmt.index_path(path, "t", 2), ns=(1, 1))
    create_store(path, "part-0-of-1").gather_indexes()
    assert [file.stat().st_ino != inode for file, inode in zip(files, before, strict=True)] == [False, True]


def test_few_blocks_are_not_gathered(path, monkeypatch):
    shutil.rmtree(path / fmt.GATHERED)
    monkeypatch.setattr(gathering, "FEW_BLOCKS", len(BLOCKS))
    create_store(path, "part-0-of-1").gather_indexes()
    assert not (path / fmt.GATHERED).exists()


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_kind(path: Path) -> None:
    others = [other for other in path.parent.iterdir() if other != path]
    path.write_bytes(others[0].read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_a_gathered_file_that_is_lost_or_damaged_costs_time_alone(made, path, kind):
    file, sound = fmt.gathered_path(path, kind), all_of(made)
    content = file.read_bytes()
    for damage in (remove, cut, empty, loop, other_kind, folder):
        damage(file)
        assert all_of(path) == sound, damage.__name__
        if damage is not folder:
            file.unlink(missing_ok=True)
            file.write_bytes(content)


@pytest.mark.parametrize("flips", [4, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_of_a_gathered_file_is_other_values(made, path, kind, flips):
    file, rng, sound = fmt.gathered_path(path, kind), np.random.default_rng(0), all_of(made)
    content = file.read_bytes()
    for position in rng.integers(len(content), size=flips):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        assert all_of(path) == sound, f"byte {position} of {len(content)}"


def test_a_block_that_was_replaced_removed_or_added_since_is_read_as_it_stands(made, path, monkeypatch):
    """An older gathered file, as releases that know of none leave it where it is."""
    for each in (made, path):
        each = shutil.copytree(each, each.parent / "changed.zarr")
        writer = create_store(each, "part-0-of-1")
        monkeypatch.setattr(writer, "_drop_gathered", lambda kind: None)
        writer.set_aside(SCANS, 0)  # removed
        writer.set_aside(SCANS, 2)  # replaced
        scans, targets = a_block(2, views=2)
        scans.skipped["2-2"] = "no scan"
        write_block(writer, 2, scans, t=targets)
    changed = path.parent / "changed.zarr"
    assert all_of(changed) == all_of(made.parent / "changed.zarr")
    assert opened_indexes(monkeypatch, changed) == ["000002"]
    assert writer.store.skipped_frames(2) == {"2-2": "no scan"}
    create_store(changed, "part-0-of-1").gather_indexes()
    assert all_of(changed) == all_of(made.parent / "changed.zarr")
    assert opened_indexes(monkeypatch, changed) == []


def test_a_block_takes_the_gathered_files_along(path):
    """Where files have no times of their own, the index of the block that takes its place could pass for its own."""
    create_store(path, "part-0-of-1").set_aside("t", 2)
    assert [file.name for file in (path / fmt.GATHERED).iterdir()] == ["scans.parquet"]
    create_store(path, "part-0-of-1").set_aside(SCANS, 2)
    assert not list((path / fmt.GATHERED).iterdir())


def test_a_writer_that_replaces_a_block_is_not_told_what_was_gathered_of_it(path):
    writer = create_store(path, "part-0-of-1")
    assert writer.store.skipped_frames(1) == {"1-9": "no image"}
    writer.set_aside(SCANS, 1)
    write_block(writer, 1, a_block(1)[0])
    assert writer.store.skipped_frames(1) == {}


def test_a_copy_that_did_not_keep_times_is_right_and_can_be_gathered_again(made, path, monkeypatch):
    for kind in KINDS:
        for block in BLOCKS:
            fmt.index_path(path, kind, block).touch()
    assert all_of(path) == all_of(made)
    assert opened_indexes(monkeypatch, path) == [fmt.block_name(block) for block in BLOCKS]
    create_store(path, "repair").gather_indexes()
    assert opened_indexes(monkeypatch, path) == []


def test_a_damaged_index_is_not_gathered_and_is_named(path):
    index = fmt.index_path(path, SCANS, 4)
    index.write_bytes(index.read_bytes()[:-1])
    create_store(path, "part-0-of-1").gather_indexes()
    assert 4 not in open_gathered(path, SCANS)
    with pytest.raises(DamagedError, match=r"000004\.parquet: the index file cannot be read"):
        _ = open_store(path).views


def test_what_cannot_be_gathered_is_a_warning(path, monkeypatch, caplog):
    shutil.rmtree(path / fmt.GATHERED)
    (path / fmt.GATHERED).touch()
    with caplog.at_level(logging.WARNING):
        create_store(path, "part-0-of-1").gather_indexes()
    assert "the index files were not merged, so that the store opens more slowly" in caplog.text
    assert create_store(path, "part-0-of-1").set_aside(SCANS, 0) is not None  # it is in nobody's way
    removal_of_teacher(open_store(path), "t").run()
    assert not open_store(path).teachers


def test_verify_passes_over_it_and_names_a_damaged_one_as_stray(path):
    assert verify_store(open_store(path)).stray == []
    file = fmt.gathered_path(path, "t")
    file.write_bytes(file.read_bytes()[:-1])
    found = verify_store(open_store(path))
    assert (found.stray, found.damage) == (["gathered/t.parquet"], [])


def damage_page(path: Path, kind: str) -> None:
    file = fmt.gathered_path(path, kind)
    column, content = pq.ParquetFile(file).metadata.row_group(0).column(3), bytearray(file.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 2] ^= 1
    file.write_bytes(content)


def alter_rows(path: Path, kind: str) -> None:
    """As if it were of indexes that others of equal sizes and times have replaced."""
    gathered, rows = open_gathered(path, kind), fmt.read_index(fmt.index_path(path, kind, 0), kind)
    altered = rows.set_column(rows.schema.get_field_index("crc32c"), "crc32c", pa.array([1] * len(rows), pa.uint32()))
    write_gathered([([gathered.entry(0)], altered)], kind, fmt.gathered_path(path, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_wrong_inside_is_found_by_verifying_and_made_anew_by_repairing(made, path, kind):
    for wrong in (damage_page, alter_rows):
        wrong(path, kind)
        found = verify(VerifyConfig(store=path, repair=True)).found
        assert (found.stray, found.damage) == ([f"gathered/{kind}.parquet"], [])
        assert verify_store(open_store(path)).stray == []
        assert all(block in open_gathered(path, kind) for block in BLOCKS)
    assert all_of(path) == all_of(made)


def test_a_split_that_goes_is_gathered_no_more(path):
    writer = create_store(path, "part-0-of-1")
    add_inputs(writer, SETTINGS | {"split": "val", "num_blocks": 2}, t=PROVENANCE)
    for block in (5, 6):
        scans, targets = a_block(block)
        write_block(writer, block, scans, t=targets)
    writer.gather_indexes()
    removal_of_split(open_store(path), "nuscenes/train").run()
    for kind in KINDS:
        assert pq.read_table(fmt.gathered_path(path, kind))["block"].to_pylist() == [5] * 3 + [6] * 3


def test_to_read_one_block_the_others_are_not_looked_at(path, monkeypatch):
    """A writer reads each block after the commit of another, when all would have to be looked at again."""
    monkeypatch.delattr(GatheredIndexes, "keep_what_stands")
    assert open_store(path).read_scans(1).skipped == {"1-9": "no image"}


def test_a_teacher_takes_its_gathered_file_along(path):
    removal_of_teacher(open_store(path), "t").run()
    assert [file.name for file in (path / fmt.GATHERED).iterdir()] == ["scans.parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_gathered_file_is_as_the_page_says(path, kind):
    """Read with pyarrow and JSON alone."""
    file = pq.ParquetFile(path / f"gathered/{kind}.parquet")
    said = file.metadata.metadata
    keys = (b"scalr.blocks", b"scalr.files", b"scalr.skipped", b"scalr.records")
    assert hashlib.sha256(b"".join(said[key] for key in keys)).hexdigest().encode() == said[b"scalr.sha256"]
    blocks, files, skipped, records = (json.loads(said[key]) for key in keys)
    assert blocks["block"] == [*BLOCKS]
    assert skipped == ({"1": {"1-9": "no image"}} if kind == SCANS else {})
    rows, first = file.read(), 0
    for position, block in enumerate(BLOCKS):
        index = path / f"index/{kind}/{block:06d}.parquet"
        own, metadata = pq.read_table(index), pq.read_schema(index).metadata
        found = rows.slice(first, blocks["rows"][position])
        assert found.select(own.column_names).to_pylist() == own.to_pylist()
        assert all(found[name].null_count == len(found) for name in set(rows.column_names) - set(own.column_names))
        assert (blocks["bytes"][position], blocks["mtime_ns"][position]) == (
            index.stat().st_size,
            index.stat().st_mtime_ns,
        )
        assert records[blocks["record"][position]] == json.loads(metadata[b"scalr.record"])
        listed = json.loads(metadata[b"scalr.files"])
        assert files[position] == {name: each["bytes"] for name, each in listed.items()}
        first += len(own)
    assert first == len(rows)


def test_repairing_gathers_anew(path):
    shutil.rmtree(path / fmt.GATHERED)
    verify(VerifyConfig(store=path, repair=True))
    assert all(block in open_gathered(path, kind) for kind in KINDS for block in BLOCKS)


def test_a_worker_shares_the_memory_of_the_process_that_started_it(path):
    store = open_store(path)
    store.rows_with_targets("t")
    sent = pickle.dumps(store)
    clone = pickle.loads(sent)
    for name in ("crc32c", "points_start"):
        np.testing.assert_array_equal(clone.column(name), store.column(name))
        assert not clone.column(name).flags.writeable
    shutil.rmtree(path / "index")  # it needs none
    np.testing.assert_array_equal(clone.column("pairs_stop"), store.column("pairs_stop"))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).column('crc32c').tolist())"
    there = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert there.stdout.decode().strip() == str(store.column("crc32c").tolist())


def no_memory(name: str) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("memfd_create", [None, no_memory])
def test_a_worker_that_cannot_see_that_memory_reads_the_same_for_itself(path, monkeypatch, memfd_create):
    if memfd_create is None:
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", memfd_create)
    writer = create_store(path, "part-0-of-1")
    writer.set_aside(SCANS, 0)
    store = open_store(path)
    store.rows_with_targets("t")
    writer.put_back(SCANS, 0)  # a block that comes before the worker starts changes the numbers of no rows
    clone = pickle.loads(pickle.dumps(store))
    assert isinstance(clone, FeatureStore)
    np.testing.assert_array_equal(clone.column("crc32c"), store.column("crc32c"))
    np.testing.assert_array_equal(clone.rows_with_targets("t"), store.rows_with_targets("t"))
