"""Areas under ROC curves over frames of a split: how well features of a student and its teacher separate classes.

areas = areas_under_curve(student, dataset, "nuscenes", num_frames=8, store=open_store("val.zarr"))
areas.student.centred, areas.teacher.centred  # one value per class
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ..distill.student import Student
from ..errors import ScalrError
from ..extract.datasets.frame import Dataset
from ..extract.datasets.labels import IGNORE_LABEL
from ..extract.datasets.scans import intensity_of
from ..extract.store import FeatureStore
from ..progress import progress
from .class_areas import areas_of_classes, mean_of_known
from .cosines import unit
from .labelled_scans import name_of_frame
from .scan_features import scan_features, stored_features


@dataclass(frozen=True, eq=False)
class Areas:
    """Areas of K classes, (K,) float64 in 0..1: means over the frames with enough points of a class, or NaN."""

    plain: np.ndarray  # from cosines of the features
    centred: np.ndarray  # from cosines of the features minus their mean over the frame

    @property
    def means(self) -> dict[str, float]:
        """Means over classes; every class has the same weight."""
        return {name: float(mean_of_known(values)) for name, values in vars(self).items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitAreas:
    """Areas under ROC curves, of each class against all other labelled points, with the frames and counts."""

    class_names: tuple[str, ...]
    frames: tuple[str, ...]  # frame IDs
    points: np.ndarray  # (K,) int64, labelled points of each class in these frames
    pairs: np.ndarray | None  # (K,) int64, pairs of the teacher; None without a store
    student: Areas  # on all labelled points
    student_on_pairs: Areas | None  # on the points of the teacher's pairs; None without a store
    teacher: Areas | None  # of the teacher's targets; None without a store

    @property
    def columns(self) -> Mapping[str, Areas]:
        """The areas that exist, by name."""
        named = {"student": self.student, "student_on_pairs": self.student_on_pairs, "teacher": self.teacher}
        return {name: areas for name, areas in named.items() if areas is not None}

    def as_record(self) -> dict[str, Any]:
        """Plain values by class; NaN for unknown values."""
        counts = {"points": self.points} | ({} if self.pairs is None else {"pairs": self.pairs})
        return {
            "frames": list(self.frames),
            "classes": {
                name: {what: int(number[k]) for what, number in counts.items()}
                | {what: {"plain": areas.plain[k], "centred": areas.centred[k]} for what, areas in self.columns.items()}
                for k, name in enumerate(self.class_names)
            },
            "mean": {what: areas.means for what, areas in self.columns.items()},
        }


class _Tally:
    """Areas of one kind of features, collected frame by frame."""

    def __init__(self, num_classes: int) -> None:
        self.points = np.zeros(num_classes, np.int64)
        self.of_frames: dict[bool, list[np.ndarray]] = {False: [], True: []}  # by `centre`

    def add(self, units: np.ndarray, labels: np.ndarray) -> None:
        for centre, areas in self.of_frames.items():
            areas.append(areas_of_classes(units, labels, len(self.points), centre=centre))
        self.points += np.bincount(labels[labels != IGNORE_LABEL], minlength=len(self.points))

    def areas(self) -> Areas:
        plain, centred = (mean_of_known(np.stack(self.of_frames[centre])) for centre in (False, True))
        return Areas(plain, centred)


def areas_under_curve(
    student: Student,
    dataset: Dataset,
    name: str,
    *,
    num_frames: int,
    store: FeatureStore | None = None,
    teacher: str | None = None,
) -> SplitAreas | None:
    """Areas over frames spread evenly over the labelled frames of a split; with a store, over those with pairs in it.

    Args:
        student: the student whose backbone features are ranked.
        name: the dataset reader's name, which determines the field of view.
        num_frames: maximum number of frames.
        store: a store with a teacher's targets; their areas are over its pairs.
        teacher: None: the only teacher of the store.

    Returns:
        None if no frame has labels (and, with a store, pairs).

    Raises:
        ScalrError: a frame cannot be read, or the store has targets of another scan.
    """
    names = dataset.class_names
    teacher = teacher if store is None or teacher is not None else store.only_teacher()
    numbers = _spread(_usable_frames(dataset, store, teacher), num_frames)
    if not numbers:
        return None
    of_student, on_pairs, of_teacher = (_Tally(len(names)) for _ in range(3))
    intensity = intensity_of(dataset)
    with progress(len(numbers), "areas under ROC curves", "frame") as bar:
        for number in numbers:
            frame = dataset.frames[number]
            try:
                scan = scan_features(student, dataset, frame, name, intensity=intensity)
            except ScalrError as error:
                raise error.inside(name_of_frame(dataset, number)) from None
            units = scan.units[scan.nearest]
            of_student.add(units, scan.labels)
            if store is not None:
                stored = stored_features(store, teacher, dataset, frame, scan)
                on_pairs.add(units[stored.rows], scan.labels[stored.rows])
                of_teacher.add(unit(stored.targets), scan.labels[stored.rows])
            bar.update()
    return SplitAreas(
        class_names=tuple(names),
        frames=tuple(dataset.frames[number].token for number in numbers),
        points=of_student.points,
        pairs=None if store is None else of_teacher.points,
        student=of_student.areas(),
        student_on_pairs=None if store is None else on_pairs.areas(),
        teacher=None if store is None else of_teacher.areas(),
    )


def _usable_frames(dataset: Dataset, store: FeatureStore | None, teacher: str | None) -> list[int]:
    """The frames of a split that have labels and, with a store, pairs in it."""
    if not dataset.class_names:
        return []
    labelled = [number for number, frame in enumerate(dataset.frames) if frame.labels is not None]
    if store is None:
        return labelled
    views = store.views.take(store.rows_with_targets(teacher))
    has_pairs = pc.less(views["pairs_start"], views["pairs_stop"])
    tokens = set(views.filter(pc.and_(has_pairs, pc.equal(views["dataset"], dataset.name)))["token"].to_pylist())
    return [number for number in labelled if dataset.frames[number].token in tokens]


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, spread evenly, with the first."""
    count = min(count, len(numbers))
    return [numbers[n * len(numbers) // count] for n in range(count)]
