"""A file of bare numbers that is read in a layout which is not its own is refused, and the one that it has is named."""

from __future__ import annotations

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets.files import read_raw_points, read_scan

COLUMNS = 8


@pytest.fixture
def points() -> np.ndarray:
    """(1200, 8) float32: coordinates, intensity and more; in no order, so that neighbours say nothing."""
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, 1200), rng.uniform(2, 60, 1200)
    xyz = [radius * np.cos(angle), radius * np.sin(angle), rng.uniform(-2, 3, 1200)]
    return np.stack([*xyz, *rng.uniform(0, 100, (COLUMNS - 3, 1200))], axis=1).astype(np.float32)


@pytest.mark.parametrize("declared", [4, 5])
def test_each_layout_is_told_from_all_others(points, declared, tmp_path):
    path = tmp_path / "0.bin"
    for dtype in (np.float32, np.float64):
        for columns in range(3, COLUMNS + 1):
            points[:, :columns].astype(dtype).tofile(path)
            if (dtype, columns) == (np.float32, declared):
                np.testing.assert_array_equal(read_scan(path, declared), points[:, :4])
            else:
                with pytest.raises(
                    DatasetError, match=rf"0\.bin: the values are no lidar scan with {declared} float32"
                ):
                    read_scan(path, declared)


@pytest.mark.parametrize(
    ("dtype", "columns", "told"),
    [("f4", 5, "5 float32"), ("f4", 3, "3 float32"), ("f4", 8, "8 float32"), ("f8", 4, "4 float64")],
)
def test_the_layout_that_a_file_has_is_named(points, dtype, columns, told, tmp_path):
    points[:, :columns].astype(dtype).tofile(tmp_path / "0.bin")
    with pytest.raises(
        DatasetError, match=f"but one with {told} per point. Write the file in the dataset's own layout"
    ):
        read_scan(tmp_path / "0.bin", 4)


def test_rays_without_returns_hide_no_layout(points, tmp_path):
    """Neither of rows of five values, nor of sound ones; every other point may be a second return that is none."""
    for value in (np.nan, 0):
        points[::2, :3] = value
        points[:, :5].tofile(tmp_path / "0.bin")
        with pytest.raises(DatasetError, match="but one with 5 float32 per point"):
            read_raw_points(tmp_path / "0.bin", 4)
        points[:, :4].tofile(tmp_path / "0.bin")
        np.testing.assert_array_equal(read_raw_points(tmp_path / "0.bin", 4), points[:, :4])


def test_values_that_stand_column_by_column_are_told(points, tmp_path):
    points[:, :4].T.tofile(tmp_path / "0.bin")
    with pytest.raises(
        DatasetError, match=r"no lidar scan with 4 values per point, but one with all x first, then all y"
    ):
        read_scan(tmp_path / "0.bin", 4)


def test_what_fits_no_layout_is_taken_as_it_is_declared(tmp_path):
    values = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    values.tofile(tmp_path / "0.bin")
    np.testing.assert_array_equal(read_scan(tmp_path / "0.bin", 4), values)
