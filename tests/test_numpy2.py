"""What programs with numpy 2 use of scalr; `make test-newest` runs this beside tests of stores and students."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.student import Student
from scalr.evaluate.model import load_model, save_model, with_class_head
from scalr.evaluate.predict import PredictConfig, predict
from scalr.evaluate.score import ScoreConfig, score_model
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.semantic_kitti import LABELS

ROOT = Path(__file__).parents[1]
HELD_BY_THE_DEVKIT = {"numpy", "zarr"}


def lowest(requirements: list[str]) -> dict[str, set[str]]:
    """The versions that each package is at least, by its name."""
    parsed = map(Requirement, requirements)
    return {each.name: {part.version for part in each.specifier if part.operator == ">="} for each in parsed}


def test_what_numpy_2_needs_is_what_scalr_needs_in_any_newer_version():
    """Packages are named with the lowest versions that work, in two files."""
    lines = (ROOT / "requirements-numpy2.txt").read_text().splitlines()
    beside = [line for line in lines if not line.startswith("#")]
    assert [line for line in beside if not re.match(r"[\w-]+>=[\d.]+(,<[\d.]+)?$", line)] == []
    wanted = lowest(beside)
    declared = lowest(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    assert wanted["numpy"] == {"2"}
    assert {name: each for name, each in wanted.items() if each != declared[name]}.keys() == HELD_BY_THE_DEVKIT
    assert "nuscenes-devkit" in declared.keys() - wanted.keys()


@pytest.fixture
def kitti(tmp_path) -> Path:
    """Two labelled scans of SemanticKITTI's validation sequence, without images."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "kitti/sequences/08"
    for name in ("velodyne", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(2):
        points = rng.uniform([-80, -80, -3, 0], [80, 80, 3, 1], (500, 4))  # some outside the field of view
        points.astype("<f4").tofile(folder / f"velodyne/{number:06d}.bin")
        rng.choice([0, 10, 40, 252], 500).astype("<u4").tofile(folder / f"labels/{number:06d}.label")
    return tmp_path / "kitti"


def test_predictions_are_what_the_student_says_of_the_raw_points(kitti, tmp_path):
    """On a dataset of which nothing is told by the devkit."""
    torch.manual_seed(0)
    student = Student(WaffleIronConfig(width=8, depth=3, out_channels=4))
    model = with_class_head(student, 19, student.input_config)
    torch.nn.init.normal_(model.classif[1].weight)
    save_model(model, tmp_path / "model.safetensors", LABELS.class_names, {})
    scores = score_model(
        ScoreConfig(
            model=tmp_path / "model.safetensors", root=kitti, out=tmp_path / "out", dataset="semantic_kitti",
            predictions=True, device="cpu",
        )
    )  # fmt: skip
    loaded, confusion = load_model(tmp_path / "model.safetensors").student, np.zeros((19, 19), np.int64)
    for number in ("000000", "000001"):
        points = np.fromfile(kitti / f"sequences/08/velodyne/{number}.bin", np.float32).reshape(-1, 4)
        said = loaded.project(loaded.extract(points, "semantic_kitti")).argmax(dim=1).numpy()
        raw = np.fromfile(tmp_path / f"out/submission/sequences/08/predictions/{number}.label", np.uint32)
        np.testing.assert_array_equal(LABELS.train_ids(raw, "predictions"), said)
        labels = LABELS.train_ids(np.fromfile(kitti / f"sequences/08/labels/{number}.label", np.uint32), "labels")
        np.add.at(confusion, (labels[labels != IGNORE_LABEL], said[labels != IGNORE_LABEL]), 1)
    assert len({*np.flatnonzero(confusion.sum(axis=0))}) > 1
    np.testing.assert_array_equal(scores.confusion, confusion)

    scored, of_files = tmp_path / "out/submission/sequences/08/predictions", tmp_path / "of_files"
    scans = kitti / "sequences/08/velodyne"
    predict(
        PredictConfig(
            model=tmp_path / "model.safetensors", scans=(scans,), out=of_files, dataset="semantic_kitti",
            picture="png", device="cpu",
        )
    )  # fmt: skip
    for path in sorted(scored.iterdir()):
        assert (of_files / path.name).read_bytes() == path.read_bytes()
