from __future__ import annotations

import pytest
import torch

from plain_vit import Plain, patch_tokens, targets
from scalr.errors import TeacherError
from scalr.extract.teachers.features import Feature, FeatureReader
from scalr.extract.teachers.teacher import Teacher
from small_teachers import a_view, targets_of

PLAIN = {
    "dinov2_vits14_reg": Plain(heads=2),
    "dinov3_vits16": Plain(heads=2, eps=1e-5, rope=True),
    "maskclip_vitb16": Plain(heads=2),
}


def test_the_default_is_the_last_block_s_output():
    """As in ScaLR: before the final norm."""
    assert Feature() == Feature("x_prenorm", (-1,)) == Feature.parse("x_prenorm")


@pytest.mark.parametrize(
    ("text", "kind", "layers", "resolved"),
    [
        ("x_prenorm", "x_prenorm", (-1,), "x_prenorm"),
        ("x_norm", "x_norm", (-1,), "x_norm"),
        ("maskclip", "maskclip", (-1,), "maskclip"),
        ("x_norm:11", "x_norm", (11,), "x_norm"),
        ("x_norm:10", "x_norm", (10,), "x_norm:10"),
        ("x_norm:-2", "x_norm", (-2,), "x_norm:10"),
        ("x_prenorm:0", "x_prenorm", (0,), "x_prenorm:0"),
        ("x_prenorm:-12,11", "x_prenorm", (-12, 11), "x_prenorm:0,11"),
        ("x_prenorm:7,-1,3", "x_prenorm", (7, -1, 3), "x_prenorm:3,7,11"),
    ],
)
def test_a_feature_is_a_kind_and_layers(text, kind, layers, resolved):
    """In a model of twelve blocks, layers count from 0, ascending; the last alone is not named."""
    feature = Feature.parse(text)
    assert (feature.kind, feature.layers) == (kind, layers)
    assert str(feature.resolved(depth=12)) == resolved
    assert Feature.parse(resolved).resolved(12) == feature.resolved(12)


@pytest.mark.parametrize("layer", [12, -13])
def test_a_layer_that_the_model_has_not_is_said(layer):
    with pytest.raises(
        TeacherError,
        match=f"layer {layer} does not exist in a model of 12 layers. Count from 0 to 11, or from -1 to -12",
    ):
        Feature("x_norm", (3, layer)).resolved(12)


@pytest.mark.parametrize("text", ["x_prenorm:5,5", "x_norm:5,3,-7"])
def test_a_layer_that_is_named_twice_is_said(text):
    with pytest.raises(TeacherError, match=r"^--feature: layer 5 of 12 is given twice\. Name each layer once"):
        Feature.parse(text).resolved(12)


@pytest.mark.parametrize("text", ["", "x", "x_norm:", "x_norm:1;2", "x_norm:1.5", ":1", "maskclip:", "maskclip:-1"])
def test_what_is_no_feature_is_said(text):
    with pytest.raises(TeacherError, match=f"^--feature: unknown feature '{text}'. Use x_prenorm, x_norm, either"):
        Feature.parse(text)


def plain_targets(teacher: Teacher, layers, feature: str) -> torch.Tensor:
    return targets(teacher.model.state_dict(), PLAIN[teacher.name], *a_view(), teacher.image_size, layers, feature)


def assert_equal_targets(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(ours, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize(
    ("feature", "layers"),
    [("x_norm", (2,)), ("x_prenorm:0", (0,)), ("x_norm:-1,0", (0, 2)), ("x_prenorm:0,1,2", (0, 1, 2))],
)
@pytest.mark.parametrize("name", ["dinov2_vits14_reg", "dinov3_vits16"])
def test_layers_equal_an_independent_reading(small, name, feature, layers):
    teacher = small(name, feature=feature)
    assert teacher.dim == 32 * len(layers)
    assert_equal_targets(targets_of(teacher), plain_targets(teacher, layers, feature.partition(":")[0]))


def test_maskclip_equals_an_independent_reading(small):
    teacher = small("maskclip_vitb16")
    assert teacher.dim == 512
    assert_equal_targets(targets_of(teacher), plain_targets(teacher, (2,), "maskclip"))
    assert targets_of(teacher).shape == (200, 512)


def test_maskclip_s_patches_are_unit_vectors(small):
    """In the order of the image: (B, D, h, w)."""
    teacher = small("maskclip_vitb16")
    images = torch.rand(2, 3, 48, 80)
    found = FeatureReader(Feature("maskclip"), teacher.model)(images)
    assert found.shape == (2, 512, 3, 5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2, 3, 5))
    plain = Plain(heads=2, mean=(0, 0, 0), std=(1, 1, 1))
    expected = patch_tokens(teacher.model.state_dict(), plain, images[1], (48, 80), (2,), "maskclip")
    torch.testing.assert_close(found[1].flatten(1).T, expected, atol=1e-5, rtol=1e-4)


def test_blocks_after_the_last_that_is_asked_for_are_not_run(small):
    teacher = small("dinov2_vits14_reg", feature="x_norm:1")
    teacher.model.blocks[2].forward = None
    assert teacher.patch_maps(torch.zeros(1, 3, 42, 70)).shape == (1, 3, 5, 32)


def test_clip_has_a_projection_and_more_than_one_block(small):
    clip = small("maskclip_vitb16").model
    for change in ({"head": torch.nn.Identity()}, {"blocks": clip.blocks[:1]}):
        before = {name: getattr(clip, name) for name in change}
        for name, value in change.items():
            setattr(clip, name, value)
        with pytest.raises(
            TeacherError,
            match="the feature maskclip needs a projection as in CLIP's image encoders, and the model has none",
        ):
            FeatureReader(Feature("maskclip"), clip)
        for name, value in before.items():
            setattr(clip, name, value)
    clip.blocks = clip.blocks[:2]
    assert FeatureReader(Feature("maskclip"), clip).dim == 512
    with pytest.raises(TeacherError, match="needs a projection"):  # of another kind of model
        FeatureReader(Feature("maskclip"), type("Eva", (torch.nn.Module,), {})())


@pytest.mark.parametrize(
    ("name", "feature", "message"),
    [
        ("dinov2_vits14", "maskclip", "needs a projection as in CLIP's"),
        ("dinov2_vits14", "x_prenorm:3", "layer 3 does not exist in a model of 3 layers.*from 0 to 2"),
        ("dinov2_vits14", "x_pernorm", "unknown feature 'x_pernorm'. Use x_prenorm, x_norm"),
        ("dinov2_vits14", "x_norm:1,b", "unknown feature 'x_norm:1,b'"),
        ("dinov2_vits14", "maskclip:1", "unknown feature"),
        ("timm:vit_base_patch16_rpn_224.sw_in1k", "x_norm", "x_norm does not exist"),
    ],
)
def test_a_feature_that_is_not_there_is_said(small, name, feature, message):
    with pytest.raises(TeacherError, match=message):
        small(name, feature=feature)
