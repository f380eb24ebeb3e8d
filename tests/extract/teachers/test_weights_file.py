"""Files of weights in the forms that are in use: one, or several with an index, alone or in a folder."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from scalr.errors import TeacherError
from scalr.extract.teachers.weights_file import read_weights_file

OF_LIGHTNING = "lightning.fabric.utilities.data"
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(3)}


def in_shards(folder: Path, suffix: str) -> Path:
    """Two files and their index."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    write = save_file if suffix == "safetensors" else torch.save
    names = {1: ["a.weight"], 2: ["a.bias", "b.weight"]}
    files = {number: f"{stem}-{number:05}-of-00002.{suffix}" for number in names}
    for number, file in files.items():
        write({name: STATE[name] for name in names[number]}, folder / file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {name: files[number] for number in names for name in names[number]}}))
    return index


def same(content: object) -> bool:
    return content.keys() == STATE.keys() and all(torch.equal(content[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_files_with_an_index_are_read_as_one_and_so_is_their_folder(tmp_path, suffix):
    index = in_shards(tmp_path, suffix)
    assert same(read_weights_file(index))
    assert same(read_weights_file(tmp_path))
    with pytest.raises(
        TeacherError, match=rf"the file is number 2 of the 2 that hold .* Pass their index, {index.name}, or"
    ):
        read_weights_file(next(tmp_path.glob("*-00002-of*")))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("model.safetensors", save_file),
        ("pytorch_model.bin", torch.save),
        ("blob", save_file),  # Hugging Face's cache names files by their digests
        (os.fsdecode(b"\xff.safetensors"), lambda state, path: path.write_bytes(save(state))),  # not UTF-8
        (os.fsdecode(b"\xff.pth"), torch.save),
        ("old.pth", lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)),
    ],
)
def test_one_file_is_read_whatever_its_name(tmp_path, name, written):
    written(STATE, tmp_path / name)
    assert same(read_weights_file(tmp_path / name))
    if name in ("model.safetensors", "pytorch_model.bin"):
        assert same(read_weights_file(tmp_path))


class DictConfig:
    """Stands for OmegaConf's, which need not be installed where the file is read."""

    def __init__(self) -> None:
        self.content = {"lr": 0.1}


class AttributeDict(dict):
    """Stands for Lightning's."""


@pytest.mark.parametrize("as_zip", [True, False])
def test_settings_of_a_trainer_beside_the_tensors_do_no_harm(tmp_path, monkeypatch, as_zip):
    """As DINO and MAE, and trainings with Lightning and OmegaConf, write them."""
    settings = {
        "args": argparse.Namespace(lr=1e-3, out=Path("/runs/a")),
        "loss": np.float64(0.5),
        "best": np.float32(0.25),
    }
    with monkeypatch.context() as there:
        for kind, module in {DictConfig: "omegaconf.dictconfig", AttributeDict: OF_LIGHTNING}.items():
            there.setattr(kind, "__module__", module)
            for parent in itertools.accumulate(module.split("."), "{}.{}".format):
                there.setitem(sys.modules, parent, types.SimpleNamespace(**{kind.__name__: kind}))
            settings[module] = kind()
        settings[OF_LIGHTNING]["lr"] = 0.1
        torch.save({"model": STATE, **settings}, tmp_path / "w.pth", _use_new_zipfile_serialization=as_zip)
    assert same(read_weights_file(tmp_path / "w.pth")["model"])


def altered(index: Path, **files: str) -> None:
    content = json.loads(index.read_text())
    content["weight_map"] |= {name.replace("_", "."): file for name, file in files.items()}
    index.write_text(json.dumps(content))


SECOND = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index: index.write_text("[1, 2"), r"index\.json: the index of .* cannot be used \(JSONDecodeError"),
        (lambda index: index.write_text("[]"), r"index\.json: the index of .* cannot be used \(TypeError"),
        (lambda index: index.write_bytes(b"\xff"), r"index\.json: the index of .* cannot be used \(UnicodeDecode"),
        (lambda index: altered(index, b_weight="../../secret"), r"names '\.\./\.\./secret', which is not"),
        (lambda index: altered(index, b_weight=".."), r"names '\.\.', which is not a file in the same folder"),
        (lambda index: altered(index, b_weight="other.safetensors"), r"other\.safetensors: the weights file is m"),
        (lambda index: altered(index, c_weight=SECOND), rf"{SECOND}: 1 of the 3 tensors that .* are missing: c\.w"),
        (lambda index: (index.parent / SECOND).write_bytes(b"{"), rf"{SECOND}: the weights cannot be read"),
        (lambda index: index.unlink(), r"the folder of weights has no model\.safetensors, .*index\.json"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_its_files_is_said(tmp_path, damage, message):
    damage(in_shards(tmp_path, "safetensors"))
    with pytest.raises(TeacherError, match=message):
        read_weights_file(tmp_path)


def test_a_pointer_in_place_of_the_weights_is_said(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 88\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(TeacherError, match=r"the file is a Git LFS pointer.*Run 'git lfs pull'"):
        read_weights_file(tmp_path)


def test_a_distributed_checkpoint_is_said_with_the_way_to_one_file(tmp_path):
    (tmp_path / ".metadata").touch()
    with pytest.raises(TeacherError, match=r"a distributed checkpoint of PyTorch.*dcp_to_torch FOLDER FILE"):
        read_weights_file(tmp_path)
