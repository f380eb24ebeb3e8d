"""The files of each native layout, read as its documentation says and by none of our readers, against the simulator."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage
from scipy.spatial.transform import Rotation

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.synthetic import (
    KITTI_RIG,
    LAYOUTS,
    PANDAR64_RIG,
    PANDARGT_RIG,
    POSS_RIG,
    Image,
    Rig,
    Scene,
    Sweep,
    kitti_layout,
    pandaset_layout,
    simulate_scene,
    write_world,
)
from simulated_truth import near_an_edge

KEYFRAMES = 2
CAMERAS = ("front", "front_left", "front_right", "left", "right", "back")
KITTI_RAW_IDS = {
    *(0, 1, 10, 11, 13, 15, 16, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 52, 60, 70, 71, 72, 80, 81, 99),
    *range(252, 260),
}
POSS_RAW_IDS = {0, *range(4, 18), 21, 22}
# Raw ids of what never moves, by nuScenes lidarseg id: road, other flat, sidewalk, terrain, manmade, vegetation.
KITTI_STATIC = {24: 40, 25: 49, 26: 48, 27: 72, 28: 50, 30: 70}
PANDASET_STATIC = {24: 7, 25: 12, 26: 11, 27: 6, 28: 41, 30: 5}
POSS_STATIC = {24: 22, 25: 22, 26: 22, 27: 22, 28: 15, 30: 9}

known_scene = cache(lambda rig: simulate_scene("scene-0001", seed=0, rig=rig))  # a scene holds no state


def projected(points: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels u, v (N, 2) and depth (N,) of points (N, 3) through a (3, 4) projection."""
    u, v, depth = (points @ matrix[:, :3].T + matrix[:, 3]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([u / depth, v / depth], axis=1), depth


def agreement(
    pixels: np.ndarray, depth: np.ndarray, raw: np.ndarray, stands: np.ndarray, truth: Image, ids: dict[int, int]
) -> np.ndarray:
    """(counted,) bool: does a point that stands have the raw id of what its pixel shows? Left out: pixels that show
    something else than `ids`, pixels near an edge, and points that something hides from the camera.
    """
    height, width = truth.depth.shape
    in_view = (depth > 1) & (pixels > 0).all(axis=1) & (pixels < (width - 1, height - 1)).all(axis=1) & stands
    column, row = pixels[in_view].astype(int).T
    shown = truth.category[row, column]
    hidden = depth[in_view] > 1.02 * truth.depth[row, column] + 0.3
    counted = np.isin(shown, list(ids)) & ~hidden & ~near_an_edge(truth.category)[row, column]
    expected = np.array([ids.get(category, 0) for category in range(256)])
    return (raw[in_view] == expected[shown])[counted]


def stands(scene: Scene, sweep: Sweep) -> np.ndarray:
    return ~np.concatenate([[False], scene.world.is_moving])[sweep.instance]


def difference(path: Path, truth: Image) -> float:
    """Mean absolute difference of a stored image from the simulator's."""
    with PilImage.open(path) as image:
        return np.abs(np.asarray(image).astype(int) - truth.rgb).mean()


def raw_ids_of_all(ids: dict[int, int], category: np.ndarray, raw: np.ndarray) -> None:
    """Points of these nuScenes ids, and only they, carry the raw ids."""
    for each in set(ids.values()):
        np.testing.assert_array_equal(
            raw == each, np.isin(category, [key for key, value in ids.items() if value == each])
        )


# --- SemanticKITTI and SemanticPOSS ----------------------------------------------------------------------------------


def sequence_file(folder: Path, keyframe: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 4), raw ids (N,) and instances (N,) of a scan."""
    points = np.fromfile(folder / f"velodyne/{keyframe:06d}.bin", dtype="<f4").reshape(-1, 4)
    labels = np.fromfile(folder / f"labels/{keyframe:06d}.label", dtype="<u4")
    assert len(labels) == len(points)
    return points, labels & 0xFFFF, labels >> 16


@pytest.mark.parametrize(("layout", "train", "val"), [("semantic_kitti", "00", "08"), ("semantic_poss", "00", "03")])
def test_sequences_hold_their_files_and_no_others(layout, train, val, simulated):
    root = simulated(layout)
    folders = {"velodyne": "bin", "labels": "label"} | ({"image_2": "png"} if layout == "semantic_kitti" else {})
    numbered = {f"{folder}/{number:06d}.{end}" for folder, end in folders.items() for number in range(KEYFRAMES)}
    expected = numbered | ({"calib.txt", "times.txt"} if layout == "semantic_kitti" else set())
    assert {path.name for path in (root / "sequences").iterdir()} == {train, val}
    for sequence in (train, val):
        folder = root / "sequences" / sequence
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == expected


@pytest.mark.parametrize(
    ("layout", "rig", "raw_ids", "static"),
    [
        ("semantic_kitti", KITTI_RIG, KITTI_RAW_IDS, KITTI_STATIC),
        ("semantic_poss", POSS_RIG, POSS_RAW_IDS, POSS_STATIC),
    ],
)
def test_scans_of_sequences_are_the_simulator_s(layout, rig, raw_ids, static, simulated):
    scene = known_scene(rig)
    for keyframe in range(KEYFRAMES):
        points, raw, instance = sequence_file(simulated(layout) / "sequences/00", keyframe)
        sweep = scene.sweep(keyframe)
        np.testing.assert_array_equal(points, sweep.points)
        np.testing.assert_array_equal(instance, sweep.instance)
        assert set(np.unique(raw).tolist()) <= raw_ids
        raw_ids_of_all(static, sweep.category, raw)


def test_kitti_marks_what_moves(simulated):
    scene = known_scene(KITTI_RIG)
    _, raw, _ = sequence_file(simulated("semantic_kitti") / "sequences/00", 0)
    moves = ~stands(scene, scene.sweep(0))
    assert moves.any()
    np.testing.assert_array_equal(raw >= 252, moves)


def test_kitti_s_p2_tr_is_the_truth(simulated):
    """A scan through calib.txt as KITTI's development kit has it: pixel = P2 Tr x, x in front of the camera."""
    folder, scene = simulated("semantic_kitti") / "sequences/00", known_scene(KITTI_RIG)
    lines = dict(line.split(": ") for line in (folder / "calib.txt").read_text().splitlines())
    p2, tr = (np.array(lines[name].split(), dtype=float).reshape(3, 4) for name in ("P2", "Tr"))
    assert abs(p2[0, 3]) > 1
    agree = []
    for keyframe in range(KEYFRAMES):
        points, raw, _ = sequence_file(folder, keyframe)
        truth = scene.render("image_2", keyframe)
        assert difference(folder / f"image_2/{keyframe:06d}.png", truth) == 0
        pixels, depth = projected(points[:, :3].astype(float), p2 @ np.vstack([tr, [0, 0, 0, 1]]))
        agree.append(agreement(pixels, depth, raw, stands(scene, scene.sweep(keyframe)), truth, KITTI_STATIC))
    assert np.concatenate(agree).size > 3000
    assert np.concatenate(agree).mean() >= 0.99


# --- PandaSet --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pandaset(simulated) -> Path:
    pytest.importorskip("pandas", reason="PandaSet's files are pandas tables")
    return simulated("pandaset")


def tables(scene: Path, keyframe: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """World points (N, 3), intensities, sensor numbers and raw ids (N,) of a frame."""
    import pandas

    points = pandas.read_pickle(scene / f"lidar/{keyframe:02d}.pkl.gz")
    raw = pandas.read_pickle(scene / f"annotations/semseg/{keyframe:02d}.pkl.gz")
    return points[["x", "y", "z"]].to_numpy(), points["i"].to_numpy(), points["d"].to_numpy(), raw["class"].to_numpy()


def poses(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rotation (3, 3) and position (3,) of a sensor in the world, per frame."""
    return [
        (
            Rotation.from_quat([pose["heading"][axis] for axis in "xyzw"]).as_matrix(),
            np.array([pose["position"][axis] for axis in "xyz"]),
        )
        for pose in json.loads((folder / "poses.json").read_text())
    ]


def test_pandaset_points_in_the_lidar_frame_are_the_simulator_s(pandaset):
    """The inverse pose, then 1.6 m down: the sweep of the Pandar64, and after it that of the PandarGT."""
    from_gt = np.linalg.inv(PANDAR64_RIG.lidar.ego_from_lidar) @ PANDARGT_RIG.lidar.ego_from_lidar
    for keyframe, (rotation, position) in enumerate(poses(pandaset / "001/lidar")):
        world, intensity, sensor, raw = tables(pandaset / "001", keyframe)
        points = (world - position) @ rotation - (0, 0, 1.6)
        spinning, forward = (known_scene(rig).sweep(keyframe) for rig in (PANDAR64_RIG, PANDARGT_RIG))
        moved = forward.points[:, :3] @ from_gt[:3, :3].T + from_gt[:3, 3]
        np.testing.assert_allclose(points, np.concatenate([spinning.points[:, :3], moved]), atol=1e-4)
        np.testing.assert_array_equal(intensity, np.concatenate([spinning.points[:, 3], forward.points[:, 3]]))
        np.testing.assert_array_equal(sensor, np.repeat([0, 1], [len(spinning.points), len(forward.points)]))
        assert set(np.unique(raw).tolist()) <= set(range(43))
        raw_ids_of_all(PANDASET_STATIC, np.concatenate([spinning.category, forward.category]), raw)


def test_pandaset_s_pose_frame_is_as_in_the_real_scenes(pandaset):
    """x right, y forward, z up, with the origin 0.4 m above the road; there the real scene 002 has its own."""
    (rotation, position), (_, later) = poses(pandaset / "001/lidar")
    driven = (later - position) @ rotation
    assert driven[1] > 0.99 * np.linalg.norm(driven) > 0
    world, _, sensor, raw = tables(pandaset / "001", 0)
    points = (world - position) @ rotation
    near = (raw == 7) & (np.linalg.norm(points[:, :2], axis=1) < 15)
    assert np.median(points[near, 2]) == pytest.approx(-0.4, abs=0.1)
    azimuth = np.degrees(np.arctan2(points[:, 1], points[:, 0]))[sensor == 1]
    assert 55 < azimuth.min() < azimuth.max() < 125


def test_pandaset_s_cameras_see_its_points(pandaset):
    scenes, agree = [known_scene(rig) for rig in (PANDAR64_RIG, PANDARGT_RIG)], {0: [], 1: []}
    standing = [np.concatenate([stands(s, s.sweep(keyframe)) for s in scenes]) for keyframe in range(KEYFRAMES)]
    for camera in CAMERAS:
        folder = pandaset / f"001/camera/{camera}_camera"
        k = json.loads((folder / "intrinsics.json").read_text())
        intrinsics = np.array([[k["fx"], 0, k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]])
        for keyframe, (rotation, position) in enumerate(poses(folder)):
            truth = scenes[0].render(camera, keyframe)
            assert difference(folder / f"{keyframe:02d}.jpg", truth) < 3
            world, _, sensor, raw = tables(pandaset / "001", keyframe)
            pixels, depth = projected(world, intrinsics @ np.column_stack([rotation.T, -rotation.T @ position]))
            for number, found in agree.items():
                of_sensor = standing[keyframe] & (sensor == number)
                found.append(agreement(pixels, depth, raw, of_sensor, truth, PANDASET_STATIC))
    for found in agree.values():
        assert np.concatenate(found).size > 3000
        assert np.concatenate(found).mean() >= 0.99


def test_pandaset_s_tables_are_as_in_the_real_scenes(pandaset):
    import pandas

    points = pandas.read_pickle(pandaset / "001/lidar/00.pkl.gz")
    raw = pandas.read_pickle(pandaset / "001/annotations/semseg/00.pkl.gz")
    assert list(points.columns) == ["x", "y", "z", "i", "t", "d"]
    assert list(raw.columns) == ["class"]
    assert raw["class"].dtype == np.int64
    assert (points.index.name, raw.index.name) == ("index", None)
    times = json.loads((pandaset / "001/meta/timestamps.json").read_text())
    assert times == json.loads((pandaset / "001/lidar/timestamps.json").read_text())
    assert (points["t"] == times[0]).all()
    assert set(json.loads((pandaset / "001/meta/gps.json").read_text())[0]) == {"lat", "long", "height", "xvel", "yvel"}


def test_the_two_lidars_of_pandaset_err_independently():
    """Two lidars alike in all but their stream of random numbers do not start at the same angle."""
    assert PANDAR64_RIG.lidar.noise_stream != PANDARGT_RIG.lidar.noise_stream
    few = replace(PANDAR64_RIG.lidar, azimuths=60)
    sweeps = [
        known_scene(Rig(lidar=replace(few, noise_stream=rig.lidar.noise_stream), cameras=())).sweep(0)
        for rig in (PANDAR64_RIG, PANDARGT_RIG)
    ]
    first, second = (np.arctan2(*sweep.points[0, 1::-1]) for sweep in sweeps)
    assert abs(first - second) > 1e-3


# --- all of them -----------------------------------------------------------------------------------------------------


def test_every_class_of_the_world_has_a_raw_id():
    """As the tables of ids name every class there is, no scene can hold one that a layout cannot write."""
    there = {int(category) for number in range(8) for category in simulate_scene(f"place-{number}").world.category}
    for ids in (kitti_layout.KITTI_IDS, kitti_layout.POSS_IDS, pandaset_layout.IDS):
        assert set(ids) >= there | set(KITTI_STATIC)
    assert set(kitti_layout.KITTI_IDS.values()) <= KITTI_RAW_IDS
    assert set(kitti_layout.POSS_IDS.values()) <= POSS_RAW_IDS


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "semantic_poss"])
@pytest.mark.parametrize("image_shape", [(0, 400), (-5, 400), (100, 4097), (100.5, 200), (100,), 100])
def test_images_of_no_possible_size_are_refused(layout, image_shape, tmp_path):
    if layout == "pandaset":
        pytest.importorskip("pandas", reason="PandaSet's files are pandas tables")
    with pytest.raises(DatasetError, match="image_shape"):
        write_world(tmp_path / "world", layout=layout, image_shape=image_shape)
    assert list(tmp_path.iterdir()) == []


def test_a_scene_does_not_depend_on_the_others(simulated, tmp_path):
    write_world(tmp_path / "few", layout="semantic_poss", train_scenes=1, val_scenes=0, keyframes=1, seed=0)
    few = [path for path in (tmp_path / "few").rglob("*") if path.is_file()]
    assert len(few) == 3  # scan, labels, and the file that says that they are simulated
    for path in few:
        assert path.read_bytes() == (simulated("semantic_poss") / path.relative_to(tmp_path / "few")).read_bytes()


def test_pandaset_s_layout_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DatasetError, match=r"layout pandaset: .*pip install 'scalr-distill\[pandaset\]'"):
        write_world(tmp_path / "data", layout="pandaset", train_scenes=1)
    assert not list(tmp_path.iterdir())


def test_lidars_agree_on_a_surface_once_normalised(simulated):
    """Each by what is published of its dataset: what a model of one lidar needs on another."""
    medians = {}
    for name, road in (("nuscenes", "driveable_surface"), ("semantic_kitti", "road")):
        dataset = open_dataset(name, simulated(name), "train")
        points = np.concatenate([dataset.read_points(frame) for frame in dataset.frames])
        labels = np.concatenate([dataset.read_labels(frame) for frame in dataset.frames])
        normalised = (points[:, 3] - dataset.intensity.mean) / dataset.intensity.std
        classes = [dataset.class_names.index(each) for each in (road, "car", "vegetation")]
        medians[name] = [np.median(normalised[labels == each]) for each in classes]
    np.testing.assert_allclose(medians["nuscenes"], medians["semantic_kitti"], atol=0.25)
