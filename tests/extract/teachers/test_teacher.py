from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scalr.errors import TeacherError
from scalr.extract.teachers import registry
from scalr.extract.teachers.batch_size import free_memory
from scalr.extract.teachers.teacher import Preprocessing, load_teacher
from small_teachers import small_spec, small_teacher


def tiny_teacher(**options):
    return load_teacher("dinov2_vits14", image_size=(28, 42), weights="random", **options)


@pytest.fixture(scope="module")
def teacher():
    return tiny_teacher()


def test_image_is_resized_and_normalised(teacher):
    image = np.full((90, 160, 3), 124, dtype=np.uint8)
    prepared = teacher.preprocessing.apply(image)
    expected = (124 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert prepared.shape == (3, 28, 42)
    np.testing.assert_allclose(prepared[:, 5, 7].numpy(), expected, atol=1e-5)


def test_images_shrink_without_aliasing():
    """As Pillow shrinks them; stripes of a pixel become grey, not stripes of another width."""
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    image[:, ::2], image[45:, 1::2] = 0, 255
    preprocessing = Preprocessing((28, 42), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.device("cpu"))
    expected = np.asarray(Image.fromarray(image).resize((42, 28), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(preprocessing.apply(image).permute(1, 2, 0).numpy(), expected, atol=0.01)


def test_random_weights_are_seeded_and_leave_the_generator_alone(teacher):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = tiny_teacher()
    assert torch.equal(torch.get_rng_state(), before)
    assert again.provenance == teacher.provenance
    assert teacher.provenance.weights == "random"


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_points_the_same_way(teacher, precision):
    images = torch.randn(2, 3, 28, 42)
    exact, half = teacher.patch_maps(images), tiny_teacher(precision=precision).patch_maps(images)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    assert torch.nn.functional.cosine_similarity(half, exact, dim=-1).min() > 0.999


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        ("dinov2_vits14", (225, 448), "no multiple of dinov2_vits14's patch size 14. .*valid sizes: 224x448, 238x448"),
        ("dinov2_vits14", (225, 450), "valid sizes: 224x448, 224x462, 238x448, 238x462"),
        ("dinov2_vits14", (0, 448), "valid sizes: 14x448"),
        ("dino_vitb16", (224, 1), "valid sizes: 224x16"),
    ],
)
def test_an_image_size_that_does_not_fit_is_said(name, image_size, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(name, image_size=image_size, weights="random")


@pytest.mark.parametrize("image_size", [(14, 14), (14, 280), (280, 14)])
def test_any_multiple_of_the_patch_size_will_do(image_size):
    teacher = load_teacher("dinov2_vits14", image_size=image_size, weights="random")
    height, width = image_size
    assert teacher.patch_maps(torch.zeros(1, 3, *image_size)).shape == (1, height // 14, width // 14, 384)


def test_memory_of_this_machine_is_known():
    assert 1 << 20 < free_memory(torch.device("cpu")) < 1 << 50


def test_a_gpu_that_is_too_small_is_said(teacher, monkeypatch):
    def too_large(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(teacher, "_read", too_large)
    with pytest.raises(
        TeacherError, match=r"a batch of 3 images does not fit into the memory of.*smaller --batch-size"
    ):
        teacher.patch_maps(torch.zeros(3, 3, 28, 42))


@pytest.mark.parametrize(("name", "says"), [("mae_vitb16", True), ("dino_vitb16", False)])
def test_weights_that_are_not_for_commercial_use_say_so(tmp_path, caplog, monkeypatch, name, says):
    monkeypatch.setitem(registry.TEACHERS, name, small_spec(name))
    save_file(small_teacher(name).model.state_dict(), tmp_path / "w.safetensors")
    assert not caplog.text
    load_teacher(name, image_size=(48, 80), weights=str(tmp_path / "w.safetensors"))
    assert ("excludes commercial use (CC-BY-NC-4.0)" in caplog.text) == says
