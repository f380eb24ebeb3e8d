"""Labelled scans as samples and batches, for training and scoring heads and models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..deferred_signals import deferring_stops
from ..distill.augmentation import AugmentConfig, Motion, draw_motion
from ..distill.backbones.backbone import PackedBatch, PreparedScan, ScanInputs
from ..distill.backbones.calls import drawn_rows, inside_mask, packed
from ..distill.inputs import evaluation_input, training_input
from ..distill.interruption import leave_signals_to_the_trainer, starting_workers
from ..distill.training import Batch
from ..errors import DatasetError, ScalrError
from ..extract.datasets.frame import Dataset
from ..extract.datasets.labels import IGNORE_LABEL
from ..extract.datasets.scans import intensity_of, read_labelled_scan, read_labels, read_points
from ..worker_processes import worker_context
from .schedules import Published

Augmentation = Literal["official", "joint"]  # that of the schedule's own code, or that of ScaLR's pretraining
MOVED_BY_SLIDR = AugmentConfig(flips="each", flip_probability=0.5, max_scale_change=0.0)


@dataclass(frozen=True, eq=False)
class LabelledBatch(Batch):
    """Labelled scans packed: M rows in all."""

    inputs: PackedBatch
    labels: torch.Tensor  # (M,) int64 train ids

    @property
    def num_points(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> LabelledBatch:
        inputs = self.inputs.to(device, non_blocking=True)
        return replace(self, inputs=inputs, labels=self.labels.to(device, non_blocking=True))

    def pin_memory(self) -> LabelledBatch:
        """Called by torch's DataLoader with `pin_memory=True`."""
        return replace(self, inputs=self.inputs.pin_memory(), labels=self.labels.pin_memory())


def draw_motions(
    rng: np.random.Generator, augmentation: Augmentation, schedule: Published = "scalr"
) -> tuple[Motion, Motion]:
    """The motion of a scan's coordinates, and the motion of x, y and z among its features.

    The coordinates determine neighbours, field of view and plane cells. Official downstream configurations of ScaLR
    rotate and flip the coordinates, and do not scale them; they rotate the features by another angle, do not flip them,
    and scale them and their radius (`rotation: [[2, 6]]`, `flip_xy`, `scale: [[4, 5, 6, 7], 0.1]` of columns x, y, z,
    intensity, x, y, z, radius). "joint" moves both alike, as in pretraining. SLidR also rotates and flips both alike.
    """
    if schedule == "slidr" and augmentation == "official":
        motion = draw_motion(rng, MOVED_BY_SLIDR)
        return motion, motion
    motion = draw_motion(rng)
    if augmentation == "joint":
        return motion, motion
    return replace(motion, scale=1.0), Motion(angle_rad=rng.uniform(-math.pi, math.pi), scale=motion.scale)


class AugmentedScans(TorchDataset):
    """Training scans in the official order: points are drawn, augmented and cropped.

    SLidR takes the first point of each voxel. Random numbers depend on (seed, visit, frame) only.
    """

    def __init__(
        self,
        dataset: Dataset,
        inputs: ScanInputs,
        seed: int,
        augmentation: Augmentation = "official",
        schedule: Published = "scalr",
    ) -> None:
        self.dataset, self.inputs, self.seed = dataset, inputs, seed
        self.augmentation, self.schedule = augmentation, schedule
        self.intensity = intensity_of(dataset)

    def __len__(self) -> int:
        return len(self.dataset.frames)

    def name_of(self, frame: int) -> str:
        """Dataset, split and frame, for people."""
        return name_of_frame(self.dataset, frame)

    def __getitem__(self, key: tuple[int, int]) -> tuple[PreparedScan, np.ndarray]:
        """The scan of M rows and the (M,) labels of `key` = (visit, frame)."""
        visit, index = key
        rng = np.random.default_rng([self.seed, visit, index])
        points, labels = read_labelled_scan(self.dataset, self.dataset.frames[index])
        voxel_point = "first" if self.schedule == "slidr" else "random"
        drawn = drawn_rows(self.inputs, points[:, :3], None, rng, voxel_point)
        points, labels = points[drawn], labels[drawn]
        motion, motion_of_features = draw_motions(rng, self.augmentation, self.schedule)
        feature_xyz = motion_of_features.move(points[:, :3])
        points[:, :3] = motion.move(points[:, :3])
        inside = inside_mask(self.inputs, points[:, :3])
        scan = training_input(points[inside], self.intensity, self.inputs, feature_xyz[inside])
        return scan, labels[inside][scan.kept]


@dataclass(frozen=True)
class LabelledCollate:
    """Pack labelled scans into a batch (a class, so that it can be pickled for workers)."""

    inputs: ScanInputs

    def __call__(self, samples: Sequence[tuple[PreparedScan, np.ndarray]]) -> LabelledBatch:
        scans, labels = zip(*samples, strict=True)
        inputs = packed(self.inputs, scans)
        return LabelledBatch(inputs, torch.from_numpy(np.concatenate(labels).astype(np.int64)))


@dataclass(frozen=True, eq=False)
class EvaluationScan:
    """A scan as it is scored: the network predicts M rows, and each of N raw points takes the prediction of a row."""

    frame: int  # its number in the dataset
    scan: PreparedScan
    labels: np.ndarray | None  # (N,) uint8 train ids; None if they were not requested


class EvaluationScans(TorchDataset):
    """Scans prepared by the evaluation protocol of a backbone.

    Args:
        dataset: a split.
        inputs: how scans become the backbone's input.
        max_range_m: points at this distance and beyond are removed first, as SALUDA does with SemanticKITTI; they have
            no prediction and are not scored.
        labelled: whether labels are read, too.
    """

    def __init__(
        self, dataset: Dataset, inputs: ScanInputs, *, max_range_m: float | None = None, labelled: bool = True
    ) -> None:
        self.dataset, self.inputs, self.max_range_m, self.labelled = dataset, inputs, max_range_m, labelled
        self.intensity = intensity_of(dataset)

    def __len__(self) -> int:
        return len(self.dataset.frames)

    def __getitem__(self, number: int) -> EvaluationScan | ScalrError:
        """The scan of a frame, or its error: an error raised in a worker would arrive as a traceback."""
        try:
            return self._scan(number)
        except ScalrError as error:
            return error.inside(name_of_frame(self.dataset, number))

    def _scan(self, number: int) -> EvaluationScan:
        frame = self.dataset.frames[number]
        points, labels = read_points(self.dataset, frame), None
        if self.labelled:
            labels = read_labels(self.dataset, frame, len(points))
        if self.max_range_m is not None:
            near = np.linalg.norm(points[:, :3], axis=1) < self.max_range_m
            points, labels = points[near], None if labels is None else labels[near]
        return EvaluationScan(number, evaluation_input(points, self.intensity, self.inputs), labels)

    def read(self, numbers: Sequence[int], workers: int = 0) -> Iterator[EvaluationScan]:
        """The scans of the frames `numbers`, in this order, prepared by `workers` processes (0: the main process).

        Raises:
            ScalrError: a frame cannot be read.
        """
        for scan in in_order(self, numbers, workers):
            if isinstance(scan, ScalrError):
                raise scan
            yield scan


def in_order(scans: TorchDataset, numbers: Sequence[int], workers: int) -> Iterator:
    """The items `numbers` of `scans`, in that order, prepared by `workers` processes at most (0: this one)."""
    workers = min(workers, len(numbers))
    loader = DataLoader(
        scans,
        batch_size=None,
        sampler=list(numbers),
        num_workers=workers,
        multiprocessing_context=worker_context() if workers else None,
        worker_init_fn=leave_signals_to_the_trainer,
    )
    if workers == 0:
        yield from loader
        return
    with ExitStack() as at_the_end:
        with deferring_stops():  # a worker that is still starting would print a traceback if this process ended
            with starting_workers():
                items = iter(loader)
            # The traceback of an error can keep the loader alive; its workers would then delay the end of the process.
            at_the_end.callback(items._shutdown_workers)
            first = [*islice(items, workers)]  # one of each worker
        yield from chain(first, items)


def require_labelled(dataset: Dataset) -> None:
    """Refuse a split without a labelled point; frames are read until one has a label, usually the first.

    Raises:
        DatasetError: no point of the split has a label, or a label file cannot be read.
    """
    if not any((dataset.read_labels(frame) != IGNORE_LABEL).any() for frame in dataset.frames):
        raise unlabelled(dataset)


def unlabelled(dataset: Dataset) -> DatasetError:
    """The error for a split without a labelled point."""
    return DatasetError(
        f"no point of split {dataset.split} of {dataset.name} has a label of its {len(dataset.class_names)} classes",
        where=dataset.root,
        fix="Check the label files: all of their labels are of ignored classes.",
    )


def name_of_frame(dataset: Dataset, frame: int) -> str:
    return f"{dataset.name} split {dataset.split} frame {dataset.frames[frame].token}"
