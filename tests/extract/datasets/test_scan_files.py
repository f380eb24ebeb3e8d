"""Scans of each ending, whole and broken; what libraries read is compared with bytes that are laid out here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets.scan_files import read_scan_file

SCAN = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
TEXT = "".join(" ".join(f"{value:.9g}" for value in point) + "\n" for point in SCAN).encode()
COLOURED = np.rec.fromarrays([*SCAN.T, np.arange(9, dtype=np.uint8)], dtype="f4,f4,f4,f4,u1").tobytes()


def pcd(encoding: str, fields: str = "x y z intensity", points: int = len(SCAN)) -> bytes:
    """A header as the Point Cloud Library writes it."""
    lines = (
        *("# .PCD v0.7", "VERSION 0.7", f"FIELDS {fields}", "SIZE 4 4 4 4", "TYPE F F F F", "COUNT 1 1 1 1"),
        *(f"WIDTH {points}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {points}", f"DATA {encoding}", ""),
    )
    return "\n".join(lines).encode()


def ply(form: str, fields: str = "x y z scalar_Intensity", more: str = "", points: int = len(SCAN)) -> bytes:
    properties = "".join(f"property float {name}\n" for name in fields.split())
    return f"ply\nformat {form} 1.0\nelement vertex {points}\n{properties}{more}end_header\n".encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pcd", pcd("ascii") + TEXT),
        ("a.pcd", pcd("binary") + SCAN.tobytes()),
        ("A.PCD", pcd("binary", "x y z reflectivity") + SCAN.tobytes()),
        ("a.ply", ply("ascii", "x y z intensity") + TEXT),
        ("a.ply", ply("binary_little_endian", more="property uchar red\n") + COLOURED),
        ("a.ply", ply("binary_big_endian", "x y z i") + SCAN.astype(">f4").tobytes()),
        ("a.bin", SCAN.tobytes()),
        ("a.pcd.bin", np.hstack([SCAN, SCAN[:, :1]]).tobytes()),
    ],
    ids=["PCD text", "PCD", "other names", "PLY text", "PLY with colours", "PLY big-endian", "KITTI", "nuScenes"],
)
def test_points_come_with_their_intensities(tmp_path, name, content):
    if name.lower().endswith((".pcd", ".ply")):
        pytest.importorskip("pypcd4" if "pcd" in name.lower() else "trimesh", reason="an extra: scans")
    (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(read_scan_file(tmp_path / name)[:, :4], SCAN)


def test_compressed_pcd_is_read(tmp_path):
    pypcd4 = pytest.importorskip("pypcd4", reason="an extra: scans")
    pypcd4.PointCloud.from_xyzi_points(SCAN).save(tmp_path / "a.pcd", pypcd4.Encoding.BINARY_COMPRESSED)
    np.testing.assert_array_equal(read_scan_file(tmp_path / "a.pcd"), SCAN)


def test_arrays_with_named_fields_are_read_by_name(tmp_path):
    fields = [("ring", "u2"), ("Intensity", "u1"), ("z", "f8"), ("y", "f4"), ("x", "f4")]
    scan = np.zeros(3, dtype=fields)
    scan["x"], scan["y"], scan["z"], scan["Intensity"] = [1, 2, 3], 4, 5, 200
    np.save(tmp_path / "a.npy", scan)
    np.testing.assert_array_equal(read_scan_file(tmp_path / "a.npy"), [[1, 4, 5, 200], [2, 4, 5, 200], [3, 4, 5, 200]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            b"1 2 3 4",
            r"scans with the suffix '\.txt' cannot be read\. Write the scan as one of: \.pcd\.bin, \.bin",
        ),
        (
            "a.pcd",
            pcd("binary") + SCAN[:-1].tobytes(),
            "the fields of the scan do not have a number for each of the 9 points",
        ),
        ("a.pcd", pcd("binary") + SCAN.tobytes()[:-3], "the file cannot be read as PCD"),
        ("a.pcd", SCAN.tobytes(), "the file cannot be read as PCD"),
        (
            "a.pcd",
            pcd("binary", "x y z rgb") + SCAN.tobytes(),
            r"the scan has no field 'intensity' \(it has: x, y, z, rgb\)",
        ),
        (
            "a.pcd",
            pcd("binary", "x y i intensity") + SCAN.tobytes(),
            r"the scan has no field 'z' \(it has: x, y, i, intensity\)",
        ),
        ("a.ply", ply("binary_little_endian") + SCAN.tobytes()[:-16], "the file cannot be read as PLY"),
        (
            "a.ply",
            ply("ascii") + TEXT[: TEXT.rindex(b" ")],
            "the fields of the scan do not have a number for each of the 9 points",
        ),
        ("a.ply", b"ply", "the file cannot be read as PLY"),
    ],
)
def test_what_is_no_scan_is_said(tmp_path, name, content, message):
    if not name.endswith(".txt"):
        pytest.importorskip("pypcd4" if "pcd" in name else "trimesh", reason="an extra: scans")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{name}: {message}"):
        read_scan_file(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (SCAN[:, :3], r"\(9, 3\) and dtype float32"),
        (SCAN[None], r"\(1, 9, 4\) and dtype float32"),
        (SCAN.astype("U9"), r"\(9, 4\) and dtype <U9"),
        (np.tile(SCAN.T, 8), r"\(4, 72\) and dtype float32"),
        (SCAN > 0, r"\(9, 4\) and dtype bool"),
    ],
)
def test_arrays_of_another_form_are_said(tmp_path, array, found):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(
        DatasetError, match=rf"a\.npy: the scan has shape {found}, not \(N, 4\) numbers\. Write \(N, 4\) numbers"
    ):
        read_scan_file(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("ending", "package", "module"), [("pcd", "pypcd4", "pypcd4"), ("ply", "trimesh", "trimesh.exchange.ply")]
)
def test_without_its_package_the_extra_is_named(tmp_path, monkeypatch, ending, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    path = Path(tmp_path / f"a.{ending}")
    path.touch()
    with pytest.raises(
        DatasetError, match=rf"{package}, which reads scans of this format, is not installed.*scalr-distill\[scans\]"
    ):
        read_scan_file(path)
