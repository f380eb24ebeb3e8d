from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import load_student, save_student
from scalr.distill.student import Student
from scalr.errors import DatasetError, ScalrError, StoreError
from scalr.evaluate import pictures, similarity
from scalr.evaluate.cosines import unit
from scalr.evaluate.scan_features import ScanFeatures, StoredFeatures, in_space_of, scan_features
from scalr.evaluate.similarity import SimilarityConfig, chosen_query, pca_colours, similarity_maps
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.run import ExtractConfig, extract
from scalr.extract.store import open_store
from scalr.json_text import json_text
from standardised import standardisation_of, vectors_of

TEACHER, TEACHER_DIM = "dinov2_vits14", 384
CLASSES = ("road", "car", "pole")


def a_student(folder: Path, provenance: dict | None = None, **config) -> Path:
    torch.manual_seed(0)
    path = folder / "student.safetensors"
    save_student(
        Student(WaffleIronConfig(**{"width": 8, "depth": 3, "out_channels": 4} | config)), path, provenance or {}
    )
    return path


@pytest.fixture(scope="module")
def student_file(tmp_path_factory) -> Path:
    return a_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def stores(simulated, tmp_path_factory) -> dict[str, Path]:
    """With all points of the scans, and with those alone that a camera sees."""
    folder = tmp_path_factory.mktemp("stores")
    paths = {points: folder / f"{points}.zarr" for points in ("all", "visible")}
    for points, path in paths.items():
        extract(
            ExtractConfig(
                root=simulated("nuscenes"), out=path, split="val", teachers=(TEACHER,), weights=("random",),
                image_size=(28, 56), batch_size=8, points=points,
            )
        )  # fmt: skip
    return paths


def random_rotation(channels: int, seed: int) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, channels)))
    return rotation


def skewed_features(count: int = 400, channels: int = 12, seed: int = 0) -> np.ndarray:
    """Components of clearly different size, none of them symmetric."""
    rng = np.random.default_rng(seed)
    return rng.exponential(1.0, (count, channels)) * 0.7 ** np.arange(channels) + rng.normal(size=channels)


def a_scan(num_points: int = 60, seed: int = 0) -> ScanFeatures:
    """Every third point stands for itself and the two after it; labels of CLASSES by turns, one in four without."""
    rng = np.random.default_rng(seed)
    points = np.hstack([rng.uniform(-30, 30, (num_points, 3)), np.zeros((num_points, 1))]).astype(np.float32)
    labels = np.array([0, 1, 2, IGNORE_LABEL], np.uint8)[np.arange(num_points) % 4]
    kept = np.arange(0, num_points, 3)
    tokens = torch.from_numpy(rng.normal(size=(len(kept), 8)).astype(np.float32))
    return ScanFeatures(points, labels, tokens, kept, np.arange(num_points) // 3)


def test_pca_colours_are_shares_of_the_leading_components():
    features = skewed_features()
    colours = pca_colours(features)
    assert colours.shape == (400, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    left, sizes, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    for channel in range(3):
        component = left[:, channel] * sizes[channel]
        component *= np.sign((component**3).sum())
        low, high = np.percentile(component, [2, 98])
        np.testing.assert_allclose(colours[:, channel], np.clip((component - low) / (high - low), 0, 1), atol=1e-6)


def test_pca_colours_do_not_depend_on_axes_order_or_origin():
    features, order = skewed_features(), np.random.default_rng(1).permutation(400)
    colours = pca_colours(features)
    np.testing.assert_array_equal(pca_colours(features), colours)
    np.testing.assert_allclose(pca_colours(features @ random_rotation(12, 2) + 5), colours, atol=1e-6)
    np.testing.assert_allclose(pca_colours(-features), colours, atol=1e-6)
    np.testing.assert_allclose(pca_colours(features[order]), colours[order], atol=1e-6)


def test_equal_features_have_equal_colours():
    teacher, student = skewed_features(), skewed_features(seed=1)
    student[:50] = teacher[:50]
    colours = pca_colours(student, like=teacher)
    np.testing.assert_allclose(colours[:50], pca_colours(teacher)[:50], atol=1e-9)
    assert 0 <= colours.min() <= colours.max() <= 1


@pytest.mark.parametrize(("channels", "varying"), [(1, 1), (2, 2), (5, 2), (5, 0)])
def test_components_that_are_not_there_are_grey(channels, varying):
    features = np.full((100, channels), 0.3, np.float32)
    features *= 1 + 1e-7 * np.random.default_rng(0).normal(size=features.shape).astype(np.float32)  # of rounding
    features[:, :varying] += skewed_features(100, max(varying, 1))[:, :varying]
    colours = pca_colours(features)
    assert (colours[:, varying:] == 0.5).all()
    assert all(len(np.unique(colours[:, channel])) > 50 for channel in range(varying))


@pytest.mark.parametrize(("spread", "is_one"), [(0.9e-5, False), (1.1e-5, True)])
def test_a_component_is_one_from_a_hundred_thousandth_of_the_largest_value_on(spread, is_one):
    """Whatever the scale: float32 rounds to some 1e-7 of it, sums of many a little worse."""
    for scale in (1.0, 1e4):
        features = np.full((1001, 2), -3.0 * scale)
        features[:, 0] = scale * np.linspace(0, spread * 3 / 0.96, 1001)  # between the percentiles, `spread` of 3
        colours = pca_colours(features)
        assert (np.ptp(colours[:, 0]) > 0) == is_one
        assert (colours[:, 1:] == 0.5).all()


def test_features_that_are_nothing_are_grey():
    np.testing.assert_array_equal(pca_colours(np.zeros((5, 4), np.float32)), np.full((5, 3), 0.5))


def test_a_page_has_all_that_is_known_of_a_scan():
    scan = a_scan()
    dataset = SimpleNamespace(name="nuscenes", split="val", class_names=CLASSES)
    config = SimilarityConfig(student=Path("runs/best.safetensors"), root=Path("r"), out=Path("o"))
    query, vector = chosen_query(scan, CLASSES, 7, None)
    cloud = similarity._cloud(config, dataset, SimpleNamespace(token="f0"), scan, query, vector)
    assert cloud.title == "best.safetensors on nuscenes"
    assert cloud.summary == "f0 of split val: 60 points, 20 voxels"
    assert (cloud.query_text, cloud.selected, cloud.focus, cloud.class_names) == (query.text, 7, 7, CLASSES)
    assert cloud.centre
    plain = similarity._cloud(replace(config, centre=False), dataset, SimpleNamespace(token="f0"), scan, query, vector)
    assert not plain.centre
    for found, expected in (
        (cloud.points, scan.points), (cloud.voxels, scan.nearest), (cloud.units, scan.units), (cloud.query, vector),
        (cloud.labels, scan.labels), (cloud.pca, pca_colours(scan.units)), (cloud.mean, scan.mean),
    ):  # fmt: skip
        np.testing.assert_array_equal(found, expected)


def test_the_defaults_are_nuscenes_val_and_its_first_frame():
    config = SimilarityConfig(student=Path("s"), root=Path("r"), out=Path("o"))
    assert (config.dataset, config.split, config.device) == ("nuscenes", "val", "auto")
    assert {config.frame, config.point, config.class_name, config.cache, config.teacher} == {None}
    assert (config.centre, config.area_frames) == (True, 8)


def is_red(colours: np.ndarray) -> np.ndarray:
    return np.isclose(colours, pictures.RAMP(1.0)[:3], atol=0.02).all(axis=1)


@pytest.mark.parametrize("power", [0.2, 1, 5])
def test_colours_follow_ranks_whatever_the_values_are(power):
    """Red are the most similar few percent; the first half of the ramp has the three quarters that are least so."""
    values = np.random.default_rng(0).random(2000) ** power
    colours = pictures.similarity_colours(values)
    order = np.argsort(values)
    assert is_red(colours)[order[-60:]].all()
    assert is_red(colours).mean() == pytest.approx(0.03, abs=0.005)
    red, green, blue = colours[order].T
    assert blue[0] > red[0] + 0.4
    assert green[1500] > max(red[1500], blue[1500])
    np.testing.assert_allclose(pictures.similarity_colours(3 * values - 7), colours)


def test_many_equal_similarities_are_not_red():
    """Were they the highest: half of a cloud is not the most similar few percent."""
    values = np.repeat([0.0, 1.0], 500)
    np.testing.assert_array_equal(pictures.shares_below(values), np.repeat([0.25, 0.75], 500))
    assert not is_red(pictures.similarity_colours(values)).any()
    np.testing.assert_array_equal(pictures.shares_below(np.ones(4)), 0.5)


def test_the_legend_tells_the_least_cosine_of_each_share():
    values = np.random.default_rng(0).normal(size=997)
    found = pictures.cosines_at_shares(values)
    assert list(found) == ["all", "50 %", "25 %", "10 %", "3 %"]
    assert found["all"] == values.min()
    for share, cosine in zip((0.5, 0.25, 0.1, 0.03), list(found.values())[1:], strict=True):
        assert (values > cosine).mean() <= share <= (values >= cosine).mean() + 1e-3
    figure = pictures.top_view(np.random.default_rng(1).normal(size=(997, 3)), values, None, "title")
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert f"3 %\n{found['3 %']:.3f}" in labels


def test_the_perspective_view_looks_at_its_target_upright():
    eye, target = pictures.viewpoint(np.array([3.0, -7.0, 1.0]))
    cam_from_lidar = pictures.look_at(eye, target)
    x, y, z, _ = cam_from_lidar @ [*target, 1]
    np.testing.assert_allclose([x, y, z], [0, 0, np.linalg.norm(target - eye)], atol=1e-9)
    np.testing.assert_allclose(cam_from_lidar[:3, :3] @ cam_from_lidar[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(cam_from_lidar[:3, :3]) == pytest.approx(1)
    assert (cam_from_lidar[:3, :3] @ [0, 0, 1])[1] < 0  # the sky is up
    assert np.dot(eye[:2], [3, -7]) < 0 < np.dot(target[:2], [3, -7])


def test_the_query_of_a_class_is_the_mean_of_its_points():
    """A voxel counts as often as it has points of the class."""
    scan = replace_labels(a_scan(), np.random.default_rng(1).integers(0, 3, 60).astype(np.uint8))
    assert len(set(np.bincount(scan.nearest[scan.labels == 1]))) > 2
    query, vector = chosen_query(scan, CLASSES, None, "car")
    units = scan.tokens.numpy() / np.linalg.norm(scan.tokens.numpy(), axis=1, keepdims=True)
    mean = np.mean([units[scan.nearest[point]] for point in range(60) if scan.labels[point] == 1], axis=0)
    np.testing.assert_allclose(vector, mean, atol=1e-6)
    assert (query.text, query.point) == ("the mean of car", None)
    assert query.focus in scan.kept
    assert scan.nearest[query.focus] == np.argmax(units @ mean)


def test_cosines_of_a_scan_are_of_its_points_less_their_mean_or_not():
    """The mean is of points: a voxel counts as often as it has some."""
    scan = a_scan()
    scan = ScanFeatures(scan.points, None, scan.tokens, scan.kept, np.repeat(np.arange(20), [1] * 10 + [5] * 10))
    units = unit(scan.tokens.numpy())[scan.nearest].astype(np.float64)
    query = units[:7].mean(axis=0)
    for centre, mean in ((True, units.mean(axis=0)), (False, 0)):
        expected = [(each - mean) @ (query - mean) / np.linalg.norm(each - mean) for each in units]
        found = scan.similarity_to(query, centre=centre)
        assert found.shape == (60,)
        np.testing.assert_allclose(found, np.array(expected) / np.linalg.norm(query - mean), atol=1e-5)


def test_a_point_that_is_asked_for():
    scan = a_scan()
    query, vector = chosen_query(scan, CLASSES, 5, None)
    assert (query.text, query.point, query.focus) == ("point 5 (car)", 5, 5)
    np.testing.assert_array_equal(vector, scan.units[1])
    assert chosen_query(scan, CLASSES, 3, None)[0].text == "point 3"  # of no class
    assert chosen_query(replace_labels(scan, None), CLASSES, 5, None)[0].text == "point 5"


def test_by_default_it_is_the_car_with_most_points():
    scan = a_scan()
    crowd = np.array([9, 21, 33])  # kept, labelled car
    scan.points[crowd, :3] = [[5, 5, 0], [5.5, 5, 0], [5, 5.5, 0]]
    query, _ = chosen_query(scan, CLASSES, None, None)
    assert query.point in crowd
    assert query.text == f"point {query.point} (car)"
    scan.points[[1, 5, 13, 17], :3] = [-5, -5, 0]  # cars, but others stand for them
    assert chosen_query(scan, CLASSES, None, None)[0] == query
    scan.points[crowd, :3] = [[5.9, 5, 0], [4.1, 5, 0], [5, 5, 0]]  # within a metre of the last alone
    assert chosen_query(scan, CLASSES, None, None)[0].point == 33


@pytest.mark.parametrize("labels", [None, np.zeros(60, np.uint8)], ids=["no labels", "no car"])
def test_without_a_car_it_is_the_point_of_median_range(labels):
    scan = replace_labels(a_scan(), labels)
    query, _ = chosen_query(scan, CLASSES, None, None)
    ranges = np.linalg.norm(scan.points[scan.kept, :3], axis=1)
    assert query.point in scan.kept
    assert np.linalg.norm(scan.points[query.point, :3]) == np.sort(ranges)[10]


def replace_labels(scan: ScanFeatures, labels: np.ndarray | None) -> ScanFeatures:
    return ScanFeatures(scan.points, labels, scan.tokens, scan.kept, scan.nearest)


@pytest.mark.parametrize(
    ("point", "class_name", "parts"),
    [
        (60, None, ["no point 60, the scan has 60", "0 to 59"]),
        (-1, None, ["no point -1"]),
        (None, "cra", ["no class 'cra'", "did you mean 'car'?", "road, car, pole, tree"]),
        (None, "tree", ["no point of class tree", "one of: road, car, pole"]),
    ],
)
def test_queries_that_cannot_be_used(point, class_name, parts):
    with pytest.raises(ScalrError) as caught:
        chosen_query(a_scan(), (*CLASSES, "tree"), point, class_name)
    assert all(part in str(caught.value) for part in parts)


def test_features_are_those_of_the_student(student_file, synthetic_world):
    student = load_student(student_file)
    dataset = open_dataset("nuscenes", synthetic_world, "val")
    scan = scan_features(student, dataset, dataset.frames[1], "nuscenes")
    expected = student.extract(dataset.read_points(dataset.frames[1]), "nuscenes")
    torch.testing.assert_close(scan.tokens[torch.from_numpy(scan.nearest)], expected)
    np.testing.assert_array_equal(scan.labels, dataset.read_labels(dataset.frames[1]))
    wider = scan_features(student, dataset, dataset.frames[1], "pandaset_64")  # which is read up to 128 m
    reach_m = [np.abs(each.points[each.kept, :2]).max() for each in (scan, wider)]
    assert reach_m[0] < 64 < reach_m[1]


def assert_picture(path: Path, least_px: int = 800) -> None:
    """Large enough, and not of one colour."""
    pixels = np.array(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    assert min(pixels.shape[:2]) > least_px
    assert len(np.unique(pixels.reshape(-1, 3)[::50], axis=0)) > 50


def test_the_pictures_of_a_scan(student_file, synthetic_world, tmp_path):
    config = SimilarityConfig(student=student_file, root=synthetic_world, out=tmp_path / "new" / "out")
    result = similarity_maps(config)
    dataset = open_dataset("nuscenes", synthetic_world, "val")
    points, labels = dataset.read_points(dataset.frames[0]), dataset.read_labels(dataset.frames[0])
    assert result.frame == dataset.frames[0].token
    assert result.num_points == len(points)
    assert dataset.class_names[labels[result.query.point]] == "car"
    features = unit(load_student(student_file).extract(points, "nuscenes").numpy())
    features -= features.mean(axis=0)
    exact = similarity.similarity(features, features[result.query.point])
    assert result.cosines == pytest.approx(pictures.cosines_at_shares(exact), abs=1e-4)
    assert result.compared == "mean feature of the scan subtracted"
    for path in (result.top_view, result.perspective_view):
        assert_picture(path)
    assert f"{len(points):,} points" in result.page.read_text()
    for error in (result.page_error.plain, result.page_error.centred):
        assert 0 < error.mean <= error.maximum < 1e-5  # all eight channels are kept
    assert result.pca is None
    assert sorted(path.name for path in config.out.iterdir()) == [
        "cloud.html", "perspective_view.png", "similarity.json", "top_view.png"
    ]  # fmt: skip
    record = json.loads((config.out / "similarity.json").read_text())
    assert record["config"]["root"] == str(synthetic_world)
    assert record["query"]["text"] == result.query.text
    assert (record["compared"], record["cosines"]) == (result.compared, dict(result.cosines))
    assert record["page_error"]["plain"]["maximum"] == result.page_error.plain.maximum
    assert record["areas"] == json.loads(json_text(result.areas.as_record()))
    assert record["areas"]["frames"] == [frame.token for frame in dataset.frames]
    assert len(record["student"]["sha256"]) == 64


def test_another_frame_and_a_class(student_file, synthetic_world, tmp_path, monkeypatch):
    frame = open_dataset("nuscenes", synthetic_world, "val").frames[1]
    config = SimilarityConfig(
        student=student_file, root=synthetic_world, out=tmp_path, frame=frame.token, class_name="driveable_surface",
        area_frames=0,
    )  # fmt: skip
    result = similarity_maps(config)
    assert result.frame == frame.token
    assert (result.query.text, result.query.point) == ("the mean of driveable_surface", None)
    titles, draw = [], similarity.top_view
    monkeypatch.setattr(similarity, "top_view", lambda *shown: titles.append(shown[-1]) or draw(*shown))
    again = similarity_maps(
        replace(config, class_name=None, point=7, centre=False, area_frames=0)
    )  # in the same folder
    assert again.query.point == 7
    record = json.loads((tmp_path / "similarity.json").read_text())
    assert (record["query"]["point"], record["compared"], record["areas"]) == (7, "plain cosine", None)
    assert titles[0].startswith(f"Similarity to {again.query.text}, plain cosine\n")
    points = open_dataset("nuscenes", synthetic_world, "val").read_points(frame)
    features = load_student(student_file).extract(points, "nuscenes").numpy()
    exact = similarity.similarity(features, features[7])
    assert again.cosines == pytest.approx(pictures.cosines_at_shares(exact), abs=1e-5)


@pytest.fixture
def drawn(monkeypatch) -> list[tuple]:
    """What the pictures of principal components were drawn from."""
    calls, draw = [], similarity.side_by_side

    def side_by_side(*arguments):
        calls.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(similarity, "side_by_side", side_by_side)
    return calls


@pytest.mark.parametrize("points", [pytest.param("all", marks=pytest.mark.slow), "visible"])
def test_teacher_beside_student(student_file, synthetic_world, stores, tmp_path, drawn, points):
    """Each pair's colour lies on its own pixel and its own point, by the coordinates in the store."""
    result = similarity_maps(
        SimilarityConfig(student=student_file, root=synthetic_world, out=tmp_path, cache=stores[points], area_frames=0)
    )
    assert_picture(result.pca)
    image, pixel, rows, cloud, colours = drawn[0]
    store = open_store(stores[points])
    views = [store.read_view(row, TEACHER) for row in store.rows_with_targets(TEACHER)[:6]]
    colours_of_pairs = pca_colours(unit(np.concatenate([view.targets for view in views])))
    widest = max(views, key=lambda view: len(view.pixel))
    np.testing.assert_array_equal(pixel, widest.pixel)
    np.testing.assert_array_equal(cloud[rows], widest.points[widest.point_index])
    of_teacher, of_student = colours.values()
    assert of_teacher.shape == of_student.shape == (result.num_points, 3)
    of_views = np.split(colours_of_pairs, np.cumsum([len(view.pixel) for view in views])[:-1])
    shown = next(each for each, view in zip(of_views, views, strict=True) if view is widest)
    np.testing.assert_allclose(of_teacher[rows], shown, atol=1e-3)
    seen = {bytes(point) for view in views for point in view.points[view.point_index]}
    np.testing.assert_array_equal(np.isnan(of_teacher).any(axis=1), [bytes(point) not in seen for point in cloud])
    assert not np.isnan(of_student).any()
    assert (pixel < image.shape[:2]).all()
    assert "by its own components" in list(colours)[1]


def test_a_student_of_this_teacher_has_the_teachers_colours(synthetic_world, stores, tmp_path, drawn):
    """Its head is made to give every point the first target: then all points have that target's colour."""
    dims = {"another": {"dim": 5}, TEACHER: {"dim": TEACHER_DIM}}
    path = a_student(tmp_path, {"teachers": dims}, out_channels=5 + TEACHER_DIM)
    view = open_store(stores["all"]).read_view(0, TEACHER)
    student = load_student(path)
    torch.nn.init.zeros_(student.classif.weight)
    with torch.no_grad():
        student.classif.bias.copy_(torch.cat([torch.ones(5), torch.from_numpy(view.targets[0])]))
    save_student(student, path, {"teachers": dims})
    config = {"root": synthetic_world, "out": tmp_path / "out", "cache": stores["all"], "area_frames": 0}
    similarity_maps(SimilarityConfig(student=path, **config))
    of_teacher, of_student = drawn[0][4].values()
    assert "in the teacher's space" in list(drawn[0][4])[1]
    assert np.ptp(of_student, axis=0).max() < 1e-6
    targets = unit(np.concatenate([open_store(stores["all"]).read_view(row, TEACHER).targets for row in range(6)]))
    np.testing.assert_allclose(of_student[0], pca_colours(targets[:1], like=targets)[0], atol=1e-3)
    assert not np.isnan(of_teacher).all()


def test_only_a_head_for_this_teacher_is_in_its_space(student_file):
    student, scan = load_student(student_file), a_scan()
    stored = StoredFeatures("mine", np.zeros(0, int), np.zeros((0, 3)), "front", np.zeros((0, 2), np.uint16))

    def projected(**dims: int) -> np.ndarray | None:
        return in_space_of(stored, student, scan, {"teachers": {name: {"dim": dim} for name, dim in dims.items()}})

    assert projected() is None
    assert projected(another=4) is None
    assert projected(mine=3) is None  # the head has four channels
    with torch.inference_mode():
        expected = unit(student.project(scan.tokens).numpy()[:, 1:])
    np.testing.assert_allclose(projected(another=1, mine=3), expected, atol=1e-6)
    standardisation = student.standardisation = standardisation_of("centre", vectors_of(1, 0), vectors_of(3, 1))
    with torch.inference_mode():
        answers = standardisation.in_space_of_teachers(student.classif(scan.tokens)).numpy()[:, 1:]
    np.testing.assert_allclose(projected(another=1, mine=3), unit(answers), atol=1e-6)


def test_pictures_of_an_earlier_call_do_not_stay(student_file, synthetic_world, stores, tmp_path):
    config = SimilarityConfig(
        student=student_file, root=synthetic_world, out=tmp_path, cache=stores["all"], area_frames=0
    )
    assert similarity_maps(config).pca.exists()
    similarity_maps(replace(config, cache=None))
    assert not (tmp_path / "pca.png").exists()


def test_what_is_missing_is_said(student_file, synthetic_world, simulated, stores, tmp_path):
    base = SimilarityConfig(student=student_file, root=synthetic_world, out=tmp_path / "out")
    frame = open_dataset("nuscenes", synthetic_world, "val").frames[0].token
    with pytest.raises(DatasetError, match=f"no frame '{frame[:-1]}' in split val of nuscenes, did you mean '{frame}'"):
        similarity_maps(replace(base, frame=frame[:-1]))
    with pytest.raises(StoreError, match=f"no targets of {TEACHER} for frame"):
        similarity_maps(replace(base, split="train", cache=stores["all"]))
    with pytest.raises(StoreError, match="no targets of teacher 'dino_vits8'"):
        similarity_maps(replace(base, cache=stores["all"], teacher="dino_vits8"))
    with pytest.raises(ScalrError, match="Pass --cache"):
        replace(base, teacher=TEACHER)
    with pytest.raises(ScalrError, match="--point and --class: a point and a class are given"):
        replace(base, point=0, class_name="car")
    assert not (tmp_path / "out").exists()
    occupied = tmp_path / "file"
    occupied.touch()
    with pytest.raises(ScalrError, match="cannot be written"):
        similarity_maps(replace(base, out=occupied))


def test_a_store_of_another_scan_is_noticed(student_file, synthetic_world, stores, tmp_path):
    world = Path(shutil.copytree(synthetic_world, tmp_path / "world"))
    scan = world / open_dataset("nuscenes", world, "val").frames[0].scan
    (np.fromfile(scan, dtype=np.float32) + 1).tofile(scan)
    with pytest.raises(StoreError, match="differs from the dataset's"):
        similarity_maps(
            SimilarityConfig(student=student_file, root=world, out=tmp_path / "out", cache=stores["visible"], point=0)
        )


def test_a_world_without_labels(student_file, synthetic_world, tmp_path):
    world = Path(shutil.copytree(synthetic_world, tmp_path / "world"))
    (world / "v1.0-trainval/lidarseg.json").unlink()
    config = SimilarityConfig(student=student_file, root=world, out=tmp_path / "out")
    result = similarity_maps(config)
    assert result.query.text == f"point {result.query.point}"
    assert result.areas is None
    assert json.loads((tmp_path / "out/similarity.json").read_text())["areas"] is None
    assert '"labels": null' in result.page.read_text()
    with pytest.raises(DatasetError, match="has no labels"):
        similarity_maps(replace(config, class_name="car"))


def test_a_reader_of_ones_own(student_file, synthetic_world, tmp_path, monkeypatch):
    """Without published statistics of its intensity."""
    (tmp_path / "my_similarity_reader.py").write_text(
        "from scalr.extract.datasets.nuscenes import NuScenes\n"
        "class Mine(NuScenes):\n"
        "    name, intensity, class_names = 'mine', None, ()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = SimilarityConfig(
        student=student_file, root=synthetic_world, out=tmp_path / "out", dataset="my_similarity_reader:Mine"
    )
    assert similarity_maps(config).page.exists()
    with pytest.raises(DatasetError, match="the dataset has no classes"):
        similarity_maps(replace(config, class_name="car"))


@pytest.mark.slow
def test_the_real_scan(student_file, real_data, tmp_path):
    """00/000000 of SemanticKITTI: all of its 123,389 points, in a page of less than 12 MB."""
    root = real_data("semantickitti")
    config = SimilarityConfig(
        student=student_file, root=root, out=tmp_path, dataset="semantic_kitti", split="00", area_frames=0
    )
    result = similarity_maps(config)
    assert (result.frame, result.num_points) == ("00/000000", 123_389)
    assert result.query.text.endswith("(car)")
    assert result.page.stat().st_size < 12e6
    assert result.page_error.centred.maximum < 0.05
    for path in (result.top_view, result.perspective_view):
        assert_picture(path)
    road = similarity_maps(replace(config, class_name="road"))
    assert road.query.point is None
    with pytest.raises(ScalrError, match="no point of class motorcyclist"):
        similarity_maps(replace(config, class_name="motorcyclist"))
