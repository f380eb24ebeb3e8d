from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from durable_moves import DurableMoves
from scalr.distill.checkpoint import FORMAT, load_student, save_student
from scalr.distill.waffleiron import Student, WaffleIronConfig
from scalr.errors import StudentError


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "student.safetensors"
    save_student(Student(WaffleIronConfig(width=8, depth=3)), path, {"recipe": "none"})
    return path


def test_a_student_is_on_disk_before_it_has_its_name(path, monkeypatch):
    """The name is never that of a file which a power failure leaves empty."""
    moves = DurableMoves(monkeypatch)
    save_student(load_student(path), path.with_name("new") / "copy.safetensors", {})
    assert moves.targets == [path.with_name("new") / "copy.safetensors"]
    assert moves.complaints == []
    assert [each.name for each in path.with_name("new").iterdir()] == ["copy.safetensors"]


def rewritten(path: Path, change) -> Path:
    """The file with other tensors or another header."""
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, header)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: tensors.clear(),
        lambda header, tensors: tensors.update({"classif.weight": torch.zeros(7, 7)}),
        lambda header, tensors: header.pop("inputs"),
        lambda header, tensors: header.update(student=json.dumps({"width": 8, "wings": 2})),
        lambda header, tensors: header.update(student="{"),
    ],
    ids=["no tensors", "another shape", "no inputs", "unknown setting", "cut off"],
)
def test_tensors_that_are_not_of_the_configuration_are_one_line(path, change):
    with pytest.raises(StudentError, match=r"do not fit \(.+\)\. Train or convert it again") as caught:
        load_student(rewritten(path, change))
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("header", [{}, {"format": "pt"}, {"format": f"{FORMAT}-2"}])
def test_another_programs_tensors_are_no_student(path, header):
    save_file({"weight": torch.zeros(2)}, path, header)
    with pytest.raises(StudentError, match=r"not a student of scalr\. Pass the student\.safetensors"):
        load_student(path)
