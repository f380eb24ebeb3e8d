from __future__ import annotations

import json

import numpy as np
import pytest

from scalr.errors import StudentError
from scalr.evaluate import result as result_module
from scalr.evaluate.comparison import compare
from scalr.evaluate.finetune import FinetuneConfig
from scalr.evaluate.probe import ProbeConfig
from scalr.evaluate.published import PUBLISHED
from scalr.evaluate.result import ResultCard, card_of_scores, read_result, scores_of, write_result
from scalr.evaluate.scores import Scores

PROTOCOL = {"frames": 40, "frames_sha256": "0" * 64, "mean_over": "present or predicted"}


def some_scores(seed: int) -> Scores:
    confusions = np.random.default_rng(seed).integers(0, 50, (4, 3, 3))
    return Scores(("car", "road", "tree"), ("a", "b", "c", "d"), confusions, 40, "0" * 64)


def write(folder, seed: int = 0, **rest) -> Scores:
    scores = some_scores(seed)
    write_result(card_of_scores(scores, title="Linear probing", protocol=PROTOCOL, provenance={}, **rest), folder)
    return scores


def test_a_card_says_what_the_scores_are(tmp_path):
    scores = write(tmp_path / "run", setting="probe nuscenes", departures=["epochs 3 instead of 20", "a seed of 1"])
    result = read_result(tmp_path / "run")
    assert result["figures"] == {"mIoU": scores.miou, "accuracy": scores.accuracy}
    assert result["accuracy"] == scores.accuracy
    assert scores_of(result).scenes == scores.scenes
    assert result["miou"] == scores.miou
    assert result["interval_95"] == list(scores.interval)
    assert result["iou"]["road"] == scores.iou[1]
    assert result["confusion"] == scores.confusion.tolist()
    np.testing.assert_array_equal(scores_of(result).confusions, scores.confusions)
    assert scores_of(result).interval == scores.interval
    text = (tmp_path / "run/result.md").read_text()
    assert f"| mIoU | {100 * scores.miou:.2f} % |" in text
    assert f"| car | {100 * scores.iou[0]:.2f} % |" in text
    low, high = (100 * value for value in scores.interval)
    assert f"| 95 % interval of the mIoU, over scenes | {low:.2f} % to {high:.2f} % |" in text
    assert "\nNot as published: epochs 3 instead of 20; a seed of 1.\n" in text


def test_scores_are_read_with_the_classes_that_their_mean_is_over(tmp_path):
    confusions = np.array([[[3, 1], [0, 0]], [[4, 2], [0, 0]]])  # the second class is predicted, and not there
    scores = Scores(("car", "road"), ("a", "b"), confusions, 2, "0", mean_over="present")
    assert scores.miou == 7 / 10
    protocol = {"frames": 2, "frames_sha256": "0", "mean_over": "present"}
    write_result(card_of_scores(scores, title="t", protocol=protocol, provenance={"file": "a|b"}), tmp_path)
    again = scores_of(read_result(tmp_path))
    assert (again.miou, again.interval) == (scores.miou, scores.interval)
    assert scores.interval[1] <= 3 / 4
    assert scores.interval[0] >= 2 / 3
    assert "| file | a\\|b |" in (tmp_path / "result.md").read_text()


def test_the_figures_of_nothing_are_dashes(tmp_path):
    scores = Scores(("car",), ("a",), np.zeros((1, 1, 1), int), 1, "0")
    write_result(card_of_scores(scores, title="t", protocol={}, provenance={}), tmp_path)
    assert read_result(tmp_path)["figures"] == {"mIoU": None, "accuracy": None}
    assert "| mIoU | – |" in (tmp_path / "result.md").read_text()


def test_the_file_that_says_that_a_run_is_finished_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(result_module, "write_bytes", lambda path, content: written.append(path.name))
    write(tmp_path)
    assert written == ["result.md", "result.json"]


def test_an_absent_class_is_a_dash(tmp_path):
    scores = Scores(("car", "road"), ("a",), np.array([[[5, 0], [0, 0]]]), 1, "0")
    write_result(card_of_scores(scores, title="t", protocol={}, provenance={}), tmp_path)
    assert read_result(tmp_path)["iou"] == {"car": 1.0, "road": None}
    assert "| road | – |" in (tmp_path / "result.md").read_text()
    assert json.loads((tmp_path / "result.json").read_text())["interval_95"] is None


@pytest.mark.parametrize("text", ['{"format": "scalr-', ""])
def test_a_card_that_was_cut_off_is_said(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(
        StudentError, match=r"result\.json: the result cannot be read \(.+\)\. Run the evaluation again"
    ):
        read_result(tmp_path)


def test_runs_stand_beside_the_published_figures(tmp_path):
    first = write(tmp_path / "one", 1, setting="probe nuscenes")
    write(tmp_path / "two", 2, setting="probe nuscenes", departures=["epochs 3 instead of 20"])
    write(tmp_path / "three", 3)
    table = compare([tmp_path / name for name in ("one", "two", "three")])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    found = {row[0]: row[1] for row in rows}
    assert found[str(tmp_path / "one")] == f"{100 * first.miou:.2f}"
    low, high = (100 * value for value in first.interval)
    assert f"| {low:.1f} to {high:.1f} |" in next(line for line in table.splitlines() if str(tmp_path / "one") in line)
    assert found["ScaLR, published"] == "67.80"
    assert found["ScaLR+, published"] == "70.40"
    assert f"{tmp_path / 'two'} (1)" in found
    assert "(1) not as published: epochs 3 instead of 20" in table
    assert table.index("## Linear probing") != table.index("## probe nuscenes")


def test_figures_that_are_not_shares_of_one_table_share_columns(tmp_path):
    for name, figures in (("two", {"mCE": 1.1}), ("one", {"mCE": 0.9, "mRR": 0.8})):
        card = ResultCard(title="r", setting="robustness nuscenes_c", figures=figures, protocol={}, provenance={})
        write_result(card, tmp_path / name)
    table = compare([tmp_path / "two", tmp_path / "one"])
    assert f"| {tmp_path / 'two'} | 110.00 | – | – |" in table
    assert "| ScaLR, published | 87.40 | 83.80 | – |" in table


def test_published_figures_are_those_of_the_readmes():
    """Those of valeoai/ScaLR, of its branch scalr_plus and of Robo3D; students are WI-48-768."""
    of_miou = {
        "probe nuscenes": {"ScaLR": 67.8, "ScaLR+": 70.4},
        "probe semantic_kitti": {"ScaLR": 55.8, "ScaLR+": 61.0},
        "probe pandaset_64": {"ScaLR": 37.9, "ScaLR+": 43.5},
        "probe pandaset_gt": {"ScaLR": 34.5, "ScaLR+": 40.7},
        "finetune nuscenes 1%": {"ScaLR": 50.7, "ScaLR+": 54.1},
        "finetune nuscenes 10%": {"ScaLR": 69.2, "ScaLR+": 70.7},
        "finetune nuscenes 100%": {"ScaLR": 78.4, "ScaLR+": 78.4},
        "finetune semantic_kitti 1%": {"ScaLR": 55.8, "ScaLR+": 57.4},
        "finetune semantic_kitti 100%": {"ScaLR": 65.8, "ScaLR+": 65.2},
        "finetune pandaset_64 100%": {"ScaLR": 48.3},
        "finetune pandaset_gt 100%": {"ScaLR": 41.1},
        "scratch nuscenes 100%": {"WaffleIron": 78.7},
    }
    of_robustness = {
        ("nuscenes_c", "ScaLR"): {"mCE": 87.4, "mRR": 83.8},
        ("nuscenes_c", "WaffleIron"): {"mCE": 106.73, "mRR": 72.78, "mIoU clean": 76.07},
        ("semantic_kitti_c", "WaffleIron"): {"mCE": 109.54, "mRR": 72.18, "mIoU clean": 66.04},
    }
    for setting, figures in of_miou.items():
        for who, miou in figures.items():
            assert PUBLISHED[setting][who] == {"mIoU": miou}, (setting, who)
    for (dataset, who), figures in of_robustness.items():
        assert PUBLISHED[f"robustness {dataset}"][who] == figures


def test_settings_of_the_verbs_are_published():
    """What the verbs write as their setting, where the papers have figures."""
    base = {"student": "s", "root": "r", "out": "o"}
    assert FinetuneConfig(**base, labels="1%").setting in PUBLISHED
    assert ProbeConfig(**base, dataset="semantic_kitti").setting in PUBLISHED
    assert FinetuneConfig(**base, dataset="pandaset_gt").setting in PUBLISHED
    assert FinetuneConfig(**base, from_scratch=True).setting in PUBLISHED
    assert FinetuneConfig(**base, labels="1%", dataset="semantic_kitti").setting == "finetune semantic_kitti 1%"
    assert FinetuneConfig(**base, from_scratch=True).setting == "scratch nuscenes 100%"
    assert ProbeConfig(**base).setting == "probe nuscenes"


def test_a_folder_without_a_result_is_said(tmp_path):
    with pytest.raises(StudentError, match="no result here"):
        compare([tmp_path])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(StudentError, match="not a result of scalr"):
        compare([tmp_path])
