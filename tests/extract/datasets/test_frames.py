"""`frames.parquet`: a rig of one's own, written here by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from doc_examples import example
from scalr.cli import main
from scalr.errors import DatasetError
from scalr.extract import recompute, run
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.scans import read_labelled_scan
from scalr.extract.projection import project
from scalr.extract.store import open_store
from tiny import look_along_x, tiny_teachers

EXTRACT = ("extract", "--teacher", "coordinates")
YAML = """
name: my_rig
intensity: {mean: 100, std: 50}
classes: {left: [3], right: [7, 300]}
ignored: [0]
visibility: {min_depth_m: 2.0}
"""


def scalr(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class Rig:
    """Four frames of two views; `write` writes the table after a test has changed the rows."""

    def __init__(self, root: Path) -> None:
        self.root, self.rows = root, []
        rng = np.random.default_rng(0)
        for number in range(4):
            self._add_frame(f"f{number}", rng)
        (root / "dataset.yaml").write_text(YAML)
        self.write()

    def write(self) -> None:
        pq.write_table(pa.Table.from_pylist(self.rows), self.root / "frames.parquet")

    def _add_frame(self, token: str, rng: np.random.Generator) -> None:
        points = np.hstack([rng.uniform([-30, -30, -3], [30, 30, 5], (400, 3)), rng.uniform(0, 255, (400, 1))])
        points.astype(np.float32).tofile(self.root / f"{token}.bin")
        labels = np.where(points[:, 1] > 0, 3, 300).astype(np.uint32)
        labels[:10] = 0
        (labels + (5 << 16)).astype(np.uint32).tofile(self.root / f"{token}.label")
        for camera, focal in (("NARROW", 40.0), ("WIDE", 30.0)):
            calibration = look_along_x(focal_px=focal)
            image = f"{token}-{camera}.png"
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(self.root / image)
            row = {
                "scene": "drive",
                "token": token,
                "timestamp": 100,
                "scan": f"{token}.bin",
                "labels": f"{token}.label",
                "camera": camera,
                "image": image,
                "split": "train",
                "image_height": 48,
                "image_width": 64,
                "projection": (calibration.intrinsics @ calibration.cam_from_lidar[:3]).ravel().tolist(),
                "cam_from_lidar": None,
                "intrinsics": None,
            }
            self.rows.append(row)


@pytest.fixture(autouse=True)
def teacher_that_costs_nothing(monkeypatch):
    for module in (run, recompute):
        monkeypatch.setattr(module, "load_teacher", lambda name, **_: tiny_teachers()[name])


@pytest.fixture
def rig(tmp_path) -> Rig:
    (tmp_path / "rig").mkdir()
    return Rig(tmp_path / "rig")


def with_matrices(row: dict, focal: float) -> dict:
    calibration = look_along_x(focal_px=focal)
    return row | {
        "projection": None,
        "cam_from_lidar": calibration.cam_from_lidar[:3].ravel().tolist(),
        "intrinsics": calibration.intrinsics.ravel().tolist(),
    }


def test_frames_are_read_as_they_were_written(rig):
    dataset = open_dataset("frames", rig.root, "train")
    assert (dataset.name, dataset.intensity.std, dataset.visibility.min_depth_m) == ("my_rig", 50, 2.0)
    assert [frame.token for frame in dataset.frames] == ["f0", "f1", "f2", "f3"]
    points, labels = read_labelled_scan(dataset, dataset.frames[2])
    assert (labels[:10] == IGNORE_LABEL).all()
    assert dataset.class_names == ("left", "right")
    np.testing.assert_array_equal(labels[10:], (points[10:, 1] < 0).astype(np.uint8))
    for view, focal in zip(dataset.frames[0].views, (40.0, 30.0), strict=True):
        expected = project(points, look_along_x(focal_px=focal), (48, 64), dataset.visibility)
        found = project(points, view.calibration, view.image_shape, dataset.visibility)
        np.testing.assert_array_equal(found.point_index, expected.point_index)
        np.testing.assert_array_equal(found.pixel, expected.pixel)
        np.testing.assert_allclose(found.depth_m, expected.depth_m)


def test_a_projection_and_its_factors_are_the_same(rig):
    projections = open_dataset("frames", rig.root, "train").frames
    rig.rows = [with_matrices(row, 40.0 if row["camera"] == "NARROW" else 30.0) for row in rig.rows]
    rig.write()
    for one, other in zip(projections, open_dataset("frames", rig.root, "train").frames, strict=True):
        for view, factors in zip(one.views, other.views, strict=True):
            np.testing.assert_allclose(view.calibration.intrinsics, factors.calibration.intrinsics, atol=1e-9)
            np.testing.assert_allclose(view.calibration.cam_from_lidar, factors.calibration.cam_from_lidar, atol=1e-9)


@pytest.mark.parametrize(("ending", "write"), [("npy", np.save), ("pcd.bin", lambda path, scan: scan.tofile(path))])
def test_other_scan_files(rig, ending, write):
    scan = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    write(rig.root / f"scan.{ending}", scan)
    for row in rig.rows[:2]:
        row["scan"] = f"scan.{ending}"
    rig.write()
    dataset = open_dataset("frames", rig.root, "train")
    np.testing.assert_array_equal(dataset.read_points(dataset.frames[0]), scan[:, :4])


def with_column(name: str, change):
    """Puts another column in the place of one."""

    def changed(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, change(table[name]))

    return changed


def as_dictionaries(table: pa.Table) -> pa.Table:
    """Texts as pandas' categories are kept."""
    for name in ("scene", "token", "scan", "labels", "camera", "image", "split"):
        table = with_column(name, lambda column: column.dictionary_encode())(table)
    return table


def as_large(table: pa.Table) -> pa.Table:
    """Texts and lists as polars writes them."""
    large = {pa.string(): pa.large_string(), pa.list_(pa.float64()): pa.large_list(pa.float32())}
    return table.cast(pa.schema([(field.name, large.get(field.type, field.type)) for field in table.schema]))


TABLES = {
    "an index of pandas": lambda table: table.append_column("__index_level_0__", pa.array(range(len(table)))),
    "dictionaries": as_dictionaries,
    "large texts and lists": as_large,
    "float64": with_column("timestamp", lambda column: column.cast(pa.float64())),
    "uint64": with_column("timestamp", lambda column: column.cast(pa.uint64())),
    "int8": with_column("timestamp", lambda column: column.cast(pa.int8())),
    "decimal": with_column("timestamp", lambda column: column.cast(pa.decimal128(30, 3))),
    "datetime64": with_column("timestamp", lambda column: column.cast(pa.timestamp("us")).cast(pa.timestamp("ns"))),
    "a zone": with_column("timestamp", lambda column: column.cast(pa.timestamp("us", "Europe/Paris"))),
    "sizes as floats": with_column("image_height", lambda column: column.cast(pa.float32())),
}


@pytest.mark.parametrize("form", TABLES)
def test_tables_of_other_writers_mean_the_same(rig, form):
    expected = open_dataset("frames", rig.root, "train").frames
    pq.write_table(TABLES[form](pq.read_table(rig.root / "frames.parquet")), rig.root / "frames.parquet")
    found = open_dataset("frames", rig.root, "train").frames
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.error is None
        assert replace(ours, views=()).__dict__ == replace(theirs, views=()).__dict__
        for mine, other in zip(ours.views, theirs.views, strict=True):
            assert (mine.camera, mine.image, mine.image_shape) == (other.camera, other.image, other.image_shape)
            np.testing.assert_allclose(mine.calibration.intrinsics, other.calibration.intrinsics, rtol=1e-6)


def test_a_gap_among_whole_numbers_is_a_gap(rig):
    """pandas keeps a column of whole numbers with gaps as floats, and a gap as nan."""
    for row in rig.rows:
        row["image_height"] = row["image_width"] = float("nan") if row["camera"] == "WIDE" else 48.0
    rig.write()
    frame = open_dataset("frames", rig.root, "train").frames[0]
    assert [view.image_shape for view in frame.views] == [(48, 48), None]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("timestamp", pa.array([1.5] * 8), "'timestamp' is 1.5, not a whole number"),
        ("timestamp", pa.array([1.6e9] * 8, pa.float32()), "'timestamp' is 1600000000.0, not a whole number"),
        ("timestamp", pa.array([float("inf")] * 8), "'timestamp' is inf, not a whole number"),
        ("timestamp", pa.array([True] * 8), "'timestamp' is True, not a whole number"),
        ("timestamp", pa.array([2**63] * 8, pa.uint64()), "'timestamp' is 9223372036854775808, and it must be from"),
        ("image_height", pa.array([0] * 8), "'image_height' is 0, and it must be from 1 to 65536"),
        ("token", pa.array([{"a": 1}] * 8), "'token' is {'a': 1}, not a text"),
        ("projection", pa.array(["1 0 0"] * 8), "'projection' is '1 0 0', not a list of numbers"),
    ],
)
def test_values_that_cannot_be_taken_exactly_are_said(rig, column, values, message):
    """Among them whole numbers of float32 that stand for others, too."""
    pq.write_table(
        with_column(column, lambda _: values)(pq.read_table(rig.root / "frames.parquet")), rig.root / "frames.parquet"
    )
    frames = open_dataset("frames", rig.root, "train").frames
    assert f"row 0: {message}" in str(frames[0].error)
    assert all(-(2**63) <= frame.timestamp < 2**63 for frame in frames)


def test_frames_are_a_sequence(rig):
    frames = open_dataset("frames", rig.root, "train").frames
    assert [frame.token for frame in frames[1:3]] == ["f1", "f2"]
    assert frames[-1].token == "f3"
    assert [view.camera for view in frames[-1].views] == ["NARROW", "WIDE"]


def test_a_rig_may_grow_by_a_camera(rig, tmp_path):
    """From one frame on, rows of a third camera; all of them are extracted."""
    for frame in (2, 3):
        added = rig.rows[2 * frame] | {"camera": "THIRD", "image": rig.rows[2 * frame + 1]["image"]}
        rig.rows = [*rig.rows, added]
    rig.rows.sort(key=lambda row: row["token"])
    rig.write()
    result = scalr(*EXTRACT, "--dataset", "frames", "--root", rig.root, "--out", tmp_path / "s.zarr")
    assert "my_rig train; 4 frames, 10 views" in result.output, result.output
    cameras = open_store(tmp_path / "s.zarr").views["camera"].to_pylist()
    assert cameras == ["NARROW", "WIDE"] * 2 + ["NARROW", "WIDE", "THIRD"] * 2


def without_returns(rig: Rig) -> np.ndarray:
    """Two points of the first scan become rays that hit nothing; which of its points are returns."""
    scan = np.fromfile(rig.root / "f0.bin", np.float32).reshape(-1, 4)
    scan[5, 1], scan[20, :3] = np.nan, 0
    scan.tofile(rig.root / "f0.bin")
    return ~np.isin(np.arange(len(scan)), [5, 20])


def test_rays_that_hit_nothing_are_dropped_if_asked(rig):
    before = open_dataset("frames", rig.root, "train")
    points, labels = read_labelled_scan(before, before.frames[0])
    is_return = without_returns(rig)
    with pytest.raises(DatasetError, match=r"f0\.bin: 1 of 400 points are not finite\. Set 'no_returns: drop' in"):
        read_labelled_scan(before, before.frames[0])
    (rig.root / "dataset.yaml").write_text(f"{YAML}no_returns: drop\n")
    dataset = open_dataset("frames", rig.root, "train")
    found = read_labelled_scan(dataset, dataset.frames[0])
    np.testing.assert_array_equal(found[0], points[is_return])
    np.testing.assert_array_equal(found[1], labels[is_return])
    (rig.root / "f0.label").write_bytes((rig.root / "f0.label").read_bytes()[:-4])
    with pytest.raises(DatasetError, match=r"399 labels, and the scan .* has 400 points"):
        dataset.read_labels(dataset.frames[0])
    np.zeros((400, 4), np.float32).tofile(rig.root / "f0.bin")
    with pytest.raises(DatasetError, match=r"f0\.bin: none of the 400 points is a return\. Leave the frame out"):
        dataset.read_points(dataset.frames[0])


def test_several_splits_are_one(rig):
    for row, split in zip(rig.rows, "aabbccaa", strict=True):
        row["split"] = split
    rig.write()
    assert [frame.token for frame in open_dataset("frames", rig.root, "c,a").frames] == ["f0", "f2", "f3"]
    with pytest.raises(DatasetError, match=r"no row of split 'd'\. Choose a value of its column 'split' \(a, b, c\)"):
        open_dataset("frames", rig.root, "a,d")
    with pytest.raises(DatasetError, match="'a-1%' is unknown: this dataset has no published subsets"):
        open_dataset("frames", rig.root, "a-1%")


@pytest.mark.parametrize(("ending", "dtype"), [("npy", np.int64), ("bin", np.uint8)])
def test_other_label_files(rig, ending, dtype):
    raw = np.array([3] * 100 + [7] * 200 + [0] * 100, dtype=dtype)
    np.save(rig.root / "l.npy", raw) if ending == "npy" else raw.tofile(rig.root / "l.bin")
    for row in rig.rows[:2]:
        row["labels"] = f"l.{ending}"
    rig.write()
    dataset = open_dataset("frames", rig.root, "train")
    _, labels = read_labelled_scan(dataset, dataset.frames[0])
    assert np.bincount(labels)[[0, 1, IGNORE_LABEL]].tolist() == [100, 200, 100]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"frames\.parquet: frame f0 has no labels\. Fill the column 'labels'"),
        (
            np.zeros((400, 2), np.int64),
            r"l\.npy: the labels have shape \(400, 2\) and dtype int64, not \(N,\) integers\. Write one"
            r" integer per point",
        ),
        (np.zeros(400), r"l\.npy: the labels have shape \(400,\) and dtype float64"),
        (np.array([{}]), r"l\.npy: the file cannot be read as an array"),
        (
            "l.csv",
            r"l\.csv: files of labels with the suffix '\.csv' cannot be read\. Write the labels as one of:"
            r" \.label, \.bin",
        ),
    ],
)
def test_labels_that_cannot_be_used_are_said(rig, labels, message):
    if isinstance(labels, np.ndarray):
        np.save(rig.root / "l.npy", labels)
    for row in rig.rows[:2]:
        row["labels"] = "l.npy" if isinstance(labels, np.ndarray) else labels
    rig.write()
    dataset = open_dataset("frames", rig.root, "train")
    with pytest.raises(DatasetError, match=message):
        dataset.read_labels(dataset.frames[0])


def test_without_a_description_intensities_are_measured(rig, tmp_path):
    (rig.root / "dataset.yaml").unlink()
    result = scalr(*EXTRACT, "--dataset", "frames", "--root", rig.root, "--out", tmp_path / "s.zarr")
    assert result.exit_code == 0, result.output
    (source,) = open_store(tmp_path / "s.zarr").sources
    dataset = open_dataset("frames", rig.root, "train")
    intensity = np.concatenate([dataset.read_points(frame)[:, 3] for frame in dataset.frames])
    assert source.dataset == "frames"
    assert source.intensity.mean == pytest.approx(intensity.mean(), rel=1e-5)
    assert source.intensity.std == pytest.approx(intensity.std(), rel=1e-5)


def test_measured_intensities_stay_when_a_scan_is_mended(rig, tmp_path):
    """They are recorded once: another scan among those that can be read does not make it another dataset."""
    (rig.root / "dataset.yaml").unlink()
    scan, command = (
        rig.root / "f1.bin",
        (*EXTRACT, "--dataset", "frames", "--root", rig.root, "--out", tmp_path / "s.zarr"),
    )
    content = scan.read_bytes()
    scan.write_bytes(content[:-1])
    assert scalr(*command, "--on-error", "skip").exit_code == 3
    (before,) = open_store(tmp_path / "s.zarr").sources
    scan.write_bytes(content)
    mended = scalr(*command)
    assert mended.exit_code == 0, mended.output
    assert "4 frames, 8 views" in mended.output
    assert open_store(tmp_path / "s.zarr").read_view(0).intensity == before.intensity


def test_extracted_and_recomputed(rig, tmp_path):
    out = tmp_path / "s.zarr"
    result = scalr(*EXTRACT, "--dataset", "frames", "--root", rig.root, "--out", out)
    assert result.exit_code == 0, result.output
    assert "my_rig train; 4 frames, 8 views" in result.output
    assert scalr("verify", out, "--sample", 3).exit_code == 0
    view = open_store(out).read_view(0)
    assert (view.dataset, view.intensity.mean) == ("my_rig", 100)


BAD_ROWS = {
    "no scan": ({"scan": None}, "'scan' is None"),
    "eleven numbers": ({"projection": [1.0] * 11}, "'projection' is not 3x4 numbers"),
    "not finite": ({"projection": [float("nan")] * 12}, "'projection' has values that are not finite"),
    "singular": ({"projection": [1.0] * 12}, "it is not a projection"),
    "no calibration": ({"projection": None}, "neither 'projection' nor 'cam_from_lidar' and 'intrinsics'"),
    "half a size": ({"image_width": None}, "image_height and image_width go together"),
    "no rotation": (
        {"projection": None, "cam_from_lidar": [2.0] * 12, "intrinsics": [1.0, 0, 0, 0, 1, 0, 0, 0, 1]},
        "is not a rotation: its determinant is 0, and its rows miss length 1 and right angles by 12; 1 and less than",
    ),
    "no pinhole": (
        {**with_matrices({}, 40.0), "intrinsics": [1.0] * 9},
        "'intrinsics' is not [fx s cx; 0 fy cy; 0 0 1]",
    ),
    "no name of an image": ({"image": ""}, "'image' is ''"),
    "a camera without image": ({"image": None}, "'image' is None, and the row has a 'camera'"),
    "another scan": ({"scan": "f0.bin"}, "'scan' is 'f0.bin', and 'f1.bin' in row 2 of the same frame"),
    "camera twice": ({"camera": "NARROW"}, "a camera appears twice in frame f1"),
}


@pytest.mark.parametrize("damage", BAD_ROWS)
def test_a_bad_row_is_named_and_skipped_if_asked(rig, tmp_path, damage):
    changes, message = BAD_ROWS[damage]
    rig.rows[3] = rig.rows[3] | changes
    rig.write()
    command = (*EXTRACT, "--dataset", "frames", "--root", rig.root, "--out", tmp_path / "s.zarr")
    stopped = scalr(*command)
    assert stopped.exit_code == 1
    errors = [line for line in stopped.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "frames.parquet" in errors[0]
    assert "row 3: " in errors[0] or "rows 2 to 3: " in errors[0]
    assert message in errors[0]
    skipped = scalr(*command, "--on-error", "skip")
    assert skipped.exit_code == 3
    assert message in skipped.stderr
    assert "3 frames, 6 views" in skipped.output


ROTATION = look_along_x().cam_from_lidar[:3, :3]
SHEAR, SCALE = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0.0]]), np.eye(3)


@pytest.mark.parametrize(
    ("matrix", "is_one"),
    [
        (ROTATION + 0.9e-4 * SHEAR @ ROTATION, True),  # as rounded to a few digits in a calibration file
        (ROTATION + 1.2e-4 * SHEAR @ ROTATION, False),
        (ROTATION + 0.4e-4 * SCALE @ ROTATION, True),
        (ROTATION - 0.7e-4 * SCALE @ ROTATION, False),
        (ROTATION * [1, 1, -1], False),
        (-ROTATION, False),
    ],
    ids=["nearly one", "sheared", "nearly of its length", "shrunk", "mirrored", "turned inside out"],
)
def test_a_rotation_is_orthogonal_to_four_digits_and_mirrors_nothing(rig, matrix, is_one):
    row = with_matrices(rig.rows[0], 40.0)
    row["cam_from_lidar"] = np.hstack([matrix, [[0.1], [0.2], [0.3]]]).ravel().tolist()
    rig.rows[0] = row
    rig.write()
    frame = open_dataset("frames", rig.root, "train").frames[0]
    if is_one:
        np.testing.assert_array_equal(frame.views[0].calibration.cam_from_lidar[:3, :3], matrix)
        np.testing.assert_array_equal(frame.views[0].calibration.cam_from_lidar[:, 3], [0.1, 0.2, 0.3, 1])
    else:
        assert "row 0: the left 3x3 part of 'cam_from_lidar' is not a rotation" in str(frame.error)


@pytest.mark.parametrize(
    ("place", "value", "is_one"),
    [
        ((0, 1), 0.5, True),  # skew
        ((1, 0), 1e-4, False),
        ((2, 0), 1e-4, False),
        ((2, 1), -1e-4, False),
        ((0, 0), -40.0, False),
        ((1, 1), 0.0, False),
        ((2, 2), -1.0, False),
        ((2, 2), 2.0, True),  # of any positive scale
    ],
)
def test_intrinsics_are_an_upper_triangle_with_positive_lengths(rig, place, value, is_one):
    row = with_matrices(rig.rows[0], 40.0)
    matrix = np.array(row["intrinsics"]).reshape(3, 3)
    matrix[place] = value
    row["intrinsics"] = matrix.ravel().tolist()
    rig.rows[0] = row
    rig.write()
    frame = open_dataset("frames", rig.root, "train").frames[0]
    if is_one:
        np.testing.assert_array_equal(frame.views[0].calibration.intrinsics, matrix / matrix[2, 2])
    else:
        assert "row 0: 'intrinsics' is not [fx s cx; 0 fy cy; 0 0 1]" in str(frame.error)


def test_check_reports_every_bad_row(rig):
    rig.rows[3]["projection"] = rig.rows[3]["projection"][:11]
    rig.rows[4]["scan"] = rig.rows[5]["scan"] = "nowhere.bin"
    rig.rows[6]["timestamp"] = None
    rig.rows[7]["token"] = ""
    rig.write()
    result = scalr("check", "--dataset", "frames", "--root", rig.root)
    assert result.exit_code == 1
    for message in (
        "row 3: 'projection'",
        "nowhere.bin: the file is missing",
        "row 6: 'timestamp' is None",
        "row 7: 'token' is",
    ):
        assert message in result.output
    assert "4 problems" in result.output


@pytest.mark.parametrize(("column", "value"), [("image", 7), ("labels", 3), ("camera", 1.5), ("image_height", "48")])
def test_a_column_of_another_type_is_said_row_by_row(rig, column, value):
    for row in rig.rows:
        row[column] = value
    rig.write()
    result = scalr("check", "--dataset", "frames", "--root", rig.root)
    assert result.exit_code == 1
    assert f"row 5: '{column}' is {value!r}" in result.output
    assert "Traceback" not in result.output


def test_rows_of_a_frame_that_do_not_follow_each_other(rig):
    rig.rows = [*rig.rows[2:], *rig.rows[:1], *rig.rows[2:3]]
    rig.write()
    frames = open_dataset("frames", rig.root, "train").frames
    assert "must follow each other" in str(frames[-1].error)
    assert [frame.error is None for frame in frames] == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rig: (rig.root / "frames.parquet").unlink(), "frames.parquet: the file is missing"),
        (lambda rig: (rig.root / "frames.parquet").write_bytes(b"PAR1 not"), "cannot be read as parquet"),
        (
            lambda rig: pq.write_table(
                (table := pq.read_table(rig.root / "frames.parquet")).append_column("scan", table["scan"]),
                rig.root / "frames.parquet",
            ),
            "frames.parquet: the table has two columns 'scan'",
        ),
        (lambda rig: (rig.root / "dataset.yaml").write_text("no_returns: nan"), "'no_returns' is 'nan', not one of"),
        (lambda rig: [row.pop("scan") for row in rig.rows] and rig.write(), "no column 'scan'"),
        (
            lambda rig: [row.update(projektion=1) for row in rig.rows] and rig.write(),
            "unknown column 'projektion', did you mean 'projection'? Remove the column, or rename it to one of",
        ),
        (
            lambda rig: (rig.root / "dataset.yaml").write_text("clases: {}"),
            "unknown key 'clases', did you mean 'classes'",
        ),
        (
            lambda rig: (rig.root / "dataset.yaml").write_text("intensity: 3"),
            "the description of the dataset cannot be used",
        ),
        (lambda rig: (rig.root / "dataset.yaml").write_text("intensity: {mean: 1, std: 0}"), "cannot normalise"),
        (
            lambda rig: (rig.root / "dataset.yaml").write_text("classes: {car: [x]}"),
            "the description of the dataset cannot be used",
        ),
        (lambda rig: (rig.root / "dataset.yaml").write_text("[1, 2"), "the description of the dataset cannot be used"),
        (lambda rig: (rig.root / "dataset.yaml").write_text("name: 5"), "'name' is 5, not a text"),
        (lambda rig: (rig.root / "dataset.yaml").write_text("visibility: {min_depth_m: -1}"), "min_depth_m: -1 can"),
        (lambda rig: (rig.root / "dataset.yaml").write_text("visibility: {border_px: -500}"), "border_px: -500 can"),
        (lambda rig: (rig.root / "dataset.yaml").write_text("visibility: {border_px: wide}"), "border_px: 'wide' can"),
    ],
)
def test_a_folder_that_cannot_be_opened(rig, damage, message):
    damage(rig)
    with pytest.raises(DatasetError, match=re.escape(message)):
        open_dataset("frames", rig.root, "train")


def test_a_split_that_is_not_there(rig):
    with pytest.raises(DatasetError, match="no row of split 'val'"):
        open_dataset("frames", rig.root, "val")


@pytest.fixture
def own_reader(tmp_path) -> Path:
    """The example of docs/own_dataset.md, and data for it."""
    (tmp_path / "my_rig.py").write_text(example("own_dataset.md", "python"))
    folder = tmp_path / "data/train"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(2):
        np.save(folder / f"{number}.npy", rng.uniform([1, -9, -3, 0], [30, 9, 3, 255], (300, 4)))
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    calibration = look_along_x()
    projection = (calibration.intrinsics @ calibration.cam_from_lidar[:3]).tolist()
    (tmp_path / "data/projection.json").write_text(json.dumps(projection))
    return tmp_path


def test_a_reader_of_ones_own(own_reader, monkeypatch):
    """From the folder it lies in, as the docs say, in a process of its own: none else has it imported already."""
    executable = str(Path(sys.executable).with_name("scalr"))
    data = ("--dataset", "my_rig:MyRig", "--root", "data")
    done = subprocess.run([executable, "check", *data], cwd=own_reader, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "my_rig train: 2 frames, 2 views" in done.stdout
    monkeypatch.undo()  # a real teacher
    monkeypatch.chdir(own_reader)
    teacher = ("--teacher", "dinov2_vits14", "--weights", "random", "--image-size", "28x56", "--batch-size", "6")
    assert "my_rig train; 2 frames, 2 views" in scalr("extract", *teacher, *data).output
    assert scalr("verify", "store.zarr", "--sample", "2").exit_code == 0


def test_points_of_one_s_own_reader_are_checked(own_reader, monkeypatch):
    monkeypatch.chdir(own_reader)
    np.save(own_reader / "data/train/1.npy", np.full((5, 4), np.nan))
    result = scalr(*EXTRACT, "--dataset", "my_rig:MyRig", "--root", "data")
    assert result.exit_code == 1
    assert "data/train/1.npy: 5 of 5 points are not finite" in result.stderr


def test_probing_without_classes_is_said(rig):
    (rig.root / "dataset.yaml").unlink()
    with pytest.raises(DatasetError, match="the dataset has no classes"):
        open_dataset("frames", rig.root, "train", need="labels")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:Reader", "No module named 'nowhere_at_all'"),
        ("scalr.errors:Reader", "has no attribute 'Reader'"),
        ("pathlib:PurePath", "has no attribute 'split'"),
    ],
)
def test_a_reader_that_is_none(rig, name, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(name, rig.root, "train")
