"""Models of timm with their weights: from the hub, from a file, or random."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import torch

from ...checkpoint_files import explained, first_line, listed
from ...errors import TeacherError
from .choices import PosEmbed
from .pos_embed import resize_officially
from .registry import TeacherSpec
from .timm_import import import_timm
from .torchscript import is_torchscript, read_torchscript

logger = logging.getLogger(__name__)

RANDOM_SEED = 0  # of `--weights random`
WRAPPERS = ("model", "state_dict")  # under which official files keep the tensors


def build_model(spec: TeacherSpec, image_size: tuple[int, int], weights: str, pos_embed: PosEmbed) -> torch.nn.Module:
    """The teacher's model with its weights, its position embeddings resized to the image size.

    Args:
        spec: of the teacher.
        image_size: (h, w), multiples of the patch size [px].
        weights: "hub", "random" (seeded) or the path of a checkpoint: a timm file, or an official one of DINO, DINOv2,
            DINOv3, MAE or CLIP, which timm's own conversion reads.
        pos_embed: how they are resized.

    Raises:
        TeacherError: weights that are missing, unreadable, or of another model.
    """
    officially = pos_embed == "official" and spec.official_pos_embed != "timm"
    model = _with_weights(spec, {**spec.options, **({} if officially else {"img_size": image_size})}, weights)
    if officially:
        before, old_grid = model.pos_embed.detach(), model.patch_embed.grid_size
        model.set_input_size(img_size=image_size)
        resized = resize_officially(before, old_grid, model.patch_embed.grid_size, spec.official_pos_embed)
        model.pos_embed = torch.nn.Parameter(resized)
    return model


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over the tensors as loaded, so that a file and the hub agree."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors`, `.pth` or TorchScript file by name; nothing that it holds is run.

    Raises:
        TeacherError: a file that is missing, damaged, or holds anything else than tensors.
    """
    with explained(path, TeacherError, missing="Pass --weights with a checkpoint file or 'random'."):
        checkpoint = _read(path)
    for wrapper in WRAPPERS:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(wrapper), dict):
            checkpoint = checkpoint[wrapper]
    tensors = checkpoint if isinstance(checkpoint, dict) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise TeacherError("there are no tensors with names in it", where=path, fix="Pass a model's checkpoint.")
    return tensors


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if is_torchscript(path):
        return read_torchscript(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _with_weights(spec: TeacherSpec, options: dict, weights: str) -> torch.nn.Module:
    timm = import_timm()
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return timm.create_model(spec.timm_name, pretrained=False, **options)
    if weights == "hub":
        return _from_hub(spec, options)
    tensors = read_checkpoint(Path(weights))
    # Through the overlay, timm converts official files as it does those of the hub; `checkpoint_path=` would not.
    try:
        model = timm.create_model(
            spec.timm_name, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors}, **options
        )
    except RuntimeError as error:
        raise _mismatch(spec, weights, str(error)) from None
    except Exception as error:  # timm's conversions presume much
        raise _does_not_fit(spec, weights, first_line(error)) from None
    model.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
    _check_patch_size(spec, model, tensors, weights)
    return model


def _from_hub(spec: TeacherSpec, options: dict) -> torch.nn.Module:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # twelve lines of retries; the failure itself is reported
    logger.info("weights of %s: from %s, else from the hub", spec.timm_name, HF_HUB_CACHE)
    try:
        return import_timm().create_model(spec.timm_name, pretrained=True, **options)
    except Exception as error:  # timm, torch, safetensors and the hub each raise their own
        raise TeacherError(
            f"its weights cannot be had from the hub ({first_line(error)})",
            where=spec.timm_name,
            fix="Fetch them where there is a network, then pass --weights FILE, or copy the cache in which timm looks"
            f" first, {HF_HUB_CACHE} ($HF_HOME moves it); --weights random makes a trial.",
        ) from error


def _check_patch_size(
    spec: TeacherSpec, model: torch.nn.Module, tensors: dict[str, torch.Tensor], weights: str
) -> None:
    """timm resamples the patch embedding of another model without a word."""
    expected = model.patch_embed.proj.weight.shape[-1] if hasattr(model.patch_embed, "proj") else None
    for name, tensor in tensors.items():
        if name.endswith(("patch_embed.proj.weight", "visual.conv1.weight")) and tensor.shape[-1] != expected:
            raise _does_not_fit(spec, weights, f"its patches have {tensor.shape[-1]} pixels, not {expected}")


def _mismatch(spec: TeacherSpec, weights: str, message: str) -> TeacherError:
    """From what `Module.load_state_dict` says: one line that names the first keys of each kind."""
    shapes = re.findall(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)", message)
    kinds = {
        "missing": _quoted(r"Missing key\(s\) in state_dict: (.*)", message),
        "unexpected": _quoted(r"Unexpected key\(s\) in state_dict: (.*)", message),
        "of another shape": [f"{name} ({found}), not ({expected})" for name, found, expected in shapes],
    }
    return _does_not_fit(spec, weights, listed(kinds) or message.splitlines()[0])


def _quoted(pattern: str, message: str) -> list[str]:
    found = re.search(pattern, message)
    return re.findall(r'"(.*?)"', found[1]) if found else []


def _does_not_fit(spec: TeacherSpec, weights: str, reason: str) -> TeacherError:
    return TeacherError(
        f"the weights do not fit {spec.timm_name} ({reason})",
        where=weights,
        fix="Pass the official or timm checkpoint of this very teacher.",
    )
