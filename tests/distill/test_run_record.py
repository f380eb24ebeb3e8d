"""What a run says of itself, and how differences are told."""

from __future__ import annotations

import logging

import pytest
import torch
import yaml

from scalr.distill.run_record import RunRecord, read_record, record_of, run_record, write_record
from scalr.errors import StudentError
from scalr.json_text import sha256_of_values

SETTINGS = {"kind": "c", "recipe": {"epochs": 25, "planes": [[1, 2], [3, 4]]}, "teachers": {"t": {"dim": 4}}}


@pytest.fixture
def record() -> RunRecord:
    return run_record(SETTINGS, torch.device("cpu"), workers=0)


def test_what_was_written_comes_back(record, tmp_path):
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert record_of(record.values) == record
    assert read_record(tmp_path / "elsewhere") is None
    assert list(yaml.safe_load((tmp_path / "config.yaml").read_text())) == list(record.values)  # as people read it


def test_tuples_are_the_lists_that_come_back(tmp_path):
    record = run_record({"planes": ((1, 2),), 3: "number"}, torch.device("cpu"))
    write_record(tmp_path, record)
    assert read_record(tmp_path).settings == record.settings == {"planes": [[1, 2]], "3": "number"}


def test_the_digest_is_of_all_settings_and_of_nothing_else(record):
    assert sha256_of_values({"b": 1, "a": {"d": 2, "c": 3}}) == sha256_of_values({"a": {"c": 3, "d": 2}, "b": 1})
    other_machine = run_record(SETTINGS, torch.device("cpu"), workers=8)
    assert other_machine.values["settings_sha256"] == record.values["settings_sha256"]
    other = run_record({**SETTINGS, "seed": 1}, torch.device("cpu"))
    assert other.values["settings_sha256"] != record.values["settings_sha256"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"kind": "d"}, "kind was d and is c"),
        ({"recipe": {"epochs": 2, "planes": [[1, 2], [3, 4]]}}, "recipe.epochs was 2 and is 25"),
        ({"recipe": {"epochs": 25, "planes": [[1, 2], [3, 5]]}}, "recipe.planes[1][1] was 5 and is 4"),
        ({"recipe": {"epochs": 25, "planes": [[1, 2]]}}, "recipe.planes was [[1, 2]] and is [[1, 2], [3, 4]]"),
        ({"teachers": {}}, 'teachers.t was not set and is {"dim": 4}'),
        ({"more": True}, "more was true and is not set"),
        ({"kind": "x" * 200}, f"kind was {'x' * 59}… and is c"),
        ({"kind": "x" * 60}, f"kind was {'x' * 60} and is c"),
        ({"kind": "x" * 61}, f"kind was {'x' * 59}… and is c"),
        ({"kind": "a0" * 32}, "kind was a0a0a0a0a0a… and is c"),
    ],
)
def test_a_difference_is_named_with_both_values(record, tmp_path, change, difference):
    with pytest.raises(StudentError) as caught:
        record.require_same({**SETTINGS, **change}, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the run was made with other settings: {difference}. "
        "Use the settings that the run was started with, or choose another --out"
    )


def test_of_many_differences_three_are_named(tmp_path):
    record = run_record({str(number): number for number in range(9)}, torch.device("cpu"))
    with pytest.raises(
        StudentError, match=r"other settings: 0 was 1 and is 0; 1 was 2 and is 1; 2 was 3 .*; and 6 more"
    ):
        record.require_same({str(number): number + 1 for number in range(9)}, tmp_path)
    record = run_record({"a": 1, "b": 2, "c": 3}, torch.device("cpu"))
    with pytest.raises(StudentError, match=r"a was 0 and is 1; b was 0 and is 2; c was 0 and is 3\. Use"):
        record.require_same({"a": 0, "b": 0, "c": 0}, tmp_path)


def test_a_record_says_how_the_machine_is_used(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    machine = run_record(SETTINGS, torch.device("cuda", 1), workers=3).machine
    expected = {"device": "cuda", "processes": 1, "threads": 7, "torch": torch.__version__, "workers": 3}
    assert machine == expected


def test_another_machine_is_said_once_and_not_refused(record, caplog):
    with caplog.at_level(logging.WARNING, "scalr"):
        record.say_changes_of_machine(record.machine)
        assert not caplog.records
        record.say_changes_of_machine({**record.machine, "workers": 2, "torch": "1.0"})
    (line,) = caplog.messages
    assert "torch was 1.0 and is" in line
    assert "workers was 2 and is 0): results may differ in the last bits" in line


@pytest.mark.parametrize(
    "content", [b"teachers: {coordinates", b"a: b: c", b"\xff\xfe\x00\xd8", b"when: 2020-13-45", b"[" * 1000]
)
def test_a_configuration_that_cannot_be_parsed_is_said(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(
        StudentError, match=r"config\.yaml: the run's configuration cannot be read \(.+\)\. Remove the file"
    ):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "text", "[1]", "a: 1", "machine: {}", "machine: 1", "machine: {}\na: 2020-01-01"]
)
def test_a_configuration_that_no_run_has_written_is_said(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(StudentError, match=r"the file was cut off or changed since the run wrote it\. R"):
        read_record(tmp_path)


def test_a_configuration_that_was_cut_off_or_changed_is_said(record, tmp_path):
    """Cut off between two lines, it is still YAML."""
    write_record(tmp_path, record)
    path = tmp_path / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        path.write_text("".join(lines[:kept]))
        with pytest.raises(StudentError, match="the file was cut off or changed since the run wrote it"):
            read_record(tmp_path)
    path.write_text("".join(lines).replace("epochs: 25", "epochs: 26"))
    with pytest.raises(StudentError, match="the file was cut off or changed since the run wrote it"):
        read_record(tmp_path)


def test_a_result_without_a_record_is_no_result_of_this_run(record, tmp_path):
    record.require_made_with(record.values, tmp_path)
    with pytest.raises(StudentError, match="the file does not record the settings that it was made with"):
        record.require_made_with(yaml.safe_load("distilled: {}"), tmp_path)
    with pytest.raises(StudentError, match="this file is of a other run, not of a c"):
        record.require_made_with(run_record({**SETTINGS, "kind": "other"}, torch.device("cpu")).values, tmp_path)
