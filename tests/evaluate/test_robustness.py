from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.run_record import run_record, write_record
from scalr.distill.student import Student
from scalr.errors import StudentError
from scalr.evaluate import robustness as module
from scalr.evaluate.corrupt import NOT_COMPARABLE
from scalr.evaluate.model import save_model, with_class_head
from scalr.evaluate.result import RunResult, read_result, write_result
from scalr.evaluate.robo3d import BASELINE, corruption_errors, mean_over, resilience_rates
from scalr.evaluate.robustness import RobustnessConfig, robustness
from scalr.extract.datasets.corruptions import CORRUPTIONS, MANIFEST, SEVERITIES
from scalr.extract.datasets.semantic_kitti import LABELS

# Robo3D's README: mIoU by corruption, clean mIoU, mCE, mRR.
ROWS = {
    ("nuscenes_c", "WaffleIron"): ((56.07, 73.93, 49.59, 59.46, 65.19, 33.12, 61.51, 44.01), 76.07, 106.73, 72.78),
    ("semantic_kitti_c", "WaffleIron"): (
        (45.52, 58.55, 49.30, 33.02, 59.28, 22.48, 58.55, 54.62),
        66.04,
        109.54,
        72.18,
    ),
    ("nuscenes_c", "MinkUNet-18"): (tuple(BASELINE["nuscenes_c"].values()), 75.76, 100.0, 74.44),
    ("semantic_kitti_c", "MinkUNet-18"): (tuple(BASELINE["semantic_kitti_c"].values()), 62.76, 100.0, 81.90),
}


@pytest.mark.parametrize("row", ROWS)
def test_published_rows_follow_from_their_miou(row):
    miou, clean, mce, mrr = ROWS[row]
    means = dict(zip(CORRUPTIONS, miou, strict=True))
    assert mean_over(corruption_errors(means, BASELINE[row[0]])) == pytest.approx(mce, abs=0.01)
    assert mean_over(resilience_rates(means, clean)) == pytest.approx(mrr, abs=0.01)


def test_the_definition_over_severities_is_the_same():
    """The sums of the paper, over severities, against the means that the published tables have."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(10, 90, (2, 3))
    by_definition = 100 * (100 - ours).sum() / (100 - theirs).sum()
    found = corruption_errors({"fog": ours.mean()}, {"fog": theirs.mean()})
    assert found["fog"] == pytest.approx(by_definition)


def test_a_model_that_finds_nothing_has_no_resilience():
    assert np.isnan(resilience_rates({"fog": 0.0}, clean=0.0)["fog"])


@pytest.fixture
def config(simulated, tmp_path) -> RobustnessConfig:
    """Copies of which all are clean but fog, whose points are moved."""
    clean, root = simulated("semantic_kitti"), tmp_path / "corruptions"
    sequence = next(clean.glob("**/sequences/08"))
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            for name in ("velodyne", "labels"):
                shutil.copytree(sequence / name, root / corruption / severity / name)
    for number, scan in enumerate(sorted(root.glob("fog/*/velodyne/*.bin"))):
        points = np.fromfile(scan, dtype=np.float32).reshape(-1, 4)
        points[:, :3] = np.random.default_rng(number).permutation(points[:, :3])
        points.tofile(scan)
    torch.manual_seed(0)
    student = Student(WaffleIronConfig(width=8, depth=3))
    model = with_class_head(student, 19, student.input_config).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.classif[1].weight)
    save_model(model, tmp_path / "model.safetensors", LABELS.class_names, {})
    return RobustnessConfig(
        model=tmp_path / "model.safetensors",
        root=root,
        clean_root=clean,
        out=tmp_path / "out",
        dataset="semantic_kitti_c",
    )


@pytest.fixture
def only_fog(config) -> RobustnessConfig:
    """The same with three copies instead of 24."""
    for corruption in CORRUPTIONS:
        if corruption != "fog":
            shutil.rmtree(config.root / corruption)
    return config


@pytest.mark.slow
def test_all_copies_are_scored_and_put_together(config):
    result = robustness(config)
    assert len(result.miou) == 24
    assert not result.missing
    assert all(value == result.clean for copy, value in result.miou.items() if not copy.startswith("fog/"))
    of_severities = [result.miou[f"fog/{severity}"] for severity in SEVERITIES]
    fog = np.mean(of_severities)
    assert fog != np.median(of_severities)
    assert fog != result.clean
    assert result.mrr == pytest.approx((700 + 100 * fog / result.clean) / 8)
    written = json.loads((config.out / "result.json").read_text())
    assert written["figures"]["mCE"] == pytest.approx(result.mce / 100)
    assert written["departures_of_protocol"] == []
    (departure,) = written["departures"]  # in what the model is not WaffleIron without distillation
    assert departure.startswith("differs from ")
    assert written["model"]["width"] == 8
    assert written["protocol"]["frames"] == 2
    assert written["protocol"]["corruptions"] == "as downloaded"
    assert written["figures"]["mIoU corrupted"] == pytest.approx((7 * result.clean + fog) / 800)
    assert "fog/heavy" in (config.out / "result.md").read_text()
    means = dict.fromkeys(CORRUPTIONS, result.clean) | {"fog": fog}
    errors = {name: 100 * (100 - mean) / (100 - BASELINE[config.dataset][name]) for name, mean in means.items()}
    assert written["corruption_error"] == pytest.approx(errors)
    assert written["resilience_rate"] == pytest.approx(
        dict.fromkeys(CORRUPTIONS, 100) | {"fog": 100 * fog / result.clean}
    )
    assert written["figures"]["mIoU clean"] == pytest.approx(result.clean / 100)
    assert result.mce == pytest.approx(np.mean(list(errors.values())))
    assert_figures_of_all_classes(config.out, written["figures"])
    (config.root / MANIFEST).write_text("{}")
    again = robustness(config)  # from the result files of all copies
    assert (again.clean, again.miou, again.mce, again.mrr) == (result.clean, result.miou, result.mce, result.mrr)
    written = json.loads((config.out / "result.json").read_text())
    assert written["departures_of_protocol"] == [NOT_COMPARABLE]
    assert written["protocol"]["corruptions"] == "made by 'scalr corrupt'"


def assert_figures_of_all_classes(out: Path, figures: dict[str, float]) -> None:
    """From the result files of the copies: few frames lack classes, which SemanticKITTI's mean counts as 0."""
    of_copy = {
        copy: json.loads((out / copy / "result.json").read_text())
        for copy in ("clean", *(f"{name}/{severity}" for name in CORRUPTIONS for severity in SEVERITIES))
    }
    miou = {copy: 100 * run_result["miou_of_all_classes"] for copy, run_result in of_copy.items()}
    assert miou["clean"] < 100 * of_copy["clean"]["miou"]
    means = {name: np.mean([miou[f"{name}/{severity}"] for severity in SEVERITIES]) for name in CORRUPTIONS}
    baseline = BASELINE["semantic_kitti_c"]
    errors = [(100 - means[name]) / (100 - baseline[name]) for name in CORRUPTIONS]
    assert figures["mCE, absent classes as 0"] == pytest.approx(np.mean(errors))
    assert figures["mRR, absent classes as 0"] == pytest.approx(np.mean(list(means.values())) / miou["clean"])
    assert figures["mIoU clean, absent classes as 0"] == pytest.approx(miou["clean"] / 100)
    assert all(run_result["model"]["width"] == 8 for run_result in of_copy.values())


def test_a_killed_run_goes_on(only_fog, monkeypatch):
    scored = []
    real = module.score

    def counting(model, dataset, device, **options):
        scored.append(dataset.split)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return real(model, dataset, device, **options)

    monkeypatch.setattr(module, "score", counting)
    with pytest.raises(KeyboardInterrupt):
        robustness(only_fog)
    result = robustness(only_fog)
    assert len(scored) == 3 + 2
    assert scored[2] == scored[3]  # only the one that was cut off is scored again
    assert len(result.miou) == 3


@pytest.mark.slow
def test_missing_copies_are_listed_and_left_out_of_the_means(config):
    shutil.rmtree(config.root / "fog")
    shutil.rmtree(config.root / "snow/heavy")
    result = robustness(config)
    assert result.missing == ("fog/light", "fog/moderate", "fog/heavy", "snow/heavy")
    assert len(result.miou) == 20
    assert result.mrr == pytest.approx(100)  # of copies that are all clean
    written = json.loads((config.out / "result.json").read_text())
    assert written["departures_of_protocol"] == ["mCE and mRR are over 6 of 8 corruptions"]


def test_copies_of_which_no_corruption_is_whole_are_refused(only_fog):
    shutil.rmtree(only_fog.root / "fog/light")
    with pytest.raises(StudentError, match="no corruption has all the severities light, moderate, heavy"):
        robustness(only_fog)


def test_results_of_another_model_are_not_taken(only_fog):
    """Nor is one that was cut off, until it is removed."""
    robustness(only_fog)
    assert read_result(only_fog.out)["run"]["kind"] == "robustness"
    damaged = only_fog.out / "fog/light/result.json"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(
        StudentError,
        match=r"fog/light/result\.json: the result file cannot be read"
        " .*Remove the file and run",
    ):
        robustness(only_fog)
    damaged.unlink()
    robustness(only_fog)
    student = Student(WaffleIronConfig(width=8, depth=3))
    save_model(with_class_head(student, 19, student.input_config), Path(only_fog.model), LABELS.class_names, {})
    with pytest.raises(
        StudentError, match=r"clean/result\.json: the run was made with other settings: model\.tensors_sha256 was"
    ):
        robustness(only_fog)


def test_results_over_other_labels_are_not_taken(only_fog, tmp_path):
    """Such as those of the same scans' other copy."""
    robustness(only_fog)
    root = shutil.copytree(only_fog.clean_root, tmp_path / "clean copy")
    for labels in (root / "sequences").rglob("*.label"):
        labels.write_bytes(bytes(labels.stat().st_size))
    with pytest.raises(
        StudentError, match=r"clean/result\.json: the run was made with other settings: labels_sha256 was "
    ):
        robustness(replace(only_fog, clean_root=root))


def test_the_folder_of_another_command_is_left_alone(config, tmp_path):
    """Of a probing, begun or finished, and of a score."""
    record = run_record({"kind": "probing"}, torch.device("cpu"))
    run_result = RunResult(title="t", figures={}, protocol={}, provenance={}, model={})
    for name, values in (("finished", record.values), ("score", None)):
        write_result(replace(run_result, record=values), tmp_path / name)
    (tmp_path / "begun").mkdir()
    write_record(tmp_path / "begun", record)
    for name, message in (
        ("begun", "this file is of a probing run, not of a robustness run"),
        ("finished", "this file is of a probing run, not of a robustness run"),
        ("score", "the folder holds a result of another command"),
    ):
        with pytest.raises(StudentError, match=message):
            robustness(replace(config, out=tmp_path / name))


def test_a_clean_set_is_no_set_of_corruptions(config):
    with pytest.raises(StudentError, match=r"nuscenes is not a corruption benchmark\. Use nuscenes_c or semantic"):
        robustness(replace(config, dataset="nuscenes"))
