"""The simulated world in every native layout: read by the dataset's reader, it is what the simulator says it is."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.synthetic import (
    KITTI_RIG,
    LAYOUTS,
    NUSCENES_RIG,
    PANDAR64_RIG,
    PANDARGT_RIG,
    POSS_RIG,
    simulate_scene,
    write_world,
)
from scalr.extract.projection import project
from simulated_truth import near_an_edge, truly_hidden
from store_comparison import files

SCENES = {"train": "scene-0001", "val": "scene-0003"}
DATASETS = {
    "nuscenes": ("nuscenes", NUSCENES_RIG),
    "semantic_kitti": ("semantic_kitti", KITTI_RIG),
    "pandaset_64": ("pandaset", PANDAR64_RIG),
    "pandaset_gt": ("pandaset", PANDARGT_RIG),
    "semantic_poss": ("semantic_poss", POSS_RIG),
}
WITH_CAMERAS = [name for name, (_, rig) in DATASETS.items() if rig.cameras]


@pytest.fixture(params=DATASETS)
def name(request) -> str:
    return request.param


def opened(name: str, simulated, split: str = "train"):
    layout, rig = DATASETS[name]
    return open_dataset(name, simulated(layout), split), simulate_scene(SCENES[split], seed=0, rig=rig)


def scan_from_lidar(name: str) -> np.ndarray:
    """(4, 4): the scans of the PandarGT are given in the frame of the Pandar64."""
    if name != "pandaset_gt":
        return np.eye(4)
    return np.linalg.inv(PANDAR64_RIG.lidar.ego_from_lidar) @ PANDARGT_RIG.lidar.ego_from_lidar


@pytest.mark.parametrize("split", ["train", "val"])
def test_points_are_the_simulator_s(name, split, simulated):
    dataset, scene = opened(name, simulated, split)
    matrix = scan_from_lidar(name)
    assert len(dataset.frames) == 2
    for keyframe, frame in enumerate(dataset.frames):
        points, sweep = dataset.read_points(frame), scene.sweep(keyframe)
        expected = sweep.points[:, :3].astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
        np.testing.assert_allclose(points[:, :3], expected, atol=2e-5)
        np.testing.assert_array_equal(points[:, 3], sweep.points[:, 3])


def test_labels_are_classes_of_the_dataset_s_own(name, simulated):
    """Two points of one simulated class have one class in every dataset; what all datasets name, they name alike."""
    dataset, scene = opened(name, simulated)
    labels, truth = dataset.read_labels(dataset.frames[0]), scene.sweep(0)
    moves = np.concatenate([[False], scene.world.is_moving])[truth.instance]
    kinds = np.unique(np.stack([truth.category.astype(int), moves.astype(int), labels.astype(int)]), axis=1)
    assert len(np.unique(kinds[:2], axis=1).T) == kinds.shape[1]
    named = {dataset.class_names[label] for label in np.unique(labels) if label < len(dataset.class_names)}
    assert "car" in named
    cars = labels == dataset.class_names.index("car")
    assert (truth.category[cars & ~np.isin(truth.category, (16, 18, 22, 23))] == 17).all()


@pytest.mark.parametrize("name", WITH_CAMERAS)
def test_the_chain_of_transforms(name, simulated):
    """The class of a point is the class shown at its pixel: what moves, hides or lies at an edge left out."""
    dataset, scene = opened(name, simulated)
    agree, counted = 0, 0
    for keyframe, frame in enumerate(dataset.frames):
        sweep, points = scene.sweep(keyframe), dataset.read_points(frame)
        moves = np.concatenate([[False], scene.world.is_moving])
        for view in frame.views:
            truth = scene.render(view.camera, keyframe)
            with Image.open(dataset.root / view.image) as image:
                assert (image.height, image.width) == truth.depth.shape
            pairs = project(points, view.calibration, truth.depth.shape, dataset.visibility)
            at = tuple(pairs.pixel.T)
            moving = moves[sweep.instance[pairs.point_index]] | moves[truth.instance[at]]
            clear = ~truly_hidden(pairs, truth) & ~near_an_edge(truth.category)[at] & ~moving
            same = sweep.category[pairs.point_index] == truth.category[at]
            agree, counted = agree + int((same & clear).sum()), counted + int(clear.sum())
    assert counted > 2000
    assert agree / counted >= 0.998


def test_every_layout_shows_the_same_scene():
    worlds = [simulate_scene("scene-0001", seed=0, rig=rig).world for _, rig in DATASETS.values()]
    boxes = [world.boxes(0.0, 0.0) for world in worlds]
    for other in boxes[1:]:
        for ours, theirs in zip(boxes[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_pandaset_files_of_a_split_are_as_documented(simulated):
    root = simulated("pandaset")
    latitude = {scene: json.loads((root / scene / "meta/gps.json").read_text())[0]["lat"] for scene in ("001", "101")}
    assert latitude["001"] > 37.6 > latitude["101"]
    with gzip.open(root / "001/lidar/00.pkl.gz") as file:
        assert file.read(2) == b"\x80\x03"  # the protocol of the real files


@pytest.mark.parametrize("layout", ["semantic_kitti", "pandaset", "semantic_poss"])
def test_the_same_bytes_every_time(layout, simulated, tmp_path):
    root = simulated(layout)
    write_world(tmp_path / "again", layout=layout, train_scenes=1, val_scenes=0, keyframes=1, seed=0)
    first = {name: content for name, (_, content) in files(root).items()}
    again = {name: content for name, (_, content) in files(tmp_path / "again").items()}
    scans = [name for name in again if "0" in name.rsplit("/", 1)[-1].split(".")[0]]
    assert scans
    for name in scans:
        assert again[name] == first[name]


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("semantic_kiti", {}, "no layout 'semantic_kiti', did you mean 'semantic_kitti'"),
        ("semantic_kitti", {"val_scenes": 2}, "val_scenes: 2 cannot be used"),
        ("semantic_kitti", {"train_scenes": 11}, "train_scenes: 11 cannot be used"),
        ("semantic_poss", {"train_scenes": 6, "val_scenes": 1}, "train_scenes: 6 cannot be used"),
        ("pandaset", {"keyframes": 0}, "keyframes: 0 cannot be used"),
        ("semantic_kitti", {"val_scenes": 1, "image_shape": (8, 400)}, "image_shape: 8 cannot be used"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, layout, options, message):
    if layout == "pandaset":
        pytest.importorskip("pandas", reason="PandaSet's files are pandas tables")
    with pytest.raises(DatasetError, match=message):
        write_world(tmp_path / "world", layout=layout, **options)
    assert list(tmp_path.iterdir()) == []


def test_all_layouts_are_tested():
    assert {layout for layout, _ in DATASETS.values()} == set(LAYOUTS)
