"""Statistics for the normalisation of raw intensities: each lidar has its own scale."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DatasetError, did_you_mean

# No sensor has larger ones, and normalised within these limits they do not overflow in float32, nor do their squares.
LARGEST_INTENSITY, SMALLEST_DEVIATION = 1e10, 1e-6


@dataclass(frozen=True)
class IntensityStatistics:
    """Mean and standard deviation of a dataset's raw intensity over its training points.

    Raises:
        DatasetError: values with which normalised intensities could overflow.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (abs(self.mean) <= LARGEST_INTENSITY and SMALLEST_DEVIATION <= self.std <= LARGEST_INTENSITY):
            raise DatasetError(
                f"mean {self.mean} and standard deviation {self.std} cannot normalise an intensity",
                where="intensity statistics",
                fix=f"Give a mean of at most {LARGEST_INTENSITY:g}, and a standard deviation of at least"
                f" {SMALLEST_DEVIATION:g}",
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
