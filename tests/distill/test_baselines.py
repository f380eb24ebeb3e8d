"""The methods that ScaLR is compared with, on a MinkUNet: each recipe from a store with superpixels to a student."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import scalr
from in_children import command_of_two, free_port, together
from scalr.cli import main
from scalr.distill.interruption import Signals, StoppedError
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.extract.config import ExtractConfig
from scalr.extract.run import extract
from tiny import TinyDataset, extract_with, tiny_teachers

RECIPES = [
    *("table1_minkunet_contrastive_head", "table1_minkunet_contrastive", "table1_minkunet_similarity"),
    *("table1_minkunet_similarity_one_camera", "table2_ppkt_minkunet", "table2_slidr_minkunet"),
    *("table2_scalr_minkunet", "table8_st_slidr", "scalr_minkunet_vits", "scalr_minkunet_vitb", "scalr_minkunet_vitl"),
]
SMALL = (
    *("student.stem_width=4", "student.widths=[4, 4, 4, 4, 4, 4, 4, 4]", "student.blocks=[1, 1, 1, 1, 1, 1, 1, 1]"),
    *("training.epochs=2", "training.batch_size=2", "training.learning_rate=0.01"),
)


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
    ["table1_minkunet_similarity_one_camera", "table2_ppkt_minkunet", "table2_slidr_minkunet", "table8_st_slidr"],
)
def test_a_recipe_of_each_loss_goes_on_bit_for_bit(tiny_store, tmp_path, recipe):
    assert_goes_on_bit_for_bit(tiny_store, tmp_path, recipe)


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
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_goes_on_bit_for_bit_on_simulated_streets(simulated_store, tmp_path, recipe):
    assert_goes_on_bit_for_bit(simulated_store, tmp_path, recipe, "dinov2_vits14")


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
