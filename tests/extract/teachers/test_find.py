from __future__ import annotations

import pytest

from scalr.errors import TeacherError
from scalr.extract.teachers.find import find_teacher
from scalr.extract.teachers.registry import TEACHERS


@pytest.mark.parametrize(
    ("name", "patch_size", "dim", "million_parameters", "licence"),
    [
        ("vit_base_patch16_siglip_224.v2_webli", 16, 768, 93, "apache-2.0"),
        ("vit_small_patch16_rope_224.naver_in1k", 16, 384, 22, "apache-2.0"),
        ("vit_base_r50_s16_224", 16, 768, 98, "apache-2.0"),
        ("beit_base_patch16_224", 16, 768, 87, "apache-2.0"),
        ("vit_so400m_patch14_siglip_378", 14, 1152, 428, "apache-2.0"),
        ("eva_large_patch14_196", 14, 1024, 304, "mit"),
    ],
)
def test_any_vit_of_timm(name, patch_size, dim, million_parameters, licence):
    spec = find_teacher(f"timm:{name}")
    assert (spec.timm_name, spec.patch_size, spec.dim, spec.image_size) == (name, patch_size, dim, (224, 448))
    assert (spec.million_parameters, spec.licence) == (million_parameters, licence)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2_vits41", "unknown teacher 'dinov2_vits41', did you mean 'dinov2_vits14'.*--list-teachers"),
        ("timm:vit_base_patch16_242", "has no model 'vit_base_patch16_242', did you mean 'vit_base_patch16_224'"),
        ("timm:vit_base_patch16_224.nobody", "has no model 'vit_base_patch16_224.nobody', did you mean"),
        ("timm:resnet18", "the model is not a plain vision transformer"),
        ("timm:swin_tiny_patch4_window7_224", "the model is not a plain vision transformer"),
        ("timm:hiera_tiny_224", "the model is not a plain vision transformer"),
        ("timm:convit_tiny", "the model is not a plain vision transformer"),
        ("timm:", "has no model ''"),
    ],
)
def test_what_is_no_teacher_is_said(name, message):
    with pytest.raises(TeacherError, match=message):
        find_teacher(name)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_name_of_the_table_is_its_entry(name):
    assert find_teacher(name) is TEACHERS[name]
