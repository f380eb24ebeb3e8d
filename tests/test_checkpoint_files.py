"""Whatever writes a file in place of another: it is whole on disk before it has its name, or the other one stays."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_moves import DurableMoves
from scalr.checkpoint_files import first_line, listed, shortened, write_bytes, written_aside
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import save_student
from scalr.distill.convert import write_official
from scalr.distill.export import export_student
from scalr.distill.interruption import Checkpoints
from scalr.distill.run_record import RunRecord, write_record
from scalr.distill.student import Student
from scalr.errors import ScalrError, StudentError
from scalr.evaluate.model import save_model
from scalr.evaluate.result import RunResult, write_result

STUDENT = Student(WaffleIronConfig(width=8, depth=3, out_channels=2)).eval()
CARD = RunResult(title="t", figures={}, protocol={}, provenance={})
WRITERS: dict[str, Callable[[Path], None]] = {
    "any.bin": lambda path: write_bytes(path, b"new"),
    "config.yaml": lambda path: write_record(path.parent, RunRecord({"a": 1}, {})),
    "checkpoint.pt": lambda path: Checkpoints(path, 0, RunRecord({}, {})).save({}),
    "student.safetensors": lambda path: save_student(STUDENT, path, {}),
    "model.safetensors": lambda path: save_model(STUDENT, path, ("a", "b"), {}),
    "student.pth": lambda path: write_official(STUDENT, path),
    "student.pt2": lambda path: export_student(STUDENT, path),
    "result.json": lambda path: write_result(CARD, path.parent),
    "result.md": lambda path: write_result(CARD, path.parent),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_whole_on_disk_before_it_has_its_name(tmp_path, monkeypatch, name):
    path, moves = tmp_path / name, DurableMoves(monkeypatch)
    WRITERS[name](path)
    assert path in moves.targets
    assert not [each for each in moves.complaints if f"came before {tmp_path}/." in each]


@pytest.mark.parametrize("name", WRITERS)
def test_the_file_before_stays_where_the_disk_is_full(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ScalrError, match=r"No space left.*Make room there"):
        WRITERS[name](path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", WRITERS)
def test_what_the_system_says_is_told_whichever_library_writes(tmp_path, name):
    """Here a limit of bytes for a file stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(ScalrError, match=r"cannot be written \(.*File too large"):
            WRITERS[name](tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_for_those_whom_the_umask_lets_read_it(tmp_path, name):
    before = os.umask(0o027)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    assert oct((tmp_path / name).stat().st_mode & 0o777) == "0o640"


def test_the_file_before_is_kept_where_that_is_asked_for(tmp_path):
    path, before = tmp_path / "a", tmp_path / "a.before"
    _write_twice(path, before)
    assert (path.read_text(), before.read_text()) == ("second", "first")
    with pytest.raises(KeyboardInterrupt):
        _write_half(path, before)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "second", "a.before": "first"}


def _write_twice(path: Path, before: Path) -> None:
    for text in ("first", "second"):
        with written_aside(path, StudentError, keep=before) as temporary:
            assert temporary == path.with_name(f".{path.name}.{os.getpid()}")  # of two processes, each has its own
            temporary.write_text(text)


def _write_half(path: Path, before: Path) -> None:
    with written_aside(path, StudentError, keep=before) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_what_libraries_say_fits_in_a_line():
    assert first_line(ValueError("x" * 301 + "\nmore")) == f"ValueError: {'x' * 300}"
    assert first_line(KeyError()) == "KeyError: no reason given"
    assert shortened(ValueError("a\n b")) == "a b"
    assert shortened(ValueError("word " * 200)).endswith(" …")
    assert len(shortened(ValueError("word " * 200))) <= 400
    assert shortened(ValueError()) == "ValueError"


def test_of_many_keys_the_first_of_each_kind_are_listed():
    names = [f"k{number}" for number in range(20)]
    assert listed({"missing": names[:12]}) == f"12 missing: {', '.join(names[:12])}"
    assert listed({"missing": names[:13]}) == f"13 missing: {', '.join(names[:12])} …"
    assert listed({"missing": names[:7], "unexpected": names[:6], "of another shape": []}) == (
        f"7 missing: {', '.join(names[:6])} …; 6 unexpected: {', '.join(names[:6])}"
    )


def test_a_file_is_written_in_a_folder_that_is_made_for_it(tmp_path):
    write_bytes(tmp_path / "a/b/c", b"x")
    assert (tmp_path / "a/b/c").read_bytes() == b"x"
    with pytest.raises(ScalrError, match="the file cannot be written"):
        write_bytes(tmp_path / "a/b/c/d", b"x")
