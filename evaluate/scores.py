"""The scores of a model: confusion matrices by scene, and the metrics computed from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .metrics import (
    MeanOver,
    accuracy,
    bootstrap_interval,
    frequency_weighted_iou,
    intersection_over_union,
    mean_iou,
)


@dataclass(frozen=True, eq=False)
class Scores:
    """Counts of labelled raw points by (label, prediction), scene by scene."""

    class_names: tuple[str, ...]
    scenes: tuple[str, ...]
    confusions: np.ndarray = field(repr=False)  # (scenes, classes, classes) int64, rows are labels
    num_frames: int
    frames_sha256: str  # digest of the frame IDs, in order
    mean_over: MeanOver = "present or predicted"

    @property
    def confusion(self) -> np.ndarray:
        """(classes, classes) int64, rows are labels."""
        return self.confusions.sum(axis=0)

    @property
    def iou(self) -> np.ndarray:
        """(classes,) float64; NaN for a class without labels and predictions."""
        return intersection_over_union(self.confusion)

    @property
    def miou(self) -> float:
        """Mean over the classes of `mean_over`, by default those of the published protocol."""
        return float(mean_iou(self.confusion, self.mean_over))

    @property
    def miou_of_all_classes(self) -> float:
        """SemanticKITTI's own mean: a class without labels and predictions counts as 0."""
        return float(mean_iou(self.confusion, "all"))

    @property
    def fwiou(self) -> float:
        """The nuScenes devkit's frequency-weighted IoU."""
        return frequency_weighted_iou(self.confusion)

    @property
    def accuracy(self) -> float:
        return accuracy(self.confusion)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mIoU, by bootstrap over scenes; None for a single scene."""
        return bootstrap_interval(self.confusions, self.mean_over)
