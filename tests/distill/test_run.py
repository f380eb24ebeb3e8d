from __future__ import annotations

import csv
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import scalr
from scalr.distill import run
from scalr.distill.checkpoint import student_provenance
from scalr.distill.recipe import Recipe, load_recipe, recipe_values
from scalr.distill.recipes import recipe_names
from scalr.distill.run import DistillConfig, DistillSummary, distill
from scalr.errors import ScalrError, StoreError, StudentError
from scalr.extract import targets
from scalr.json_text import json_text

SMALL = ("student.width=8", "student.depth=3", "training.epochs=2", "training.batch_size=2", "training.warmup_steps=1")


def distill_small(store, out, *overrides: str):
    recipe = load_recipe("scalr_wi256", [*SMALL, *overrides])
    return distill(DistillConfig(caches=(store.path,), out=out, recipe=recipe, device="cpu"))


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def distilled(extract_tiny, tmp_path):
    def call(out: str = "run", *overrides: str):
        return distill_small(extract_tiny(), tmp_path / out, *overrides)

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
    assert [source["split"] for store in provenance["stores"] for source in store["sources"]] == ["train"]
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


def test_processes_that_do_not_share_a_folder_are_said(extract_tiny, tmp_path, monkeypatch):
    """The checkpoint is on the disk of one of two nodes."""
    monkeypatch.setattr(run, "num_processes", lambda: 2)
    monkeypatch.setattr(run, "summed", lambda values, device: [1.0])
    with pytest.raises(StudentError, match=r"checkpoint\.pt: 1 of 2 processes see this file\. Put --out on shared"):
        distill(DistillConfig(caches=(extract_tiny().path,), out=tmp_path / "run", device="cpu"))


@pytest.mark.parametrize("values", [{"eval_every": 0}, {"checkpoint_minutes": -1.0}, {"checkpoint_minutes": np.nan}])
def test_times_that_make_no_sense_are_said(tmp_path, values):
    (name, value), *_ = values.items()
    with pytest.raises(ScalrError, match=f"--{name.replace('_', '-')}: {value} cannot be used"):
        DistillConfig(caches=(tmp_path,), out=tmp_path, **values)


def test_a_student_is_never_overwritten(distilled):
    distilled()
    with pytest.raises(StudentError, match="a finished run is in this folder"):
        distilled()


def test_a_summary_says_how_long_it_waited_where_that_is_known(tmp_path):
    summary = DistillSummary(tmp_path, [1.0, 0.5], data_wait=0.125)
    line, waited = (
        f"{tmp_path}: 2 steps, loss 1.000 (first step), 0.500 (last)",
        "of the time was spent waiting for data",
    )
    assert summary.as_text() == f"{line}\n12.5% {waited}: increase training.workers"
    assert replace(summary, data_wait=0.1).as_text() == f"{line}\n10.0% {waited}"
    assert replace(summary, data_wait=None).as_text() == line
    assert replace(summary, data_wait=None, unrelated_loss=2**0.5).as_text() == f"{line}; unrelated features give 1.41"


@pytest.mark.parametrize("log", [None, b"", b"step,epoch,loss\n", bytes(range(256))])
def test_a_finished_run_without_its_log_is_still_finished(distilled, tmp_path, log):
    student, recipe = distilled().student, load_recipe("scalr_wi256", SMALL)
    paths = {"caches": (tmp_path / "s.zarr",), "out": tmp_path / "run"}
    config = DistillConfig(**paths, recipe=recipe, device="cpu", resume=True)
    if log is None:
        (tmp_path / "run/log.csv").unlink()
    else:
        (tmp_path / "run/log.csv").write_bytes(log)
    summary = distill(config)
    assert (summary.student, summary.losses) == (student, [])
    assert summary.as_text() == f"{student}: finished; log.csv does not have the losses any more"
    assert json.loads(json_text(summary.as_json()))["losses"] == []


def test_a_block_that_is_gone_is_named(extract_tiny, tmp_path):
    store = extract_tiny(frames_per_block=1)
    shutil.rmtree(store.path / "blocks/000001")
    with pytest.raises(StoreError, match=r"blocks/000001/\S+: the file of the store is missing\..*--repair"):
        distill_small(store, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_chunk_that_is_cut_off_is_named(extract_tiny, tmp_path, workers):
    store = extract_tiny(frames_per_block=1, encoding="point", dtype="float16")
    chunk = max(
        files_of(store.path / "blocks/000002/targets/coordinates/vectors/c"), key=lambda path: path.stat().st_size
    )
    with chunk.open("r+b") as file:
        file.truncate(chunk.stat().st_size // 2)
    with pytest.raises(
        StoreError,
        match=r"blocks/000002/targets/coordinates/vectors/c/0/0: the file of the store is of 629 bytes, not 1259",
    ):
        distill_small(store, tmp_path / "run", f"training.workers={workers}")


def test_a_target_that_is_not_a_number_is_named(extract_tiny, tmp_path, monkeypatch):
    """No extraction stores one: here its check is out of order, and the second frame's features are none.

    The sample comes first: frames 0, 2 and 1, then the blocks.
    """
    teacher, frames = extract_tiny.teachers["coordinates"], itertools.count()
    maps = teacher.patch_maps
    monkeypatch.setattr(teacher, "patch_maps", lambda images: maps(images) * (np.nan if next(frames) == 4 else 1))
    monkeypatch.setattr(targets, "_to_float16", lambda vectors: vectors.to(torch.float16))
    store = extract_tiny(frames_per_block=1, batch_size=2, dtype="float16")
    with pytest.raises(StudentError) as error:
        distill_small(store, tmp_path / "run", "training.batch_size=3")
    assert "the loss of step 1 is nan" in str(error.value)
    assert re.search(r"samples: \S+s.zarr block 1 frame frame1 (LEFT \(view 2\)|RIGHT \(view 3\))\.", str(error.value))
    assert not (tmp_path / "run/student.safetensors").exists()


def test_several_teachers_make_one_target(extract_tiny, tmp_path):
    store = extract_tiny("coordinates", "doubled")
    overrides = [*SMALL, "student.head=mlp", "objective.teachers={doubled: 2, coordinates: 0.5}"]
    config = DistillConfig(caches=(store.path,), out=tmp_path / "run", recipe=load_recipe("scalr_wi256", overrides))
    student = scalr.load_student(distill(config).student)
    assert student.config.out_channels == 6
    provenance = student_provenance(tmp_path / "run/student.safetensors")
    assert list(provenance["teachers"]) == ["doubled", "coordinates"]
    assert provenance["recipe"]["objective"]["teachers"] == {"doubled": 2.0, "coordinates": 0.5}
    # On the command line, teachers are named without weights.
    config = replace(config, out=tmp_path / "named", teachers=("coordinates", "doubled"))
    distill(config)
    named = student_provenance(tmp_path / "named/student.safetensors")
    assert named["recipe"]["objective"]["teachers"] == {"coordinates": 0.5, "doubled": 2.0}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "image_size",
            (48, 64),
            r"coordinates in these stores cannot be mixed: image_size is \[24, 32\] and \[48, 64\]",
        ),
        ("weights_sha256", "f00d", r"cannot be mixed: weights_sha256 is '\w+' and 'f00d'"),
    ],
)
def test_targets_made_otherwise_are_not_mixed(extract_tiny, tmp_path, key, value, message):
    stores, teacher = [extract_tiny(out="a.zarr").path], extract_tiny.teachers["coordinates"]
    teacher.provenance = replace(teacher.provenance, **{key: value})
    stores.append(extract_tiny(out="b.zarr").path)
    with pytest.raises(StoreError, match=message):
        distill(DistillConfig(caches=tuple(stores), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_mean_that_is_taken_away_is_that_of_all_stores(extract_tiny, tiny_dataset, tmp_path):
    stores = [extract_tiny()]
    tiny_dataset.frames = tiny_dataset.frames[:1]
    stores.append(extract_tiny(out="other.zarr"))
    recipe = load_recipe("scalr_wi256", [*SMALL, "objective.standardise=centre"])
    summary = distill(DistillConfig(caches=[store.path for store in stores], out=tmp_path / "run", recipe=recipe))
    first, second = (store.statistics("coordinates") for store in stores)
    expected = (first.count * first.mean + second.count * second.mean) / (first.count + second.count)
    found = scalr.load_student(summary.student).standardisation.mean.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(first.mean, second.mean)


def test_the_log_tells_the_stores_apart(extract_tiny, tiny_dataset, tmp_path):
    """The mean of a step is that of its stores, by their pairs; a quick probe has a column too."""
    first = extract_tiny()
    tiny_dataset.frames = tiny_dataset.frames[:2]
    second = extract_tiny(out="other.zarr")
    seen = []

    def quick_probe(student) -> float:
        seen.append(student.training)
        return 0.25

    overrides = [*SMALL, "training.batch_size=5", "training.epochs=4", "sampling.store_weights=[1, 3]"]
    caches = (first.path, second.path)
    recipe = load_recipe("scalr_wi256", overrides)
    distill(DistillConfig(caches=caches, out=tmp_path / "run", recipe=recipe, quick_probe=quick_probe, eval_every=2))
    rows = list(csv.DictReader((tmp_path / "run/log.csv").open()))
    assert [row["probe_miou"] for row in rows] == ["", "0.25", "", "0.25"]
    assert seen == [True, True]
    for row in rows:
        losses = [float(row[f"loss_{name}"]) for name in ("s.zarr", "other.zarr")]
        assert min(losses) <= float(row["loss"]) <= max(losses)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_the_same(extract_tiny, tmp_path, precision):
    store, overrides = extract_tiny(), ("training.epochs=4", "training.batch_size=3", "training.learning_rate=1e-3")
    exact = distill_small(store, tmp_path / "exact", *overrides).losses
    half = distill_small(store, tmp_path / "half", *overrides, f"training.precision={precision}").losses
    assert half != exact
    assert half == pytest.approx(exact, rel=0.03)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_student_is_the_same(extract_tiny, tmp_path):
    store = extract_tiny()
    losses = []
    for compiled in ("false", "true"):
        overrides = ("training.epochs=2", f"training.compile={compiled}", "training.learning_rate=1e-2")
        losses.append(distill_small(store, tmp_path / compiled, *overrides).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


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
    [(b"", "cannot be read"), (b"\x00" * 64, "cannot be read"), (None, "no student file exists here")],
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
    published = {
        "scalr_wi96",
        "scalr_wi256",
        "scalr_wi384",
        "scalr_wi768",
        "scalr_multi_dataset",
        "scalr_multi_teacher",
    }
    ablations = {"table1_contrastive_head", "table1_contrastive", "table1_similarity", "table1_all_views"}
    assert {*published, *ablations, "scalr_plus", "demo"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe_values(recipe)))
        assert load_recipe(str(path)) == recipe


def test_pretraining_is_set_up_as_published():
    """valeoai/ScaLR: configs/pretrain/WI_768_pretrain.yaml, and WI_768-ScaLR_plus.yaml of its branch scalr_plus."""
    for name in ("scalr_wi96", "scalr_wi256", "scalr_wi384", "scalr_wi768", "scalr_multi_dataset"):
        recipe = load_recipe(name)
        training, inputs, augmentation = recipe.training, recipe.inputs, recipe.augmentation
        assert (training.epochs, training.batch_size, training.schedule) == (25, 8, "cosine")
        assert (training.learning_rate, training.min_learning_rate, training.weight_decay) == (2e-3, 1e-5, 0.03)
        assert (training.warmup_steps, training.warmup_epochs) == (3500, None)
        assert (training.precision, training.accumulate) == ("float32", 1)
        assert (inputs.voxel_size_m, inputs.num_neighbours, inputs.max_points) == (0.1, 16, 20_000)
        assert (inputs.fov_min_m, inputs.fov_max_m) == ((-64, -64, -8), (64, 64, 8))
        planes = [((0, 1), (256, 256)), ((0, 2), (256, 32)), ((1, 2), (256, 32))]
        assert [(plane.axes, plane.shape) for plane in inputs.planes] == planes
        assert (augmentation.max_rotation_rad, augmentation.max_scale_change) == (math.pi, 0.1)
        assert augmentation.flip_probability == pytest.approx(2 / 3)
        assert (recipe.sampling.views_per_sample, recipe.sampling.voxel_point) == (1, "random")
        assert (recipe.objective.loss, recipe.student.depth, recipe.student.head) == ("similarity", 48, "linear")
        assert (recipe.student.activation, recipe.student.stochastic_depth) == ("relu", 0)
    plus = load_recipe("scalr_plus")
    assert (plus.student.stochastic_depth, plus.student.out_channels, plus.student.depth) == (0.2, 1024, 48)
    training = plus.training
    assert (training.epochs, training.batch_size, training.schedule) == (65, 8, "reciprocal_sqrt")
    assert (training.learning_rate, training.weight_decay) == (2e-3, 0.03)
    assert (training.warmup_epochs, training.timescale_epochs, training.cooldown_epochs) == (1, 0.45, 2)
    assert training.activation_checkpointing
    for name, head in (("table1_contrastive", "none"), ("table1_contrastive_head", "linear")):
        objective = load_recipe(name).objective
        assert (objective.loss, objective.target_head) == ("contrastive", head)
        assert (objective.temperature, objective.contrastive_pairs, objective.target_head_channels) == (0.07, 4096, 64)


def test_what_a_recipe_leaves_out_is_scalr_s():
    """A recipe of one's own that says nothing is that of scalr_wi256."""
    assert Recipe() == load_recipe("scalr_wi256")


def test_recipes_say_what_they_change():
    widths = {name: load_recipe(name).student.width for name in recipe_names() if name.startswith("scalr_wi")}
    assert widths == {"scalr_wi96": 96, "scalr_wi256": 256, "scalr_wi384": 384, "scalr_wi768": 768}
    largest, plus = load_recipe("scalr_wi768"), load_recipe("scalr_plus")
    assert largest.student.norm == "layer"
    assert (plus.student.norm, plus.student.activation, plus.student.head) == ("layer", "gelu", "mlp")
    assert replace(plus, student=largest.student, training=largest.training) == largest
    assert load_recipe("table1_all_views").sampling.views_per_sample == "all"


def test_a_recipe_can_build_on_another(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: scalr_plus\ntraining: {epochs: 3}\n")
    assert load_recipe(str(path)) == load_recipe("scalr_plus", ["training.epochs=3"])
    path.write_text("base: scalr_plu\n")
    with pytest.raises(StudentError, match="base 'scalr_plu' is not a bundled recipe, did you mean 'scalr_plus'"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epochs: 3", r"mine\.yaml: the recipe is not valid YAML \(.*line 1.*\)\. Correct the line"),
        ("epochs: 3", "'epochs' is not a section"),
        ("base: demo\ntraining:\n", "'training' is not a section"),
        ("[1, 2]", r"\[1, 2\] is not a section with lines of key: value\. Copy the form"),
    ],
)
def test_a_file_that_is_no_recipe_is_said(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(StudentError, match=message):
        load_recipe(str(tmp_path / "mine.yaml"))


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
        ("demo", ["training.epochs=many"], "training.epochs: 'many' cannot be used. Give a whole number"),
        ("demo", ["student.width=-4"], "student.width: -4 cannot be used"),
        ("demo", ["student.width=[1"], "is not YAML"),
        ("demo", ["objective.loss=nce"], "objective.loss: 'nce' cannot be used"),
        ("demo", ["objective.los=cosine"], "unknown key 'los', did you mean 'loss'"),
        ("demo", ["sampling.views_per_sample=0"], "sampling.views_per_sample: 0 cannot be used"),
        ("demo", ["sampling.voxel_point=last"], "sampling.voxel_point: 'last' cannot be used"),
        (
            "demo",
            ["sampling.store_weights=2"],
            "sampling.store_weights: 2 cannot be used. Give a list, each item a number",
        ),
    ],
)
def test_mistakes_in_a_recipe_are_said(name, overrides, message):
    with pytest.raises(StudentError, match=message):
        load_recipe(name, overrides)
