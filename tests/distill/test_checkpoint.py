from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from durable_moves import DurableMoves
from scalr.checkpoint_files import tensors_digest
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import FORMAT, WITHOUT_DIGESTS, load_student, save_student, student_provenance
from scalr.distill.student import Student
from scalr.errors import StudentError
from standardised import standardisation_of, vectors_of


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


def test_a_student_lies_in_a_folder_whose_name_is_no_utf_8_as_in_any_other(path):
    other = Path(os.fsdecode(os.fsencode(path.parent) + b"/r\xffn/student.safetensors"))
    save_student(load_student(path), other, {"recipe": "none"})
    assert student_provenance(other) == {"recipe": "none"}
    same = zip(load_student(path).state_dict().values(), load_student(other).state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in same)


def test_an_official_file_in_place_of_a_student_is_to_be_converted(tmp_path):
    torch.save({"model_points": {}}, tmp_path / "official.pt")
    with pytest.raises(StudentError, match=r"official\.pt: the file cannot be read .*\. Run 'scalr convert' first"):
        load_student(tmp_path / "official.pt")


def rewritten(path: Path, change) -> Path:
    """The file with other tensors or another header, and the digests as they were."""
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, header)
    return path


def without_digests(header: dict, tensors: dict) -> None:
    """As students were written before there were digests."""
    header["format"] = WITHOUT_DIGESTS
    del header["tensors_sha256"], header["header_sha256"]


def without_backbone(header: dict, tensors: dict) -> None:
    """As students were written before there were other backbones than WaffleIron."""
    without_digests(header, tensors)
    header["student"] = json.dumps({k: v for k, v in json.loads(header["student"]).items() if k != "backbone"})


def test_a_student_of_before_there_were_backbones_is_a_waffleiron(path):
    expected = load_student(path)
    found = load_student(rewritten(path, without_backbone))
    assert found.config == expected.config == WaffleIronConfig(width=8, depth=3)
    assert all(map(torch.equal, found.state_dict().values(), expected.state_dict().values()))


def test_a_student_of_before_there_were_digests_loads_with_a_warning(path, caplog):
    expected = load_student(path).state_dict()
    assert caplog.messages == []
    found = load_student(rewritten(path, without_digests)).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert student_provenance(path) == {"recipe": "none"}
    assert caplog.messages == [
        f"{path}: the file has no digest, so that damage cannot be found: an older release wrote it"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda header, tensors: tensors["classif.bias"].add_(1e-6),
            "the tensors of the file changed since it was written",
        ),
        (
            lambda header, tensors: tensors.update(more=torch.zeros(1)),
            "the tensors of the file changed since it was written",
        ),
        (
            lambda header, tensors: header.update(provenance="{}"),
            "the header values of the file changed since it was written",
        ),
        (lambda header, tensors: header.update(more=""), "the header values of the file changed since it was written"),
        (
            lambda header, tensors: header.pop("header_sha256"),
            "the header values of the file changed since it was written",
        ),
        (
            lambda header, tensors: header.pop("tensors_sha256"),
            "the header values of the file changed since it was written",
        ),
    ],
)
def test_what_is_not_as_it_was_written_is_refused(path, change, message):
    with pytest.raises(
        StudentError,
        match=rf"{message} \(other SHA-256\)\. Copy the file again, or train"
        " the student again",
    ):
        load_student(rewritten(path, change))
    if "header" in message:
        with pytest.raises(StudentError, match=message):
            student_provenance(path)


@pytest.mark.parametrize("kind", ["centre", "phi_s"])
def test_a_student_keeps_the_way_back_to_its_teachers_space(tmp_path, kind):
    student = Student(WaffleIronConfig(width=8, depth=1, out_channels=12)).eval()
    student.standardisation = standardisation_of(kind, vectors_of(8, 0), vectors_of(4, 1), weights=(1.0, 0.3))
    save_student(student, tmp_path / "student.safetensors", {})
    features = torch.randn(20, 8)
    assert torch.equal(load_student(tmp_path / "student.safetensors").project(features), student.project(features))
    assert not torch.allclose(student.project(features), student.classif(features))


def test_a_student_without_standardisation_has_the_file_that_it_always_had(path):
    with safe_open(path, "pt") as file:
        header, names = file.metadata(), set(file.keys())
    assert not {name for name in names if not name.startswith(("embed.", "waffleiron.", "classif."))}
    assert header.keys() == {"format", "student", "inputs", "provenance", "tensors_sha256", "header_sha256"}


@pytest.mark.parametrize("provenance", [None, "{"])
def test_a_provenance_that_cannot_be_read_is_said(path, provenance):
    def change(header, tensors):
        without_digests(header, tensors)
        header.pop("provenance") if provenance is None else header.update(provenance=provenance)

    with pytest.raises(
        StudentError,
        match="the file does not record what the student was trained on"
        r" \(.+\)\. Copy the file again, or train the student again",
    ):
        student_provenance(rewritten(path, change))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(path, value):
    student = load_student(path)
    with torch.no_grad():
        student.backbone.embed.conv1.bias[3] = student.classif.weight[0, 0] = value
    message = r"2 of \d+ tensors hold NaN or infinite values: embed\.conv1\.bias, classif\.weight\. "
    other = path.with_name("other.safetensors")
    with pytest.raises(StudentError, match=f"{message}Train it again with a lower learning rate"):
        save_student(student, other, {})
    assert not other.exists()

    def change(header, tensors):
        without_digests(header, tensors)
        tensors.update(student.state_dict())

    with pytest.raises(StudentError, match=r"2 of \d+ tensors hold NaN .*\. Train or convert the student again"):
        load_student(rewritten(path, change))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(value)
    with pytest.raises(StudentError, match=r"tensors hold NaN or infinite values: (\S+, ){11}\S+ …\."):
        save_student(student, other, {})


def test_a_digest_of_tensors_is_of_what_they_hold_alone():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    digest = tensors_digest(tensors)
    assert digest == tensors_digest(dict(reversed(tensors.items())))
    assert digest == tensors_digest(tensors | {"a": torch.arange(6.0).view(2, 3).T.contiguous().T.requires_grad_()})
    for changed in (
        {"a": tensors["a"].view(3, 2)},
        {"a": tensors["a"].double()},
        {"b": torch.tensor(4)},
        {"c": torch.tensor([1, 1.0078125], dtype=torch.bfloat16)},
        {"d": torch.zeros(0)},
    ):
        assert tensors_digest(tensors | changed) != digest
    by_hand = hashlib.sha256(b"b (2,) torch.int16" + bytes([1, 0, 2, 0])).hexdigest()
    assert tensors_digest({"b": torch.tensor([1, 2], dtype=torch.int16)}) == by_hand
    half = {"b": torch.tensor([1, 2], dtype=torch.float16)}
    assert tensors_digest(half, dtypes_of={"b": torch.zeros(0, dtype=torch.int16)}) == by_hand


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
    """As of another release, in a file that is whole."""
    rewritten(path, without_digests)
    with pytest.raises(
        StudentError, match=r"do not fit its configuration \(.+\)\. Train or convert the student again"
    ) as caught:
        load_student(rewritten(path, change))
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("header", [{}, {"format": "pt"}, {"format": f"{FORMAT}-2"}])
def test_another_programs_tensors_are_no_student(path, header):
    save_file({"weight": torch.zeros(2)}, path, header)
    with pytest.raises(StudentError, match=r"not a student of scalr\. Pass the student\.safetensors"):
        load_student(path)
