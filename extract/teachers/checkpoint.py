"""Find the teacher's tensors in a checkpoint, and remove the wrappers and prefixes that trainings put around them."""

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

# The patch embedding of a ViT: the part before it in its name is the prefix of all names of that ViT, whatever a
# training or a larger model calls it. Layouts that timm recognises by their prefix keep it.
OF_A_LAYOUT = r"visual\.(?:trunk\.)?|image_encoder\.|vision_encoder\.|vision_model\."
VIT = re.compile(
    rf"(?P<prefix>(?:.+?\.)??)(?:{OF_A_LAYOUT})?(?:patch_embed\.proj\.weight|visual\.conv1\.weight|{PATCHES})"
)
# Prefixes that trainings and their tools give to other networks, as keys of dictionaries or in the name.
WRAPPERS = re.compile(
    r"(?:(?:(?:model|encoder)(?!\.layers?\.)|state_dict|teacher|student|module|backbone|encoder_q|encoder_k)\.)*"
)
# Parts that tools insert anywhere in a name: torch.compile, FSDP, activation checkpoints, DeepSpeed.
INSIDE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
IN_A_BLOCK = re.compile(r"(?:^|\.)(?:blocks|resblocks|layers?|layer[1-4]|transformer)\.\d+\..+\.(?:weight|bias)$")
# The key is preferred to its values if a file has both, as DINO, DINOv2, DINOv3 and MoCo evaluate these networks.
OF_KEYS = "encoder_k"  # MoCo's moving average of the trained encoder
RATHER_THAN = {
    "teacher": {"student", "gram_teacher", "model_ema"},  # DINOv3 keeps the teacher as model_ema, too
    "encoder_q": {OF_KEYS},
    "base_encoder": {"momentum_encoder"},
}
IN_A_CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")  # DINOv2 trains blocks in chunks, each block under its own number
DEPTH = 4  # maximum nesting of dictionaries
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model.

    Attributes:
        origin: file, or model on the Hugging Face Hub, for messages.
        tensors: tensors under the names that their maker or timm gave them.
        left_out: names of the file's other tensors.
    """

    origin: str
    tensors: dict[str, torch.Tensor]
    left_out: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the model in a file, or in the files of an index or a folder; no code in them is run.

    Raises:
        TeacherError: files that are missing or damaged, or that hold other objects than tensors, or several models.
    """
    return model_in(read_weights_file(path), str(path))


def model_in(content: object, origin: str) -> Checkpoint:
    """Find the model in a file: `{"teacher": {"module.backbone.norm.weight": …}}` holds one with `norm.weight`.

    If a file has a teacher and a student, the teacher is used, and of MoCo's two encoders the query encoder; if it has
    only one of the two, that one is used. Tensors of half precision become float32, as in the model. Names of Hugging
    Face's transformers become those of the model's makers.

    Raises:
        TeacherError: there are no named tensors, or several models.
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
    """Group tensors into models by the prefix of their names; the prefixes of ViTs are given."""
    known = sorted(vits - {""}, key=len, reverse=True)
    models: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        prefix = next((each for each in known if name.startswith(each)), None) or WRAPPERS.match(name)[0]
        models.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    return models


def _chosen(models: dict[str, Tensors], vits: set[str], origin: str) -> str:
    """Return the prefix of the teacher's names."""
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
    """Find a teacher without patch embedding whose student has the same blocks and would be mistaken for it."""
    keys = {prefix: {*prefix.split(".")} for prefix in models}
    if any(wanted in keys[prefix] for prefix in found):
        return []
    theirs = {name for prefix in found if others & keys[prefix] for name in models[prefix] if IN_A_BLOCK.search(name)}
    return [prefix for prefix in models if wanted in keys[prefix] and theirs & models[prefix].keys()]


def _flat(content: object, prefix: str = "", depth: int = DEPTH) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors with their dotted names; floating-point ones in float32, in which positions are resized."""
    if not isinstance(content, dict) or not depth:
        return
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            # A tensor on the device "meta" has no values; networks have no sparse tensors.
            if not value.is_meta and value.layout is torch.strided and not value.is_nested:
                tensor = value.detach()
                yield INSIDE.sub("", prefix + name), tensor.float() if tensor.is_floating_point() else tensor
        elif isinstance(name, str):
            yield from _flat(value, f"{prefix}{name}.", depth - 1)
