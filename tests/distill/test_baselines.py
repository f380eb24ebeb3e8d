"""The methods that ScaLR is compared with, on a MinkUNet: each recipe from a store with superpixels to a student."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import scalr
from in_children import command_of_two, free_port, together
from scalr.cli import main
from scalr.distill.interruption import Signals, StoppedError
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.errors import StudentError
from scalr.evaluate.probe import ProbeConfig, probe
from scalr.extract.config import ExtractConfig
from scalr.extract.run import extract
from tiny import TinyDataset, extract_with, tiny_teachers

SMALL = (
    *("student.stem_width=4", "student.widths=[4, 4, 4, 4, 4, 4, 4, 4]", "student.blocks=[1, 1, 1, 1, 1, 1, 1, 1]"),
    *("training.epochs=2", "training.batch_size=2", "training.learning_rate=0.01"),
)


# Recipe -> loss and head on the targets; cameras and points of a sample; epochs, scans of a batch, learning rate.
SETTINGS = {
    "table1_minkunet_contrastive_head": ("contrastive", "linear", "all", "all", 25, 12, 1.5),
    "table1_minkunet_contrastive": ("contrastive", "none", "all", "all", 25, 12, 1.5),
    "table1_minkunet_similarity": ("similarity", "none", "all", "all", 25, 12, 1.5),
    "table1_minkunet_similarity_one_camera": ("similarity", "none", 1, "seen", 25, 12, 1.5),
    "table2_ppkt_minkunet": ("contrastive", "linear", "all", "all", 25, 12, 1.5),
    "table2_slidr_minkunet": ("slidr", "linear", "all", "all", 25, 12, 1.5),
    "table2_scalr_minkunet": ("similarity", "none", "all", "all", 25, 12, 1.5),
    "table8_st_slidr": ("st_slidr", "none", "all", "all", 50, 16, 0.5),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_recipes_are_slidr_s_as_the_paper_ran_them(name):
    """Its slidr_minkunet.yaml and ppkt_nuscenes.yaml; batch and epochs are the paper's, or ST-SLidR's."""
    recipe = load_recipe(name)
    objective, sampling, training = recipe.objective, recipe.sampling, recipe.training
    of_sample = (objective.loss, objective.target_head, sampling.views_per_sample, sampling.points)
    assert (*of_sample, training.epochs, training.batch_size, training.learning_rate) == SETTINGS[name]
    assert (training.optimiser, training.momentum, training.dampening) == ("sgd", 0.9, 0.1)
    assert (training.weight_decay, training.schedule, training.precision) == (1e-4, "cosine_epochs", "float32")
    assert (objective.temperature, objective.contrastive_pairs, objective.target_head_channels) == (0.07, 4096, 64)
    assert (objective.tolerance_quantile, objective.balanced, objective.balance_threshold) == (0.01, True, 0.5)
    augmentation = recipe.augmentation
    assert (augmentation.flips, augmentation.flip_probability, augmentation.drop_cuboid) == ("each", 0.5, 0.2)
    assert (augmentation.max_rotation_rad, augmentation.max_scale_change) == (math.pi, 0)
    inputs, student = recipe.inputs, recipe.student
    assert (inputs.voxels, inputs.voxel_size_m, inputs.features) == ("cylindrical", 0.1, "intensity")
    assert (student.backbone, student.head, student.bn_momentum) == ("minkunet", "linear", 0.05)


@pytest.mark.parametrize("size", ["s", "b", "l"])
def test_recipes_of_lima_s_re_run_name_their_teachers(size):
    recipe = load_recipe(f"scalr_minkunet_vit{size}")
    assert recipe.objective.teachers == {f"dinov2_vit{size}14": 1}
    assert (recipe.objective.loss, recipe.student.backbone, recipe.inputs.features) == (
        "similarity",
        "minkunet",
        "scalr",
    )
    assert recipe.training == load_recipe("scalr_wi256").training


@pytest.fixture(scope="module")
def tiny_store(tmp_path_factory) -> Path:
    """Three frames, with superpixels of SLIC."""
    folder = tmp_path_factory.mktemp("baselines")
    (folder / "images").mkdir()
    frames, options = TinyDataset(folder / "images"), {"teachers": ("coordinates",), "superpixels": "slic"}
    return extract_with(frames, tiny_teachers(), folder / "s.zarr", **options).path


def train(store: Path, out: Path, recipe: str, teacher: str = "coordinates", *, resume: bool = False) -> list[float]:
    overrides = (*SMALL, f"objective.teachers={{{teacher}: 1.0}}")
    config = DistillConfig(caches=(store,), out=out, recipe=load_recipe(recipe, overrides), device="cpu", resume=resume)
    return distill(config).losses


def assert_goes_on_bit_for_bit(store: Path, folder: Path, recipe: str, teacher: str = "coordinates") -> None:
    """Stopped after its first step, the run ends with the weights of one that ran through."""
    whole = train(store, folder / "whole", recipe, teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Signals, "stop", property(lambda self: True, lambda self, value: None), raising=False)
        with pytest.raises(StoppedError, match="after step 1 of"):
            train(store, folder / "stopped", recipe, teacher)
    assert train(store, folder / "stopped", recipe, teacher, resume=True) == whole
    students = [scalr.load_student(folder / run / "student.safetensors").state_dict() for run in ("whole", "stopped")]
    assert all(torch.equal(students[1][name], values) for name, values in students[0].items())
    assert len(whole) > 1


@pytest.mark.parametrize(
    "recipe",
    [
        "table2_ppkt_minkunet",
        "table8_st_slidr",
        pytest.param("table1_minkunet_similarity_one_camera", marks=pytest.mark.slow),
        pytest.param("table2_slidr_minkunet", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_of_each_loss_goes_on_bit_for_bit(tiny_store, tmp_path, recipe):
    assert_goes_on_bit_for_bit(tiny_store, tmp_path, recipe)


def test_superpixels_of_two_kinds_in_one_run_are_said(tiny_store, tmp_path, caplog):
    """Where the loss is of superpixels."""
    frames = TinyDataset(tmp_path, num_frames=1)
    for view in frames.frames[0].views:
        path = tmp_path / "maps" / view.image
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (64, 48)).save(path)
    options = {"teachers": ("coordinates",), "superpixels": str(tmp_path / "maps")}
    other = extract_with(frames, tiny_teachers(), tmp_path / "s.zarr", **options).path
    for loss, said in (("similarity", False), ("slidr", True)):
        recipe = load_recipe("table2_scalr_minkunet", (*SMALL, "training.epochs=1", f"objective.loss={loss}"))
        distill(DistillConfig(caches=(tiny_store, other), out=tmp_path / loss, recipe=recipe, device="cpu"))
        message = (
            "the student is trained on superpixels of different kinds (slic: nuscenes train; folder: nuscenes train)"
        )
        assert (message in caplog.text) == said


def test_a_loss_of_superpixels_takes_one_teacher(tmp_path):
    """Also where the command line names them, and not the recipe."""
    (tmp_path / "images").mkdir()
    names = ("coordinates", "doubled")
    frames = TinyDataset(tmp_path / "images", num_frames=2)
    store = extract_with(frames, tiny_teachers(), tmp_path / "s.zarr", teachers=names, superpixels="slic").path
    config = DistillConfig(
        caches=(store,), out=tmp_path / "run", teachers=names, recipe=load_recipe("table2_slidr_minkunet", SMALL)
    )
    with pytest.raises(StudentError, match=r"objective\.teachers: \['coordinates', 'doubled'\] .* Use one teacher"):
        distill(config)
    assert not (tmp_path / "run/student.safetensors").exists()


@pytest.fixture(scope="module")
def simulated_store(synthetic_world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "s.zarr"
    extract(
        ExtractConfig(
            root=synthetic_world, out=out, teachers=("dinov2_vits14",), weights=("random",), image_size=(112, 224),
            superpixels="slic",
        )
    )  # fmt: skip
    return out


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [*SETTINGS, *(f"scalr_minkunet_vit{size}" for size in "sbl")])
def test_each_recipe_goes_on_bit_for_bit_on_simulated_streets(simulated_store, synthetic_world, tmp_path, recipe):
    """And its student is probed."""
    assert_goes_on_bit_for_bit(simulated_store, tmp_path, recipe, "dinov2_vits14")
    student = tmp_path / "stopped/student.safetensors"
    probed = probe(
        ProbeConfig(student=student, root=synthetic_world, out=tmp_path / "probe", fast=True, epochs=2, warmup_epochs=0)
    )
    assert 0 < probed.scores.miou < 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["contrastive", "slidr", "st_slidr"])
def test_two_processes_train_with_negatives_of_their_own(tiny_store, tmp_path, children, loss):
    """Told from half as many, features that know nothing yet have a loss that is smaller by log 2."""
    overrides = (*SMALL, f"objective.loss={loss}", "objective.contrastive_pairs=100000", "objective.temperature=10")
    command = ["-q", "distill", "--recipe", "table2_scalr_minkunet", "--cache", str(tiny_store), "--device", "cpu"]
    command += [word for each in overrides for word in ("--set", each)]
    main([*command, "--out", str(tmp_path / "one")], standalone_mode=False)
    of_two = [*command, "--out", str(tmp_path / "two")]
    assert together(children, command_of_two, free_port(), of_two, tmp_path / "log") == [0, 0]
    first = [float(next(csv.DictReader((tmp_path / run / "log.csv").open()))["loss"]) for run in ("one", "two")]
    assert first[0] - first[1] == pytest.approx(0.69, abs=0.1)
