"""Statistics for the normalisation of raw intensities: each lidar has its own scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import DatasetError, did_you_mean


@dataclass(frozen=True)
class IntensityStatistics:
    """Mean and standard deviation of a dataset's raw intensity over its training points.

    Raises:
        DatasetError: values that are not finite, or a deviation that is not positive.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise DatasetError(
                f"mean {self.mean} and standard deviation {self.std} cannot normalise an intensity",
                where="intensity statistics",
                fix="Give finite values, and a standard deviation above 0",
            )


# The constants of the official ScaLR readers.
INTENSITY_STATISTICS = {
    "nuscenes": IntensityStatistics(18.742355, 22.04632),
    "semantic_kitti": IntensityStatistics(0.28613698, 0.14090556),
    "pandaset_64": IntensityStatistics(18.23640649, 25.86983417),
    "pandaset_gt": IntensityStatistics(23.06113565, 16.76273235),
}


def intensity_statistics(dataset: str) -> IntensityStatistics:
    """Return the statistics that the official code uses for a dataset.

    Raises:
        DatasetError: the official code has none for this dataset.
    """
    if dataset not in INTENSITY_STATISTICS:
        raise DatasetError(
            f"no intensity statistics for dataset '{dataset}'{did_you_mean(dataset, INTENSITY_STATISTICS)}",
            where="intensity statistics",
            fix=f"Use one of {', '.join(INTENSITY_STATISTICS)}, or pass IntensityStatistics(mean, std) of your own",
        )
    return INTENSITY_STATISTICS[dataset]
