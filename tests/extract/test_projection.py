from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.projection import Calibration, Visibility, inverse_rigid, project, rigid_transform

REAL_PAIRS = {
    "CAM_FRONT": 3056,
    "CAM_FRONT_RIGHT": 3076,
    "CAM_BACK_RIGHT": 3370,
    "CAM_BACK": 4822,
    "CAM_BACK_LEFT": 4091,
    "CAM_FRONT_LEFT": 3700,
}


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return rotation * np.sign(np.linalg.det(rotation))


def project_one(point, calibration, height, width, visibility):
    """The definition, one point at a time: None, or the pixel (row, column)."""
    x, y, depth = (calibration.cam_from_lidar @ [*map(float, point[:3]), 1.0])[:3]
    if not depth > visibility.min_depth_m:
        return None
    k = calibration.intrinsics
    u, v = (k[0, 0] * x + k[0, 1] * y) / depth + k[0, 2], k[1, 1] * y / depth + k[1, 2]
    inside = 0 < u < width - visibility.border_px and 0 < v < height - visibility.border_px
    return (int(np.floor(v)), int(np.floor(u))) if inside else None


@given(seed=st.integers(0, 10_000), border=st.sampled_from([0, 1]), min_depth=st.sampled_from([0.0, 1.0]))
def test_project_is_its_definition(seed, border, min_depth):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-20, 20, (60, 4)).astype(np.float32)
    calibration = Calibration(
        cam_from_lidar=rigid_transform(random_rotation(rng), rng.normal(size=3)),
        intrinsics=np.array([[50.0, 0, 40], [0, 55, 30], [0, 0, 1]]),
    )
    visibility = Visibility(min_depth_m=min_depth, border_px=border)
    pairs = project(points, calibration, (60, 80), visibility)
    expected = [project_one(point, calibration, 60, 80, visibility) for point in points]
    assert dict(zip(pairs.point_index.tolist(), map(tuple, pairs.pixel.tolist()), strict=True)) == {
        index: pixel for index, pixel in enumerate(expected) if pixel
    }
    assert (pairs.depth_m > min_depth).all()


@pytest.mark.parametrize("border", [0, 1])
def test_points_on_the_bounds_are_not_seen(border):
    """0 < u < W - border, 0 < v < H - border, depth > least, x > least: all of them strict (nuScenes' official reader).

    A camera of focal length 1 px at the lidar's place, so that u = x / z and v = y / z are exact.
    """
    calibration = Calibration(cam_from_lidar=np.eye(4), intrinsics=np.eye(3))
    visibility = Visibility(min_depth_m=1.0, border_px=border, min_x_m=2.0)
    u_end, v_end = 80 - border, 60 - border
    seen = [
        (2 * (u_end - 0.25), 2 * (v_end - 0.25), 2), (2 * 30, 2 * 0.25, 2), (np.nextafter(2, 3), 1, np.nextafter(1, 2)),
    ]  # fmt: skip
    unseen = [
        (2 * u_end, 2 * 30, 2), (2 * 30, 2 * v_end, 2), (2 * 30, 0, 2),  # on a side of the image
        (30, 30, 1), (2, 2, 2),  # at the least depth, the least x
        (-30, -30, -2), (0, 4, 4),
    ]  # fmt: skip
    pairs = project(np.array([*seen, *unseen], np.float64), calibration, (60, 80), visibility)
    assert pairs.point_index.tolist() == [0, 1, 2]
    assert pairs.pixel.tolist() == [[v_end - 1, u_end - 1], [0, 30], [0, 2]]
    assert pairs.depth_m.tolist() == [2, 2, np.nextafter(1, 2)]
    at_zero = project(np.array([[0, 1, 2.0]]), calibration, (60, 80), replace(visibility, min_x_m=None))
    assert len(at_zero.point_index) == 0  # u = 0


def test_the_visibility_is_that_of_the_official_readers():
    """nuScenes: min_dist = 1.0 and an image smaller by one; a depth of zero is PandaSet's."""
    assert (Visibility().min_depth_m, Visibility().border_px, Visibility().min_x_m) == (1.0, 1, None)
    assert Visibility(min_depth_m=0).min_depth_m == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_depth_m": -0.1}, r"^visibility\.min_depth_m: -0\.1 cannot be used. Give a number, at least 0"),
        ({"border_px": -500}, r"^visibility\.border_px: -500 cannot be used. Give a whole number, at least 0"),
        ({"border_px": "wide"}, r"^visibility\.border_px: 'wide' cannot be used"),
        ({"border_px": 1.5}, r"^visibility\.border_px: 1\.5 cannot be used"),
        ({"min_x_m": float("nan")}, r"^visibility\.min_x_m: nan cannot be used"),
    ],
)
def test_a_rule_of_what_is_seen_that_cannot_be_is_named(values, message):
    with pytest.raises(DatasetError, match=message):
        Visibility(**values)


@pytest.mark.parametrize("border", [60, 4000])
def test_a_border_that_leaves_nothing_of_the_image_is_refused(border):
    calibration = Calibration(cam_from_lidar=np.eye(4), intrinsics=np.eye(3))
    assert project(np.ones((1, 3)), calibration, (60, 80), Visibility(border_px=59)) is not None
    with pytest.raises(
        DatasetError, match=rf"border_px: a border of {border} px leaves no pixel of an image of 60x80 pixels"
    ):
        project(np.ones((1, 3)), calibration, (60, 80), Visibility(border_px=border))


def test_float32_points_are_projected_in_float64():
    """The pixel's border lies between where float32 and float64 put the point."""
    rng = np.random.default_rng(0)
    calibration = Calibration(
        cam_from_lidar=rigid_transform(np.eye(3), [1 / 3, 1 / 7, 0]), intrinsics=np.diag([1e3, 1e3, 1])
    )
    points = rng.uniform([1, 1, 1], [30, 30, 30], (20_000, 3)).astype(np.float32)
    exact = (points.astype(np.float64)[:, :2] + [1 / 3, 1 / 7]) / points[:, 2:].astype(np.float64) * 1e3
    pairs = project(points, calibration, (60_000, 60_000))
    np.testing.assert_array_equal(pairs.pixel, np.floor(exact[pairs.point_index, ::-1]))


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1.0, 0.02, 300.0]))
def test_a_projection_is_taken_apart_and_put_together(seed, scale):
    """Whatever its scale: a rotation, a translation in metres and upper triangular intrinsics ending in 1."""
    rng = np.random.default_rng(seed)
    cam_from_lidar = rigid_transform(random_rotation(rng), rng.normal(size=3) * 3)
    intrinsics = np.array([[rng.uniform(300, 900), rng.normal(), 400], [0, rng.uniform(300, 900), 300], [0, 0, 1]])
    found = Calibration.from_projection(scale * intrinsics @ cam_from_lidar[:3])
    np.testing.assert_allclose(found.cam_from_lidar, cam_from_lidar, atol=1e-9)
    np.testing.assert_allclose(found.intrinsics, intrinsics, atol=1e-6)
    with pytest.raises(ValueError, match="mirrors the image, or all of its signs are changed"):
        Calibration.from_projection(-scale * intrinsics @ cam_from_lidar[:3])


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_a_matrix_that_flattens_space_is_no_projection(seed, scale):
    """Rows that depend on each other have a determinant of zero but for rounding."""
    rng = np.random.default_rng(seed)
    matrix = scale * rng.normal(size=(3, 4))
    matrix[2] = rng.normal() * matrix[0] + rng.normal() * matrix[1]
    with pytest.raises(ValueError, match="cannot be inverted"):
        Calibration.from_projection(matrix)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite_is_no_projection(value):
    matrix = np.eye(3, 4)
    matrix[1, 1] = value
    with pytest.raises(ValueError, match="cannot be inverted"):
        Calibration.from_projection(matrix)


def test_inverse_rigid_undoes_the_transform():
    rng = np.random.default_rng(0)
    matrix = rigid_transform(random_rotation(rng), rng.normal(size=3))
    np.testing.assert_allclose(inverse_rigid(matrix) @ matrix, np.eye(4), atol=1e-12)


def test_pairs_of_the_real_keyframe(real_nuscenes):
    dataset = open_dataset("nuscenes", real_nuscenes, "mini_train")
    (frame,) = dataset.frames
    points = dataset.read_points(frame)
    counts = {}
    for view in frame.views:
        image = read_image(dataset.root, view)
        counts[view.camera] = len(project(points, view.calibration, image.shape[:2], dataset.visibility).point_index)
    assert counts == REAL_PAIRS


def test_real_calibration_is_the_devkit_chain(real_nuscenes):
    """Against the devkit's own step-by-step (float32) projection, point by point."""
    from nuscenes.nuscenes import NuScenes as Devkit

    devkit = Devkit("v1.0-mini", str(real_nuscenes), verbose=False)
    dataset = open_dataset("nuscenes", real_nuscenes, "mini_train")
    (frame,) = dataset.frames
    sample = devkit.get("sample", frame.token)
    points = dataset.read_points(frame)
    for view in frame.views:
        uv, depth, _ = devkit.explorer.map_pointcloud_to_image(
            sample["data"]["LIDAR_TOP"], sample["data"][view.camera], min_dist=1.0
        )
        pairs = project(points, view.calibration, view.image_shape, dataset.visibility)
        # The devkit's bounds are u > 1, v > 1: compare what both keep.
        kept = (pairs.pixel > 1).all(axis=1)
        both = (uv[:2] >= 2).all(axis=0)
        assert kept.sum() == pytest.approx(both.sum(), abs=2)
        if kept.sum() == both.sum():
            np.testing.assert_allclose(pairs.depth_m[kept], depth[both], atol=1e-3)
            assert (np.abs(pairs.pixel[kept][:, ::-1] + 0.5 - uv[:2, both].T) < 0.6).all()
