"""Which tensors of a file are the teacher's: wrappers and prefixes that trainings put around them are taken off."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ...checkpoint_files import explained
from ...errors import TeacherError
from .torchscript import is_torchscript, read_torchscript

logger = logging.getLogger(__name__)

# What trainings and their tools write before a tensor's own name, as keys of dictionaries or as part of the name.
WRAPPERS = re.compile(r"(?:(?:model|state_dict|teacher|student|module|backbone|_orig_mod|encoder_q|encoder_k)\.)*")
IN_A_BLOCK = re.compile(r"(?:^|\.)(?:blocks|resblocks|layers?|layer[1-4]|transformer)\.\d+\..+\.(?:weight|bias)$")
# Of two networks in one file, the first is taken, as DINO and DINOv2, and MoCo, evaluate theirs.
OF_KEYS = "encoder_k."  # MoCo's moving average of the encoder that is trained
RATHER_THAN = {"teacher.": "student.", "encoder_q.": OF_KEYS}
IN_A_CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")  # DINOv2 trains blocks in chunks, each block under its own number
DEPTH = 4  # of dictionaries in dictionaries


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model.

    Attributes:
        origin: file or model of the hub, for messages.
        tensors: by the names that their maker or timm gave them.
        left_out: names of the other tensors that are there.
    """

    origin: str
    tensors: dict[str, torch.Tensor]
    left_out: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """The model in a `.safetensors`, `.pth` or TorchScript file; nothing that it holds is run.

    Raises:
        TeacherError: a file that is missing or damaged, holds anything else than tensors, or several models.
    """
    with explained(path, TeacherError, missing="Pass --weights with a checkpoint file or 'random'."):
        content = _read(path)
    return model_in(content, str(path))


def model_in(content: object, origin: str) -> Checkpoint:
    """The model in what was read: `{"teacher": {"module.backbone.norm.weight": …}}` holds one with `norm.weight`.

    Of a teacher and a student in one file, the teacher is taken, and of MoCo's two encoders that of the queries.
    A file with one of two is taken as it is.

    Raises:
        TeacherError: no tensors with names, or several models.
    """
    models: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _flat(content):
        prefix = WRAPPERS.match(name)[0]
        models.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    if not models:
        raise TeacherError("there are no tensors with names in it", where=origin, fix="Pass a model's checkpoint.")
    largest = max(models, key=lambda prefix: len(models[prefix]))
    candidates = [prefix for prefix in models if any(map(IN_A_BLOCK.search, models[prefix]))] or [largest]
    for wanted, other in RATHER_THAN.items():
        if any(wanted in prefix for prefix in candidates):
            candidates = [prefix for prefix in candidates if other not in prefix] or candidates
    if len(candidates) > 1:
        raise TeacherError(
            f"it holds several models ({', '.join(prefix + next(iter(models[prefix])) for prefix in candidates)})",
            where=origin,
            fix="Pass a file with the tensors of the teacher alone.",
        )
    (chosen,) = candidates
    if chosen:
        logger.info("%s: the teacher is what begins with %s", origin, chosen)
    if OF_KEYS in chosen:
        logger.warning("%s: this is MoCo's momentum encoder; published features are those of encoder_q", origin)
    tensors = {IN_A_CHUNK.sub("blocks.", name): tensor for name, tensor in models.pop(chosen).items()}
    return Checkpoint(origin, tensors, tuple(prefix + name for prefix, others in models.items() for name in others))


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if is_torchscript(path):
        return read_torchscript(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _flat(content: object, prefix: str = "", depth: int = DEPTH) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors by their dotted names."""
    if not isinstance(content, dict) or not depth:
        return
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            if not value.is_meta:  # which has no values
                yield f"{prefix}{name}", value.detach()
        elif isinstance(name, str):
            yield from _flat(value, f"{prefix}{name}.", depth - 1)
