"""Every family against an independent reading: the same seeded weights through plain operations, at the pairs."""

from __future__ import annotations

import pytest
import torch

from plain_vit import Plain, targets
from scalr.extract.teachers.teacher import Teacher
from small_teachers import a_view, targets_of

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
FAMILIES = {
    "dinov2_vits14": Plain(heads=2),
    "dinov2_vits14_reg": Plain(heads=2),
    "dinov2_vitg14": Plain(heads=2, activation="swiglu"),
    "dino_vits8": Plain(heads=2),
    "dino_vitb16": Plain(heads=2),
    "mae_vitb16": Plain(heads=2),
    "maskclip_vitb16": Plain(heads=2),
    "maskclip_vitb16_openai": Plain(heads=2, eps=1e-5, activation="quick_gelu", **CLIP),
    "dinov3_vits16": Plain(heads=2, eps=1e-5, rope=True),
    "dinov3_vits16plus": Plain(heads=2, eps=1e-5, rope=True),
    "timm:vit_base_patch16_clip_224.laion2b": Plain(heads=2, eps=1e-5, **CLIP),
    "timm:deit_tiny_distilled_patch16_224": Plain(heads=2),
}


def plain_targets(teacher: Teacher, layers=(2,), feature=None) -> torch.Tensor:
    state = dict(teacher.model.state_dict())
    if "dist_token" in state:  # of a distilled DeiT: a second class token, with a position of its own
        prefix = torch.cat([state.pop("cls_token"), state.pop("dist_token")], dim=1)
        state["cls_token"], state["pos_embed"] = prefix + state["pos_embed"][:, :2], state["pos_embed"][:, 2:]
    feature = feature or ("maskclip" if teacher.name.startswith("maskclip") else "x_prenorm")
    return targets(state, FAMILIES[teacher.name], *a_view(), teacher.image_size, layers, feature)


def assert_equal_targets(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(ours, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_targets_equal_an_independent_reading(small, name):
    teacher = small(name)
    assert_equal_targets(targets_of(teacher), plain_targets(teacher))


def test_maskclip_has_settings_of_its_own(small):
    """What the original repository changed of CLIP matters, and is recorded."""
    original, clip = small("maskclip_vitb16"), small("maskclip_vitb16_openai")
    assert (targets_of(original) - targets_of(clip)).abs().max() > 1e-4
    recorded = [(each.activation, each.norm_eps, each.mean) for each in (original.provenance, clip.provenance)]
    assert recorded == [("GELU", 1e-6, Plain(2).mean), ("QuickGELU", 1e-5, CLIP["mean"])]
