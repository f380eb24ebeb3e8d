"""Stored views to packed batches: one random camera a frame, one random point a voxel, anew each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import StoreError
from ..extract.encoding import EncodedTargets
from ..extract.store import FeatureStore
from .inputs import (
    AugmentConfig,
    InputConfig,
    PackedBatch,
    ScanInput,
    augment,
    inside_field_of_view,
    nearest_to,
    pack,
    scan_input,
    voxel_representatives,
)

MAX_DRAWS = 10  # of a frame, when a draw leaves no point


@dataclass(frozen=True, eq=False)
class DistillSample:
    """One view, ready for the network."""

    scan: ScanInput  # M points
    targets: EncodedTargets  # M


@dataclass(frozen=True, eq=False)
class DistillBatch:
    """Several views packed: the points of one after those of the other, no padding."""

    inputs: PackedBatch  # M points in all
    targets: EncodedTargets  # M; `.decode()` on the training device gives (M, D) float32

    @property
    def num_points(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> DistillBatch:
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


class DistillDataset(Dataset):
    """The frames of a store, as the official ScaLR code samples them.

    A sample depends on (seed, epoch, frame) alone, whatever process draws it and in which order.

    Args:
        store: with targets of `teacher`.
        teacher: whose targets the student learns.
        inputs: voxels, field of view and planes.
        augmentation: rotation, flips, scale.
        seed: of all random choices.
        split: only its frames; None takes all.

    Raises:
        StoreError: no such teacher, or no view that sees a point.
    """

    def __init__(
        self,
        store: FeatureStore,
        teacher: str,
        inputs: InputConfig,
        augmentation: AugmentConfig,
        seed: int,
        split: str | None = None,
    ) -> None:
        self.store, self.teacher, self.seed = store, teacher, seed
        self.inputs, self.augmentation = inputs, augmentation
        self.frames = _views_by_frame(store, teacher, split)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int]) -> DistillSample:
        """The sample of `key` = (epoch, frame)."""
        epoch, frame = key
        rng = np.random.default_rng([self.seed, epoch, frame])
        for _ in range(MAX_DRAWS):
            row = int(rng.choice(self.frames[frame]))
            sample = self._sample(row, rng)
            if sample is not None:
                return sample
        raise StoreError(
            f"view {row} of teacher {self.teacher} keeps no point inside the field of view",
            where=self.store.path,
            fix="Enlarge inputs.fov_min_m and inputs.fov_max_m in the recipe.",
        )

    def _sample(self, row: int, rng: np.random.Generator) -> DistillSample | None:
        # The order of the official code: voxels of the whole scan, camera, number of points, augmentation, crop.
        view = self.store.read_view(row, self.teacher)
        pair_of_point = np.full(len(view.points), -1)
        pair_of_point[view.point_index] = np.arange(len(view.point_index))
        pair = pair_of_point[voxel_representatives(view.points[:, :3], self.inputs.voxel_size_m, rng)]
        pair = pair[pair >= 0]
        if len(pair) > self.inputs.max_points:
            xyz = view.points[view.point_index[pair], :3]
            pair = pair[nearest_to(xyz, xyz[rng.integers(len(xyz))], self.inputs.max_points)]
        points = view.points[view.point_index[pair]]
        points[:, :3] = augment(points[:, :3], rng, self.augmentation)
        inside = inside_field_of_view(points[:, :3], self.inputs)
        if not inside.any():
            return None
        scan = scan_input(points[inside], view.intensity, self.inputs)
        return DistillSample(scan, view.encoded.select(torch.from_numpy(pair[inside])))


class MixedDataset(Dataset):
    """The frames of several stores, one store after the other: shuffled together, each frame is as likely as any other.

    Args:
        parts: the stores' own samples, in the order of their frames.
    """

    def __init__(self, parts: Sequence[DistillDataset]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, key: tuple[int, int]) -> DistillSample:
        """The sample of `key` = (epoch, frame)."""
        epoch, frame = key
        part = int(np.searchsorted(self.starts, frame, side="right")) - 1
        return self.parts[part][epoch, frame - int(self.starts[part])]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, frame) keys of an epoch's batches: every frame once, shuffled anew each epoch.

    The last batch is dropped when it is short, unless it is the only one.
    """

    def __init__(self, num_frames: int, batch_size: int, seed: int) -> None:
        self.num_frames, self.batch_size, self.seed = num_frames, min(batch_size, num_frames), seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_frames // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_frames)
        for batch in range(len(self)):
            frames = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(frame)) for frame in frames]


class EpochLoader:
    """A DataLoader over `EpochBatches`: call it with the epoch to get that epoch's batches."""

    def __init__(self, dataset: Dataset, collate, *, batch_size: int, seed: int, workers: int) -> None:
        self._batches = EpochBatches(len(dataset), batch_size, seed)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            collate_fn=collate,
            num_workers=workers,
            # A forked worker can deadlock once zarr has run in this process.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __call__(self, epoch: int) -> DataLoader:
        self._batches.epoch = epoch
        return self._loader


@dataclass(frozen=True)
class DistillCollate:
    """Pack samples into a batch (a class, so that spawned workers can be sent it)."""

    inputs: InputConfig

    def __call__(self, samples: Sequence[DistillSample]) -> DistillBatch:
        return DistillBatch(
            inputs=pack([sample.scan for sample in samples], self.inputs),
            targets=EncodedTargets.concatenate([sample.targets for sample in samples]),
        )


def _views_by_frame(store: FeatureStore, teacher: str, split: str | None) -> list[np.ndarray]:
    """Rows of the views of each frame that see a point and have targets."""
    rows = store.rows_with_targets(teacher)
    used = store.column("pairs_stop")[rows] > store.column("pairs_start")[rows]
    if split is not None:
        used &= store.column("split")[rows] == split
    rows = rows[used]
    if not len(rows):
        raise StoreError(
            f"no view with targets of {teacher}",
            where=store.path,
            fix=f"Run 'scalr extract --teacher {teacher}' first.",
        )
    # The views of a frame follow each other and share their scan.
    scan = np.stack([store.column(name)[rows] for name in ("block", "points_start")], axis=1)
    first_of_frame = np.flatnonzero((scan[1:] != scan[:-1]).any(axis=1)) + 1
    return np.split(rows, first_of_frame)
