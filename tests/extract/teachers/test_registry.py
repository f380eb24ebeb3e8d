from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from doc_examples import example
from scalr.cli import main
from scalr.errors import TeacherError
from scalr.extract.teachers import registry
from scalr.extract.teachers.find import find_teacher
from scalr.extract.teachers.registry import TEACHERS
from scalr.extract.teachers.timm_import import import_timm


@pytest.mark.parametrize("name", TEACHERS)
def test_the_table_is_what_timm_has(name):
    """Patch, dimension and size of each model, built without memory; its licence where timm states one."""
    spec, timm = TEACHERS[name], import_timm()
    with torch.device("meta"):
        model = timm.create_model(spec.timm_name, **spec.options)
        assert spec.dim == model.embed_dim
        assert spec.patch_size == model.patch_embed.patch_size[0]
        parameters = sum(each.numel() for each in model.parameters() if each is not model.pos_embed) / 1e6
    assert spec.million_parameters == pytest.approx(parameters, abs=1.5, rel=0.01)
    config = timm.get_pretrained_cfg(spec.timm_name)
    assert config.hf_hub_id
    assert spec.for_research_only == ("-nc" in config.license)
    assert spec.image_size == (224, 448)
    assert spec.mean is not None or tuple(config.mean) in (registry.IMAGENET_MEAN, (0.48145466, 0.4578275, 0.40821073))


@pytest.mark.parametrize(
    ("name", "patch_size", "dim", "image_size"),
    [
        ("vit_base_patch16_siglip_224.v2_webli", 16, 768, (224, 448)),
        ("vit_small_patch16_rope_224.naver_in1k", 16, 384, (224, 448)),
        ("vit_base_r50_s16_224", 16, 768, (224, 448)),
        ("beit_base_patch16_224", 16, 768, (224, 448)),
        ("vit_so400m_patch14_siglip_378", 14, 1152, (224, 448)),
        ("eva_large_patch14_196", 14, 1024, (224, 448)),
    ],
)
def test_any_vit_of_timm(name, patch_size, dim, image_size):
    spec = find_teacher(f"timm:{name}")
    assert (spec.timm_name, spec.patch_size, spec.dim, spec.image_size) == (name, patch_size, dim, image_size)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2_vits41", "unknown teacher 'dinov2_vits41', did you mean 'dinov2_vits14'.*--list-teachers"),
        ("timm:vit_base_patch16_242", "has no model 'vit_base_patch16_242', did you mean 'vit_base_patch16_224'"),
        ("timm:vit_base_patch16_224.nobody", "has no model 'vit_base_patch16_224.nobody', did you mean"),
        ("timm:resnet18", "no plain vision transformer"),
        ("timm:swin_tiny_patch4_window7_224", "no plain vision transformer"),
        ("timm:hiera_tiny_224", "no plain vision transformer"),
        ("timm:convit_tiny", "no plain vision transformer"),
        ("timm:", "has no model ''"),
    ],
)
def test_what_is_no_teacher_is_said(name, message):
    with pytest.raises(TeacherError, match=message):
        find_teacher(name)


def test_the_list_has_every_name():
    """On the command line, and in docs/teachers.md."""
    shown = CliRunner().invoke(main, ["extract", "--list-teachers"]).output
    table = shown.splitlines()
    assert [line.split()[0] for line in table[1 : 1 + len(TEACHERS)]] == list(TEACHERS)
    assert next(line for line in table if line.startswith("mae_vitl16")).split() == [
        *("mae_vitl16", "16", "1024", "304", "M", "CC-BY-NC-4.0", "224x448")
    ]
    assert example("teachers.md", "text") == shown
