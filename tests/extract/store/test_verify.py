"""What is wrong with a store is found, named by block, and mended."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from scalr.errors import StoreError
from scalr.extract.store import create_store, open_store
from scalr.extract.store.format import write_index
from scalr.extract.store.verify import repair_store, verify_store
from small_store import a_block, filled_store
from store_comparison import assert_same_store


def flip_random_bit(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def files_of_blocks(path: Path) -> list[Path]:
    return sorted(file for file in (path / "blocks").rglob("*") if file.is_file() and file.parent.name != "blocks")


def test_a_whole_store_has_no_damage(tmp_path):
    assert verify_store(filled_store(tmp_path / "s.zarr")) == []


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
        assert found, f"a flipped bit in {file} was not found"
        inside = file.relative_to(path).parts  # blocks/000001/… or index/scans/000001.parquet
        assert {damage.block for damage in found} == {int(file.stem if inside[0] == "index" else inside[1])}
        file.write_bytes(before)
    assert verify_store(open_store(path)) == []


def test_a_damaged_store_is_mended(tmp_path):
    """A bit flipped in every third file; `--repair`, then the same run again."""
    path, rng = tmp_path / "s.zarr", np.random.default_rng(0)
    filled_store(path)
    for file in files_of_blocks(path)[::3]:
        flip_random_bit(file, rng)
    found = verify_store(open_store(path))
    assert {damage.block for damage in found} == {0, 1}
    repair_store(open_store(path), found)
    assert verify_store(open_store(path)) == []
    assert_same_store(filled_store(path), filled_store(tmp_path / "whole.zarr"))


def test_a_store_that_may_not_be_changed_is_said(tmp_path, monkeypatch):
    path = filled_store(tmp_path / "s.zarr").path
    (path / "blocks/000001/index.parquet").unlink()
    found = verify_store(open_store(path))

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StoreError, match=r"blocks/000001: it cannot be taken out \(Permission denied\)"):
        repair_store(open_store(path), found)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: (path / "blocks/000001/pairs/pixel/c/0/0").unlink(), "is missing"),
        (lambda path: (path / "blocks/000001/index.parquet").unlink(), "is missing"),
        (lambda path: (path / "blocks/000001/more").touch(), "does not belong here"),
        (lambda path: shutil.rmtree(path / "blocks/000001"), "is missing"),
        (lambda path: (path / "index/scans/000001.parquet").unlink(), "is missing"),
        (lambda path: (path / "index/scans/000001.parquet").write_bytes(b""), "differ"),
    ],
)
def test_missing_and_extra_files_are_found(tmp_path, damage, what):
    path = filled_store(tmp_path / "s.zarr").path
    damage(path)
    found = verify_store(open_store(path))
    assert {item.block for item in found} == {1}
    assert any(what in item.what for item in found), found
    repair_store(open_store(path), found)
    assert_same_store(filled_store(path), filled_store(tmp_path / "whole.zarr"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"point_index": np.uint32(100)}, "point_index is beyond its scan"),
        ({"pixel": np.uint16(48)}, "pixel is beyond its image"),
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
    writer.write_scans(1, scans)
    writer.write_targets(1, "t", targets)
    (found,) = verify_store(open_store(path))
    assert found.block == 1
    assert what in found.what


def test_counts_that_do_not_fit_are_found(tmp_path):
    """An index that says other ranges than the arrays have, its files all as listed."""
    path = filled_store(tmp_path / "s.zarr").path
    group, published = path / "blocks/000000", path / "index/scans/000000.parquet"
    views = pq.read_table(published)
    stop = views["pairs_stop"].to_numpy() + np.array([0, 0, 1])
    (group / "index.parquet").unlink()
    write_index(views.set_column(views.schema.get_field_index("pairs_stop"), "pairs_stop", [stop]), "scans", group)
    shutil.copy(group / "index.parquet", published)
    (found, *_) = verify_store(open_store(path))
    assert found.block == 0
    assert "the index and pairs differ in length" in found.what
