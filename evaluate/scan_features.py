"""Features of one scan: a student's at all its points, a teacher's at the pairs in a store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc
import torch

from ..distill.backbones.calls import inputs_for, packed
from ..distill.inputs import evaluation_input
from ..distill.student import Student
from ..errors import StoreError
from ..extract.datasets.frame import Dataset, Frame
from ..extract.datasets.scans import intensity_of, read_labels, read_points
from ..extract.intensity import IntensityStatistics
from ..extract.store import FeatureStore
from .cosines import centred, similarity, unit
from .stored_scans import rows_in_scan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ScanFeatures:
    """A scan of N points with the student's features of V of them, one per voxel, which stand for the others."""

    points: np.ndarray  # (N, 4) float32
    labels: np.ndarray | None  # (N,) uint8 train ids
    tokens: torch.Tensor  # (V, C) float32, point features on the student's device
    kept: np.ndarray  # (V,) int64 rows of the scan
    nearest: np.ndarray  # (N,) int64 rows of `tokens`
    units: np.ndarray = field(init=False)  # (V, C) float32, the features as unit vectors
    mean: np.ndarray = field(init=False)  # (C,) float32, mean of the unit vectors of all points

    def __post_init__(self) -> None:
        units = unit(self.tokens.cpu().numpy())
        object.__setattr__(self, "units", units)
        points_of = np.bincount(self.nearest, minlength=len(units))
        object.__setattr__(self, "mean", (points_of @ units / len(self.nearest)).astype(np.float32))

    def similarity_to(self, query: np.ndarray, *, centre: bool) -> np.ndarray:
        """Cosines (N,) float32 of all points to a query (C,) among unit features, such as a point's or a class's mean.

        Args:
            centre: whether the mean of the scan is first subtracted from both.
        """
        if not centre:
            return similarity(self.units, query)[self.nearest]
        return similarity(centred(self.units, self.mean), centred(query, self.mean))[self.nearest]


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """A teacher's targets of one frame, for the pairs of all its views; the view with the most pairs comes last."""

    teacher: str
    rows: np.ndarray  # (R,) int64, rows of the dataset's scan
    targets: np.ndarray  # (R, D) float32
    camera: str  # of the last view
    pixel: np.ndarray  # (S, 2) uint16, row and column of the last view's pairs


@torch.inference_mode()
def scan_features(
    student: Student,
    dataset: Dataset,
    frame: Frame,
    name: str,
    *,
    intensity: IntensityStatistics | None = None,
    labelled: bool = False,
) -> ScanFeatures:
    """The features of a scan by `Student.extract`, with labels if the frame has any.

    Args:
        name: the dataset reader's name, which determines the field of view.
        intensity: the dataset's statistics, for callers that read many scans; None: published or measured here.
        labelled: whether a frame without labels is an error.

    Raises:
        ScalrError: a scan or label file cannot be used.
    """
    points, inputs = read_points(dataset, frame), inputs_for(student.input_config, name)
    has_labels = frame.labels is not None and len(dataset.class_names) > 0
    labels = read_labels(dataset, frame, len(points)) if labelled or has_labels else None
    logger.info("%s: features of %s points", frame.token, f"{len(points):,}")  # a single pass has no progress bar
    scan = evaluation_input(points, intensity or intensity_of(dataset), inputs)
    tokens = student.tokens(packed(inputs, [scan]).to(student.device)).float()
    return ScanFeatures(points, labels, tokens, scan.kept, scan.row)


def stored_features(
    store: FeatureStore, teacher: str, dataset: Dataset, frame: Frame, scan: ScanFeatures
) -> StoredFeatures:
    """A teacher's targets of a frame.

    Raises:
        StoreError: no such teacher, no targets of this frame, or targets of another scan.
    """
    tokens, names = store.views["token"], store.views["dataset"]
    of_frame = np.flatnonzero(pc.and_(pc.equal(tokens, frame.token), pc.equal(names, dataset.name)))
    rows = np.intersect1d(of_frame, store.rows_with_targets(teacher)).tolist()
    views = {str(store.views["camera"][row]): store.read_view(row, teacher) for row in rows}
    cameras = sorted(views, key=lambda camera: len(views[camera].point_index))
    if not cameras or len(views[cameras[-1]].point_index) == 0:
        raise StoreError(
            f"no targets of {teacher} for frame {frame.token} of {dataset.name}",
            where=store.path,
            fix=f"Run 'scalr extract --teacher {teacher} --split {dataset.split}', and pass its store as --cache.",
        )
    raw_rows = [
        rows_in_scan(views[camera].points, scan.points, frame, store.path)[views[camera].point_index]
        for camera in cameras
    ]
    return StoredFeatures(
        teacher=teacher,
        rows=np.concatenate(raw_rows),
        targets=np.concatenate([views[camera].targets for camera in cameras]),
        camera=cameras[-1],
        pixel=views[cameras[-1]].pixel,
    )


@torch.inference_mode()
def in_space_of(
    stored: StoredFeatures, student: Student, scan: ScanFeatures, provenance: Mapping[str, dict]
) -> np.ndarray | None:
    """(V, D) unit vectors of the student's head for this teacher; None if the student learnt from another teacher."""
    dims = {name: values["dim"] for name, values in (provenance.get("teachers") or {}).items()}
    if stored.teacher not in dims or student.config.out_channels != sum(dims.values()):
        return None
    before = list(dims)[: list(dims).index(stored.teacher)]
    first = sum(dims[name] for name in before)
    return unit(student.project(scan.tokens)[:, first : first + dims[stored.teacher]].cpu().numpy())
