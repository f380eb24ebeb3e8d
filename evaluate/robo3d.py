"""Robo3D's metrics (Kong et al., ICCV 2023), mean corruption error and mean resilience rate, with the baseline's mIoU.

For each corruption i with severities l, for a model and the baseline b (MinkUNet-18):

    CE_i = sum_l (100 - mIoU_il) / sum_l (100 - mIoU_il of b)      mCE = mean over i
    RR_i = sum_l mIoU_il / (3 mIoU of the clean set)               mRR = mean over i
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..extract.datasets.corruptions import CORRUPTIONS

# mIoU of the baseline [%], mean over severities, in the order of CORRUPTIONS.
BASELINE = {
    "nuscenes_c": dict(zip(CORRUPTIONS, (53.64, 73.91, 40.35, 73.39, 68.54, 26.58, 63.83, 50.95), strict=True)),
    "semantic_kitti_c": dict(zip(CORRUPTIONS, (55.87, 53.99, 53.28, 32.92, 56.32, 58.34, 54.43, 46.05), strict=True)),
}


def corruption_errors(miou: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    """CE of each corruption [%].

    Args:
        miou: the model's mIoU, mean over severities [%], by corruption.
        baseline: the same of the baseline.

    >>> corruption_errors({"fog": 60.0}, baseline={"fog": 50.0})
    {'fog': 80.0}
    """
    return {name: 100 * (100 - value) / (100 - baseline[name]) for name, value in miou.items()}


def resilience_rates(miou: Mapping[str, float], clean: float) -> dict[str, float]:
    """RR of each corruption [%]: the fraction of the mIoU on the clean set that remains."""
    return {name: 100 * value / clean if clean else float("nan") for name, value in miou.items()}


def mean_over(values: Mapping[str, float]) -> float:
    """The mCE of CEs, or the mRR of RRs."""
    return float(np.mean(list(values.values())))
