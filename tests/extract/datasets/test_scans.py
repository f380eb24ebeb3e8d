from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from bars import Bars
from scalr.errors import DatasetError
from scalr.extract.datasets import scans
from scalr.extract.datasets.scans import intensity_of, read_labelled_scan, read_points


def test_a_reader_that_is_not_ours_is_checked_as_ours_are(tiny_dataset):
    frame = tiny_dataset.frames[0]
    points, labels = read_labelled_scan(tiny_dataset, frame)
    assert (points.shape, labels.shape) == ((400, 4), (400,))
    tiny_dataset.read_points = lambda frame: np.zeros((3, 3))
    with pytest.raises(DatasetError, match=r"frame0\.bin: the scan has shape \(3, 3\)"):
        read_points(tiny_dataset, frame)
    tiny_dataset.read_points = lambda frame: np.zeros((3, 4))
    with pytest.raises(DatasetError, match=r"a\.label: the file has 400 labels, and the scan frame0\.bin has 3 points"):
        read_labelled_scan(tiny_dataset, replace(frame, labels="a.label"))


def test_published_statistics_go_before_measured_ones(tiny_dataset):
    assert intensity_of(tiny_dataset) == tiny_dataset.intensity


def measured(dataset, number_of_scans: int, broken=()):
    """The statistics of a dataset whose scan k has k points of intensity k, and the scans read for them."""
    read = []

    def read_points(frame):
        read.append(frame.timestamp)
        if frame.timestamp in broken:
            raise DatasetError(f"scan {frame.timestamp} is cut", where="a.bin", fix="Copy it again.")
        return np.tile([0, 0, 0, frame.timestamp], (frame.timestamp, 1))

    dataset.intensity, dataset.read_points = None, read_points
    dataset.frames = [replace(dataset.frames[0], timestamp=number + 1) for number in range(number_of_scans)]
    return intensity_of(dataset), read


def test_intensities_are_measured_over_all_points_of_all_scans_where_they_are_few(tiny_dataset, caplog):
    caplog.set_level("INFO")
    statistics, read = measured(tiny_dataset, 3)
    values = [1, 2, 2, 3, 3, 3]
    assert read == [1, 2, 3]
    assert (statistics.mean, statistics.std) == pytest.approx((np.mean(values), np.std(values)))
    assert "in 3 scans of train" in caplog.text


def test_of_many_scans_64_are_read_spread_evenly(tiny_dataset, monkeypatch):
    bars = Bars(monkeypatch, scans)
    _, read = measured(tiny_dataset, 1000)
    assert (scans.MEASURED_SCANS, len(read), read[0], read[-1]) == (64, 64, 1, 1000)
    assert {after - before for before, after in pairwise(read)} <= {15, 16}
    assert [(bar.says, sum(bar.moved)) for bar in bars] == [((64, "intensities", "scan"), 64)]


def test_scans_that_cannot_be_read_are_left_out_unless_all_are(tiny_dataset):
    statistics, _ = measured(tiny_dataset, 3, broken={2})
    values = [1, 3, 3, 3]
    assert (statistics.mean, statistics.std) == pytest.approx((np.mean(values), np.std(values)))
    with pytest.raises(DatasetError, match="scan 3 is cut"):
        measured(tiny_dataset, 3, broken={1, 2, 3})
