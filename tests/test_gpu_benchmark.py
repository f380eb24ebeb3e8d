"""`make gpu`: everything but the figures, on a CPU; and the tables of docs/performance.md are those of its last run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from doc_examples import DOCS
from scalr.distill.backbones.waffleiron import network
from scalr.distill.backbones.waffleiron.inputs import voxel_representatives
from scalr.errors import TeacherError

BENCHMARKS = Path(__file__).parent / "benchmarks"
# Behind all else, and for a moment: `encodings.py` there must not hide Python's own from processes of other tests.
sys.path.append(str(BENCHMARKS))
import gpu
import gpu_figures
from simulated_store import CAMERAS, IMAGE_SHAPE, LIDAR_HEIGHT_M, pairs_of_camera, simulated_scan

sys.path.remove(str(BENCHMARKS))

# In place of the official model: it takes the official tensors and the official arguments, and gives (B, D, N).
OFFICIAL = """
import torch

class Segmenter(torch.nn.Module):
    def __init__(self, channels, width, classes, depth, shapes, layer_norm):
        super().__init__()
        self.shapes, self.first, self.last = shapes, torch.nn.Linear(channels, width), torch.nn.Linear(width, classes)

    def load_state_dict(self, tensors):
        for layer, name in ((self.first, "embed.conv1"), (self.last, "classif")):
            layer.load_state_dict({"weight": tensors[f"{name}.weight"][..., 0], "bias": tensors[f"{name}.bias"]})

    def forward(self, features, cells, real, neighbours):
        assert neighbours.shape == (len(features), 17, features.shape[2]) and real.max() == 1
        assert all(cells[:, p].max() < rows * columns for p, (rows, columns) in enumerate(self.shapes))
        return self.last(self.first(features.transpose(1, 2))).transpose(1, 2)
"""
# Hides packages, and an installed scalr, from a Python and from those that it starts.
BARE = """
import sys

HIDDEN = "zarr numcodecs google_crc32c dask distributed nuscenes scipy cv2 click matplotlib pandas psutil tensorboard"

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in HIDDEN.split() else self.finder.find_spec(name, *rest)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(each) for each in sys.meta_path if "editable" not in repr(each)]
"""


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Iterator[gpu.Benchmark]:
    """On the CPU, in the smallest sizes, beside a stand-in for the official model."""
    peer = tmp_path_factory.mktemp("peer")
    (peer / "waffleiron.py").write_text(OFFICIAL)
    path = list(sys.path)
    yield gpu.Benchmark(gpu.QUICK, torch.device("cpu"), tmp_path_factory.mktemp("store"), peer)
    sys.path[:] = path
    sys.modules.pop("waffleiron", None)


def with_figures(benchmark: gpu.Benchmark, *kinds: str) -> gpu.Benchmark:
    """Without those for which torch loads its compiler, or starts a worker: the slow test has them."""
    of_kinds = [figure for figure in benchmark.sizes.figures if figure.kind in kinds]
    wanted = tuple(figure for figure in of_kinds if "compiled" not in figure.settings and figure.settings != (1,))
    return gpu.Benchmark(
        dataclasses.replace(benchmark.sizes, figures=wanted), benchmark.device, benchmark.folder, benchmark.peer
    )


def results_of(figures: dict) -> dict:
    machine = {"device": "a G1", "cuda": "13.0", "cores": 16, "torch": "2.13", "numpy": "2.5", "python": "3.12"}
    machine |= {"points_of_step": 23456, "points_of_scan": 17483}
    return {"quick": False, "seconds": 480.0, "machine": machine, "figures": figures}


def row(tables: str, *begin: str) -> list[str]:
    """The cells of the only row that begins so."""
    (line,) = [line for line in tables.splitlines() if line.startswith(f"| {' | '.join(begin)} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][len(begin) :]


def test_the_page_has_the_tables_of_the_last_run():
    results = json.loads(gpu_figures.RESULTS.read_text()) if gpu_figures.RESULTS.exists() else None
    page = (DOCS / "performance.md").read_text()
    assert gpu_figures.tables(results) in page
    assert gpu_figures.with_tables(page, results) == page


def test_tables_say_what_was_measured_what_was_not_and_why():
    figures = {
        "teacher dinov2_vitl14 bfloat16 64 eager": {"images_per_second": 500.0, "peak_gb": 2.0},
        "teacher dinov2_vitl14 bfloat16 256 eager": {"images_per_second": 1000.0, "peak_gb": 3.0},
        "teacher dinov2_vitl14 bfloat16 256 compiled": {"not_measured": "failed: InductorError"},
        "step scalr_wi256 bfloat16 eager": {"seconds": 0.1, "peak_gb": 4.567, "points": 100_000},
        "step scalr_wi256 bfloat16 compiled": {"not_measured": "out of time"},
        "beside step scalr_wi256 float32": {
            "seconds": 0.2, "peak_gb": 3.0, "official_seconds": 0.5, "official_peak_gb": 12.0},
        "beside scan scalr_wi768 float32": {
            "seconds": 0.2, "peak_gb": 3.0, "official_not_measured": "out of memory"},
        "beside scan scalr_wi256 bfloat16": {
            "seconds": 0.2, "peak_gb": 3.0, "official_seconds": 0.5, "official_peak_gb": 12.0, "difference": 0.0123},
        "profile scalr_wi768": {"shares": [["aten::mm", 0.625], ["aten::add", 0.125]]},
        "wait 4": {"steps_per_second": 9.876, "share": 0.0312},
        "parity scalr_wi768": {"float32": [2e-7, 3e-7], "bfloat16": [0.004, 0.02], "passed": True},
    }  # fmt: skip
    tables = gpu_figures.tables(results_of(figures))
    assert "a G1 with 16 CPU cores" in tables
    assert "8.0 minutes" in tables
    not_yet = "not run yet"
    # 336 billion operations an image; 46.4 million a point.
    expected = [not_yet, "500", "1,000", "failed: InductorError", "336", "0.05 hours"]
    assert row(tables, "`dinov2_vitl14`", "bfloat16") == expected
    assert row(tables, "`dinov2_vits14`", "float32") == [not_yet] * 6
    assert row(tables, "`scalr_wi256`", "bfloat16", "100.0 ms, 4.57 GB") == ["46.4", "2.44 hours", "out of time"]
    assert row(tables, "`scalr_wi256`, step", "float32") == [
        "200.0 ms, 3.00 GB", "500.0 ms, 12.00 GB", "2.5 times faster, 0.25 of the memory", "–"]  # fmt: skip
    assert row(tables, "`scalr_wi768`, scan", "float32") == ["200.0 ms, 3.00 GB", "out of memory", "–", "–"]
    assert row(tables, "`scalr_wi256`, scan", "bfloat16")[-1] == "1.2e-02"
    assert "| `scalr_wi768` | `aten::mm` 62%, `aten::add` 12% |" in tables
    assert row(tables, "4") == ["9.88", "3.1%"]
    assert row(tables, "`scalr_wi768`", "bfloat16", "4.0e-03") == ["2.0e-02", "0.05, 0.5"]


def test_figures_of_a_cpu_do_not_get_into_the_page(tmp_path, monkeypatch, capsys):
    page = tmp_path / "performance.md"
    page.write_text(before := (DOCS / "performance.md").read_text())
    monkeypatch.setattr(gpu_figures, "PAGE", page)
    monkeypatch.setattr(gpu_figures, "RESULTS", tmp_path / "gpu.json")
    written, results = tmp_path / "run.json", results_of({"wait 0": {"steps_per_second": 1.0, "share": 0.5}})
    monkeypatch.setattr(sys, "argv", ["gpu_figures.py", str(written)])
    for refused in (results | {"quick": True}, results | {"machine": results["machine"] | {"cuda": None}}):
        written.write_text(json.dumps(refused))
        with pytest.raises(SystemExit):
            gpu_figures.main()
        assert "no figures of a GPU" in capsys.readouterr().err
        assert (page.read_text(), (tmp_path / "gpu.json").exists()) == (before, False)
    written.write_text(json.dumps(results))
    gpu_figures.main()
    assert row(page.read_text(), "0") == ["1.00", "50.0%"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == results


def test_every_kind_of_figure_of_students_is_measured(benchmark, tmp_path):
    bench, saved = with_figures(benchmark, "step", "scan", "beside", "profile", "wait"), []
    results = gpu.measure_all(bench, quick=True, save=lambda each: saved.append(json.dumps(each)))
    assert list(results["figures"]) == [figure.key for figure in bench.sizes.figures]
    assert [len(json.loads(each)["figures"]) for each in saved] == list(range(1, 1 + len(results["figures"])))
    planned = {figure.key for figure in gpu_figures.figures()}
    assert set(results["figures"]) <= planned
    for key, figure in results["figures"].items():
        assert "not_measured" not in figure, key
        assert all(value is None or value >= 0 for name, value in figure.items() if name != "shares"), key
    shares = dict(results["figures"]["profile scalr_wi256"]["shares"])
    assert 0.5 < sum(shares.values()) <= 1
    assert any("mm" in name for name in shares)  # of linear layers
    assert gpu.faults(results) == []
    gpu.written_whole(tmp_path / "gpu.json", results)
    tables = gpu_figures.tables(json.loads((tmp_path / "gpu.json").read_text()))
    assert tables.count("not run yet") < gpu_figures.tables(None).count("not run yet")
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_a_student_that_computes_something_else_here_is_a_fault(benchmark, monkeypatch):
    bench, mix = with_figures(benchmark, "parity"), network._OccupiedCells.mix
    (figure,) = [each for each in bench.sizes.figures if each.settings == ("scalr_plus",)]
    found = bench.measure(figure)
    assert found["passed"]
    assert found["float32"][0] < 1e-6 < found["bfloat16"][0]

    def wrong(self, rows: torch.Tensor, ffn) -> torch.Tensor:
        return mix(self, rows, ffn) * (1.01 if rows.dtype == torch.float32 else 1)

    monkeypatch.setattr(network._OccupiedCells, "mix", wrong)
    results = {"figures": {figure.key: bench.measure(figure)}}
    assert gpu.faults(results) == [figure.key]


def test_a_figure_that_fails_costs_no_other_and_none_is_begun_too_late(benchmark, monkeypatch):
    bench = with_figures(benchmark, "scan", "wait")

    def measure_scan(self, student: str, precision: str) -> dict:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(gpu.Benchmark, "measure_scan", measure_scan)
    monkeypatch.setattr(gpu.Benchmark, "measure_wait", lambda self, workers: {"share": 0.5})
    monkeypatch.setattr(gpu, "machine", lambda bench: {})
    failed, waited = gpu.measure_all(bench)["figures"].items()
    assert failed[1] == {"not_measured": "failed: RuntimeError"}
    assert waited[1] == {"share": 0.5}
    assert gpu.faults({"figures": dict([failed, waited])}) == [failed[0]]

    def too_large(self, workers: int) -> dict:
        try:
            raise torch.OutOfMemoryError
        except torch.OutOfMemoryError:
            raise TeacherError("64 images do not fit", where="a", fix="Pass a smaller --batch-size.") from None

    monkeypatch.setattr(gpu.Benchmark, "measure_wait", too_large)
    assert gpu.measure_all(bench, ["wait"])["figures"] == {"wait 0": {"not_measured": "out of memory"}}
    late = gpu.measure_all(bench, minutes=0)
    assert {figure["not_measured"] for figure in late["figures"].values()} == {"out of time"}
    assert gpu.faults(late) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "device 'cuda' cannot be used here" in last
    assert list(tmp_path.iterdir()) == []


def test_simulated_scans_have_the_sizes_of_nuscenes():
    """Its keyframes: 34,688 points, 17,483 after voxels and crop, some 3,700 pairs in a camera."""
    points = simulated_scan(np.random.default_rng(0))
    assert 30_000 < len(points) <= 34_688
    assert points[:, 2].min() > -LIDAR_HEIGHT_M - 0.1
    assert 15_000 < len(voxel_representatives(points[:, :3], 0.1)) < 22_000
    pairs = [pairs_of_camera(points, camera) for camera in range(CAMERAS)]
    assert all(3_000 < len(index) < 4_700 for index, _ in pairs)
    for index, pixel in pairs:
        assert (pixel < IMAGE_SHAPE).all()
        # What is higher at the same place is higher in the image.
        up = points[index] + [0, 0, 0.05, 0]
        assert (pairs_of_camera(up, 0)[1].shape[1], len(pixel)) == (2, len(index))
    ahead, pixel = pairs[0]
    assert (points[ahead, 0] > 1).all()
    left = points[ahead, 1] > 0.1
    assert (pixel[left, 1] <= IMAGE_SHAPE[1] / 2).all()


@pytest.mark.slow
def test_it_runs_from_a_checkout_without_zarr_dask_the_devkit_and_an_installation(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BARE)
    (tmp_path / "waffleiron.py").write_text(OFFICIAL)
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--quick", "--peer", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results["figures"]) == [figure.key for figure in gpu.QUICK.figures]
    assert "| `dinov2_vits14` | float32 |" in done.stdout


@pytest.mark.parametrize("option", ["--peer", "--out"])
def test_what_would_fail_after_minutes_is_said_at_once(tmp_path, monkeypatch, capsys, option):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick", option, str(tmp_path / "none" / "x")])
    with pytest.raises(SystemExit):
        gpu.main()
    assert f"error: {option} {tmp_path}" in capsys.readouterr().err
