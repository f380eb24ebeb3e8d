from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scalr.errors import TeacherError
from scalr.extract.teachers import load_teacher


def tiny_teacher(**options):
    return load_teacher("dinov2_vits14", image_size=(28, 42), **{"weights": "random", **options})


@pytest.fixture(scope="module")
def teacher():
    return tiny_teacher()


def test_features_are_the_last_block_before_the_norm(teacher):
    """Against the model run by hand, token by token."""
    images = torch.randn(2, 3, 28, 42)
    model = teacher._model
    with torch.inference_mode():
        tokens = model.patch_embed(images).flatten(1, 2) if model.dynamic_img_size else model.patch_embed(images)
        tokens = torch.cat([model.cls_token.expand(2, -1, -1), tokens], dim=1) + model.pos_embed
        for block in model.blocks:
            tokens = block(tokens)
    expected = tokens[:, 1:].reshape(2, 2, 3, 384)
    torch.testing.assert_close(teacher.patch_maps(images), expected, atol=1e-5, rtol=1e-5)


def test_image_is_resized_and_normalised(teacher):
    image = np.full((90, 160, 3), 124, dtype=np.uint8)
    prepared = teacher.prepare(image)
    expected = (124 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert prepared.shape == (3, 28, 42)
    np.testing.assert_allclose(prepared[:, 5, 7].numpy(), expected, atol=1e-5)


def test_random_weights_are_seeded_and_leave_the_generator_alone(teacher):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = tiny_teacher()
    assert torch.equal(torch.get_rng_state(), before)
    assert again.provenance == teacher.provenance
    assert teacher.provenance.weights == "random"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file(tmp_path, teacher, suffix):
    state = {key: 2 * value for key, value in teacher._model.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    loaded = tiny_teacher(weights=str(path))
    assert loaded.provenance.weights == "file"
    assert loaded.provenance.weights_sha256 != teacher.provenance.weights_sha256
    assert torch.equal(loaded._model.cls_token, 2 * teacher._model.cls_token)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dinov2_vits41"}, "unknown teacher 'dinov2_vits41', did you mean 'dinov2_vits14'"),
        ({"image_size": (225, 448)}, "nearest valid size is 224x448"),
        ({"image_size": (0, 448)}, "nearest valid size is 14x448"),
        ({"weights": "/nowhere.pth"}, "/nowhere.pth: the weights file is missing"),
    ],
)
def test_what_does_not_fit_is_said(options, message):
    options = {"name": "dinov2_vits14", "image_size": (28, 42), "weights": "random", **options}
    with pytest.raises(TeacherError, match=message):
        load_teacher(options.pop("name"), **options)


@pytest.mark.parametrize("content", [b"not a checkpoint", b""])
def test_a_broken_weights_file_is_said(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(TeacherError, match="weights do not fit"):
        tiny_teacher(weights=str(path))


def test_weights_of_another_model_are_said(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"cls_token": torch.zeros(1, 1, 5)}, path)
    with pytest.raises(TeacherError, match="weights do not fit"):
        tiny_teacher(weights=str(path))


def test_a_hub_out_of_reach_explains_the_way_out(monkeypatch):
    import timm

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(TeacherError, match=r"cannot be had from the hub .*no network.*--weights FILE"):
        tiny_teacher(weights="hub")
