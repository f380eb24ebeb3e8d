"""`scalr predict`: the same predictions as scoring, in files that other libraries read, whatever the scans' form."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from click.testing import CliRunner

import scalr
from doc_examples import DOCS, example
from in_children import predict_in_child
from moments import Child
from scalr.cli import main
from scalr.distill.backbones.calls import inputs_for
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import save_student
from scalr.distill.student import Student
from scalr.errors import ScalrError
from scalr.evaluate import predict as predict_module
from scalr.evaluate.model import Model, save_model, with_class_head
from scalr.evaluate.predict import PredictConfig, predict
from scalr.evaluate.prediction_files import ClassFiles, FeatureFiles
from scalr.evaluate.raw_scans import Reading
from scalr.evaluate.score import ScoreConfig, score_model
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.nuscenes import LABELS as NUSCENES
from scalr.extract.datasets.pandaset import LABELS as PANDASET
from scalr.extract.datasets.semantic_kitti import LABELS as KITTI
from scalr.extract.intensity import INTENSITY_STATISTICS, IntensityStatistics
from scalr.folder_lock import CLAIM

LABELS = {"nuscenes": NUSCENES, "semantic_kitti": KITTI, "pandaset_64": PANDASET}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> SimpleNamespace:
    """A student, and for each dataset a model with random weights that says that it was trained on it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    student = Student(WaffleIronConfig(width=8, depth=3, out_channels=4))
    save_student(student, folder / "student.safetensors", {})
    for name, labels in LABELS.items():
        model = with_class_head(student, len(labels.class_names), inputs_for(student.input_config, name))
        torch.nn.init.normal_(model.classif[1].weight)
        path = folder / f"{name}.safetensors"
        save_model(
            model, path, labels.class_names, {"finetuning": {"training_dataset": name, "training_split": "train"}}
        )
    return SimpleNamespace(
        student=folder / "student.safetensors", **{name: folder / f"{name}.safetensors" for name in LABELS}
    )


def a_scan(seed: int, highest: float = 255.0, num_points: int = 200) -> np.ndarray:
    """(N, 4) float32, as of a lidar."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform([-30, -30, -2], [30, 30, 4], (num_points, 3))
    return np.hstack([xyz, highest * rng.beta(1, 8, (num_points, 1))]).astype(np.float32)


@pytest.fixture
def scans(tmp_path) -> Path:
    """A folder of three scans, two of them of one name in folders of their own."""
    folder = tmp_path / "scans"
    for number, name in enumerate(("00/000000.bin", "01/000000.bin", "01/000001.bin")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        a_scan(number, highest=1.0).tofile(folder / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Result files by their names, and whatever a killed run has left, but for what is of the folder's lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("scans.jsonl", "predict.json") and CLAIM not in path.name
    }


def test_predictions_are_those_of_scoring(simulated, models, tmp_path):
    """File by file, for the benchmark's own ids of SemanticKITTI; several scans in a batch."""
    root = simulated("semantic_kitti")
    config = {"model": models.semantic_kitti, "root": root, "dataset": "semantic_kitti", "predictions": True}
    score_model(ScoreConfig(**config, out=tmp_path / "scored"))
    scans = (root / "**/08/velodyne",)
    summary = predict(PredictConfig(model=models.semantic_kitti, scans=scans, out=tmp_path / "p"))
    scored = {path.name: path.read_bytes() for path in (tmp_path / "scored/submission").rglob("*.label")}
    assert len(scored) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "p").rglob("*.label")} == scored
    assert sum(summary.points_by_class.values()) == summary.num_points == sum(map(len, scored.values())) // 4


def test_from_python_they_are_the_same_with_probabilities(scans, models, tmp_path):
    predict(PredictConfig(model=models.semantic_kitti, scans=(scans / "00",), out=tmp_path / "p", format="npy"))
    model = scalr.load_model(str(models.semantic_kitti))
    points = np.fromfile(scans / "00/000000.bin", np.float32).reshape(-1, 4)
    classes, probabilities = model.predict(points), model.probabilities(points.astype(np.float64), "semantic_kitti")
    np.testing.assert_array_equal(classes, np.load(tmp_path / "p/000000.npy"))
    assert classes.dtype == np.uint8
    assert len(np.unique(classes)) > 1
    np.testing.assert_array_equal(probabilities.argmax(axis=1), classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(points, INTENSITY_STATISTICS["semantic_kitti"]), classes)
    assert (model.predict(points, "nuscenes") != classes).any()
    unknown = Model(model.student, None, {})
    with pytest.raises(ScalrError, match="does not say which dataset it was trained on"):
        unknown.predict(points)


def test_the_page_s_python(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(models.nuscenes, "model.safetensors")
    np.save("scan.npy", a_scan(0))
    given = {}
    exec(example("predict.md", "python"), given)
    assert set(given["names"]) <= set(NUSCENES.class_names)
    assert given["probabilities"].shape == (200, 16)


def test_the_page_s_commands(scans, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for copy in ("runs/finetune/model.safetensors", "model.safetensors"):
        Path(copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(models.semantic_kitti, copy)
    Path("sequences/08").mkdir(parents=True)
    shutil.copytree(scans / "01", "sequences/08/velodyne")
    commands = re.findall(r"(?m)^    (scalr .*)$", (DOCS / "predict.md").read_text())
    assert len(commands) >= 2
    for command in commands:
        shutil.rmtree("predictions", ignore_errors=True)
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    assert Path("predictions/000001.label").exists()


def test_each_form_of_scan_and_of_result_says_the_same(models, tmp_path):
    """What other libraries wrote, and what other libraries read."""
    pypcd4, trimesh = pytest.importorskip("pypcd4"), pytest.importorskip("trimesh")
    scan, folder = a_scan(0), tmp_path / "scans"
    folder.mkdir()
    for encoding in pypcd4.Encoding:
        pypcd4.PointCloud.from_xyzi_points(scan).save(folder / f"{encoding.value}.pcd", encoding)
    mesh = trimesh.Trimesh(scan[:, :3], [[0, 1, 2]], process=False, vertex_attributes={"intensity": scan[:, 3]})
    for encoding in ("ascii", "binary"):
        (folder / f"{encoding}_vertices.ply").write_bytes(trimesh.exchange.ply.export_ply(mesh, encoding=encoding))
    vertices = np.rec.fromarrays(scan.T, names="x,y,z,intensity")
    np.save(folder / "named.npy", vertices)
    np.savez_compressed(folder / "a.npz", data=scan.astype(np.float64))
    np.hstack([scan, scan[:, :1]]).tofile(folder / "five.pcd.bin")
    summary = predict(PredictConfig(model=models.nuscenes, scans=(folder,), out=tmp_path / "p", colours=True))
    assert summary.num_scans == len([*folder.iterdir()]) >= 8
    labels = contents(tmp_path / "p")
    assert len({labels[name] for name in labels if name.endswith(".label")}) == 1
    indexes = np.frombuffer(labels["five.label"], np.uint32) - 1
    coloured = trimesh.load(tmp_path / "p/five.ply")
    np.testing.assert_array_equal(np.asarray(coloured.vertices, np.float32), scan[:, :3])
    legend = json.loads(labels["classes.json"])
    assert [each["name"] for each in legend] == list(NUSCENES.class_names)
    np.testing.assert_array_equal(np.asarray(coloured.colors)[:, :3], [legend[index]["colour"] for index in indexes])
    raw = trimesh.exchange.ply.load_ply(io.BytesIO(labels["five.ply"]))["metadata"]["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(raw["class"], indexes)
    again = Reading(dataset="nuscenes").points(tmp_path / "p/five.ply")[0]  # which is a scan, too
    np.testing.assert_array_equal(again, scan)


@pytest.mark.parametrize("non_finite", ["refuse", "unlabelled"])
def test_rays_without_a_return_are_refused_or_get_nothing(models, tmp_path, non_finite):
    scan = a_scan(0)
    np.save(tmp_path / "whole.npy", scan)
    scan = np.insert(scan, [0, 50, 200], np.nan, axis=0)
    np.save(tmp_path / "gaps.npy", scan)
    missing = np.isnan(scan[:, 0])
    given = {"scans": (tmp_path / "gaps.npy", tmp_path / "whole.npy"), "non_finite": non_finite, "dataset": "nuscenes"}
    if non_finite == "refuse":
        with pytest.raises(
            ScalrError, match=r"gaps\.npy: 3 of 203 points are not finite\. Pass --non-finite unlabelled"
        ):
            predict(PredictConfig(model=models.nuscenes, out=tmp_path / "p", **given))
        return
    out = tmp_path / "p"
    for form in ("label", "npy", "parquet"):
        summary = predict(PredictConfig(model=models.nuscenes, out=out, format=form, colours=True, **given))
        assert summary.num_points == 400
    ids, indexes = np.fromfile(out / "gaps.label", np.uint32), np.load(out / "gaps.npy")
    np.testing.assert_array_equal(ids[~missing], np.fromfile(out / "whole.label", np.uint32))
    assert not ids[missing].any()
    np.testing.assert_array_equal(indexes, np.where(missing, 255, ids.astype(int) - 1))
    table = pq.read_table(out / "gaps.parquet")
    assert table["index"].to_pylist() == [None if gap else index for gap, index in zip(missing, indexes, strict=True)]
    assert table["name"].to_pylist() == [
        None if gap else NUSCENES.class_names[i] for gap, i in zip(missing, indexes, strict=True)
    ]
    probabilities = scalr.load_model(models.nuscenes).probabilities(scan[~missing]).max(axis=1)
    np.testing.assert_allclose(table["confidence"].drop_null().to_numpy(), probabilities, rtol=1e-5)
    for form in ("npy", "zarr"):
        given = given | {"student": models.student, "format": form, "dtype": "float32"}
        predict(PredictConfig(out=tmp_path / "features", **given))
    expected = scalr.load_student(models.student).extract(scan[~missing], "nuscenes").numpy()
    for found in (np.load(tmp_path / "features/gaps.npy"), zarr.open_array(tmp_path / "features/gaps.zarr")[:]):
        np.testing.assert_allclose(found[~missing], expected, rtol=1e-4, atol=1e-5)
        assert np.isnan(found[missing]).all()


def test_results_are_named_as_the_scans_are(scans, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = predict(PredictConfig(model=models.semantic_kitti, scans=("scans/*/*.bin", scans / "00"), out="p"))
    assert summary.num_scans == 3
    assert [*contents(tmp_path / "p")] == ["00/000000.label", "01/000000.label", "01/000001.label", "classes.json"]


def test_a_folder_of_scans_may_have_the_results_in_it(scans, models, tmp_path):
    """And earlier results, hidden files and loops of links that are there do not count."""
    np.save(scans / ".hidden.npy", np.zeros(3))
    (scans / "00/loop").symlink_to(scans)
    predict(PredictConfig(model=models.semantic_kitti, scans=(scans,), out=scans / "earlier", colours=True))
    for more in (0, 1):
        if more:
            a_scan(9, highest=1.0).tofile(scans / "00/000009.bin")
        given = {"model": models.semantic_kitti, "scans": (scans,), "out": scans / "p", "format": "npy"}
        summary = predict(PredictConfig(**given))
        assert (summary.num_scans, summary.num_new) == (3 + more, 1 if more else 3)
    assert len([*(scans / "p").rglob("*.npy")]) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_the_name_of_a_scan_may_be_any(models, tmp_path):
    """Not UTF-8, or markup; of a scan with one point."""
    for name in (b"\xff.bin", "ü <b>$x^$.bin".encode()):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        a_scan(0, highest=1.0, num_points=1).tofile(path)
        for picture in ("png", "page"):
            given = {"scans": (path,), "out": tmp_path / "p", "format": "parquet", "picture": picture}
            summary = predict(PredictConfig(model=models.semantic_kitti, **given))
            assert summary.picture.exists()
        assert pq.read_table((tmp_path / "p" / f"{path.stem}.parquet").open("rb")).num_rows == 1


def test_a_killed_run_continues(scans, models, tmp_path, monkeypatch):
    """Killed between two files of a scan, and while the line about another was written."""
    given = {"model": models.semantic_kitti, "scans": (scans,), "colours": True}
    predict(PredictConfig(**given, out=tmp_path / "whole"))
    folder, write = tmp_path / "killed", ClassFiles.write

    def write_and_die(self: ClassFiles, stem: Path, *rest: object) -> list[int]:
        by_class = write(self, stem, *rest)
        if stem.parent.name == "01":
            stem.with_name("000000.ply").unlink()
            raise KeyboardInterrupt
        return by_class

    with monkeypatch.context() as patch:
        patch.setattr(ClassFiles, "write", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            predict(PredictConfig(**given, out=folder))
    with (folder / "scans.jsonl").open("a") as file:
        file.write('{"scan": "cut of')
    (folder / "01/.000001.label.4711").write_text("half")
    (folder / ".classes.json.4711").write_text("half")
    (folder / "01/.000001.zarr.4711").mkdir()
    summary = predict(PredictConfig(**given, out=folder))
    assert (summary.num_scans, summary.num_new) == (3, 2)
    assert contents(folder) == contents(tmp_path / "whole")
    assert summary.points_by_class == predict(PredictConfig(**given, out=tmp_path / "whole")).points_by_class
    changed = scans / "01/000001.bin"
    a_scan(7, highest=1.0).tofile(changed)
    os.utime(changed, ns=(0, 0))
    (folder / "00/000000.label").unlink()
    assert predict(PredictConfig(**given, out=folder)).num_new == 2
    assert contents(folder)["00/000000.label"] == contents(tmp_path / "whole")["00/000000.label"]
    assert contents(folder)["01/000001.label"] != contents(tmp_path / "whole")["01/000001.label"]
    assert not [path.name for path in folder.rglob(".*")]


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_continues(scans, models, tmp_path, children):
    """By SIGKILL, several times one after the other; all results are those of an undisturbed run."""
    options = {"model": models.semantic_kitti, "scans": (scans,), "colours": True, "batch_points": 1}
    whole, out = {**options, "out": tmp_path / "whole"}, {**options, "out": tmp_path / "killed"}
    assert Child(children, predict_in_child, whole).end() == 0
    moments, rng, kills = int((tmp_path / "whole.moments").read_text()), np.random.default_rng(0), 0
    assert moments > 30
    while kills < 12:
        child = Child(children, predict_in_child, out, stops=(int(rng.integers(moments)),))
        if child.wait_for_a_moment():
            child.kill()
            kills += 1
            continue
        assert child.end() == 0
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
        shutil.rmtree(tmp_path / "killed")
    assert Child(children, predict_in_child, out).end() == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_results_of_other_settings_are_not_mixed(scans, models, tmp_path):
    given = {"scans": (scans / "00",), "out": tmp_path / "p"}
    predict(PredictConfig(model=models.semantic_kitti, **given))
    before = contents(tmp_path / "p")
    others = (
        ({"model": models.nuscenes, "dataset": "semantic_kitti"}, "with weights_sha256 .*, and now weights_sha256 is"),
        (
            {"model": models.semantic_kitti, "intensity": (0.5, 0.1)},
            r"with intensity None, and now intensity is \[0\.5, 0\.1\]",
        ),
        ({"student": models.semantic_kitti, "dataset": "semantic_kitti"}, "with classes|with results classes, and now"),
    )
    for other, message in others:
        with pytest.raises(ScalrError, match=message):
            predict(PredictConfig(**given, **other))
    with pytest.raises(ScalrError, match=r"outside of .*scans/00, and the results in this folder are named"):
        predict(PredictConfig(model=models.semantic_kitti, **given | {"scans": (scans,)}))
    assert contents(tmp_path / "p") == before
    line = json.loads((tmp_path / "p/scans.jsonl").read_text())
    lines = "".join(f"{json.dumps(line | {'by_class': counts})}\n" for counts in (line["by_class"], [1]))
    for name, text in (("scans.jsonl", '{"a": 1}\n'), ("scans.jsonl", lines), ("predict.json", "[]")):
        (tmp_path / "p" / name).write_text(text)
        with pytest.raises(ScalrError, match=rf"{name}: the file is not a "):
            predict(PredictConfig(model=models.semantic_kitti, **given))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/000000.label").write_text("mine")
    with pytest.raises(ScalrError, match=r"files that 'scalr predict' did not write \(000000\.label\)"):
        predict(PredictConfig(model=models.semantic_kitti, **given | {"out": tmp_path / "other"}))


def test_a_refused_run_leaves_settings_free(models, tmp_path):
    """As its error asks for another one."""
    rings = np.random.default_rng(0).integers(0, 32, (200, 1)).astype(np.float32)
    np.hstack([a_scan(0, highest=1.0), rings]).tofile(tmp_path / "a.bin")
    given = {"model": models.semantic_kitti, "scans": (tmp_path / "a.bin",), "out": tmp_path / "p"}
    with pytest.raises(ScalrError, match=r"4 float32.* 5 float32.* --columns"):
        predict(PredictConfig(**given))
    with pytest.raises(ScalrError, match=r"4000 bytes are not a whole number of points \(24 bytes each\).* --columns"):
        predict(PredictConfig(**given, columns=6))
    assert predict(PredictConfig(**given, columns=5)).num_new == 1


def test_intensities_of_another_lidar_are_warned_of(models, tmp_path, caplog):
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", a_scan(number))
        np.save(tmp_path / f"scaled{number}.npy", a_scan(number) / [1, 1, 1, 255])
    given = {"model": models.nuscenes, "format": "npy"}

    caplog.set_level("INFO")

    def predicted(name: str, **options: object) -> tuple[list[list[int]], bool]:
        caplog.clear()
        out = tmp_path / f"out{len([*tmp_path.iterdir()])}"
        predict(PredictConfig(**given, scans=(tmp_path / f"{name}?.npy",), out=out, **options))
        return [np.load(path).tolist() for path in sorted(out.glob("*.npy"))], "are expected of" in caplog.text

    expected, warned = predicted("")
    assert not warned
    assert "2 scans, read with --dataset nuscenes: intensities are normalised by mean 18.7424" in caplog.text
    as_other, warned = predicted("scaled")
    assert warned
    assert as_other != expected
    scaled, warned = predicted("scaled", intensity_range=(0, 1))
    assert not warned
    assert scaled == expected
    statistics = INTENSITY_STATISTICS["nuscenes"]
    assert predicted("scaled", intensity=(statistics.mean / 255, statistics.std / 255)) == (expected, False)


def test_an_unknown_lidar_is_measured_once(models, tmp_path):
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", a_scan(number))
    given = {"student": models.student, "dataset": "frames", "out": tmp_path / "p", "dtype": "float32"}
    predict(PredictConfig(**given, scans=(tmp_path / "0.npy",)))
    predict(PredictConfig(**given, scans=(tmp_path / "[01].npy",)))
    values = a_scan(0)[:, 3].astype(np.float64)
    measured = IntensityStatistics(float(values.mean()), float(values.std()))
    expected = scalr.load_student(models.student).extract(a_scan(1), measured).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "p/1.npy"), expected, rtol=1e-4, atol=1e-5)


def test_a_model_whose_file_says_less_needs_to_be_told_more(models, tmp_path):
    """A converted official file names neither dataset nor classes; a rig of the user's own is no known lidar."""
    np.save(tmp_path / "a.npy", a_scan(0))
    student, path = scalr.load_model(models.nuscenes).student, tmp_path / "model.safetensors"
    save_student(student, path, {})
    given = {"model": path, "scans": (tmp_path / "a.npy",)}
    with pytest.raises(ScalrError, match=r"does not say which dataset's lidar the scans are of\. Pass --dataset"):
        predict(PredictConfig(**given, out=tmp_path / "p"))
    for dataset, names in (("nuscenes", NUSCENES.class_names), ("pandaset_64", [f"class {n}" for n in range(16)])):
        summary = predict(PredictConfig(**given, out=tmp_path / dataset, dataset=dataset))
        assert list(summary.points_by_class) == list(names)
    save_model(student, path, NUSCENES.class_names, {"probing": {"training_dataset": "my_rig"}})
    predict(PredictConfig(**given, out=tmp_path / "p"))
    record = json.loads((tmp_path / "p/predict.json").read_text())
    assert record["settings"]["dataset"] == "frames"
    assert record["intensity"]["mean"] == pytest.approx(a_scan(0)[:, 3].mean())


def test_what_a_lidar_is_not_known_for_is_said(models, tmp_path):
    np.save(tmp_path / "a.npy", a_scan(0))
    given = {"scans": (tmp_path / "a.npy",), "out": tmp_path / "p"}
    for options, message in (
        ({}, "--model and --student: predict needs one of the two options, and not both"),
        ({"student": models.student, "model": models.nuscenes}, "predict needs one of the two options, and not both"),
        ({"student": models.student}, "does not say which dataset's lidar the scans are of"),
        ({"student": models.student, "colours": True}, "--colours: features have no class colours"),
        (
            {"model": models.nuscenes, "dtype": "float16"},
            "--dtype: the option is for features, and --model writes classes",
        ),
        (
            {"model": models.nuscenes, "format": "zarr"},
            r"--format: 'zarr' cannot be used\. Use label or npy or parquet",
        ),
        ({"model": models.nuscenes, "dataset": "nuscnes"}, "a dataset 'nuscnes' is known, did you mean 'nuscenes'"),
        ({"model": models.nuscenes, "intensity_range": (1, 0)}, r"--intensity-range: \(1\.0, 0\.0\) cannot be used"),
        ({"model": models.nuscenes, "dataset": "frames", "intensity_range": (0, 1)}, "range of intensities of frames"),
        ({"model": models.nuscenes, "intensity": (1, 0)}, "standard deviation 0.0 cannot normalise"),
    ):
        with pytest.raises(ScalrError, match=message):
            predict(PredictConfig(**given, **options))
    assert not (tmp_path / "p").exists()


BAD_FILES = {
    "empty.bin": (b"", "0 bytes"),
    "cut.bin": (a_scan(0, 1.0).tobytes()[:-5], "3195 bytes"),
    "text.bin": (b"x y z intensity " * 400, "1 % of the points"),
    "columns.bin": (np.hstack([a_scan(0, 1.0)] * 2)[:, :6].tobytes(), "6 float32"),
    "double.bin": (a_scan(0, 1.0).astype(np.float64).tobytes(), "4 float64"),
    "nan.npy": (np.full((9, 4), np.nan), "none of the 9 points is finite"),
    "huge.npy": (a_scan(0, 1.0) * np.float32(1e6), "1 % of the points"),
    "bright.npy": (a_scan(0, 1.0) * np.float32([1, 1, 1, 1e36]), "the largest intensity is"),
    "larger.npy": (np.full((9, 4), 1e300), "none of the 9 points is finite"),
    "no_points.npy": (np.zeros((0, 4)), "the scan has no points"),
    "flat.npy": (a_scan(0, 1.0).ravel(), r"shape \(800,\)"),
    "three.npy": (a_scan(0, 1.0)[:, :3], r"shape \(200, 3\)"),
    "objects.npy": (np.array([{}]), "array"),
    "far.npy": (a_scan(0, 1.0) + np.float32([500, 500, 0, 0]), "field of view"),
    "garbage_npz.npz": (b"PK\3\4" + b"\7" * 99, "NPZ"),
    "two.npz": ({"a": np.zeros(2), "b": np.zeros(2)}, r"2 arrays \(a, b\), and a scan is one"),
    "garbage_pcd.pcd": (
        b"# .PCD v0.7\nFIELDS x\nDATA binary_compressed\n" + b"\7" * 99,
        "PCD",
    ),
    "garbage_ply.ply": (b"ply\nformat binary_little_endian 1.0\n" + b"\7" * 99, "PLY"),
    "scan.las": (b"LASF", r"'\.las'"),
}


@pytest.fixture
def bad_files(tmp_path) -> Path:
    for package in ("pypcd4", "trimesh"):
        pytest.importorskip(package)
    folder = tmp_path / "bad"
    folder.mkdir()
    for name, (content, _) in BAD_FILES.items():
        if isinstance(content, np.ndarray):
            file = io.BytesIO()
            np.save(file, content, allow_pickle=True)
            content = file.getvalue()
        elif isinstance(content, dict):
            file = io.BytesIO()
            np.savez(file, **content)
            content = file.getvalue()
        (folder / name).write_bytes(content)
    (folder / "unreadable.bin").symlink_to("unreadable.bin")  # to itself
    a_scan(0, highest=1.0).tofile(folder / "good.bin")
    return folder


def test_each_bad_file_is_one_line_and_the_others_are_predicted(bad_files, models, tmp_path):
    command = ["predict", "--model", models.semantic_kitti, bad_files, bad_files / "scan.las"]
    done = CliRunner().invoke(
        main, [str(word) for word in [*command, "--out", tmp_path / "p", "--on-error", "skip", "--json"]]
    )
    assert done.exit_code == 3, done.output
    result = json.loads(done.stdout)
    assert (result["num_scans"], result["num_points"], result["out"]) == (1, 200, str(tmp_path / "p"))
    skipped = {Path(path).name: reason for path, reason in result["skipped"].items()}
    messages = {name: message for name, (_, message) in BAD_FILES.items()}
    messages["unreadable.bin"] = "symbolic links"
    assert skipped.keys() == messages.keys()
    for name, message in messages.items():
        assert re.search(rf"{name}: .*({message})", skipped[name])
    assert [*contents(tmp_path / "p")] == ["classes.json", "good.label"]
    stopped = CliRunner().invoke(main, [str(word) for word in [*command, "--out", tmp_path / "q"]])
    assert stopped.exit_code == 1
    assert [line for line in stopped.stderr.splitlines() if line.startswith("Error: ")] == [
        f"Error: {skipped[min(skipped.keys() - {'scan.las'})]}"
    ]


def test_what_is_given_in_place_of_scans_is_said(scans, models, tmp_path):
    (tmp_path / "empty.bin").mkdir()
    np.save(scans / "00/000000.npy", a_scan(0))
    given = {"model": models.semantic_kitti, "out": tmp_path / "p"}
    for paths, message in (
        ((tmp_path / "missing.bin",), r"missing\.bin: no such file or folder, and no file matches it as a pattern"),
        (("scans/*.xyz",), "no file matches it as a pattern"),
        ((tmp_path / "empty.bin",), r"empty\.bin: the folder has no scan"),
        ((scans,), r"000000\.npy: the results of this scan would have the same name as those of .*000000\.bin"),
    ):
        with pytest.raises(ScalrError, match=message):
            predict(PredictConfig(**given, scans=paths))
    assert not (tmp_path / "p").exists()
    given |= {"scans": (scans / "01",), "colours": True}
    predict(PredictConfig(**given))
    with pytest.raises(ScalrError, match=r"000000\.ply: the scan is in the folder for results"):
        predict(PredictConfig(**given | {"scans": (tmp_path / "p/000000.ply",)}))


def test_a_feature_that_float16_does_not_hold_is_said(tmp_path):
    scan = SimpleNamespace(is_finite=np.ones(1, bool), prepared=SimpleNamespace(row=np.zeros(1, int)))
    with pytest.raises(ScalrError, match=r"features of up to 1e\+06 do not fit into float16"):
        FeatureFiles("npy", "float16").write(tmp_path / "a", scan, np.full((1, 2), 1e6, np.float32))
    FeatureFiles("npy", "float32").write(tmp_path / "a", scan, np.full((1, 2), 1e6, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_pictures_and_a_page_show_the_first_scan(scans, models, tmp_path):
    given = {"model": models.semantic_kitti, "scans": (scans / "00",), "out": tmp_path / "p"}
    for picture in ("png", "page"):
        summary = predict(PredictConfig(**given, picture=picture))
        assert summary.picture.parent == tmp_path / "p"
        assert str(summary.picture) in summary.as_text()
    assert (tmp_path / "p/000000.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "p/000000.html").read_text()
    assert "traffic-sign" in page
    assert '"colour_by": "class"' in page
    assert "200 points" in page
    of_features = {"student": models.student, "dataset": "semantic_kitti", "scans": (scans / "00",)}
    for picture in ("png", "page"):
        assert predict(PredictConfig(**of_features, out=tmp_path / "f", picture=picture)).picture.exists()


def test_too_many_points_for_a_gpu_are_said(scans, models, tmp_path, monkeypatch):
    monkeypatch.setattr(Student, "project", mock.Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(ScalrError, match=r"too small for \d+ points at once\. Pass fewer"):
        predict(PredictConfig(model=models.semantic_kitti, scans=(scans,), out=tmp_path / "p"))


def test_batches_have_as_many_points_as_asked_for(scans, models, tmp_path, monkeypatch):
    sizes = []
    of_rows = predict_module.Network.of_rows
    monkeypatch.setattr(
        predict_module.Network, "of_rows", lambda self, batch: (sizes.append(len(batch)), of_rows(self, batch))[1]
    )
    for points, expected in ((1, [1, 1, 1]), (450, [2, 1]), (100_000, [3])):
        sizes.clear()
        out = tmp_path / f"p{points}"
        given = {"model": models.semantic_kitti, "scans": (scans,), "out": out, "batch_points": points}
        predict(PredictConfig(**given, workers=int(points == 1)))
        assert sizes == expected
    assert contents(tmp_path / "p1") == contents(tmp_path / "p100000")


@pytest.mark.parametrize(
    "layout", ["nuscenes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("semantic_kitti", "pandaset_64"))]
)
def test_on_real_scans_predictions_are_those_of_scoring(real_data, models, tmp_path, layout):
    folder, split, scans = {
        "nuscenes": ("nuscenes", "mini_train", "samples/LIDAR_TOP"),
        "semantic_kitti": ("semantickitti_11", "val", "sequences/08/velodyne/*.bin"),
        "pandaset_64": ("pandaset", "train", "002/lidar"),
    }[layout]
    root = real_data(folder)
    out = tmp_path / "p"
    predict(PredictConfig(model=getattr(models, layout), scans=(root / scans,), out=out, format="npy"))
    dataset, model = open_dataset(layout, root, split), scalr.load_model(getattr(models, layout))
    predicted = [np.load(path) for path in sorted(out.glob("*.npy"))]
    for frame, found in zip(dataset.frames, predicted, strict=True):
        np.testing.assert_array_equal(found, model.predict(dataset.read_points(frame), layout))


@pytest.mark.slow
def test_real_scans_of_an_unknown_rig_have_features(real_data, models, tmp_path):
    scans = real_data("dgp") / "scene_01/point_cloud"
    summary = predict(PredictConfig(student=models.student, dataset="frames", scans=(scans,), out=tmp_path / "p"))
    assert (summary.num_scans, summary.num_points) == (3, 121_495)
    assert all(np.isfinite(np.load(path)).all() for path in (tmp_path / "p").rglob("*.npy"))
