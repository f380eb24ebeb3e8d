from __future__ import annotations

import math

import pytest

from scalr.errors import DatasetError
from scalr.extract.intensity import INTENSITY_STATISTICS, IntensityStatistics, intensity_statistics


def test_statistics_by_name():
    """Those of valeoai/ScaLR: datasets/nuscenes.py, semantic_kitti.py and pandaset.py."""
    published = {
        "nuscenes": (18.742355, 22.04632),
        "semantic_kitti": (0.28613698, 0.14090556),
        "pandaset_64": (18.23640649, 25.86983417),
        "pandaset_gt": (23.06113565, 16.76273235),
    }
    assert {name: intensity_statistics(name) for name in INTENSITY_STATISTICS} == {
        name: IntensityStatistics(*values) for name, values in published.items()
    }
    with pytest.raises(DatasetError, match="no intensity statistics for dataset 'kitti'") as error:
        intensity_statistics("kitti")
    assert all(name in error.value.fix for name in INTENSITY_STATISTICS)


@pytest.mark.parametrize(
    ("mean", "std"), [(1.0, 0.0), (1.0, -1.0), (math.nan, 1.0), (math.inf, 1.0), (0.0, math.nan), (0.0, math.inf)]
)
def test_what_cannot_normalise_is_refused(mean, std):
    with pytest.raises(DatasetError, match="cannot normalise"):
        IntensityStatistics(mean, std)
