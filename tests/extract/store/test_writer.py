"""What a job adds: whole, once, and of the settings that are recorded."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import zarr

from scalr.errors import StoreError
from scalr.extract.store import create_store, open_store
from scalr.extract.store import writer as writer_module
from small_store import PROVENANCE, SETTINGS, a_block, filled_store, write_block, write_targets
from store_comparison import files


def test_values_that_a_disk_does_not_keep_are_not_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr, "open_array", lambda path, mode: np.zeros(3))
    with pytest.raises(StoreError, match=r"mean: the values read back differ from the values written\. Check the disk"):
        filled_store(tmp_path / "s.zarr")
    assert not open_store(tmp_path / "s.zarr").committed_blocks()


def test_second_teacher_rewrites_nothing(tmp_path):
    path = tmp_path / "s.zarr"
    filled_store(path)
    before = files(path)
    writer = create_store(path, "part-0-of-1")
    writer.add_inputs(SETTINGS, record={}, teachers={"u": {**PROVENANCE, "teacher": "u"}})
    _, targets = a_block(0)
    write_targets(writer, 0, "u", replace(targets, vectors=2 * targets.vectors))
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
    assert not write_block(writer, 0, replace(scans, points=scans.points + 1), t=targets)
    assert write_targets(writer, 0, "t", replace(a_block(0)[1], vectors=targets.vectors[:2]))
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


def test_a_folder_with_other_things_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(StoreError, match="it is not a feature store"):
            create_store(path, "part-0-of-1")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_what_another_job_adds_meanwhile_is_seen(tmp_path):
    """Two writers that were opened at once: the second finds the first one's settings, and refuses its own."""
    filled_store(tmp_path / "s.zarr")
    first, second = (create_store(tmp_path / "s.zarr", f"part-{part}-of-2") for part in (0, 1))
    assert list(second.store.teachers) == ["t"]
    val = {**SETTINGS, "split": "val"}
    source = first.add_inputs(val, {}, {"u": PROVENANCE})
    assert second.add_inputs(val, {}, {"u": PROVENANCE}) == source
    scans, targets = a_block(2)
    assert write_block(first, 2, scans, u=targets)
    with pytest.raises(
        StoreError, match=r"teachers/u: the store was made with other settings: dim is 3 in the store and 4 now"
    ):
        second.add_inputs(val, {}, {"u": {**PROVENANCE, "dim": 4}})
    with pytest.raises(StoreError, match="num_blocks is 2 in the store and 1 now"):
        second.add_inputs({**val, "num_blocks": 1}, {}, {})
    sizes = [writer.batch_size("u", "cpu", lambda size=size: size) for writer, size in ((first, 5), (second, 7))]
    assert (source.first_block, sizes) == (2, [5, 5])
    assert second.batch_size("u", "a-gpu", lambda: 9) == 9


def test_a_record_that_another_job_makes_at_this_moment_stays(tmp_path, monkeypatch):
    """Looked for, not there, made by another, looked for again: it is no folder that lost its record."""
    path = filled_store(tmp_path / "s.zarr", blocks=()).path
    first, second = create_store(path, "p1"), create_store(path, "p2")
    looks, real = [], writer_module.is_there

    def look(target):
        there = real(target)
        if "u" in target.parts and not looks:
            looks.append(target)
            second.add_inputs(SETTINGS, {}, {"u": PROVENANCE})
        return there

    monkeypatch.setattr(writer_module, "is_there", look)
    first.add_inputs(SETTINGS, {}, {"u": PROVENANCE})
    assert looks
    assert sorted(open_store(path).teachers) == ["t", "u"]
    assert not list(path.glob("tmp/*/trash*"))
    (path / "teachers/u/zarr.json").unlink()
    first.add_inputs(SETTINGS, {}, {"u": {**PROVENANCE, "dim": 4}})
    assert open_store(path).teachers["u"]["dim"] == 4
