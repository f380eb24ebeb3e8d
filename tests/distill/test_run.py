from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

import scalr
from scalr.distill.checkpoint import student_provenance
from scalr.distill.recipes import load_recipe, recipe_names, recipe_values
from scalr.distill.run import DistillConfig, distill
from scalr.errors import StoreError, StudentError

SMALL = ("student.width=8", "student.depth=3", "training.epochs=2", "training.batch_size=2", "training.warmup_steps=1")


@pytest.fixture
def distilled(extract_tiny, tmp_path):
    def call(out: str = "run", *overrides: str):
        store = extract_tiny()
        recipe = load_recipe("scalr_wi256", [*SMALL, *overrides])
        return distill(DistillConfig(caches=(store.path,), out=tmp_path / out, recipe=recipe, device="cpu"))

    return call


def test_a_student_comes_out_and_comes_back(distilled, tiny_dataset, tmp_path):
    summary = distilled()
    assert len(summary.losses) == 2
    student = scalr.load_student(summary.student)
    points = tiny_dataset.read_points(tiny_dataset.frames[0])
    features = student.extract(points, dataset="nuscenes")
    assert features.shape == (len(points), 8)
    assert student.project(features).shape == (len(points), 3)
    provenance = student_provenance(summary.student)
    assert provenance["teachers"]["coordinates"]["teacher"] == "coordinates"
    assert provenance["store"]["sources"][0]["split"] == "train"
    assert provenance["recipe"]["student"]["out_channels"] == 3
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text()) == provenance


def test_the_same_seed_gives_the_same_student(distilled):
    first, again, other = distilled("a"), distilled("b"), distilled("c", "training.seed=1")
    weights = [scalr.load_student(run.student).state_dict() for run in (first, again, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["classif.weight"], weights[2]["classif.weight"])


def test_stage_two_needs_neither_teacher_nor_devkit(extract_tiny, tmp_path):
    """A whole distillation in a fresh interpreter: timm, torchvision and nuscenes are never imported."""
    store = extract_tiny()
    script = f"""
import json, sys
from scalr.cli import main
main(["distill", "--cache", {str(store.path)!r}, "--out", {str(tmp_path / "run")!r}, "--device", "cpu",
      *(word for value in {SMALL!r} for word in ("--set", value))], standalone_mode=False)
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert (tmp_path / "run/student.safetensors").exists()
    assert {"torch", "zarr"} <= imported
    assert not {"timm", "torchvision", "nuscenes", "cv2"} & imported


def test_an_incomplete_store_is_refused(extract_tiny, tmp_path):
    store = extract_tiny(frames_per_block=1)
    (store.path / "index/coordinates/000001.parquet").unlink()
    with pytest.raises(StoreError, match=r"1 of 3 blocks have no targets of coordinates \(first: \[1\]\)"):
        distill(DistillConfig(caches=(store.path,), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_student_is_never_overwritten(distilled):
    distilled()
    with pytest.raises(StudentError, match="a student is there already"):
        distilled()


def test_two_teachers_want_a_choice(extract_tiny, tmp_path):
    store = extract_tiny("coordinates", "doubled")
    with pytest.raises(StoreError, match="which teacher"):
        distill(DistillConfig(caches=(store.path,), out=tmp_path / "run"))


def test_a_killed_save_leaves_no_student(distilled, monkeypatch, tmp_path):
    def killed_half_way(tensors, path, header):
        path.write_bytes(b"half a student")
        raise KeyboardInterrupt

    monkeypatch.setattr("scalr.distill.checkpoint.save_file", killed_half_way)
    with pytest.raises(KeyboardInterrupt):
        distilled()
    assert not [path for path in (tmp_path / "run").iterdir() if "student" in path.name]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read"), (b"\x00" * 64, "cannot be read"), (None, "no student here")],
)
def test_what_is_no_student_is_said(tmp_path, content, message):
    path = tmp_path / "student.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StudentError, match=message):
        scalr.load_student(path)


def test_somebody_elses_safetensors_is_said(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(StudentError, match="not a student of scalr"):
        scalr.load_student(tmp_path / "x.safetensors")


def test_every_bundled_recipe_loads_and_round_trips(tmp_path):
    assert {"scalr_wi256", "demo"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe_values(recipe)))
        assert load_recipe(str(path)) == recipe


def test_numbers_may_be_written_as_people_write_them():
    recipe = load_recipe("demo", ["training.learning_rate=1e-2", "training.min_learning_rate=0"])
    assert recipe.training.learning_rate == 0.01
    assert recipe.training.min_learning_rate == 0


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("scalr_wi265", [], "no recipe 'scalr_wi265', did you mean 'scalr_wi256'"),
        ("demo", ["training.epoch=3"], "unknown key 'epoch', did you mean 'epochs'"),
        ("demo", ["trainin.epochs=3"], "unknown key 'trainin', did you mean 'training'"),
        ("demo", ["epochs"], "'epochs' is not section.key=value"),
        ("demo", ["training.epochs=many"], "wrong type"),
        ("demo", ["student.width=-4"], "student.width: -4 cannot be used"),
        ("demo", ["student.width=[1"], "is not YAML"),
    ],
)
def test_mistakes_in_a_recipe_are_said(name, overrides, message):
    with pytest.raises(StudentError, match=message):
        load_recipe(name, overrides)
