from __future__ import annotations

import json
import re

import numpy as np
import pytest

from scalr.errors import StudentError
from scalr.evaluate import result as result_module
from scalr.evaluate.comparison import compare
from scalr.evaluate.published import published_for
from scalr.evaluate.published_result import Published
from scalr.evaluate.result import RunResult, data_of, read_result, result_of_scores, scores_of, write_result
from scalr.evaluate.scores import Scores
from scalr.extract.datasets.simulated import SIMULATED, mark_as_simulated

PROTOCOL = {"frames": 40, "frames_sha256": "0" * 64, "mean_over": "present or predicted"}


def some_scores(seed: int) -> Scores:
    confusions = np.random.default_rng(seed).integers(0, 50, (4, 3, 3))
    return Scores(("car", "road", "tree"), ("a", "b", "c", "d"), confusions, 40, "0" * 64)


def write(folder, seed: int = 0, **rest) -> Scores:
    scores = some_scores(seed)
    write_result(result_of_scores(scores, title="Linear probing", protocol=PROTOCOL, provenance={}, **rest), folder)
    return scores


def test_a_result_file_says_what_the_scores_are(tmp_path):
    scores = write(tmp_path / "run", departures=["epochs 3, not 20", "a seed of 1"])
    result = read_result(tmp_path / "run")
    assert result["figures"] == {
        "mIoU": scores.miou,
        "mIoU, absent classes as 0": scores.miou_of_all_classes,
        "fwIoU": scores.fwiou,
        "accuracy": scores.accuracy,
    }
    assert (result["miou_of_all_classes"], result["fwiou"]) == (scores.miou_of_all_classes, scores.fwiou)
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
    assert "\nDeviations from the published protocol: epochs 3, not 20; a seed of 1.\n" in text


def test_scores_are_read_with_the_classes_that_their_mean_is_over(tmp_path):
    confusions = np.array([[[3, 1], [0, 0]], [[4, 2], [0, 0]]])  # the second class is predicted, and not there
    scores = Scores(("car", "road"), ("a", "b"), confusions, 2, "0", mean_over="present")
    assert scores.miou == 7 / 10
    protocol = {"frames": 2, "frames_sha256": "0", "mean_over": "present"}
    write_result(result_of_scores(scores, title="t", protocol=protocol, provenance={"file": "a|b"}), tmp_path)
    again = scores_of(read_result(tmp_path))
    assert (again.miou, again.interval) == (scores.miou, scores.interval)
    assert scores.interval[1] <= 3 / 4
    assert scores.interval[0] >= 2 / 3
    assert "| file | a\\|b |" in (tmp_path / "result.md").read_text()


def test_the_figures_of_nothing_are_dashes(tmp_path):
    scores = Scores(("car",), ("a",), np.zeros((1, 1, 1), int), 1, "0")
    write_result(result_of_scores(scores, title="t", protocol={}, provenance={}), tmp_path)
    assert read_result(tmp_path)["figures"] == dict.fromkeys(("mIoU", "mIoU, absent classes as 0", "fwIoU", "accuracy"))
    assert "| mIoU | – |" in (tmp_path / "result.md").read_text()


def test_the_file_that_says_that_a_run_is_finished_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(result_module, "write_bytes", lambda path, content: written.append(path.name))
    write(tmp_path)
    assert written == ["result.md", "result.json"]


def test_the_means_of_a_result_file_differ_where_a_class_is_absent(tmp_path):
    scores = Scores(("car", "road"), ("a",), np.array([[[5, 0], [0, 0]]]), 1, "0")
    write_result(result_of_scores(scores, title="t", protocol={}, provenance={}), tmp_path)
    result = read_result(tmp_path)
    assert (result["miou"], result["miou_of_all_classes"], result["fwiou"]) == (1.0, 0.5, 1.0)
    assert "| mIoU, absent classes as 0 | 50.00 % |" in (tmp_path / "result.md").read_text()


def test_an_absent_class_is_a_dash(tmp_path):
    scores = Scores(("car", "road"), ("a",), np.array([[[5, 0], [0, 0]]]), 1, "0")
    write_result(result_of_scores(scores, title="t", protocol={}, provenance={}), tmp_path)
    assert read_result(tmp_path)["iou"] == {"car": 1.0, "road": None}
    assert "| road | – |" in (tmp_path / "result.md").read_text()
    assert json.loads((tmp_path / "result.json").read_text())["interval_95"] is None


@pytest.mark.parametrize("text", ['{"format": "scalr-', "", "[" * 100_000])
def test_a_result_file_that_was_cut_off_is_said(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(
        StudentError,
        match=r"result\.json: the result file cannot be read \(.+\)\. Remove the file and run"
        " the evaluation again",
    ):
        read_result(tmp_path)


def published(setting: str, name: str) -> Published:
    (row,) = (row for row in published_for(setting) if row.name == name)
    return row


ON_ALL = "ScaLR (Table 4 and Table 8: WI-48-768, dinov2_vitl14, all four datasets)"
PLUS_ON_ALL = "ScaLR+ (README of scalr_plus: WI-48-768, dinov2_vitl14, all four datasets)"


def write_run(folder, row: Published, model: dict | None = None, protocol: dict | None = None, **rest) -> None:
    """A run of a row's setting, but for what is given."""
    said = [{name: value for name, value in each.items() if value is not None} for each in (row.model, row.protocol)]
    result = RunResult(
        title="a run", setting=row.setting, model=said[0] | (model or {}), protocol=said[1] | (protocol or {}),
        **{"figures": {"mIoU": 0.123, "accuracy": 0.5}, "provenance": {}} | rest,
    )  # fmt: skip
    write_result(result, folder)


def rows_of(report: str) -> dict[str, list[str]]:
    """Each row's cells by its first one, without the numbers of notes."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:1] == "|"]
    return {re.sub(r"( \(\d+\))+$", "", row[0]): row for row in rows[2:]}


def notes_of(report: str) -> dict[int, str]:
    return {int(number): text for number, text in re.findall(r"(?m)^\((\d+)\) (.*)$", report)}


def test_a_run_of_a_published_setting_stands_unmarked_beside_its_result(tmp_path):
    write_run(tmp_path / "one", published("probe nuscenes", ON_ALL), interval=(0.1, 0.2))
    report = compare([tmp_path / "one"])
    rows = rows_of(report)
    assert rows[str(tmp_path / "one")] == [str(tmp_path / "one"), "12.30", "50.00", "10.0 to 20.0"]
    assert rows[f"{ON_ALL}, published for the same setting"][1:] == ["67.80", "–", "–"]
    assert rows[f"{PLUS_ON_ALL}, published for another setting"][1] == "70.40"
    assert notes_of(report) == {}
    assert json.loads((tmp_path / "one/result.json").read_text())["departures"] == []
    assert "Deviations" not in (tmp_path / "one/result.md").read_text()


def test_each_run_stands_above_the_row_of_its_own_setting(tmp_path):
    wide = "ScaLR (Table 3: WI-48-768, dino_vits8, nuscenes)"
    mini = "ScaLR (Table 1: WI-48-256, dino_vits8, nuscenes slidr_train)"
    for name, row in (("wide", wide), ("mini", mini), ("again", mini)):
        write_run(tmp_path / name, published("probe nuscenes", row), model={"training.epochs": 25})
    report = compare([tmp_path / "again", tmp_path / "wide", tmp_path / "mini"])
    assert list(rows_of(report)) == [
        *(str(tmp_path / "again"), str(tmp_path / "mini"), f"{mini}, published for the same setting"),
        *(str(tmp_path / "wide"), f"{wide}, published for the same setting"),
        f"{PLUS_ON_ALL}, published for another setting",
    ]
    assert rows_of(report)[f"{mini}, published for the same setting"][1] == "56.70 ± 0.9"


OTHERWISE = {
    "width 16, not 768": {"model": {"width": 16}},
    "depth 3, not 48": {"model": {"depth": 3}},
    "norm batch, not layer": {"model": {"norm": "batch"}},
    "head mlp, not linear": {"model": {"head": "mlp"}},
    "activation gelu, not relu": {"model": {"activation": "gelu"}},
    "teachers dinov2_vits14, not dinov2_vitl14": {"model": {"teachers": ["dinov2_vits14"]}},
    "teacher's weights random, not published": {"model": {"teacher's weights": "random"}},
    "image size 28x56, not 224x448": {"model": {"image size": "28x56"}},
    "pos_embed timm, not official": {"model": {"pos_embed": "timm"}},
    "feature x_norm, not x_prenorm": {"model": {"feature": "x_norm"}},
    "occlusion drop, not keep": {"model": {"occlusion": "drop"}},
    "pretrained on nuscenes train (2 frames), not nuscenes train (28130 frames) + pandaset_64 train": {
        "model": {"pretrained on": ["nuscenes train (2 frames)"]}
    },
    "training.epochs 1, not 25": {"model": {"training.epochs": 1}},
    "augmentation.max_scale_change 0, not 0.1": {"model": {"augmentation.max_scale_change": 0.0}},
    "objective.loss cosine, not similarity": {"model": {"objective.loss": "cosine"}},
    "classes 10, not 16": {"protocol": {"classes": 10}},
    "scored frames 4, not 6019": {"protocol": {"frames": 4}},
    "training frames 4, not 28130": {"protocol": {"training_frames": 4}},
    "mean over classes all, not present or predicted": {"protocol": {"mean_over": "all"}},
    "epochs 3, not 20": {"departures": ["epochs 3, not 20"]},
    "unknown: teacher's weights": {"model": {"teacher's weights": None}},
    "unknown: scored frames": {"protocol": {"frames": None}},
}


def nearest_row(report: str) -> str:
    (name,) = (name for name in rows_of(report) if name.endswith("the nearest setting"))
    return name


@pytest.mark.parametrize("text", OTHERWISE)
def test_each_setting_that_is_another_is_named(tmp_path, text):
    """In the result file, and below the table, where the row is said to have only the nearest setting."""
    write_run(tmp_path, published("probe nuscenes", ON_ALL), **OTHERWISE[text])
    report = compare([tmp_path])
    assert nearest_row(report) == f"{ON_ALL}, published for the nearest setting"
    part = "model and pretraining" if "model" in OTHERWISE[text] else "this run"
    (note,) = (note for note in notes_of(report).values() if ON_ALL in note)
    assert f"No published result has this setting. The run differs from {ON_ALL} in {part}: {text}" in note
    assert "; " not in note  # nothing else
    assert any(text in departure for departure in read_result(tmp_path)["departures"])
    assert text in (tmp_path / "result.md").read_text()


def test_what_differs_in_the_pretraining_and_in_the_run_itself_is_told_apart(tmp_path):
    changes = {"model": {"training.epochs": 2, "width": 8}, "protocol": {"training_frames": 2}}
    write_run(tmp_path, published("probe nuscenes", ON_ALL), **changes, departures=["epochs 3, not 20"])
    assert notes_of(compare([tmp_path]))[1] == (
        "No published result has this setting."
        f" The run differs from {ON_ALL} in model and pretraining: width 8, not 768; training.epochs 2, not 25;"
        " and in this run: epochs 3, not 20; training frames 2, not 28130."
    )


def test_a_small_student_of_a_random_teacher_is_never_unmarked_beside_the_paper_s(tmp_path):
    changes = {"width": 16, "norm": "batch", "teachers": ["dinov2_vits14"], "teacher's weights": "random"}
    row = published("probe nuscenes", ON_ALL)
    write_run(tmp_path / "small", row, model=changes, protocol={"data": SIMULATED})
    write_run(tmp_path / "equal", row)
    report = compare([tmp_path / "small", tmp_path / "equal"])
    assert rows_of(report)[f"{ON_ALL}, published for the same setting"][1] == "67.80"  # of the other run
    marked = next(line for line in report.splitlines() if line.startswith(f"| {tmp_path / 'small'}"))
    note = notes_of(report)[int(re.search(r"\((\d+)\)", marked)[1])]
    reasons = "Not comparable with published results: simulated data, random teacher weights."
    assert note.startswith(f"{reasons} No published result has this setting. The run differs from ")
    assert all(part in note for part in ("width 16, not 768", "teacher's weights random"))
    assert f"\n{reasons}\n" in (tmp_path / "small/result.md").read_text()
    assert "Not comparable" not in (tmp_path / "equal/result.md").read_text()
    alone = compare([tmp_path / "small"])
    assert not [name for name in rows_of(alone) if name.endswith("the same setting")]


def test_a_simulated_dataset_is_known_by_the_file_in_its_folder(tmp_path):
    assert data_of(tmp_path) == {}
    mark_as_simulated(tmp_path)
    assert data_of(tmp_path) == {"data": SIMULATED}


def test_both_values_stand_where_paper_and_readme_differ(tmp_path):
    name = "ScaLR ({}: WI-48-768, dinov2_vitl14, all four datasets)"
    write_run(tmp_path, published("finetune semantic_kitti 1%", name.format("README")))
    rows = rows_of(compare([tmp_path]))
    assert rows[f"{name.format('Table 5 and Table 8')}, published for the same setting"][1] == "56.80"
    assert rows[f"{name.format('README')}, published for the same setting"][1] == "55.80"


def test_what_a_source_does_not_say_is_told(tmp_path):
    name = "ScaLR (Table 3: WI-48-384, dino_vits8, nuscenes)"
    write_run(tmp_path, published("probe nuscenes", name), model={"training.epochs": 25})
    report = compare([tmp_path])
    unsaid = "The source does not say: training.epochs, training.batch_size, feature, pos_embed."
    assert notes_of(report) == {1: unsaid}
    assert rows_of(report)[f"{name}, published for the same setting"][1] == "57.80"


def test_a_run_of_an_evaluation_without_published_results_says_so(tmp_path):
    for name in ("two", "one"):
        result = RunResult(
            title="A run", figures={"mIoU": 0.5}, departures=["seed 1"] * (name == "two"), protocol={}, provenance={}
        )
        write_result(result, tmp_path / name)
    report = compare([tmp_path / "two", tmp_path / "one"])
    nothing = "No result is published for this evaluation."
    assert notes_of(report) == {1: f"{nothing} Deviations from the published protocol: seed 1.", 2: nothing}
    assert report.splitlines()[0] == "## A run"
    assert len(rows_of(report)) == 2


def test_runs_of_one_table_share_columns(tmp_path):
    for name, figures in (("two", {"mCE": 1.1}), ("one", {"mCE": 0.9, "mRR": 0.8})):
        result = RunResult(title="r", setting="robustness nuscenes_c", figures=figures, protocol={}, provenance={})
        write_result(result, tmp_path / name)
    rows = rows_of(compare([tmp_path / "two", tmp_path / "one"]))
    assert rows[str(tmp_path / "two")][1:] == ["110.00", "–", "–"]
    name = "ScaLR (Table 6: WI-48-768, dinov2_vitl14, all four datasets), published for the nearest setting"
    assert rows[name][1:] == ["87.40", "83.80", "–"]
    others = {name.split(" (")[0] for name in rows if name.endswith("another setting")}
    assert others == {"WaffleIron", "PPKT", "SLidR", "Seal", "Cylinder3D", "2DPASS", "SPVCNN", "GFNet"}


def test_a_folder_without_a_result_is_said(tmp_path):
    with pytest.raises(StudentError, match="no result file exists here"):
        compare([tmp_path])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(StudentError, match="not a result of scalr"):
        compare([tmp_path])


def test_a_result_file_of_another_version_is_said(tmp_path):
    write(tmp_path)
    values = json.loads((tmp_path / "result.json").read_text())
    del values["model"]
    (tmp_path / "result.json").write_text(json.dumps(values))
    with pytest.raises(
        StudentError,
        match=r"the result lacks model; another version of scalr wrote it.*Remove the file and run",
    ):
        compare([tmp_path])


CHANGES = {
    "figures": {"mIoU": 0.99},
    "iou": 3,
    "scenes": None,
    "protocol": None,
    "model": None,
    "interval_95": "x",
    "run": {},
    "sha256": "0" * 64,
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_result_file_that_was_changed_is_said(tmp_path, key):
    write(tmp_path)
    values = read_result(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({**values, key: values[key]}, indent=1, sort_keys=True))
    assert read_result(tmp_path) == values  # the form of the text is no change
    (tmp_path / "result.json").write_text(json.dumps({**values, key: CHANGES[key]}))
    with pytest.raises(StudentError, match=r"cut off or changed since it was written\. Remove the file and run"):
        compare([tmp_path])
