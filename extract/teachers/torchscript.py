"""Read tensors from a TorchScript archive, the form of OpenAI's CLIP files, without loading the program in it.

The archive is a zip file: `NAME/data.pkl` is a pickle of the modules' attributes, in which a tensor names its storage,
a file of raw values in `NAME/data/`. Modules become plain holders of attributes here, and only tensors are built.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Module:
    """A module of the archive; its tensors and submodules are attributes."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; False for a missing file."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors by their dotted names.

    Raises:
        pickle.UnpicklingError: the pickle names a class that tensors do not need.
        zipfile.BadZipFile, KeyError, ValueError: a damaged archive.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("/data.pkl")]
        with archive.open(name) as file:
            return dict(_tensors(_TensorUnpickler(file, archive, name.removesuffix("data.pkl")).load(), ""))


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> object:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view_of_storage
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle" and (name.startswith("build_") or name == "restore_type_tag"):
            return _without_type
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, saved_id: tuple) -> torch.Tensor:
        _, dtype, key, _, count = saved_id
        values = torch.frombuffer(bytearray(self._archive.read(f"{self._folder}data/{key}")), dtype=dtype)
        if len(values) != count:
            raise ValueError(f"storage {key} has {len(values)} values, not {count}")
        return values


def _view_of_storage(
    storage: torch.Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> torch.Tensor:
    return storage.as_strided(shape, stride, offset)


def _without_type(value: object, *_: object) -> object:
    """Return the value alone: TorchScript stores the type of a list with its values."""
    return value


def _tensors(module: object, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
