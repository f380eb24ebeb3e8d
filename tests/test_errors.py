"""What people see when something is wrong: the form of a message, and the page that has all of them."""

from __future__ import annotations

import errno
import pickle
import re

import pytest

from doc_examples import DOCS
from error_record import complaints_about
from error_sites import PACKAGE, error_sites, site_at
from scalr.distill.interruption import StoppedError
from scalr.errors import DatasetError, ScalrError, StoreError, StudentError, TeacherError, did_you_mean, remedy


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [(ScalrError, 1), (DatasetError, 1), (StoreError, 1), (TeacherError, 1), (StudentError, 1), (StoppedError, 143)],
)
def test_an_error_survives_the_way_from_a_worker(kind, exit_code):
    error = pickle.loads(pickle.dumps(kind("no scan", where="a.bin", fix="Copy it again.")))
    assert type(error) is kind
    assert (error.where, error.what, error.fix) == ("a.bin", "no scan", "Copy it again")
    assert str(error) == "a.bin: no scan. Copy it again"
    assert error.exit_code == exit_code


def test_an_error_can_say_in_which_larger_place_it_is():
    error = StoreError("no scan", where="a.bin", fix="Copy it again.").inside("block 3 frame f")
    assert type(error) is StoreError
    assert str(error) == "block 3 frame f: a.bin: no scan. Copy it again"


@pytest.mark.parametrize(
    ("what", "fix", "message"),
    [
        ("no scan", "Copy it again", "here: no scan. Copy it again"),
        ("no scan.", "Copy it again.", "here: no scan. Copy it again"),
        ("which one?", "Name it.", "here: which one? Name it"),
        ("no\n  scan\t", "Copy  it\nagain", "here: no scan. Copy it again"),  # as libraries break their lines
    ],
)
def test_a_message_is_one_line_of_three_parts(what, fix, message):
    assert str(ScalrError(what, where="here", fix=fix)) == message


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Make room"), (errno.EDQUOT, "Make room"), (errno.EACCES, "Check the permissions"),
        (errno.EROFS, "Check the permissions"), (errno.ENOTDIR, "Check which part of the path is a file"),
        (errno.EISDIR, "Give a file"), (errno.EIO, "Check the storage"), (errno.EMFILE, "Enlarge"),
        (0, "Copy it again"),
    ],
)  # fmt: skip
def test_what_helps_depends_on_what_the_file_system_said(number, advice):
    assert remedy(OSError(number, "x"), "Copy it again").startswith(advice)
    assert remedy(ValueError("x"), "Copy it again") == "Copy it again"


def test_a_mistyped_name_gets_the_nearest():
    assert did_you_mean("tran", ["train", "val"]) == ", did you mean 'train'?"
    assert did_you_mean("xyz", ["train", "val"]) == ""


@pytest.mark.parametrize(
    ("what", "where", "fix", "complaint"),
    [
        ("no scan", "a.bin", "Copy it again.", None),
        ("no scan", "a.bin", "copy it again.", "no verb"),
        ("no scan", "a.bin", "The file is to be copied.", "no verb"),
        ("no scan", "a.bin", "Copyright.", "no verb"),
        ("", "a.bin", "Copy it again.", "empty what"),
        ("no scan", "", "Copy it again.", "empty where"),
        ("'a.bin'", "a.bin", "Copy it again.", "repeats"),
        ("no scan " * 200, "a.bin", "Copy it again.", "characters"),
    ],
)
def test_a_message_that_reads_badly_is_noticed(what, where, fix, complaint):
    found = complaints_about(ScalrError(what, where=where, fix=fix))
    assert complaint in found[0] if complaint else not found, found


def test_sites_are_found_with_their_templates():
    plain = next(site for site in error_sites() if site.template == "no feature store exists here")
    assert (plain.module, plain.function) == ("extract/store/reader.py", "open_store")
    assert site_at(str(PACKAGE / plain.module), plain.last_line) == plain
    assert site_at(str(PACKAGE / plain.module), plain.last_line + 1) is None
    templates = {site.template for site in error_sites()}
    assert "unknown teacher '…'…" in templates
    joined = "a batch of … frames cannot be shared by … processes that accumulate … batches each"  # of two texts
    assert joined in templates
    assert not [site for site in error_sites() if site.module.startswith("tests")]


def test_the_page_has_every_message_once_and_no_other():
    rows = re.findall(r"^\| `(.*?)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert sorted(row.replace("\\|", "|") for row in rows) == sorted({site.template for site in error_sites()})


def test_no_error_says_only_what_a_variable_holds():
    assert "…" not in {site.template for site in error_sites()}
