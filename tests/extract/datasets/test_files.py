from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import (
    checked_points,
    file_of,
    numbered_files,
    read_bytes,
    read_image,
    read_image_file,
    read_image_shape,
    read_json,
    read_raw_labels,
    read_scan,
)
from scalr.extract.datasets.frame import Frame, View
from tiny import look_along_x


@pytest.mark.parametrize("columns", [4, 5])
def test_a_scan_is_its_first_four_columns(tmp_path, columns):
    values = np.arange(3 * columns, dtype=np.float32).reshape(3, columns)
    values.tofile(tmp_path / "s.bin")
    found = read_scan(tmp_path / "s.bin", columns)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values[:, :4])


@pytest.mark.parametrize(("size", "columns"), [(0, 4), (17, 4), (12, 4), (16, 5)])
def test_a_scan_that_is_no_whole_number_of_points_is_said(tmp_path, size, columns):
    (tmp_path / "s.bin").write_bytes(bytes(size))
    message = rf"s\.bin: {size} bytes are not a whole number of points \({4 * columns} bytes each\)"
    with pytest.raises(DatasetError, match=message):
        read_scan(tmp_path / "s.bin", columns)


def test_one_point_is_a_scan(tmp_path):
    (tmp_path / "s.bin").write_bytes(bytes(16))
    assert read_scan(tmp_path / "s.bin", 4).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(12,), (0, 4), (3, 3), (2, 3, 4)])
def test_what_is_no_scan_is_said(shape):
    with pytest.raises(
        DatasetError,
        match=r"a\.bin: the scan has shape \(.*\), not \(N, 4\): x, y, z and intensity of one point or more",
    ):
        checked_points(np.zeros(shape), Path("a.bin"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(4))
def test_points_that_are_not_finite_are_counted(value, column):
    points = np.zeros((5, 5))
    points[[1, 3], column] = value
    with pytest.raises(DatasetError, match=r"a\.bin: 2 of 5 points are not finite"):
        checked_points(points, Path("a.bin"))


def test_what_is_not_used_may_be_anything():
    points = np.ones((2, 5))
    points[:, 4] = np.nan
    np.testing.assert_array_equal(checked_points(points, Path("a.bin")), np.ones((2, 4)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_labels_have_the_dataset_s_own_width(tmp_path, dtype):
    values = np.array([0, 1, np.iinfo(dtype).max], dtype)
    values.tofile(tmp_path / "s.label")
    found = read_raw_labels(tmp_path / "s.label", dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(("size", "each"), [(0, 4), (5, 4), (0, 1)])
def test_a_label_file_that_is_cut_is_said(tmp_path, size, each):
    (tmp_path / "s.label").write_bytes(bytes(size))
    with pytest.raises(DatasetError, match=rf"{size} bytes are not a whole number of labels \({each} bytes each\)"):
        read_raw_labels(tmp_path / "s.label", np.uint32 if each == 4 else np.uint8)


@pytest.fixture
def picture(tmp_path) -> np.ndarray:
    """Of 5 x 7 pixels, in a file `a.png` of the folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return pixels


def a_view(image_shape: tuple[int, int] | None, image: str = "a.png") -> View:
    return View(camera="c", image=image, image_shape=image_shape, calibration=look_along_x())


@pytest.mark.parametrize("image_shape", [None, (5, 7), [5, 7]])
def test_an_image_is_its_pixels_and_its_file_s_digest(tmp_path, picture, image_shape):
    pixels, digest = read_image_file(tmp_path, a_view(image_shape))
    np.testing.assert_array_equal(pixels, picture)
    np.testing.assert_array_equal(read_image(tmp_path, a_view(image_shape)), picture)
    assert digest == hashlib.sha256((tmp_path / "a.png").read_bytes()).digest()


def test_an_image_without_colours_is_read_as_one_with_them(tmp_path):
    Image.fromarray(np.full((5, 7), 9, np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path, a_view(None)), np.full((5, 7, 3), 9))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_are_scaled_to_8(tmp_path, mode):
    values = np.arange(0, 65536, 257 * 3 + 1, dtype=np.uint16)[:84].reshape(7, 12)
    if mode == "I":
        Image.fromarray(values.astype(np.int32)).save(tmp_path / "a.tif")
    else:
        dtype = values.astype(">u2") if mode == "I;16B" else values
        Image.frombytes(mode, (12, 7), dtype.tobytes()).save(tmp_path / "a.tif")
    found = read_image(tmp_path, a_view(None, "a.tif"))
    assert found.dtype == np.uint8
    assert np.abs(found - values[..., None] / 257).max() <= 0.5


@pytest.mark.parametrize("values", [np.full((5, 7), 0.5, np.float32), np.full((5, 7), 70_000, np.int32)])
def test_pixels_of_no_known_scale_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match=r"a\.tif: the pixels are .*, not 8 or 16 bits per channel"):
        read_image(tmp_path, a_view(None, "a.tif"))


def test_palettes_and_transparent_pixels_keep_their_colours(tmp_path, picture):
    Image.fromarray(np.dstack([picture, np.full((5, 7), 3, np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path, a_view(None)), picture)
    Image.fromarray(picture).quantize(64).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path, a_view(None)), picture)


def test_pixels_are_taken_as_they_are_stored_unless_the_calibration_is_for_turned_ones(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path, a_view((5, 7))), picture)
    with pytest.raises(DatasetError, match=r"stored as 5x7 pixels, .* as EXIF turns it \(orientation 6\)"):
        read_image(tmp_path, a_view((7, 5)))


def test_an_image_with_a_wrong_checksum_is_refused(tmp_path, picture):
    """Decoding passes over it."""
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.png: the image cannot be decoded"):
        read_image(tmp_path, a_view(None))


@pytest.mark.parametrize("image_shape", [(5, 8), (4, 7), (7, 5)])
def test_an_image_of_another_size_than_its_calibration_s_is_said(tmp_path, picture, image_shape):
    height, width = image_shape
    with pytest.raises(
        DatasetError, match=rf"a\.png: the image is 5x7 pixels, its calibration is for {height}x{width}"
    ):
        read_image(tmp_path, a_view(image_shape))


def test_an_image_s_size_is_that_of_its_calibration_or_else_its_file_s(tmp_path, picture):
    assert read_image_shape(tmp_path, a_view(None)) == (5, 7)
    assert read_image_shape(tmp_path, a_view((900, 1600), "nowhere.png")) == (900, 1600)  # no file is opened
    with pytest.raises(DatasetError, match=r"nowhere\.png: the file is missing"):
        read_image_shape(tmp_path, a_view(None, "nowhere.png"))


@pytest.mark.parametrize("content", [b"", b"GIF89a not a picture"])
@pytest.mark.parametrize("read", [read_image, read_image_shape])
def test_what_is_no_image_is_said_without_addresses(tmp_path, content, read):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.png: the image cannot be decoded \(") as caught:
        read(tmp_path, a_view(None))
    assert "0x" not in str(caught.value)


def test_json_is_parsed_or_its_place_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"lat": 37.5}')
    assert read_json(tmp_path / "a.json") == {"lat": 37.5}
    (tmp_path / "a.json").write_text('{"lat": 37.5')
    with pytest.raises(DatasetError, match=r"a\.json: the file is not valid JSON \(.*column 13"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["nowhere.bin", "file/below.bin"])
def test_a_missing_file_is_said(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=rf"{name}: the file is missing\. Check the path"):
        read_bytes(tmp_path / name)


def test_a_folder_in_place_of_a_file_is_said(tmp_path):
    with pytest.raises(DatasetError, match=r"a folder has the name of this file\. Put the file in its place"):
        read_bytes(tmp_path)


def test_what_the_system_refuses_to_read_is_said(tmp_path):
    with pytest.raises(DatasetError, match=rf"the file cannot be read \({os.strerror(errno.ENAMETOOLONG)}\)"):
        read_bytes(tmp_path / ("a" * 300))


def test_numbered_files_are_those_whose_name_is_a_number(tmp_path):
    for name in ("000017.bin", "3.bin", "000017.label", "._000017.bin", "x1.bin", "000018.bin.part", ".bin", "²3.bin"):
        (tmp_path / name).touch()
    assert numbered_files(tmp_path, ".bin") == {"000017": ".bin", "3": ".bin"}
    assert numbered_files(tmp_path, ".label") == {"000017": ".label"}
    assert numbered_files(tmp_path, ".label", ".bin") == {"000017": ".label", "3": ".bin"}
    assert numbered_files(tmp_path, ".bin", ".label") == {"000017": ".bin", "3": ".bin"}
    assert numbered_files(tmp_path / "nowhere", ".bin") == {}
    (tmp_path / "5.JPG").touch()
    assert numbered_files(tmp_path, ".png", ".jpg") == {"5": ".JPG"}


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """A dataset's folder beside others, one of them the home folder, one named by a variable."""
    for name in ("root/a", "home", "images", "other"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IMAGES", str(tmp_path / "images"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a/0.bin", "root/a/0.bin"),
        ("./a/../0.bin", "root/0.bin"),
        ("~/0.bin", "home/0.bin"),
        ("$IMAGES/b/0.png", "images/b/0.png"),
        ("${IMAGES}/0.png", "images/0.png"),
        ("{places}/root/a/0.bin", "root/a/0.bin"),
        ("a..b/0.bin", "root/a..b/0.bin"),
    ],
)
def test_a_table_names_files_below_its_folder_or_one_that_the_user_named(places, name, file):
    assert file_of(places / "root", name.replace("{places}", str(places))) == places / file


@pytest.mark.parametrize("name", ["../other/0.bin", "{places}/other/0.bin", "a/../../other/0.bin", "~/../other/0.bin"])
def test_a_path_that_leaves_its_folder_is_refused_unless_it_is_allowed(places, monkeypatch, name):
    name = name.replace("{places}", str(places))
    with pytest.raises(
        DatasetError, match=r"leads out of the folder\. Put or link the file below this folder, .* SCALR_FOLDERS"
    ):
        file_of(places / "root", name)
    monkeypatch.setenv("SCALR_FOLDERS", os.pathsep.join(["~/elsewhere", str(places / "oth")]))
    with pytest.raises(DatasetError, match="leads out of the folder"):
        file_of(places / "root", name)
    monkeypatch.setenv("SCALR_FOLDERS", os.pathsep.join([str(places / "images"), "~/../other"]))
    assert file_of(places / "root", name) == places / "other/0.bin"


def test_links_lead_where_whoever_made_them_wants(places):
    (places / "root/linked").symlink_to(places / "other")
    (places / "other/0.bin").write_bytes(b"7")
    assert file_of(places / "root", "linked/0.bin").read_bytes() == b"7"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s3://b/0.bin", "URLs are not read or written"),
        ("a\0b", "the path holds a NUL character"),
        ("$NOWHERE/0.bin", "'NOWHERE' is not set"),
    ],
)
def test_what_is_no_path_is_refused(places, name, message):
    with pytest.raises(DatasetError, match=message):
        file_of(places / "root", name)


@pytest.mark.parametrize("name", ["nuscenes", "frames"])
def test_readers_look_at_no_file_outside(name, simulated, tmp_path):
    """Of nuScenes' tables and of frames.parquet alike, whatever would be read."""
    outside = Frame(dataset=name, scene="s", token="t", timestamp=0, scan="../a.bin", labels="../a.bin", views=())
    if name == "nuscenes":
        dataset = open_dataset(name, simulated("nuscenes"), "train")
    else:
        columns = {"scene": "s", "token": "t", "timestamp": 0, "scan": "a.bin"}
        pq.write_table(pa.Table.from_pylist([columns]), tmp_path / "frames.parquet")
        dataset = open_dataset(name, tmp_path, "train")
    for read in (dataset.read_points, dataset.read_labels):
        with pytest.raises(DatasetError, match=r"'\.\./a\.bin' leads out of the folder"):
            read(outside)
    with pytest.raises(DatasetError, match=r"'/a\.png' leads out of the folder"):
        read_image(dataset.root, View(camera="c", image="/a.png", calibration=look_along_x()))
