"""Read weights files in all common formats; no code in a file is run."""

from __future__ import annotations

import json
import os
import re
import struct
from collections import OrderedDict
from pathlib import Path

import torch

from ...checkpoint_files import explained, first_line
from ...errors import TeacherError
from .torchscript import is_torchscript, read_torchscript

MISSING = "Pass --weights with a checkpoint file or 'random'."
INDEX = ".index.json"  # suffix of Hugging Face's index of weights in several files
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<suffix>safetensors|bin)$")
IN_A_FOLDER = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
LONGEST_HEADER = 100_000_000  # bytes, the limit in the format of safetensors
POINTER = b"version https://git-lfs"
# Classes of settings that trainers save with their tensors.
OF_SETTINGS = (
    "argparse.Namespace",
    *(
        f"pathlib{module}.{pure}{system}Path"
        for module in ("", "._local")
        for pure in ("", "Pure")
        for system in ("Posix", "Windows")
    ),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float32", "Float64", "Int32", "Int64", "Bool")),
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
    "typing.Any",
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
)
DICTIONARIES_OF_SETTINGS = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "yacs.config.CfgNode",
)


class _Setting:
    """A placeholder for an object of such a class; the class is neither imported nor run."""

    def __init__(self, *_: object) -> None:
        """Ignore the arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


def read_weights_file(path: Path) -> object:
    """Read a `.safetensors`, `.pth`, `.bin` or TorchScript file, several files, or their folder.

    Args:
        path: path of the file, of an index of several files (`model.safetensors.index.json`), or of a folder that
            Hugging Face's transformers wrote.

    Returns:
        Tensors by name, or whatever object was saved.

    Raises:
        TeacherError: a file that is missing or damaged, or holds other objects than tensors and settings.
    """
    with explained(path, TeacherError, missing=MISSING):
        names = os.listdir(path) if path.is_dir() else None
    if names is not None:
        path = _in_folder(path, names)
    if path.name.endswith(INDEX):
        return _read_shards(path)
    _check_alone(path)
    return _read(path)


def _in_folder(folder: Path, names: list[str]) -> Path:
    for name in IN_A_FOLDER:
        if name in names:
            return folder / name
    if ".metadata" in names:
        raise TeacherError(
            "the folder is a distributed checkpoint of PyTorch",
            where=folder,
            fix="Run 'python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE', then pass FILE.",
        )
    raise TeacherError(
        f"the folder of weights has no {', '.join(IN_A_FOLDER[:-1])} or {IN_A_FOLDER[-1]}",
        where=folder,
        fix="Pass the path of the weights file.",
    )


def _check_alone(path: Path) -> None:
    shard = SHARD.match(path.name)
    if shard and int(shard["count"]) > 1:
        raise TeacherError(
            f"the file is number {int(shard['number'])} of the {int(shard['count'])} that hold the weights",
            where=path,
            fix=f"Pass their index, {shard['stem']}.{shard['suffix']}{INDEX}, or the folder.",
        )


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of all files that an index names."""
    with explained(index, TeacherError, missing=MISSING):
        text = index.read_bytes()
    try:
        files = {str(name): str(file) for name, file in json.loads(text)["weight_map"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise TeacherError(
            f"the index of the weights' files cannot be used ({first_line(problem)})",
            where=index,
            fix="Copy or download the index again.",
        ) from None
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file or file == "..":
            raise TeacherError(
                f"the index names '{file}', which is not a file in the same folder",
                where=index,
                fix="Use an index that was downloaded together with its files.",
            )
        content = _read(index.with_name(file))
        listed = [name for name, its_file in files.items() if its_file == file]
        lacking = [name for name in listed if not isinstance(content, dict) or name not in content]
        if lacking:
            raise TeacherError(
                f"{len(lacking)} of the {len(listed)} tensors that {index.name} lists are missing: {lacking[0]} …",
                where=index.with_name(file),
                fix="Copy or download the file again.",
            )
        tensors |= {name: content[name] for name in listed}
    return tensors


def _read(path: Path) -> object:
    with explained(path, TeacherError, missing=MISSING):
        with path.open("rb") as file:
            start = file.read(64)
        if not start.startswith(POINTER):
            return _content(path, start)
    raise TeacherError(
        "the file is a Git LFS pointer, not the weights",
        where=path,
        fix="Run 'git lfs pull' in the repository, or download the weights.",
    )


def _content(path: Path, start: bytes) -> object:
    if path.suffix == ".safetensors" or _begins_as_safetensors(start):
        from safetensors.torch import load, load_file

        # safetensors opens no file with a name that is not UTF-8; reading its bytes here takes the memory twice.
        return load_file(path) if _is_utf8(path) else load(path.read_bytes())
    if is_torchscript(path):
        return read_torchscript(path)
    stand_ins = {_Setting: OF_SETTINGS, OrderedDict: DICTIONARIES_OF_SETTINGS}
    with torch.serialization.safe_globals([(kind, name) for kind, names in stand_ins.items() for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # Python represents bytes that are no UTF-8 as lone surrogates
        return False
    return True


def _begins_as_safetensors(start: bytes) -> bool:
    """Whether a file begins like safetensors, whatever its name: Hugging Face's cache names files by their digests."""
    return len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= LONGEST_HEADER
