"""Each command of evaluation on the simulated world, from a student that was distilled there: some five minutes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from scalr.distill.checkpoint import save_student
from scalr.distill.recipe import load_recipe, recipe_values
from scalr.distill.run import DistillConfig, distill, new_student, with_head_for
from scalr.evaluate.corrupt import NOT_COMPARABLE, CorruptConfig, corrupt
from scalr.evaluate.finetune import FinetuneConfig, finetune
from scalr.evaluate.probe import ProbeConfig, probe
from scalr.evaluate.robustness import RobustnessConfig, robustness
from scalr.evaluate.transfer import TransferConfig, transfer
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.run import ExtractConfig, extract

pytestmark = pytest.mark.slow

TEACHER = "dinov2_vits14"
FAST = {"fast": True, "epochs": 10, "warmup_epochs": 1, "learning_rate": 0.1}


class Students(NamedTuple):
    distilled: Path
    undistilled: Path
    worlds: dict[str, Path]


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> Students:
    """Of a teacher with random weights, as in the demo."""
    folder = tmp_path_factory.mktemp("students")
    worlds = {layout: folder / layout for layout in ("nuscenes", "semantic_kitti")}
    write_world(worlds["nuscenes"], train_scenes=8, val_scenes=3, keyframes=3, seed=0)
    write_world(worlds["semantic_kitti"], layout="semantic_kitti", train_scenes=2, keyframes=6, seed=0)
    extract(
        ExtractConfig(
            root=worlds["nuscenes"], out=folder / "store.zarr", teachers=(TEACHER,), weights=("random",),
            image_size=(112, 224), batch_size=8,
        )
    )  # fmt: skip
    recipe = load_recipe("demo")
    distilled = distill(DistillConfig(caches=(folder / "store.zarr",), out=folder / "run", recipe=recipe)).student
    undistilled = folder / "undistilled.safetensors"
    save_student(new_student(with_head_for(recipe, 384)), undistilled, {"recipe": recipe_values(recipe)})
    return Students(distilled, undistilled, worlds)


@pytest.fixture(scope="module")
def source_models(students, tmp_path_factory) -> dict[str, Path]:
    """Heads for the classes that nuScenes and SemanticKITTI share, on both students."""
    out = tmp_path_factory.mktemp("source")
    return {
        name: probe(
            ProbeConfig(
                student=getattr(students, name), root=students.worlds["nuscenes"], out=out / name,
                classes="semantic_kitti_10", **FAST,
            )
        ).model
        for name in ("distilled", "undistilled")
    }  # fmt: skip


def test_a_distilled_student_probes_above_an_undistilled_one(students, tmp_path):
    base = {"root": students.worlds["nuscenes"], **FAST}
    miou = {
        name: probe(ProbeConfig(student=getattr(students, name), out=tmp_path / name, **base)).scores.miou
        for name in ("distilled", "undistilled")
    }
    assert miou["distilled"] > miou["undistilled"] + 0.03


def test_finetuning_with_a_hundredth_of_the_labels_starts_best_from_a_distilled_student(students, tmp_path):
    config = FinetuneConfig(
        student=students.distilled, root=students.worlds["semantic_kitti"], out=tmp_path / "distilled",
        dataset="semantic_kitti", labels="1%",
    )  # fmt: skip
    distilled = finetune(config)
    scratch = finetune(replace(config, from_scratch=True, out=tmp_path / "scratch"))
    assert json.loads((tmp_path / "scratch/result.json").read_text())["protocol"]["training_frames"] == 1
    assert distilled.scores.miou > scratch.scores.miou + 0.02


def test_what_was_learnt_of_one_lidar_holds_for_another(students, source_models, tmp_path):
    target = students.worlds["semantic_kitti"]
    miou = {
        name: transfer(TransferConfig(model=model, root=target, out=tmp_path / name)).miou
        for name, model in source_models.items()
    }
    assert miou["distilled"] > 0.1
    assert miou["distilled"] > miou["undistilled"]


def test_a_model_on_24_corrupted_copies(students, tmp_path):
    clean = students.worlds["nuscenes"]
    model = probe(ProbeConfig(student=students.distilled, root=clean, out=tmp_path / "probe", **FAST)).model
    corrupt(
        CorruptConfig(
            root=clean, out=tmp_path / "copies", motion_blur_m=(0.2, 0.3, 0.4), crosstalk_share=(0.03, 0.06, 0.1)
        )
    )
    result = robustness(
        RobustnessConfig(model=model, root=tmp_path / "copies", clean_root=clean, out=tmp_path / "robustness")
    )
    assert len(result.miou) == 24
    assert not result.missing
    assert 0 < result.mrr < 100
    assert result.miou["beam_missing/heavy"] < result.clean
    assert NOT_COMPARABLE in json.loads((tmp_path / "robustness/result.json").read_text())["departures"]
