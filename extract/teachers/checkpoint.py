"""Which tensors of a file are the teacher's: wrappers and prefixes that trainings put around them are taken off."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import TeacherError
from .hugging_face import PATCHES, is_hugging_face, renamed
from .weights_file import read_weights_file

logger = logging.getLogger(__name__)

# The patch embedding of a ViT: what is before it in its name is before all names of that ViT, whatever a training or a
# larger model calls it. Layouts that timm converts by such a part keep it.
OF_A_LAYOUT = r"visual\.(?:trunk\.)?|image_encoder\.|vision_encoder\.|vision_model\."
VIT = re.compile(
    rf"(?P<prefix>(?:.+?\.)??)(?:{OF_A_LAYOUT})?(?:patch_embed\.proj\.weight|visual\.conv1\.weight|{PATCHES})"
)
# What trainings and their tools write before the names of other networks, as keys of dictionaries or in the name.
WRAPPERS = re.compile(
    r"(?:(?:(?:model|encoder)(?!\.layers?\.)|state_dict|teacher|student|module|backbone|encoder_q|encoder_k)\.)*"
)
# What tools write anywhere in a name: torch.compile, FSDP, activation checkpoints, DeepSpeed.
INSIDE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
IN_A_BLOCK = re.compile(r"(?:^|\.)(?:blocks|resblocks|layers?|layer[1-4]|transformer)\.\d+\..+\.(?:weight|bias)$")
# Of several networks in one file, the first is taken, as DINO, DINOv2, DINOv3 and MoCo evaluate theirs.
OF_KEYS = "encoder_k"  # MoCo's moving average of the encoder that is trained
RATHER_THAN = {
    "teacher": {"student", "gram_teacher", "model_ema"},  # DINOv3 keeps the teacher as model_ema, too
    "encoder_q": {OF_KEYS},
    "base_encoder": {"momentum_encoder"},
}
IN_A_CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")  # DINOv2 trains blocks in chunks, each block under its own number
DEPTH = 4  # of dictionaries in dictionaries
Tensors = dict[str, torch.Tensor]


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
    """The model in a file, or in the files of an index or a folder; nothing that they hold is run.

    Raises:
        TeacherError: files that are missing or damaged, hold anything else than tensors, or several models.
    """
    return model_in(read_weights_file(path), str(path))


def model_in(content: object, origin: str) -> Checkpoint:
    """The model in what was read: `{"teacher": {"module.backbone.norm.weight": …}}` holds one with `norm.weight`.

    Of a teacher and a student in one file, the teacher is taken, and of MoCo's two encoders that of the queries.
    A file with one of two is taken as it is. Tensors of half precision become float32, as the model's are; names of
    Hugging Face those of the model's makers.

    Raises:
        TeacherError: no tensors with names, or several models.
    """
    tensors = _once_each(_flat(content), origin)
    vits = {found["prefix"] for found in map(VIT.fullmatch, tensors) if found}
    models = _by_prefix(tensors, vits)
    if not models:
        raise TeacherError("the file has no named tensors", where=origin, fix="Pass a model's checkpoint.")
    chosen = _chosen(models, vits, origin)
    own = models.pop(chosen)
    tensors = _once_each(((IN_A_CHUNK.sub("blocks.", name), tensor) for name, tensor in own.items()), origin)
    left_out = [prefix + name for prefix, others in models.items() for name in others]
    if chosen:
        logger.info("%s: tensors whose names begin with '%s' are loaded", origin, chosen)
    if is_hugging_face(tensors):
        logger.info("%s: the file is in the format of Hugging Face transformers", origin)
        tensors, beside = renamed(tensors)
        left_out += [chosen + name for name in beside]
    if OF_KEYS in chosen.split("."):
        logger.warning(
            "%s: these weights are MoCo's momentum encoder; published features are those of encoder_q", origin
        )
    return Checkpoint(origin, tensors, tuple(left_out))


def _once_each(named: Iterable[tuple[str, torch.Tensor]], origin: str) -> Tensors:
    tensors: Tensors = {}
    for name, tensor in named:
        if name in tensors:
            raise TeacherError(
                f"the file holds the tensor '{name}' twice, once with a prefix of a tool",
                where=origin,
                fix="Pass a file with the tensors of the teacher alone.",
            )
        tensors[name] = tensor
    return tensors


def _by_prefix(tensors: Tensors, vits: set[str]) -> dict[str, Tensors]:
    """The models among tensors, by what their names begin with; of ViTs this is known."""
    known = sorted(vits - {""}, key=len, reverse=True)
    models: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        prefix = next((each for each in known if name.startswith(each)), None) or WRAPPERS.match(name)[0]
        models.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    return models


def _chosen(models: dict[str, Tensors], vits: set[str], origin: str) -> str:
    """What the names of the teacher begin with."""
    largest = max(models, key=lambda prefix: len(models[prefix]))
    with_blocks = [prefix for prefix in models if any(map(IN_A_BLOCK.search, models[prefix]))]
    candidates = [prefix for prefix in models if prefix in vits] or with_blocks or [largest]
    for wanted, others in RATHER_THAN.items():
        candidates += _without_patches(models, candidates, wanted, others)
        if any(wanted in prefix.split(".") for prefix in candidates):
            candidates = [prefix for prefix in candidates if not others & {*prefix.split(".")}] or candidates
    if len(candidates) > 1:
        raise TeacherError(
            "the file holds several models"
            f" ({', '.join(prefix + next(iter(models[prefix])) for prefix in candidates)})",
            where=origin,
            fix="Pass a file with the tensors of the teacher alone.",
        )
    return candidates[0]


def _without_patches(models: dict[str, Tensors], found: list[str], wanted: str, others: set[str]) -> list[str]:
    """A teacher that lacks its patch embedding, and whose blocks a student has, too, that would be taken for it."""
    keys = {prefix: {*prefix.split(".")} for prefix in models}
    if any(wanted in keys[prefix] for prefix in found):
        return []
    theirs = {name for prefix in found if others & keys[prefix] for name in models[prefix] if IN_A_BLOCK.search(name)}
    return [prefix for prefix in models if wanted in keys[prefix] and theirs & models[prefix].keys()]


def _flat(content: object, prefix: str = "", depth: int = DEPTH) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors by their dotted names; those of floating point in float32, in which positions are resized."""
    if not isinstance(content, dict) or not depth:
        return
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            # One on the device "meta" has no values; networks have no sparse ones.
            if not value.is_meta and value.layout is torch.strided and not value.is_nested:
                tensor = value.detach()
                yield INSIDE.sub("", prefix + name), tensor.float() if tensor.is_floating_point() else tensor
        elif isinstance(name, str):
            yield from _flat(value, f"{prefix}{name}.", depth - 1)
