from __future__ import annotations

import pytest

from scalr.errors import DatasetError
from scalr.extract.intensity import INTENSITY_STATISTICS, IntensityStatistics, intensity_statistics


def test_statistics_by_name():
    assert intensity_statistics("pandaset_gt") == IntensityStatistics(23.06113565, 16.76273235)
    with pytest.raises(DatasetError, match="no intensity statistics for dataset 'kitti'") as error:
        intensity_statistics("kitti")
    assert all(name in error.value.fix for name in INTENSITY_STATISTICS)


def test_a_deviation_of_nothing_is_refused():
    with pytest.raises(DatasetError, match="cannot normalise"):
        IntensityStatistics(1.0, 0.0)
