"""Damaged, unreadable, stray, incomplete: told apart; and nothing that may be of use is deleted."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from scalr.distill.choice import Wanted, choose
from scalr.errors import DamagedError, StoreError, UnreadableError
from scalr.extract.store import SCANS, commit, create_store, open_store
from scalr.extract.store.format import read_record
from scalr.extract.store.inspect import inspect_store
from scalr.extract.verification import VerifyConfig, verify
from small_store import PROVENANCE, SETTINGS, a_block, add_inputs, filled_store, write_block, write_scans, write_targets
from store_comparison import assert_same_store, files

RECORDS = ("zarr.json", "blocks/zarr.json", "sources/zarr.json", "teachers/zarr.json", "sources/000/zarr.json",
           "teachers/t/zarr.json")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return filled_store(tmp_path_factory.mktemp("whole") / "s.zarr").path


@pytest.fixture
def path(whole, tmp_path) -> Path:
    """A filled store of its own."""
    return shutil.copytree(whole, tmp_path / "s.zarr")


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def closed(patch: pytest.MonkeyPatch, path: Path, code: int = errno.EACCES) -> None:
    """As if the file system refused everything below a path; modes would not stop root."""

    def refusing(real):
        def call(target, *arguments, **options):
            if isinstance(target, str | os.PathLike) and Path(target).is_relative_to(path):
                raise OSError(code, os.strerror(code), os.fspath(target))
            return real(target, *arguments, **options)

        return call

    import io

    for module, names in ((os, ("stat", "listdir", "scandir", "open")), (io, ("open",))):
        for name in names:
            patch.setattr(module, name, refusing(getattr(module, name)))


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("damage", ["altered", "cut", "lost"])
def test_what_describes_the_store_is_checked_and_restored(path, whole, name, damage):
    """No block is taken out for it."""
    file, content = path / name, (path / name).read_text()
    if damage == "lost":
        file.unlink()
    else:
        altered = content.replace("3", "4").replace('"attributes": {}', '"attributes": {"a": 1}')
        file.write_text(altered if damage == "altered" else content[:-4])
    found = verify(VerifyConfig(store=path))
    assert [(each.block, each.kind) for each in found.damage] == [(None, name)]
    assert not found.whole
    blocks = files(path / "blocks")
    repaired = verify(VerifyConfig(store=path, repair=True))
    after = files(path / "blocks")
    assert blocks.items() - {("zarr.json", blocks.get("zarr.json"))} <= after.items()
    assert verify(VerifyConfig(store=path)).whole
    assert_same_store(open_store(path), open_store(whole))
    assert read_record(path / "teachers/t/zarr.json") == PROVENANCE
    if damage != "lost":
        assert [kept.parent for kept in repaired.kept] == [path / "aside"]
        assert str(repaired.kept[0]) in repaired.as_text()


@pytest.mark.parametrize("name", ["sources/000/zarr.json", "teachers/t/zarr.json"])
def test_a_record_that_is_lost_stops_those_who_need_it(path, name):
    """With one line that names it; and nobody may write another one in its place."""
    (path / name).unlink()
    with pytest.raises(DamagedError, match=rf"{Path(name).parts[0]}.*are not recorded any more.*--repair"):
        open_store(path).require_records()
    with pytest.raises(DamagedError, match="are not recorded any more"):
        create_store(path, "part-0-of-1").add_inputs(SETTINGS, {}, {"t": {**PROVENANCE, "patch_size": 2}})
    with pytest.raises(DamagedError, match="are not recorded any more"):
        open_store(path).read_view(0, "t")


def test_an_altered_record_is_never_used(path):
    file = path / "teachers/t/zarr.json"
    file.write_text(file.read_text().replace('"patch_size": 4', '"patch_size": 2'))
    with pytest.raises(DamagedError, match=r"teachers/t/zarr.json: the metadata cannot be used .altered .*--repair"):
        open_store(path).read_view(0, "t")


def test_files_of_others_are_named_and_change_nothing(path, whole):
    litter = [
        ".DS_Store", "Thumbs.db", "blocks/.DS_Store", "blocks/000001/.DS_Store", "blocks/000001/@eaDir/points@x",
        "blocks/000000/targets/t/vectors/._zarr.json", "index/.nfs0001", "index/scans/._000001.parquet",
        "index/scans/000001.parquet~", "index/t/.000001.parquet.swp", "sources/@eaDir/000@x", "teachers/._t",
        "sources/000/Thumbs.db", "teachers/t/._zarr.json", "index/@eaDir/t",
    ]  # fmt: skip
    for name in litter:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"\0\5\26\7")
    found = verify(VerifyConfig(store=path, repair=True))
    assert found.whole
    named = {Path(name) for name in found.found.stray}
    assert all({Path(name), *Path(name).parents} & named for name in litter)
    assert len(named) == len(litter)
    assert "and 7 more stray files" in found.as_text()
    assert all((path / name).exists() for name in litter)
    assert_same_store(open_store(path), open_store(whole))
    assert inspect_store(open_store(path)).scans.missing_blocks == []
    assert choose([open_store(path)], Wanted((), None), {}, None)
    filled_store(path)  # goes on, and finds everything there


def test_a_folder_whose_name_is_no_utf_8_holds_a_store_as_any_other(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/st\xffre.zarr"))
    filled_store(path)
    assert verify(VerifyConfig(store=path)).whole
    assert inspect_store(open_store(path)).as_json()["num_blocks"] == 2


@pytest.mark.parametrize("name", ["index", "index/scans", "index/t", "blocks", "sources"])
def test_a_file_in_place_of_a_folder_is_said_by_all(path, name):
    (path / name).rename(path / ".kept")
    (path / name).write_text("")
    for action in (open_store, filled_store, lambda store: verify(VerifyConfig(store=store, repair=True))):
        with pytest.raises(
            DamagedError, match=rf"{name}: a file has the name of a folder of the store. Remove the file, then repeat"
        ):
            action(path)
    (path / name).unlink()
    (path / ".kept").rename(path / name)
    assert verify(VerifyConfig(store=path)).whole


@pytest.mark.parametrize("name", ["", "Thumbs.db", ".DS_Store", "@eaDir/x"])
def test_a_folder_that_only_holds_litter_becomes_a_store(tmp_path, name):
    (tmp_path / "s.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
    if name:
        (tmp_path / "s.zarr" / name).touch()
    assert filled_store(tmp_path / "s.zarr").committed_blocks() == {0, 1}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN])
@pytest.mark.parametrize("name", ["blocks/000001/targets/t/vectors/c/0/0", "blocks/000001/points/zarr.json",
                                  "index/scans/000001.parquet", "blocks/000000/index.parquet", "blocks/000001",
                                  "teachers/t/zarr.json", "teachers/t/statistics/000/zarr.json",
                                  "teachers/t/statistics/000/covariance/c/0/0"])  # fmt: skip
def test_what_cannot_be_read_now_is_no_damage(path, monkeypatch, name, code):
    before = files(path)
    with monkeypatch.context() as patch:
        closed(patch, path / name, code)
        report = verify(VerifyConfig(store=path, repair=True))
        said = report.as_text()
        assert report.damage == []
        assert not report.whole
        assert f"cannot be read now: {path / name}" in said
        assert os.strerror(code) in said
        assert "--repair" not in said
    assert files(path) == before
    assert verify(VerifyConfig(store=path)).whole


@pytest.mark.parametrize("name", ["index", "index/scans", "zarr.json", "teachers", "sources", ""])
def test_what_nobody_may_look_at_is_said_by_all_and_called_neither_missing_nor_damaged(path, monkeypatch, name):
    with monkeypatch.context() as patch:
        closed(patch, path / name)
        for action in (
            lambda: inspect_store(open_store(path)),
            lambda: verify(VerifyConfig(store=path)),
            lambda: choose([open_store(path)], Wanted((), None), {}, None),
            lambda: filled_store(path),
        ):
            with pytest.raises(
                UnreadableError, match=r"cannot be read now \(Permission denied\)\. Check the permissions there"
            ):
                action()


def test_a_block_of_which_something_cannot_be_read_is_not_repaired(path, monkeypatch):
    """Though something else of it is damaged."""
    flip_bit(path / "blocks/000001/points/c/0/0")
    before = files(path)
    with monkeypatch.context() as patch:
        closed(patch, path / "blocks/000001/targets/t/vectors/c/0/0")
        assert verify(VerifyConfig(store=path, repair=True)).damage
    assert files(path) == before


def test_what_is_missing_is_said_by_kind(tmp_path):
    path = tmp_path / "s.zarr"
    filled_store(path, blocks=())
    writer = create_store(path, "part-0-of-1")
    write_scans(writer, 1, a_block(1)[0])
    report = verify(VerifyConfig(store=path))
    assert report.found.missing == {SCANS: [0], "t": [0, 1]}
    assert (report.whole, report.damage) == (False, [])
    assert "scans: 1 block missing (number 0)" in report.as_text()
    assert "targets of t: 2 blocks missing (numbers 0-1)" in report.as_text()
    assert report.as_json()["missing"] == {SCANS: [0], "t": [0, 1]}


@pytest.mark.parametrize("copy", ["index/scans/000001.parquet", "blocks/000001/index.parquet",
                                  "index/t/000000.parquet", "blocks/000000/targets/t/index.parquet"])  # fmt: skip
@pytest.mark.parametrize("damage", [flip_bit, lambda file: file.write_bytes(b"")])
def test_one_sound_copy_of_an_index_restores_the_other(path, whole, copy, damage):
    damage(path / copy)
    assert len(verify(VerifyConfig(store=path)).damage) == 1
    verify(VerifyConfig(store=path, repair=True))
    assert verify(VerifyConfig(store=path)).whole
    assert_same_store(open_store(path), open_store(whole))


def test_what_is_taken_out_is_kept_and_other_teachers_targets_come_back(path, whole):
    """Scans are damaged, so the targets of both teachers go, too; made anew by one, those of the other are back."""
    writer = create_store(path, "part-0-of-1")
    writer.add_inputs(SETTINGS, {}, {"u": {**PROVENANCE, "teacher": "u"}})
    write_targets(writer, 1, "u", a_block(1)[1])
    before = open_store(path).read_targets(1, "u")
    flip_bit(path / "blocks/000001/points/c/0/0")
    report = verify(VerifyConfig(store=path, repair=True))
    assert report.kept == [path / "aside/000001.scans.0"]
    assert f"rm -r {path / 'aside'}" in report.as_text()
    assert inspect_store(open_store(path)).aside > 1000
    assert [open_store(path).committed_blocks(kind) for kind in (SCANS, "t", "u")] == [{0}, {0}, set()]
    filled_store(path)
    store = open_store(path)
    assert store.committed_blocks("u") == {1}
    np.testing.assert_array_equal(store.read_targets(1, "u").vectors, before.vectors)
    assert verify(VerifyConfig(store=path)).damage == []


@pytest.mark.parametrize("other", ["scans", "damaged"])
def test_targets_come_back_only_where_they_fit_and_are_sound(path, other):
    writer = create_store(path, "part-0-of-1")
    writer.add_inputs(SETTINGS, {}, {"u": {**PROVENANCE, "teacher": "u"}})
    write_targets(writer, 1, "u", a_block(1)[1])
    writer.set_aside(SCANS, 1)
    scans, targets = a_block(1)
    if other == "scans":
        scans.points[0] += 1
    else:
        flip_bit(path / "aside/000001.scans.0/group/targets/u/vectors/c/0/0")
    assert write_block(writer, 1, scans, t=targets)
    assert open_store(path).committed_blocks("u") == set()
    assert verify(VerifyConfig(store=path)).damage == []
    assert list((path / "aside").rglob("group/vectors/c/0/0"))  # kept all the same


def test_what_was_taken_out_twice_is_kept_twice(path):
    writer = create_store(path, "part-0-of-1")
    first = writer.set_aside("t", 0)
    write_targets(writer, 0, "t", a_block(0)[1])
    second = writer.set_aside("t", 0)
    assert [first.name, second.name] == ["000000.t.0", "000000.t.1"]
    assert writer.put_back("t", 0)
    assert open_store(path).is_committed("t", 0)
    assert not writer.put_back("t", 0)  # something stands there
    assert (first / "group/vectors/c/0/0").exists()
    assert not (second / "group").exists()


@pytest.mark.parametrize("kind", [SCANS, "t"])
def test_where_folders_cannot_be_renamed_they_are_copied(path, whole, monkeypatch, kind):
    """As in a container, whose lower layers are on another device."""
    lower, real = path / "blocks", os.rename

    def rename(source, target):
        if Path(source).is_relative_to(lower) and Path(source).is_dir() and ".moving-" not in str(source):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    writer = create_store(path, "part-0-of-1")
    kept = writer.set_aside(kind, 1)
    group = path / "blocks/000001" if kind == SCANS else path / "blocks/000001/targets/t"
    assert not group.exists()
    assert (kept / "group/zarr.json").is_file()
    assert writer.put_back(kind, 1)
    assert verify(VerifyConfig(store=path)).whole
    assert_same_store(open_store(path), open_store(whole))
    writer.set_aside(kind, 1)
    filled_store(path)
    assert_same_store(open_store(path), open_store(whole))


def test_a_copy_that_fails_leaves_things_as_they_were(path, monkeypatch):
    def rename(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def copytree(source, target):
        (Path(target) / "half").mkdir(parents=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files(path)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(shutil, "copytree", copytree)
    with pytest.raises(OSError, match="No space left"):
        commit.move(path / "blocks/000001", path / "aside")
    assert files(path) == before
    assert not list(path.glob(".moving*"))


@pytest.mark.parametrize("version", [1, 2, 5])
def test_a_store_of_another_version_is_refused_in_one_line(path, version):
    attributes = {"format": "scalr-store", "format_version": version}
    (path / "zarr.json").write_text(json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}))
    said = (
        rf"format version {version}; this release reads 3 and 4\. Use the release of scalr that wrote"
        r" the store, or extract again into a new store"
    )
    for action in (open_store, lambda path: create_store(path, "p"), lambda path: verify(VerifyConfig(store=path))):
        with pytest.raises(StoreError, match=said):
            action(path)


def test_metadata_of_an_index_that_were_altered_are_noticed(path):
    """Its pages have checksums; here a record in the metadata says something else, in both copies."""
    for name in ("index/t/000001.parquet", "blocks/000001/targets/t/index.parquet"):
        table = pq.read_table(path / name)
        metadata = dict(table.schema.metadata)
        metadata[b"scalr.record"] = metadata[b"scalr.record"].replace(b'"patch_size": 4', b'"patch_size": 2')
        pq.write_table(table.replace_schema_metadata(metadata), path / name)
    with pytest.raises(DamagedError, match=r"000001.parquet: the index file cannot be read .*altered"):
        choose([open_store(path)], Wanted((), None), {}, None)
    (damage,) = verify(VerifyConfig(store=path)).damage
    assert (damage.block, damage.kind) == (1, "t")


def another_store(path: Path, settings: dict = SETTINGS, provenance: dict = PROVENANCE) -> Path:
    """Of the same blocks, made with other settings; every record and index of it is right in itself."""
    writer = create_store(path, "p")
    writer.add_inputs(settings, {}, {"t": provenance})
    for block in (0, 1):
        scans, targets = a_block(block)
        write_block(writer, block, scans, t=targets)
    return path


@pytest.mark.parametrize("name", ["teachers/t/zarr.json", "sources/000/zarr.json"])
def test_the_record_of_another_store_is_noticed_and_that_of_the_blocks_restored(path, whole, tmp_path, name):
    """It is signed as any record is."""
    other = another_store(tmp_path / "o.zarr", {**SETTINGS, "points": "x"}, {**PROVENANCE, "patch_size": 2})
    shutil.copy(other / name, path / name)
    with pytest.raises(DamagedError, match=r"of a block that was made with other settings than are recorded"):
        open_store(path).read_view(0, "t")
    found = verify(VerifyConfig(store=path, repair=True))
    assert [(each.block, each.kind, each.what) for each in found.damage] == [
        (None, name, "it is not what its blocks were made with")
    ]
    assert verify(VerifyConfig(store=path)).whole
    assert_same_store(open_store(path), open_store(whole))
    assert len(open_store(path).sources) == 1


@pytest.mark.parametrize("kind", [SCANS, "t"])
def test_a_block_of_another_store_is_noticed_and_taken_out(path, whole, tmp_path, kind):
    other = another_store(tmp_path / "o.zarr", {**SETTINGS, "points": "x"}, {**PROVENANCE, "patch_size": 2})
    group = "blocks/000001" if kind == SCANS else "blocks/000001/targets/t"
    shutil.rmtree(path / group)
    shutil.copytree(other / group, path / group)
    for each in (SCANS, "t") if kind == SCANS else ("t",):
        shutil.copy(other / f"index/{each}/000001.parquet", path / f"index/{each}/000001.parquet")
    with pytest.raises(DamagedError, match=r"of a block that was made with other settings than are recorded"):
        open_store(path).read_view(3, "t")
    found = verify(VerifyConfig(store=path, repair=True))
    assert {each.block for each in found.damage} == {1}
    assert len(open_store(path).sources) == 1
    filled_store(path)
    assert verify(VerifyConfig(store=path)).whole
    assert_same_store(open_store(path), open_store(whole))


def test_a_record_in_two_places_is_one(path, tmp_path):
    writer = create_store(path, "p")
    add_inputs(writer, {**SETTINGS, "split": "val", "num_blocks": 1}, t=PROVENANCE)
    scans, targets = a_block(2)
    write_block(writer, 2, scans, t=targets)
    before = [source.attributes for source in open_store(path).sources]
    shutil.copy(path / "sources/001/zarr.json", path / "sources/000/zarr.json")
    found = verify(VerifyConfig(store=path, repair=True))
    assert [each.kind for each in found.damage] == ["sources/000/zarr.json"]
    assert verify(VerifyConfig(store=path)).whole
    assert [source.attributes for source in open_store(path).sources] == before


@pytest.mark.parametrize("name", ["blocks/000001", "blocks", "index", "index/t", "teachers", "sources/000",
                                  "blocks/000001/targets/t/vectors/c/0/0", "zarr.json"])  # fmt: skip
def test_a_link_to_storage_that_is_not_mounted_is_no_damage(path, tmp_path, name):
    (path / name).rename(tmp_path / "disk")
    (path / name).symlink_to(tmp_path / "disk")
    assert verify(VerifyConfig(store=path)).whole
    (tmp_path / "disk").rename(tmp_path / "away")
    try:
        said = verify(VerifyConfig(store=path, repair=True)).as_text()
    except UnreadableError as error:
        said = f"cannot be read now: {error.where}"
    assert f"cannot be read now: {path / name}" in said
    assert " 0 damaged" in said or "blocks read" not in said
    with pytest.raises(UnreadableError, match="the link cannot be followed now"):
        open_store(path).read_view(3, "t")
    if "vectors" not in name:
        with pytest.raises(UnreadableError, match="the link cannot be followed now"):
            filled_store(path)
    (tmp_path / "away").rename(tmp_path / "disk")
    assert verify(VerifyConfig(store=path)).whole
