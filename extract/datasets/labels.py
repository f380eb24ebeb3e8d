"""Map raw label ids of a dataset to the train ids of its benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ...errors import DatasetError

IGNORE_LABEL = 255  # train id of points that metrics and losses ignore
_UNKNOWN = 254


def check_length(num_labels: int, num_points: int, scan: str, path: Path) -> None:
    """Check that a scan has one label, read from `path`, per point.

    Raises:
        DatasetError: the numbers of labels and points differ.
    """
    if num_labels != num_points:
        raise DatasetError(
            f"the file has {num_labels} labels, and the scan {scan} has {num_points} points",
            where=path,
            fix="Copy both files again from the dataset's archives.",
        )


class LabelMap:
    """The assignment of raw ids to classes.

    Args:
        classes: raw ids of each class; the order of the classes defines the train ids.
        ignored: raw ids that are valid, but belong to no class.
    """

    def __init__(self, classes: Mapping[str, Iterable[int]], ignored: Iterable[int]) -> None:
        self.class_names = tuple(classes)
        self.ignored = tuple(ignored)
        self.raw_ids = {name: tuple(ids) for name, ids in classes.items()}
        self._train_id = np.full(1 << 16, _UNKNOWN, dtype=np.uint8)
        self._train_id[list(self.ignored)] = IGNORE_LABEL
        for train_id, ids in enumerate(self.raw_ids.values()):
            self._train_id[list(ids)] = train_id

    def with_ignored(self, more: Iterable[int]) -> LabelMap:
        """The same classes, with further ignored ids."""
        return LabelMap(self.raw_ids, (*self.ignored, *more))

    def train_ids(self, raw: np.ndarray, path: Path) -> np.ndarray:
        """Convert raw ids (N,), integers of any width, to train ids (N,) uint8, or IGNORE_LABEL.

        Raises:
            DatasetError: an unknown id; `path` is the file from which the ids were read.
        """
        within = (raw >= 0) & (raw < len(self._train_id))
        train_ids = np.where(within, self._train_id[np.where(within, raw, 0)], np.uint8(_UNKNOWN))
        unknown = np.unique(raw[train_ids == _UNKNOWN])
        if len(unknown):
            raise DatasetError(
                f"the file has label ids that the dataset does not define: {', '.join(map(str, unknown[:5]))}",
                where=path,
                fix="Check that the labels are raw ids of this dataset.",
            )
        return train_ids
