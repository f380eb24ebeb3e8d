"""Files in the layouts of SLidR become students and come back unchanged."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from scalr.distill.backbones.minkunet.config import MinkUNetConfig
from scalr.distill.backbones.minkunet.inputs import MinkUNetInputs
from scalr.distill.checkpoint import load_student, save_student
from scalr.distill.convert import convert, read_official, write_official
from scalr.distill.recipe import load_recipe
from scalr.distill.student import Student
from scalr.errors import StudentError

CONFIG = {"voxel_size": 0.1, "cylindrical_coordinates": True, "model_n_out": 64}


def slidr(widths=(32, 32, 64, 128, 256, 256, 128, 96, 96), blocks=(2, 3, 4, 6, 2, 2, 2, 2), out=64, seed=0):
    """A state dict of SLidR's MinkUNet with random values: what is published of its names and shapes, once more."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}

    def drawn(name: str, *shape: int) -> None:
        tensors[name] = torch.randn(shape, generator=generator)

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean"):
            drawn(f"{name}.bn.{part}", channels)
        tensors[f"{name}.bn.running_var"] = torch.rand(channels, generator=generator) + 0.5
        tensors[f"{name}.bn.num_batches_tracked"] = torch.tensor(seed + 7)

    def stage(number: int, channels: int, width: int) -> None:
        for block in range(blocks[number - 1]):
            name = f"block{number}.{block}"
            drawn(f"{name}.conv1.kernel", 27, channels, width)
            norm(f"{name}.norm1", width)
            drawn(f"{name}.conv2.kernel", 27, width, width)
            norm(f"{name}.norm2", width)
            if channels != width:
                drawn(f"{name}.downsample.0.kernel", channels, width)
                norm(f"{name}.downsample.1", width)
            channels = width

    drawn("conv0p1s1.kernel", 27, 1, widths[0])
    norm("bn0", widths[0])
    for number, name in enumerate(["conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2"], 1):
        channels = widths[number - 1]
        drawn(f"{name}.kernel", 8, channels, channels)
        norm(f"bn{number}", channels)
        stage(number, channels, widths[number])
    for number, name in enumerate(["convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2"], 5):
        drawn(f"{name}.kernel", 8, widths[number - 1], widths[number])
        norm(f"bntr{number - 1}", widths[number])
        stage(number, widths[number] + widths[8 - number], widths[number])
    drawn("final.kernel", widths[8], out)
    drawn("final.bias", 1, out)
    return tensors


SMALL = {"widths": (2, 3, 3, 4, 5, 5, 4, 4, 3), "blocks": (1, 1, 2, 1, 1, 1, 1, 1), "out": 6}


@pytest.fixture
def checkpoint(tmp_path):
    def write(content):
        torch.save(content, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return write


@pytest.mark.slow
def test_the_published_model_has_374_tensors_and_all_come_back_exactly(tmp_path, checkpoint):
    tensors = slidr()
    assert len(tensors) == 374
    assert sum(value.numel() for name, value in tensors.items() if ".running" not in name and value.ndim) == 37_849_184
    path = checkpoint({"model_points": tensors, "model_images": {}, "epoch": 50, "config": CONFIG})
    student = read_official(path)
    assert student.config == MinkUNetConfig(out_channels=64)
    assert student.input_config == MinkUNetInputs()
    assert sum(value.numel() for value in student.parameters()) == 37_849_184
    write_official(student, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back["model_points"]) == list(tensors)
    assert all(torch.equal(back["model_points"][name], value) for name, value in tensors.items())
    assert back["config"] == {"voxel_size": 0.1, "cylindrical_coordinates": True}


@pytest.mark.parametrize(
    "content",
    [
        lambda tensors: {"model_points": tensors},
        lambda tensors: {"state_dict": {f"model.{name}": value for name, value in tensors.items()}},
        lambda tensors: {
            "state_dict": {f"model_points.{name}": value for name, value in tensors.items()}
            | {"model_images.encoder.conv1.weight": torch.zeros(2), "model_images.decoder.0.bias": torch.zeros(2)}
        },
        lambda tensors: {"model_points": {f"module.{name}": value for name, value in tensors.items()}},
        lambda tensors: {"state_dict": {f"model.module.encoder.{name}": value for name, value in tensors.items()}},
    ],
)
def test_files_of_all_stages_are_read_and_the_command_goes_both_ways(tmp_path, checkpoint, content):
    tensors = slidr(**SMALL)
    said = convert(checkpoint(content(tensors)), tmp_path / "student.safetensors")
    assert "MinkUNet14-3, linear head with 6 outputs" in said
    said = convert(tmp_path / "student.safetensors", tmp_path / "back.pt")
    assert said.endswith("linear head with 6 outputs")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["model_points"]
    assert list(back) == list(tensors)
    assert all(torch.equal(back[name], value) for name, value in tensors.items())


def test_a_recipe_says_of_the_inputs_what_the_file_does_not(tmp_path, checkpoint):
    content = {"model_points": slidr(**SMALL), "config": {"voxel_size": 0.05, "cylindrical_coordinates": False}}
    path = checkpoint(content)
    assert read_official(path).input_config == MinkUNetInputs(voxels="cartesian", voxel_size_m=0.05)
    inputs = MinkUNetInputs(voxels="cartesian", voxel_size_m=0.05, intensity_offset=1)
    assert read_official(path, inputs).input_config == inputs
    recipe = load_recipe("scalr_minkunet_vits", ("inputs.voxel_size_m=0.2",))
    with pytest.raises(StudentError) as caught:
        convert(path, tmp_path / "student.safetensors", recipe)
    assert caught.value.where == str(path)
    for both in (
        "features is intensity in the file, scalr in the recipe",
        "voxel_size_m is 0.05 in the file, 0.2 in the recipe",
        "voxels is cartesian in the file, cylindrical in the recipe",
    ):
        assert both in caught.value.what
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    del content["config"]
    inputs = MinkUNetInputs(voxel_size_m=0.2)
    assert read_official(checkpoint(content), inputs).input_config == inputs


@pytest.mark.parametrize(
    ("inputs", "lost"),
    [
        ({"voxels": "cartesian", "voxel_size_m": 0.2}, ""),
        ({"intensity_offset": 1.0}, "; the code of SLidR does not learn these inputs from it: intensity_offset 1.0"),
        ({"features": "scalr"}, "; the code of SLidR does not learn these inputs from it: features scalr"),
    ],
)
def test_the_command_says_which_inputs_slidr_s_code_does_not_read(tmp_path, inputs, lost):
    narrow = MinkUNetConfig(stem_width=2, widths=(2,) * 8, blocks=(1,) * 8, out_channels=3)
    save_student(Student(narrow, MinkUNetInputs(**inputs)), tmp_path / "student.safetensors", {})
    said = convert(tmp_path / "student.safetensors", tmp_path / "back.pt")
    assert said.partition("3 outputs")[2] == lost


def test_a_width_that_no_network_has_is_said_with_the_file(checkpoint):
    path = checkpoint({"model_points": slidr(**SMALL) | {"conv0p1s1.kernel": torch.zeros(27, 1, 0)}})
    with pytest.raises(StudentError, match=r"\.pth?: student\.stem_width: 0 cannot be used"):
        read_official(path)


def test_files_without_counters_of_batch_norms_are_read(checkpoint):
    tensors = {name: value for name, value in slidr(**SMALL).items() if not name.endswith("num_batches_tracked")}
    norm = read_official(checkpoint({"model_points": tensors})).backbone.down[2].blocks[1].norm2
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_var, tensors["block3.1.norm2.bn.running_var"])


def test_a_converted_student_gives_the_file_s_answers(tmp_path, checkpoint):
    """Features of voxels times the file's last matrix."""
    tensors = slidr(**SMALL)
    student = read_official(checkpoint({"model_points": tensors}))
    points = np.random.default_rng(0).uniform(-2, 2, size=(50, 4)).astype(np.float32)
    features = student.extract(points)
    torch.testing.assert_close(student.project(features), features @ tensors["final.kernel"] + tensors["final.bias"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv0p1s1.kernel": torch.zeros(27, 3, 2)}, "the model reads 3 input features per voxel"),
        ({"final.kernel": None, "conv0p1s1.kernel": None}, "(2 missing: conv0p1s1.kernel, final.kernel)"),
        ({"final.kernel": torch.zeros(1, 3, 6)}, "(1 of another shape: final.kernel (1, 3, 6), not of 2 dimensions)"),
        ({"final.kernel": torch.tensor(1.0)}, "(1 of another shape: final.kernel (), not of 2 dimensions)"),
        ({"final.kernel": torch.zeros(4, 6)}, "(1 of another shape: final.kernel (4, 6), not (3, 6))"),
        ({"final.bias": torch.zeros(2, 6)}, "(1 of another shape: final.bias (2, 6), not (1, 6))"),
        ({"final.bias": torch.tensor(1.0)}, "(1 of another shape: final.bias (), not (1, 6))"),
        ({"final.bias": None}, "(1 missing: final.bias)"),
        ({"bn4.bn.weight": None}, "(1 missing: bn4.bn.weight)"),
        ({"block3.0.norm1.bn.weight": None}, "(1 missing: block3.0.norm1.bn.weight)"),
        (
            {"block3.0.conv1.kernel": torch.zeros(8, 3, 4)},
            "of another shape: block3.0.conv1.kernel (8, 3, 4), not (27, ",
        ),
        ({"block5.0.conv2.kernel": torch.zeros(3)}, "block5.0.conv2.kernel (3,), not of 3 dimensions"),
        ({"bntr5.bn.bias": torch.zeros(4).int()}, "(1 not floating-point: bntr5.bn.bias torch.int32)"),
        ({"surplus": torch.zeros(2)}, "(1 unexpected: surplus)"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line_as_the_file_names_it(checkpoint, content, message):
    tensors = {name: value for name, value in (slidr(**SMALL) | content).items() if value is not None}
    with pytest.raises(StudentError, match=re.escape(message)):
        read_official(checkpoint({"model_points": tensors}))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"voxel_size": "small"}, "inputs.voxel_size_m: 'small'"),
        ({"voxel_size": torch.zeros(2)}, "inputs.voxel_size_m: "),
        ({"cylindrical_coordinates": "no"}, "inputs.voxels: 'no'"),
        ({"cylindrical_coordinates": torch.zeros(2)}, "inputs.voxels: "),
        ({"cylindrical_coordinates": []}, "inputs.voxels: "),
    ],
)
def test_voxels_that_cannot_be_are_refused(checkpoint, said, message):
    with pytest.raises(StudentError, match=r"model\.pt: " + re.escape(message)):
        read_official(checkpoint({"model_points": slidr(**SMALL), "config": CONFIG | said}))


def test_what_such_files_do_not_hold_is_refused(tmp_path, checkpoint):
    with pytest.raises(StudentError, match="--activation gelu is not the activation of a MinkUNet"):
        read_official(checkpoint({"model_points": slidr(**SMALL)}), activation="gelu")
    narrow = MinkUNetConfig(stem_width=2, widths=(2,) * 8, blocks=(1,) * 8, head="mlp", out_channels=3)
    with pytest.raises(StudentError, match="SLidR's file format cannot hold a head of the kind mlp"):
        write_official(Student(narrow), tmp_path / "back.pth")


def test_a_student_is_saved_with_its_backbone_and_a_recipe_names_one(tmp_path):
    student = Student(MinkUNetConfig(stem_width=2, widths=(2,) * 8, blocks=(1,) * 8, out_channels=3)).eval()
    save_student(student, tmp_path / "student.safetensors", {})
    loaded = load_student(tmp_path / "student.safetensors")
    assert (loaded.config, loaded.input_config) == (student.config, student.input_config)
    points = np.random.default_rng(0).uniform(-2, 2, size=(50, 4)).astype(np.float32)
    assert torch.equal(loaded.extract(points), student.extract(points))
    recipe = load_recipe("scalr_wi256", ("student.backbone=minkunet", "inputs.voxels=cartesian"))
    assert recipe.student == MinkUNetConfig()
    assert recipe.inputs == MinkUNetInputs(voxels="cartesian")
