from __future__ import annotations

import io
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from scalr.extract.teachers.torchscript import _TensorUnpickler, is_torchscript, read_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # CLIP's files are of that form

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class Layer(torch.nn.Module):
    def __init__(self, first: int) -> None:
        super().__init__()
        for dtype in DTYPES:
            self.register_buffer(f"of_{dtype}".replace(".", "_"), torch.arange(first, first + 6).to(dtype))
        self.sizes = [2, 3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Layer(1)
        whole = torch.arange(24.0).reshape(4, 6)
        self.register_buffer("whole", whole)
        self.register_buffer("part", whole[1:3, 2:].T)  # shares the storage, from an offset, by other strides
        self.weight = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.weight


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("torchscript") / "m.pt"
    torch.jit.script(Model()).save(str(path))
    return path


def test_tensors_are_those_of_the_program(archive):
    found, expected = read_torchscript(archive), dict(torch.jit.load(str(archive)).state_dict())
    assert found.keys() == expected.keys() == Model().state_dict().keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_what_is_an_archive_of_torchscript(archive, tmp_path):
    assert is_torchscript(archive)
    assert not is_torchscript(tmp_path / "nowhere.pt")
    assert not is_torchscript(tmp_path)
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pth")  # a zip too
    assert zipfile.is_zipfile(tmp_path / "w.pth")
    assert not is_torchscript(tmp_path / "w.pth")
    (tmp_path / "text.pt").write_text("not a zip")
    assert not is_torchscript(tmp_path / "text.pt")


def test_a_storage_of_another_size_is_said(archive, tmp_path):
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        for name in whole.namelist():
            content = whole.read(name)
            other.writestr(name, 2 * content if name.endswith("/data/0") else content)
    with pytest.raises(ValueError, match=r"storage 0 has \d+ values, not \d+"):
        read_torchscript(tmp_path / "other.pt")


def test_an_archive_has_one_pickle_of_tensors(archive, tmp_path):
    shutil.copy(archive, tmp_path / "two.pt")
    with zipfile.ZipFile(tmp_path / "two.pt", "a") as two:
        two.writestr("other/data.pkl", pickle.dumps(None))
    with pytest.raises(ValueError, match="too many values"):
        read_torchscript(tmp_path / "two.pt")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "FloatStorage"),  # the name alone does not do,
        ("torch", "load"),  # nor does the module
        ("torch", "hub"),
        ("torch._utils", "_rebuild_parameter"),
        ("os", "_rebuild_tensor_v2"),
        ("collections", "Counter"),
        ("os", "OrderedDict"),
        ("torch.jit._pickle", "load"),
        ("os", "build_intlist"),
        ("os", "restore_type_tag"),
        ("builtins", "eval"),
    ],
)
def test_nothing_else_is_named(module, name):
    with pytest.raises(pickle.UnpicklingError, match=rf"^it names {module}\.{name}$"):
        _TensorUnpickler(io.BytesIO(), None, "").find_class(module, name)
