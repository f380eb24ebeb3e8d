"""Each setting of a distillation changed alone where it is resumed: refused by name, or harmless as the docs say."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from scalr.distill.checkpoint import load_student
from scalr.distill.interruption import Signals, StoppedError
from scalr.distill.recipe import load_recipe, sections
from scalr.distill.run import OF_THE_MACHINE, DistillConfig, distill
from scalr.distill.run_record import run_record, write_record
from scalr.errors import ScalrError, StoreError, StudentError
from scalr.extract.statistics import TeacherStatistics
from scalr.extract.store import FeatureStore, open_store
from scalr.folder_lock import CLAIM, locked
from tiny import CoordinateTeacher, TinyDataset, extract_with, tiny_teachers

SMALL = ("student.width=8", "student.depth=3", "training.epochs=2", "training.batch_size=2", "inputs.num_neighbours=4")
# Of each field of a recipe, another value than SMALL or the default; and its name in the error where it is another.
OTHERS = {
    "student.backbone": None,  # another has other keys: test_backbones.py
    "student.width": 12,
    "student.depth": 4,
    "student.norm": "layer",
    "student.activation": "gelu",
    "student.stochastic_depth": 0.1,
    "student.head": "mlp",
    "student.out_channels": None,  # the teacher's, whatever the recipe says
    "inputs.voxel_size_m": 0.2,
    "inputs.fov_min_m": [-63.0, -64.0, -8.0],
    "inputs.fov_max_m": [64.0, 63.0, 8.0],
    "inputs.planes": "[{axes: [0, 1], shape: [128, 128]}]",
    "inputs.num_neighbours": 5,
    "inputs.max_points": 100,
    "sampling.views_per_sample": "all",
    "sampling.points": "all",
    "sampling.voxel_point": "first",
    "sampling.store_weights": [1.0],
    "augmentation.max_rotation_rad": 1.0,
    "augmentation.flips": "each",
    "augmentation.flip_probability": 0.5,
    "augmentation.max_scale_change": 0.2,
    "augmentation.drop_cuboid": 0.2,
    "objective.loss": "cosine",
    "objective.teachers": "{coordinates: 2.0}",
    "objective.standardise": "centre",
    "objective.temperature": 0.1,
    "objective.contrastive_pairs": 64,
    "objective.target_head": None,  # with the contrastive loss alone
    "objective.target_head_channels": 8,
    "objective.tolerance_quantile": 0.1,
    "objective.balanced": "false",
    "objective.balance_threshold": 0.4,
    "training.epochs": 3,
    "training.batch_size": 1,
    "training.optimiser": "sgd",
    "training.momentum": 0.8,
    "training.dampening": 0.0,
    "training.learning_rate": 1e-3,
    "training.min_learning_rate": 1e-6,
    "training.weight_decay": 0.1,
    "training.schedule": "reciprocal_sqrt",
    "training.warmup_steps": 5,
    "training.warmup_epochs": 0.5,
    "training.timescale_epochs": 0.5,
    "training.cooldown_epochs": 0.5,
    "training.precision": "bfloat16",
    "training.seed": 1,
}
HARMLESS = {
    "training.workers": 1,
    "training.accumulate": 2,
    "training.compile": "true",
    "training.activation_checkpointing": "true",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run that is finished and one that was stopped after its first step, of one store."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "images").mkdir()
    frames = TinyDataset(folder / "images", num_frames=2)
    extract_with(frames, tiny_teachers(), folder / "s.zarr", teachers=("coordinates",), frames_per_block=1)
    go_on(folder, "finished", resume=False)
    stop(folder, "stopped")
    return folder


def go_on(folder: Path, run: str, overrides: tuple[str, ...] = (), **options):
    recipe = load_recipe("scalr_wi256", [*SMALL, *overrides])
    values = {"caches": (folder / "s.zarr",), "resume": True, "device": "cpu"} | options
    return distill(DistillConfig(out=folder / run, recipe=recipe, **values))


def stop(folder: Path, run: str, overrides: tuple[str, ...] = ()) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Signals, "stop", property(lambda self: True, lambda self, value: None), raising=False)
        with pytest.raises(StoppedError, match="after step 1 of 2"):
            go_on(folder, run, overrides, resume=False)


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def test_every_field_of_a_recipe_is_here():
    fields = {f"{section}.{field.name}" for section, kind in sections().items() for field in dataclasses.fields(kind)}
    assert fields == OTHERS.keys() | HARMLESS.keys()
    assert {f"training.{name}" for name in OF_THE_MACHINE} == HARMLESS.keys()


@pytest.mark.parametrize("run", ["finished", "stopped"])
@pytest.mark.parametrize("field", [name for name, value in OTHERS.items() if value is not None])
def test_another_recipe_is_refused_by_name(folder, run, field):
    before = contents(folder / run)
    with pytest.raises(StudentError) as caught:
        go_on(folder, run, (f"{field}={OTHERS[field]}",))
    assert f"made with other settings: recipe.{field}" in str(caught.value)
    assert " was " in str(caught.value)
    assert contents(folder / run) == before


@pytest.mark.parametrize("file", ["config.yaml", None])
@pytest.mark.parametrize("run", ["finished", "stopped"])
def test_each_file_of_a_run_knows_its_settings(folder, tmp_path, run, file):
    """The configuration, or where it was removed, the student or the checkpoint."""
    copy = shutil.copytree(folder / run, tmp_path / run)
    where = file or {"finished": "student.safetensors", "stopped": "checkpoint.pt"}[run]
    if file is None:
        (copy / "config.yaml").unlink()
    with pytest.raises(
        StudentError, match=rf"{where}: the run was made with other settings: recipe\.training\.seed was 0 and is 1"
    ):
        go_on(folder, str(copy), ("training.seed=1",))


@pytest.mark.parametrize("run", ["finished", "stopped"])
@pytest.mark.parametrize("field", [name for name in HARMLESS if name != "training.compile"])
def test_another_use_of_the_machine_is_said(folder, tmp_path, caplog, run, field):
    """`compile` takes a compiler and minutes."""
    copy, name = shutil.copytree(folder / run, tmp_path / run), field.partition(".")[2]
    with caplog.at_level(logging.INFO, "scalr"):
        assert len(go_on(folder, str(copy), (f"{field}={HARMLESS[field]}",)).losses) == 2
    said = [line for line in caplog.messages if "results may differ in the last bits" in line]
    assert len(said) == (run == "stopped")
    assert all(
        f"{name} was {'false' if HARMLESS[field] == 'true' else 0 if name == 'workers' else 1}" in s for s in said
    )


@pytest.mark.parametrize("run", ["finished", "stopped"])
def test_other_stores_are_refused(folder, tmp_path, run):
    """Another one of the same layout, one that is not there, one more."""
    (tmp_path / "images").mkdir()
    images = TinyDataset(tmp_path / "images", num_frames=3)
    more = extract_with(images, tiny_teachers(), tmp_path / "s.zarr", teachers=("coordinates",), frames_per_block=1)
    with pytest.raises(StudentError, match=r"made with other settings: stores\[0\]\.\S+ was "):
        go_on(folder, run, caches=(more.path,))
    with pytest.raises(StoreError, match=r"nowhere\.zarr"):
        go_on(folder, run, caches=(tmp_path / "nowhere.zarr",))
    with pytest.raises(StudentError, match="number of stores was 1 and is 2"):
        go_on(folder, run, caches=(folder / "s.zarr", more.path))
    (tmp_path / "link").symlink_to(folder / "s.zarr")
    with pytest.raises(StudentError, match=r"--cache: the store \S+link is given twice\. Pass each --cache once"):
        go_on(folder, run, caches=(folder / "s.zarr", tmp_path / "link"))


def test_frames_that_came_later_are_not_mixed_in(tmp_path, monkeypatch):
    """A frame was skipped; its image came back and the store was completed."""
    (tmp_path / "images").mkdir()
    frames = TinyDataset(tmp_path / "images", num_frames=3)
    image = tmp_path / "images" / frames.frames[1].views[0].image
    kept = image.read_bytes()
    image.unlink()
    options = {"teachers": ("coordinates",), "frames_per_block": 1}
    extract_with(frames, tiny_teachers(), tmp_path / "s.zarr", on_error="skip", **options)
    stop(tmp_path, "stopped")
    go_on(tmp_path, "finished", resume=False)
    record = yaml.safe_load((tmp_path / "finished/config.yaml").read_text())
    assert record["stores"][0]["frames_in_use"] == [2]
    image.write_bytes(kept)
    shutil.rmtree(tmp_path / "s.zarr")
    extract_with(frames, tiny_teachers(), tmp_path / "s.zarr", **options)
    for run in ("stopped", "finished"):
        with pytest.raises(
            StudentError, match=r"stores\[0\]\.frames_in_use\[0\] was 2 and is 3; stores\[0\]\.views_in_use was 4"
        ):
            go_on(tmp_path, run)


@pytest.mark.parametrize("size", [0, 10, 1000, -1])
def test_a_finished_student_that_was_cut_off_is_not_finished(folder, tmp_path, size):
    copy = shutil.copytree(folder / "finished", tmp_path / "run")
    student = copy / "student.safetensors"
    student.write_bytes(student.read_bytes()[:size])
    with pytest.raises(
        ScalrError,
        match=r"the finished student cannot be used: .* Remove the file and run"
        r" the same command with --resume: it trains again",
    ):
        go_on(folder, str(copy))


def test_a_finished_run_of_the_same_settings_is_finished(folder):
    before = contents(folder / "finished")
    assert go_on(folder, "finished").data_wait is None
    assert contents(folder / "finished") == before


def test_another_kind_of_run_is_not_resumed(folder, tmp_path):
    write_record(tmp_path, run_record({"kind": "probing"}, torch.device("cpu")))
    with pytest.raises(StudentError, match=r"config\.yaml: this file is of a probing run, not of a distillation run"):
        go_on(folder, str(tmp_path))


def test_a_folder_in_which_another_run_is_at_work_is_refused(folder, tmp_path):
    with locked(tmp_path), pytest.raises(StudentError, match="another run writes to this folder: process"):
        go_on(folder, str(tmp_path))


def test_a_run_that_was_taken_for_gone_writes_no_checkpoint(folder, tmp_path, monkeypatch):
    """Its claim was removed by another run while it stood still."""
    monkeypatch.setattr(Signals, "save", property(remove_claims(tmp_path), lambda self, value: None), raising=False)
    with pytest.raises(
        StudentError,
        match="another run has started in this folder, because this run did not respond for more than a minute",
    ):
        go_on(folder, str(tmp_path))
    assert not (tmp_path / "checkpoint.pt").exists()


def remove_claims(folder: Path):
    def remove(_) -> bool:
        for claim in folder.glob(f"{CLAIM}*"):
            claim.unlink()
        return True

    return remove


class OfOtherImages(CoordinateTeacher):
    """What it sees is turned upside down."""

    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        return super().patch_maps(images).flip(1)


def test_targets_that_were_extracted_again(tmp_path, caplog):
    """Of other images of the same names and sizes: a finished student is not of them; a run goes on, and says so."""
    (tmp_path / "images").mkdir()
    frames, options = TinyDataset(tmp_path / "images", num_frames=2), {"frames_per_block": 1}
    extract_with(frames, tiny_teachers(), tmp_path / "s.zarr", teachers=("coordinates",), **options)
    go_on(tmp_path, "finished", resume=False)
    stop(tmp_path, "stopped")
    shutil.rmtree(tmp_path / "s.zarr")
    extract_with(frames, {"coordinates": OfOtherImages()}, tmp_path / "s.zarr", teachers=("coordinates",), **options)
    with pytest.raises(
        StudentError, match=r"student\.safetensors: the run was made with other settings: targets\.coor"
    ):
        go_on(tmp_path, "finished")
    with caplog.at_level(logging.WARNING, "scalr"):
        go_on(tmp_path, "stopped")
    assert sum("targets were extracted again since the run began" in line for line in caplog.messages) == 1


class OfFourChannels(CoordinateTeacher):
    """As many as PHI-S can mix."""

    name, dim = "four", 4
    provenance = dataclasses.replace(CoordinateTeacher.provenance, teacher="four", dim=4)

    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        maps = super().patch_maps(images)
        return torch.cat([maps, maps[..., :1] * maps[..., 1:2]], dim=-1)


def test_a_run_keeps_the_standardisation_that_it_began_with(tmp_path, monkeypatch, caplog):
    """The statistics are made again: it ends with the same weights, and says so; a finished student is not of them."""
    (tmp_path / "images").mkdir()
    teachers, phi_s = {"four": OfFourChannels()}, ("objective.standardise=phi_s",)
    frames = TinyDataset(tmp_path / "images", num_frames=2)
    extract_with(frames, teachers, tmp_path / "s.zarr", teachers=("four",), frames_per_block=1)
    go_on(tmp_path, "finished", phi_s, resume=False)
    stop(tmp_path, "stopped", phi_s)
    stop(tmp_path, "untouched", phi_s)
    statistics = FeatureStore.statistics
    go_on(tmp_path, "untouched", phi_s)
    assert not any("statistics were computed again" in line for line in caplog.messages)
    monkeypatch.setattr(FeatureStore, "statistics", lambda *arguments: moved(statistics(*arguments)))
    with pytest.raises(
        StudentError, match=r"student\.safetensors: the run was made with other settings: statistics\.four"
    ):
        go_on(tmp_path, "finished", phi_s)
    with caplog.at_level(logging.WARNING, "scalr"):
        go_on(tmp_path, "stopped", phi_s)
    assert sum("statistics were computed again since the run began" in line for line in caplog.messages) == 1
    finished, *others = (
        load_student(tmp_path / run / "student.safetensors") for run in ("finished", "stopped", "untouched")
    )
    assert finished.standardisation.config.kind == "phi_s"
    for other in others:
        assert all(torch.equal(other.state_dict()[name], value) for name, value in finished.state_dict().items())


def moved(statistics: TeacherStatistics) -> TeacherStatistics:
    return dataclasses.replace(statistics, mean=statistics.mean + 0.25, covariance=2 * statistics.covariance)


def test_what_cannot_be_standardised_leaves_nothing(folder, tmp_path):
    """Three channels, which PHI-S cannot mix."""
    with pytest.raises(
        StudentError, match=r"objective\.standardise: no Hadamard matrix is known here for the 3 channels"
    ):
        go_on(folder, str(tmp_path / "run"), ("objective.standardise=phi_s",))
    assert not (tmp_path / "run").exists()


def test_points_that_were_extracted_again_are_refused(tmp_path):
    """Of the same frames with another calibration or other scans."""
    (tmp_path / "images").mkdir()
    frames, options = TinyDataset(tmp_path / "images", num_frames=2), {"frames_per_block": 1}
    extract_with(frames, tiny_teachers(), tmp_path / "s.zarr", teachers=("coordinates",), **options)
    stop(tmp_path, "stopped")
    shutil.rmtree(tmp_path / "s.zarr")
    for points in frames._points.values():
        points[0, 0] += 0.5
    extract_with(frames, tiny_teachers(), tmp_path / "s.zarr", teachers=("coordinates",), **options)
    with pytest.raises(StudentError, match=r"stores\[0\]\.views_sha256 was "):
        go_on(tmp_path, "stopped")


def test_a_dataset_that_moved_and_other_releases_are_no_other_run(folder):
    """The store keeps its dataset's folder and the versions of libraries beside what its scans depend on."""
    record = yaml.safe_load((folder / "finished/config.yaml").read_text())
    assert "record" not in record["stores"][0]["sources"][0]


def test_frames_of_one_camera_are_counted_and_their_names_digested(tmp_path, monkeypatch):
    """As SemanticKITTI's; a digest of another kind would refuse every run that an earlier release began."""
    monkeypatch.setattr("scalr.distill.run.ROWS_AS_TEXT", 1)
    (tmp_path / "images").mkdir()
    frames = TinyDataset(tmp_path / "images", num_frames=2)
    frames.frames = [dataclasses.replace(frame, views=frame.views[:1]) for frame in frames.frames]
    extract_with(frames, tiny_teachers(), tmp_path / "s.zarr", teachers=("coordinates",))
    stop(tmp_path, "stopped")
    (store,) = yaml.safe_load((tmp_path / "stopped/config.yaml").read_text())["stores"]
    assert (store["frames_in_use"], store["views_in_use"]) == ([2], 2)
    views = open_store(tmp_path / "s.zarr").views.select(["dataset", "scene", "token", "camera", "crc32c"]).to_pylist()
    lines = "\n".join("\t".join(map(str, view.values())) for view in views)
    assert store["views_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
