from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.export import exported_input
from scalr.distill.backbones.waffleiron.inputs import Plane, WaffleIronInputs
from scalr.distill.export import export_student
from scalr.distill.student import Student
from scalr.errors import StudentError
from scalr.extract.intensity import IntensityStatistics
from standardised import standardisation_of, vectors_of

WIDTH, OUT = 8, 6
CONFIG = WaffleIronInputs(planes=[Plane((0, 1), (32, 32)), Plane((1, 2), (32, 8))])


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "standardise"), [("batch", "none"), ("layer", "phi_s")])
def test_an_exported_student_gives_the_same_for_any_scan_without_scalr(tmp_path, norm, standardise):
    torch.manual_seed(0)
    student = Student(WaffleIronConfig(width=WIDTH, depth=3, norm=norm, out_channels=OUT), CONFIG).eval()
    student.standardisation = standardisation_of(standardise, vectors_of(4, 0), vectors_of(2, 1))
    export_student(student, tmp_path / "student.pt2")
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module();"
        "torch.save([program(*inputs) for inputs in torch.load(sys.argv[2])], sys.argv[3])"
    )
    rng = np.random.default_rng(0)
    clouds = [np.hstack([rng.uniform(-60, 60, (n, 3)) / [1, 1, 8], np.ones((n, 1))]) for n in (2, 17, 300)]
    scans = [CONFIG.prepare(points.astype(np.float32), IntensityStatistics(0.0, 1.0)).input for points in clouds]
    torch.save([exported_input(scan, CONFIG) for scan in scans], tmp_path / "inputs")
    files = [str(tmp_path / name) for name in ("student.pt2", "inputs", "outputs")]
    subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=tmp_path)
    (points,) = torch.export.load(tmp_path / "student.pt2").range_constraints.values()
    assert (points.lower, points.upper) == (2, 1_000_000)
    for scan, (tokens, head) in zip(scans, torch.load(tmp_path / "outputs"), strict=True):
        expected = student.tokens(CONFIG.pack([scan]))
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(head, student.project(expected), rtol=1e-4, atol=1e-5)


def test_what_is_read_of_a_scan_is_its_features_neighbours_and_cells_by_number():
    """A cell's number on whole planes: row times columns plus column."""
    points = np.array([[-63, 1, 0, 2], [63, 62, -7, 3], [0, 0, 7, 4], [1, 2, 3, 5]], np.float32)
    scan = CONFIG.prepare(points, IntensityStatistics(0.0, 1.0)).input
    features, neighbours, cells = exported_input(scan, CONFIG)
    np.testing.assert_array_equal(features, scan.features)
    np.testing.assert_array_equal(neighbours, scan.neighbours)
    expected = [scan.cells[0][:, 0] * 32 + scan.cells[0][:, 1], scan.cells[1][:, 0] * 8 + scan.cells[1][:, 1]]
    np.testing.assert_array_equal(cells, expected)
    assert (cells.dtype, neighbours.dtype) == (torch.int64, torch.int64)


def test_a_file_that_cannot_be_written_is_said_and_the_one_before_stays(tmp_path):
    (tmp_path / "file").touch()
    student = Student(WaffleIronConfig(width=WIDTH, depth=1, out_channels=OUT), CONFIG).eval()
    with pytest.raises(StudentError, match="cannot be written"):
        export_student(student, tmp_path / "file/student.pt2")
