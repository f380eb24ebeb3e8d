"""Find a teacher by its name: an entry of the registry, or any ViT of timm as `timm:NAME`."""

from __future__ import annotations

import torch

from ...errors import TeacherError, did_you_mean
from .features import Feature, FeatureReader
from .registry import TEACHERS, TeacherSpec
from .timm_import import import_timm

TIMM = "timm:"


def find_teacher(name: str) -> TeacherSpec:
    """Return the description of a teacher in `TEACHERS`, or of `timm:NAME`.

    Raises:
        TeacherError: an unknown name, or a model of timm without square patches.
    """
    if name in TEACHERS:
        return TEACHERS[name]
    if name.startswith(TIMM):
        return _of_timm(name)
    raise TeacherError(
        f"unknown teacher '{name}'{did_you_mean(name, TEACHERS)}",
        where="--teacher",
        fix="Choose a teacher from 'scalr extract --list-teachers', or timm:NAME for any ViT of timm.",
    )


def _of_timm(name: str) -> TeacherSpec:
    timm = import_timm()
    timm_name = name.removeprefix(TIMM)
    try:
        config = timm.get_pretrained_cfg(timm_name, allow_unregistered=False)
    except RuntimeError:  # timm knows no such model, or no such weights
        close = did_you_mean(timm_name, [*timm.list_models(), *timm.list_pretrained()])
        raise TeacherError(
            f"timm {timm.__version__} has no model '{timm_name}'{close}",
            where="--teacher",
            fix="Choose a model of timm.list_models('vit*', pretrained=True).",
        ) from None
    try:
        with torch.device("meta"):  # no memory, no arithmetic
            model = timm.create_model(timm_name)
            patch_size = model.feature_info[-1]["reduction"]
            spec = TeacherSpec(
                timm_name,
                patch_size,
                model.embed_dim,
                round(sum(each.numel() for each in model.parameters()) / 1e6),
                config.license or "unknown",
            )
            _check_patch_map(spec)
    except Exception as error:  # any error, if the model differs from a plain ViT
        raise _not_a_vit(name, f"{type(error).__name__}: {error}") from None
    return spec


def _check_patch_map(spec: TeacherSpec) -> None:
    """Check that the last block has one token per patch, at another image size than the model's own."""
    model = import_timm().create_model(spec.timm_name, img_size=spec.image_size).eval()
    feature = Feature().resolved(len(model.blocks))
    found = tuple(FeatureReader(feature, model)(torch.empty(1, 3, *spec.image_size)).shape[1:])
    expected = (spec.dim, *(side // spec.patch_size for side in spec.image_size))
    if found != expected:
        raise ValueError(f"its features are {found}, not {expected}")


def _not_a_vit(name: str, reason: str) -> TeacherError:
    return TeacherError(
        f"the model is not a plain vision transformer ({reason})",
        where=name,
        fix="Use a model with one patch token per square patch, for example vit_*, deit*, beit* or eva* of timm.",
    )
