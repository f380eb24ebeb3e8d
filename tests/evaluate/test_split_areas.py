from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bars import Bars
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.student import Student
from scalr.errors import DatasetError
from scalr.evaluate import split_areas
from scalr.evaluate.class_areas import areas_of_classes
from scalr.evaluate.cosines import unit
from scalr.evaluate.split_areas import Areas, SplitAreas, areas_under_curve
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.run import ExtractConfig, extract
from scalr.extract.store import FeatureStore, open_store
from scalr.json_text import json_text

TEACHER = "dinov2_vits14"


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(WaffleIronConfig(width=8, depth=3, out_channels=4)).eval()


@pytest.fixture(scope="module")
def world(simulated) -> Path:
    return simulated("nuscenes")


@pytest.fixture(scope="module")
def store(world, tmp_path_factory) -> FeatureStore:
    """Of the second frame of the split alone."""
    out = tmp_path_factory.mktemp("areas") / "val.zarr"
    extract(
        ExtractConfig(
            root=world, out=out, split="val", teachers=(TEACHER,), weights=("random",), image_size=(28, 56),
            batch_size=8, points="visible",
        )
    )  # fmt: skip
    return open_store(out)


def test_areas_are_means_over_frames_of_all_labelled_points(student, world):
    dataset = open_dataset("nuscenes", world, "val")
    found = areas_under_curve(student, dataset, "nuscenes", num_frames=10)
    assert found.frames == tuple(frame.token for frame in dataset.frames)
    num_classes, of_frames, labels = len(dataset.class_names), {True: [], False: []}, []
    for frame in dataset.frames:
        units = unit(student.extract(dataset.read_points(frame), "nuscenes").numpy())
        labels.append(dataset.read_labels(frame))
        for centre, areas in of_frames.items():
            areas.append(areas_of_classes(units, labels[-1], num_classes, centre=centre))
    for areas, name in ((of_frames[False], "plain"), (of_frames[True], "centred")):
        with np.testing.suppress_warnings() as quiet:
            quiet.filter(RuntimeWarning)
            expected = np.nanmean(areas, axis=0)
        np.testing.assert_allclose(getattr(found.student, name), expected, atol=1e-4)
        assert found.student.means[name] == pytest.approx(np.nanmean(expected), abs=1e-4)
    counts = np.bincount(np.concatenate(labels), minlength=IGNORE_LABEL + 1)
    np.testing.assert_array_equal(found.points, counts[:num_classes])
    assert (found.pairs, found.student_on_pairs, found.teacher) == (None, None, None)


def test_teacher_and_student_are_compared_on_the_same_pairs(student, world, store):
    dataset = open_dataset("nuscenes", world, "val")
    found = areas_under_curve(student, dataset, "nuscenes", num_frames=1, store=store)
    frame, num_classes = dataset.frames[0], len(dataset.class_names)
    assert found.frames == (frame.token,)
    points = dataset.read_points(frame)
    row_of = {bytes(point): row for row, point in enumerate(points)}
    views = [store.read_view(row, TEACHER) for row in np.flatnonzero(np.array(store.views["token"]) == frame.token)]
    rows = np.array([row_of[bytes(point)] for view in views for point in view.points[view.point_index]])
    labels = dataset.read_labels(frame)[rows]
    targets = unit(np.concatenate([view.targets for view in views]))
    units = unit(student.extract(points, "nuscenes").numpy())[rows]
    for areas, features in ((found.teacher, targets), (found.student_on_pairs, units)):
        for name in ("plain", "centred"):
            expected = areas_of_classes(features, labels, num_classes, centre=name == "centred")
            np.testing.assert_allclose(getattr(areas, name), expected, atol=1e-3)
    counts = np.bincount(labels, minlength=IGNORE_LABEL + 1)[:num_classes]
    np.testing.assert_array_equal(found.pairs, counts)
    assert (found.pairs < found.points).any()


def test_frames_are_spread_evenly_over_those_that_can_be_used(student, store, monkeypatch):
    read = []

    def noted(student, dataset, frame, name, **options):
        read.append(frame.token)
        assert options == {"intensity": (0, 1)}  # not measured anew for each
        labels = np.repeat(np.array([0, 1, IGNORE_LABEL], np.uint8), 10)
        return SimpleNamespace(units=np.eye(3, dtype=np.float32), nearest=np.repeat(np.arange(3), 10), labels=labels)

    def a_dataset(frames: int, labelled: list[int]) -> SimpleNamespace:
        return SimpleNamespace(
            name="d", split="s", class_names=("a", "b", "c"), intensity=(0, 1),
            frames=[SimpleNamespace(token=str(n), labels="l" if n in labelled else None) for n in range(frames)],
        )  # fmt: skip

    monkeypatch.setattr(split_areas, "scan_features", noted)
    bars = Bars(monkeypatch, split_areas)
    found = areas_under_curve(student, a_dataset(20, list(range(4, 20, 2))), "d", num_frames=4)
    assert found.frames == tuple(read) == ("4", "8", "12", "16")
    assert [(bar.says, bar.moved) for bar in bars] == [((4, "areas under ROC curves", "frame"), [1] * 4)]
    np.testing.assert_array_equal(found.points, [40, 40, 0])
    np.testing.assert_array_equal(found.student.plain, [1, 1, np.nan])
    assert areas_under_curve(student, a_dataset(20, [1, 7]), "d", num_frames=4).frames == ("1", "7")
    assert areas_under_curve(student, a_dataset(20, []), "d", num_frames=4) is None
    assert areas_under_curve(student, a_dataset(20, [1]), "d", num_frames=0) is None
    assert areas_under_curve(student, a_dataset(20, [1]), "d", num_frames=4, store=store, teacher=TEACHER) is None


def test_a_dataset_without_classes_has_no_areas(student, world):
    dataset = open_dataset("nuscenes", world, "val")
    dataset.class_names = ()
    assert areas_under_curve(student, dataset, "nuscenes", num_frames=1) is None


def test_a_frame_that_cannot_be_read_is_named(student, world):
    dataset = open_dataset("nuscenes", world, "val")

    def unreadable(frame):
        raise DatasetError("the file is cut off", where="a.bin", fix="Copy it again.")

    dataset.read_labels = unreadable
    with pytest.raises(DatasetError, match=f"nuscenes split val frame {dataset.frames[0].token}: a.bin: the file"):
        areas_under_curve(student, dataset, "nuscenes", num_frames=1)


def test_what_is_not_known_is_null_in_a_record():
    areas = Areas(plain=np.array([0.5, np.nan]), centred=np.array([0.75, np.nan]))
    found = SplitAreas(
        class_names=("car", "tram"), frames=("f",), points=np.array([3, 0]), pairs=None, student=areas,
        student_on_pairs=None, teacher=None,
    )  # fmt: skip
    assert json.loads(json_text(found.as_record())) == {
        "frames": ["f"],
        "classes": {
            "car": {"points": 3, "student": {"plain": 0.5, "centred": 0.75}},
            "tram": {"points": 0, "student": {"plain": None, "centred": None}},
        },
        "mean": {"student": {"plain": 0.5, "centred": 0.75}},
    }
