"""The simulated world: is its content sound, do lidar and images agree, is the data set one that the devkit reads?"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage
from scipy.ndimage import maximum_filter, minimum_filter

from scalr.errors import DatasetError
from scalr.extract.datasets.nuscenes import LABELS
from scalr.extract.datasets.synthetic import NUSCENES_RIG, nuscenes_layout, simulate_scene, write_world
from scalr.extract.datasets.synthetic.palette import CLASS_COLOUR
from scalr.extract.datasets.synthetic.placement import overlap

KEYFRAMES = 2
SMALL = {"train_scenes": 1, "val_scenes": 0, "keyframes": 1, "image_shape": (36, 64)}
EVERY_SCENE = ("scene-0001", "scene-0002", "scene-0004", "scene-0005", "scene-0003", "scene-0012")  # 4 train, 2 val


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "data"
    write_world(root, train_scenes=1, val_scenes=1, keyframes=KEYFRAMES)
    return root


@pytest.fixture(scope="module")
def nusc(root):
    from nuscenes.nuscenes import NuScenes

    return NuScenes(version="v1.0-trainval", dataroot=str(root), verbose=False)


known_scene = cache(simulate_scene)  # a scene holds no state, so tests may share it


@pytest.fixture(scope="module")
def scene():
    return known_scene("scene-0001")


# --- the content -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_SCENE)
def test_no_two_road_users_are_in_the_same_place(name):
    scene = known_scene(name)
    chosen = np.isin(scene.world.category, nuscenes_layout.ANNOTATED)
    for seconds in (0.0, 2.5, 20.0):
        timestamp = scene.start_us + int(seconds * 1e6)
        center, size, heading = (values[chosen] for values in scene.boxes(timestamp))
        ego = scene.world_from_ego(timestamp)
        centers = np.vstack([center[:, :2], (ego @ [1.3, 0, 0, 1])[:2]])  # from the rear axle to the car's middle
        sizes = np.vstack([size[:, :2], [4.6, 1.9]])
        headings = np.append(heading, np.arctan2(ego[1, 0], ego[0, 0]))
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * sizes[:, None]
        cos, sin = np.cos(headings), np.sin(headings)
        turn = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1)
        rectangles = corners @ turn + centers[:, None]
        distance = np.linalg.norm(centers[:, None] - centers, axis=2)
        for first, second in np.argwhere(np.triu(distance < 12, 1)):
            assert not overlap(rectangles[first], rectangles[second]), (seconds, first, second)


@pytest.mark.parametrize("name", EVERY_SCENE)
def test_every_scene_shows_all_sixteen_classes(name):
    scene = known_scene(name)
    seen = np.zeros(256, dtype=int)
    for keyframe in (0, 3, 6, 9):
        seen += np.bincount(LABELS.train_ids(scene.sweep(keyframe).category, Path()), minlength=256)
    missing = [label for label, count in zip(LABELS.class_names, seen, strict=False) if count < 20]
    assert not missing
    assert seen[255] == 0


def test_every_class_has_a_colour():
    assert set(CLASS_COLOUR) == set(LABELS.class_names)
    assert len(set(CLASS_COLOUR.values())) == len(LABELS.class_names)


def test_scenes_are_different_places():
    first, second = known_scene("scene-0001"), known_scene("scene-0002")
    assert first.world.street != second.world.street
    assert (first.render("CAM_FRONT", 0).rgb != second.render("CAM_FRONT", 0).rgb).mean() > 0.5
    assert simulate_scene("scene-0001", seed=1).world.street != first.world.street


def test_what_moves_has_moved_when_a_camera_fires(scene):
    lidar_time, camera_time = scene.time_us(1), scene.time_us(1, "CAM_FRONT")
    moved = np.linalg.norm(scene.boxes(camera_time)[0] - scene.boxes(lidar_time)[0], axis=1)
    speed = np.array([abs(placed.speed) for placed in scene.world.objects])
    assert camera_time != lidar_time
    np.testing.assert_allclose(moved, speed * abs(camera_time - lidar_time) * 1e-6, rtol=0.1, atol=1e-9)
    assert (scene.world.is_moving == (moved > 0)).all()


# --- the sensors -----------------------------------------------------------------------------------------------------


def test_a_sweep_looks_like_one_of_the_sensor(scene):
    rig, sweep = scene.rig.lidar, scene.sweep(0)
    x, y, z, intensity = sweep.points.T.astype(float)
    distance = np.linalg.norm(sweep.points[:, :3], axis=1)
    assert 12_000 < len(sweep.points) < 19_200
    assert distance.max() < rig.max_range_m + 0.1
    np.testing.assert_allclose(
        np.degrees(np.arctan2(z, np.hypot(x, y))), np.take(rig.elevations_deg, sweep.ring), atol=0.01
    )
    assert intensity.min() >= 0
    assert intensity.max() <= 255
    assert 5 < np.median(intensity) < 60
    # x looks right and y forward, as in nuScenes
    np.testing.assert_allclose(rig.ego_from_lidar[:3, 1], [1, 0, 0], atol=0.02)


def test_other_lidars_are_other_data(scene):
    narrow = replace(
        NUSCENES_RIG.lidar, elevations_deg=tuple(np.linspace(-15, 5, 64)), field_deg=(60.0, 120.0), azimuths=200
    )
    sweep = simulate_scene("scene-0001", rig=replace(NUSCENES_RIG, lidar=narrow)).sweep(0)
    azimuth = np.degrees(np.arctan2(sweep.points[:, 1], sweep.points[:, 0]))
    assert azimuth.min() > 59.9
    assert azimuth.max() < 120.5
    assert sweep.ring.max() > 40


def test_lidar_and_images_agree_on_all_that_stands(root, nusc):
    """Static points, through the devkit's tables in float64, land on pixels of their class and depth."""
    tested = agreeing = in_view = hidden = 0
    for record in nusc.scene:
        scene = known_scene(record["name"])
        sample = nusc.get("sample", record["first_sample_token"])
        sweep = scene.sweep(0)
        points = np.fromfile(root / nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["filename"], np.float32)
        moving = np.append(False, scene.world.is_moving)
        for camera in scene.rig.cameras:
            image = scene.render(camera.channel, 0)
            depth, u, v = project(nusc, sample, camera.channel, points.reshape(-1, 5)[:, :3].astype(np.float64))
            height, width = image.depth.shape
            chosen = np.flatnonzero((depth > 1) & (u > 0) & (u < width - 1) & (v > 0) & (v < height - 1))
            row, column = v[chosen].astype(int), u[chosen].astype(int)
            in_front = np.minimum(image.depth[row, column], 1e6)
            is_hidden = depth[chosen] > 1.02 * in_front + 0.3
            stands = ~moving[sweep.instance[chosen]] & ~moving[image.instance[row, column]]
            clear = stands & ~is_hidden & ~near_an_edge(image)[row, column]
            same = sweep.category[chosen] == image.category[row, column]
            same &= np.abs(depth[chosen] - in_front) < 0.02 * in_front + 0.3
            tested, agreeing = tested + clear.sum(), agreeing + (clear & same).sum()
            in_view, hidden = in_view + len(chosen), hidden + is_hidden.sum()
    assert tested > 0.6 * in_view
    assert agreeing / tested >= 0.995
    assert 0.01 < hidden / in_view < 0.25  # the sensors sit in different places: something is always hidden


def project(nusc, sample: dict, channel: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """lidar -> ego (lidar time) -> global -> ego (camera time) -> camera -> pixel: depth, u, v."""
    from pyquaternion import Quaternion

    lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    camera = nusc.get("sample_data", sample["data"][channel])
    calibration = nusc.get("calibrated_sensor", camera["calibrated_sensor_token"])
    for step in (
        nusc.get("calibrated_sensor", lidar["calibrated_sensor_token"]),
        nusc.get("ego_pose", lidar["ego_pose_token"]),
    ):
        points = points @ Quaternion(step["rotation"]).rotation_matrix.T + np.array(step["translation"])
    for step in (nusc.get("ego_pose", camera["ego_pose_token"]), calibration):
        points = (points - np.array(step["translation"])) @ Quaternion(step["rotation"]).rotation_matrix
    x, y, depth = (points @ np.array(calibration["camera_intrinsic"]).T).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return depth, x / depth, y / depth


def near_an_edge(image) -> np.ndarray:
    """Pixels within two of another class, or of a jump of the depth by a tenth."""
    log_depth = np.log(np.minimum(image.depth, 1e6))
    return (maximum_filter(image.category, 5) != minimum_filter(image.category, 5)) | (
        maximum_filter(log_depth, 5) - minimum_filter(log_depth, 5) > 0.1
    )


# --- the data set ----------------------------------------------------------------------------------------------------


def test_the_devkit_opens_it(root, nusc):
    from nuscenes.utils.splits import train, val

    assert [scene["name"] for scene in nusc.scene] == [train[0], val[0]]
    assert len(nusc.sample) == 2 * KEYFRAMES
    assert [category["index"] for category in nusc.category] == list(range(32))
    for scene in nusc.scene:
        first, last = nusc.get("sample", scene["first_sample_token"]), nusc.get("sample", scene["last_sample_token"])
        assert nusc.get("sample", first["next"]) == last
        assert last["timestamp"] - first["timestamp"] == 500_000
        assert len(first["data"]) == 7
        for token in first["data"].values():
            record = nusc.get("sample_data", token)
            assert (root / record["filename"]).is_file()
            assert abs(record["timestamp"] - first["timestamp"]) < 50_000
            assert nusc.get("sample_data", record["next"])["prev"] == token


def test_every_point_has_a_lidarseg_label(root, nusc):
    from nuscenes.utils.data_classes import LidarPointCloud

    assert len(nusc.lidarseg) == len(nusc.sample)
    for record in nusc.lidarseg:
        scan = nusc.get("sample_data", record["sample_data_token"])["filename"]
        labels = np.fromfile(root / record["filename"], dtype=np.uint8)
        assert LidarPointCloud.from_file(str(root / scan)).nbr_points() == len(labels)
        assert labels.max() < 32


def test_the_devkit_projects_points_with_their_labels(nusc):
    data = nusc.sample[0]["data"]
    points, colours, image = nusc.explorer.map_pointcloud_to_image(
        data["LIDAR_TOP"], data["CAM_FRONT"], render_intensity=False, show_lidarseg=True
    )
    assert image.size == (400, 224)
    assert points.shape[1] == len(colours) > 1000


def test_files_hold_what_the_scene_says(root, nusc):
    scene, sample = known_scene("scene-0001"), nusc.sample[1]
    sweep, image = scene.sweep(1), scene.render("CAM_BACK", 1)
    lidar, camera = (nusc.get("sample_data", sample["data"][channel]) for channel in ("LIDAR_TOP", "CAM_BACK"))
    stored = np.fromfile(root / lidar["filename"], np.float32).reshape(-1, 5)
    np.testing.assert_array_equal(stored[:, :4], sweep.points)
    np.testing.assert_array_equal(stored[:, 4], sweep.ring)
    with PilImage.open(root / camera["filename"]) as stored_image:
        difference = np.asarray(stored_image).astype(int) - image.rgb
    assert np.abs(difference).mean() < 3
    assert lidar["timestamp"] == scene.time_us(1)
    assert camera["timestamp"] == scene.time_us(1, "CAM_BACK")


def test_boxes_hold_the_points_of_their_objects(nusc):
    from nuscenes.utils.geometry_utils import points_in_box

    sample = nusc.sample[0]
    scene = known_scene("scene-0001")
    sweep = scene.sweep(0)
    _, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
    annotated = np.isin(sweep.category, nuscenes_layout.ANNOTATED)
    assert len(boxes) == len(np.unique(sweep.instance[annotated]))
    for box in boxes:
        annotation = nusc.get("sample_annotation", box.token)
        held = points_in_box(box, sweep.points[:, :3].T.astype(np.float64))
        owner = np.bincount(sweep.instance[held & annotated]).argmax()
        assert annotation["num_lidar_pts"] == (sweep.instance == owner).sum()
        assert held[sweep.instance == owner].all()
        assert nuscenes_layout.CATEGORIES[scene.world.category[owner - 1]] == box.name
        if "moving" in [nusc.get("attribute", token)["name"].split(".")[1] for token in annotation["attribute_tokens"]]:
            speed = np.linalg.norm(nusc.box_velocity(box.token))
            assert np.isnan(speed) or speed == pytest.approx(abs(scene.world.objects[owner - 1].speed), rel=0.1)


def test_annotations_form_chains(nusc):
    assert {annotation["visibility_token"] for annotation in nusc.sample_annotation} == {"1", "2", "3", "4"}
    for instance in nusc.instance:
        token, count = instance["first_annotation_token"], 0
        while token:
            annotation, count = nusc.get("sample_annotation", token), count + 1
            assert annotation["instance_token"] == instance["token"]
            last, token = token, annotation["next"]
        assert (last, count) == (instance["last_annotation_token"], instance["nbr_annotations"])


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_same_bytes(tmp_path):
    for folder, seed in (("first", 0), ("again", 0), ("other", 1)):
        write_world(tmp_path / folder, seed=seed, **SMALL)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "again")
    assert files_of(tmp_path / "first").keys() != files_of(tmp_path / "other").keys()


def test_a_scene_does_not_depend_on_the_others(tmp_path):
    write_world(tmp_path / "few", **SMALL)
    write_world(tmp_path / "many", **SMALL | {"val_scenes": 1, "keyframes": 2})
    few, many = files_of(tmp_path / "few"), files_of(tmp_path / "many")
    measured = [name for name in few if not name.endswith(".json")]
    assert measured
    assert all(few[name] == many[name] for name in measured)
    records = json.loads(many["v1.0-trainval/ego_pose.json"])
    assert all(record in records for record in json.loads(few["v1.0-trainval/ego_pose.json"]))


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty"):
        write_world(tmp_path, **SMALL)
    with pytest.raises(DatasetError, match="a file has this name"):
        write_world(tmp_path / "notes.txt", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    write_world(tmp_path / "data", **SMALL)
    assert (tmp_path / "data" / "v1.0-trainval" / "scene.json").is_file()


@pytest.mark.parametrize(
    ("error", "seen"), [(RuntimeError("bug"), RuntimeError), (OSError(28, "No space left on device"), DatasetError)]
)
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, error, seen):
    def fail(*args):
        raise error

    monkeypatch.setattr(nuscenes_layout._Writer, "_write_image", fail)
    with pytest.raises(seen):
        write_world(tmp_path / "data", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("train_scenes", 0),
        ("train_scenes", 10_000),
        ("val_scenes", -1),
        ("val_scenes", 10_000),
        ("keyframes", 0),
        ("keyframes", 41),
        ("keyframes", 2.5),
        ("seed", -1),
        ("image_shape", (8, 8)),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, argument, value):
    with pytest.raises(DatasetError, match=argument):
        write_world(tmp_path / "data", **SMALL | {argument: value})
    assert list(tmp_path.iterdir()) == []


def test_a_scene_of_a_negative_seed_is_refused():
    with pytest.raises(DatasetError, match=r"the seed -1 cannot be used\. Use a whole number, at least 0"):
        simulate_scene("a", seed=-1)


def test_importing_does_not_load_the_devkit():
    code = "import sys, scalr.extract.datasets.synthetic as s; s.simulate_scene('a'); print('nuscenes' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
