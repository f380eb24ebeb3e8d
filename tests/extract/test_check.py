"""What `scalr check` counts."""

from __future__ import annotations

import numpy as np

from scalr.errors import DatasetError
from scalr.extract.check import check_frame, summarise
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
    assert report.as_text().endswith("1 problems")


def test_a_split_without_a_sound_frame_has_shares_of_zero(tiny_dataset):
    report = summarise(tiny_dataset, [])
    assert (report.points_per_frame, report.visible_share, report.pairs_per_frame, report.hidden_share) == (0, 0, 0, 0)
    assert report.as_text().endswith("no problem found")
