"""What `scalr check` counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bars import Bars
from scalr.errors import DatasetError
from scalr.extract import check as module
from scalr.extract.check import DatasetReport, FrameReport, check, check_frame, summarise
from scalr.extract.occlusion import hidden_pairs
from scalr.extract.projection import Visibility, project


def test_a_split_is_counted_over_its_sound_frames(tiny_dataset):
    """Points, pairs and what hides them, added up by hand; a frame that cannot be used counts as a frame alone."""
    broken = tiny_dataset.frames[2]
    good = tiny_dataset.read_points

    def read_points(frame):
        if frame is broken:
            raise DatasetError("cut off", where="2.bin", fix="Copy it again")
        return good(frame)

    tiny_dataset.read_points = read_points
    report = summarise(tiny_dataset, [check_frame(tiny_dataset, frame) for frame in tiny_dataset.frames])
    visible = pairs = hidden = 0
    for frame in tiny_dataset.frames[:2]:
        seen = [project(good(frame), view.calibration, view.image_shape, Visibility()) for view in frame.views]
        visible += len(np.unique(np.concatenate([view.point_index for view in seen])))
        pairs += sum(len(view.pixel) for view in seen)
        hidden += sum(hidden_pairs(view.pixel, view.depth_m, (48, 64)).sum() for view in seen)
    assert (report.frames, report.views) == (3, 6)
    assert report.points_per_frame == 400
    assert report.visible_share == visible / 800
    assert report.pairs_per_frame == pairs / 2
    assert report.hidden_share == hidden / pairs > 0
    assert report.problems == ["2.bin: cut off. Copy it again"]
    assert report.as_text().endswith("1 problem")


def test_a_split_without_a_sound_frame_has_shares_of_zero(tiny_dataset):
    report = summarise(tiny_dataset, [])
    assert (report.points_per_frame, report.visible_share, report.pairs_per_frame, report.hidden_share) == (0, 0, 0, 0)
    assert report.as_text().endswith("no problem found")


REPORT = DatasetReport(
    dataset="nuscenes", split="val", frames=6_019, views=36_114, points_per_frame=34_688.4, visible_share=0.4567,
    pairs_per_frame=22_115.2, hidden_share=0.0123, problems=["a.bin: cut off.", "b.jpg: missing."],
)  # fmt: skip


def test_a_report_is_a_summary_and_a_line_a_problem():
    assert REPORT.as_text().splitlines() == [
        "nuscenes val: 6,019 frames, 36,114 views",
        "34,688 points per frame, 45.7% of them visible; 22,115 pairs per frame, 1.2% of them occluded",
        "a.bin: cut off.",
        "b.jpg: missing.",
        "2 problems",
    ]
    assert replace(REPORT, problems=[]).as_text().splitlines()[2:] == ["no problem found"]
    assert REPORT.as_json()["visible_share"] == 0.4567


def test_a_problem_of_several_frames_is_told_once(tiny_dataset):
    reports = [FrameReport(["a: cut", "b: gone"]), FrameReport([], points=10, visible=4, pairs=6, hidden=3)]
    report = summarise(tiny_dataset, [*reports, FrameReport(["b: gone"], points=99)])
    assert report.problems == ["a: cut", "b: gone"]
    shares = (report.points_per_frame, report.visible_share, report.pairs_per_frame, report.hidden_share)
    assert (report.frames, *shares) == (3, 10, 0.4, 6, 0.5)


def test_shares_of_a_single_point_are_whole(tiny_dataset):
    report = summarise(tiny_dataset, [FrameReport([], points=1, visible=1, pairs=1, hidden=1)])
    assert (report.points_per_frame, report.visible_share, report.pairs_per_frame, report.hidden_share) == (1, 1, 1, 1)


def test_all_frames_are_checked_in_their_order(tiny_dataset, monkeypatch):
    monkeypatch.setattr(module, "open_dataset", lambda name, root, split: tiny_dataset)
    bars = Bars(monkeypatch, module)
    for number in (0, 2):
        (tiny_dataset.root / f"frame{number}_LEFT.png").unlink()
    report = check("tiny", tiny_dataset.root, "train")
    assert [problem.split(": ")[0].rsplit("/", 1)[1] for problem in report.problems] == [
        "frame0_LEFT.png",
        "frame2_LEFT.png",
    ]
    assert [(bar.says, sum(bar.moved)) for bar in bars] == [((3, "check", "frame"), 3)]


def test_everything_that_is_wrong_with_a_frame_is_found(tiny_dataset):
    """Both images and the labels, each once."""
    frame = replace(tiny_dataset.frames[0], labels="frame0.label")
    for camera in ("LEFT", "RIGHT"):
        (tiny_dataset.root / f"frame0_{camera}.png").write_bytes(b"")
    tiny_dataset.read_labels = lambda frame: np.zeros(399, np.uint8)
    report = check_frame(tiny_dataset, frame)
    found = [problem.removeprefix(f"{tiny_dataset.root}/").split(":")[0] for problem in report.problems]
    assert sorted(found) == ["frame0.label", "frame0_LEFT.png", "frame0_RIGHT.png"]
    assert (report.points, report.pairs) == (400, 0)


def test_a_frame_without_labels_or_without_views_is_sound(tiny_dataset):
    """A set for evaluation has no views: its points are read, its labels too."""
    read = []
    tiny_dataset.read_labels = lambda frame: read.append(frame) or np.zeros(400, np.uint8)
    assert check_frame(tiny_dataset, tiny_dataset.frames[0]).problems == []
    assert read == []
    report = check_frame(tiny_dataset, replace(tiny_dataset.frames[0], views=(), labels="a.label"))
    assert (report.problems, report.points, len(read)) == ([], 400, 1)
    assert (report.visible, report.pairs, report.hidden) == (0, 0, 0)
    assert (FrameReport(["a"]).points, FrameReport(["a"]).visible) == (0, 0)


def test_a_frame_with_an_error_of_its_own_has_it(tiny_dataset):
    error = DatasetError("no calibration", where="calib.txt", fix="Copy it again.")
    report = check_frame(tiny_dataset, replace(tiny_dataset.frames[0], views=(), error=error))
    assert (report.problems, report.points) == (["calib.txt: no calibration. Copy it again"], 400)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("matrix", ["cam_from_lidar", "intrinsics"])
def test_a_calibration_that_is_not_finite_is_a_problem_of_its_frame(tiny_dataset, matrix, value):
    frame = tiny_dataset.frames[0]
    left, right = frame.views
    values = getattr(right.calibration, matrix).copy()
    values[0, 2] = value
    frame = replace(frame, views=(left, replace(right, calibration=replace(right.calibration, **{matrix: values}))))
    (problem,) = check_frame(tiny_dataset, frame).problems
    assert "frame0_RIGHT.png: the calibration of camera RIGHT has values that are not finite." in problem
