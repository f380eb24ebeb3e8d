"""From stored views to packed batches: in each epoch, one random camera per frame and one random point per voxel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import StoreError
from ..extract.store import FeatureStore, Source, StoredView
from ..extract.targets import EncodedTargets
from ..settings import Count, Settings, Weight, at_least
from .augmentation import AugmentConfig, augment, outside_cuboid
from .backbones.backbone import PackedBatch, PreparedScan, ScanInputs, VoxelPoint
from .backbones.calls import drawn_rows, inputs_for_distillation, inside_mask, packed
from .inputs import training_input
from .segments import PAIRS, SegmentTargets, TargetParts, is_usable
from .training import Batch

MAX_DRAWS = 10  # attempts per frame, if a draw leaves no point
MIN_PAIRS = 1024  # per view, below which a cuboid is not removed, as in the official SLidR code
WITHOUT_HEAD = "Pass --set objective.target_head=none"  # a loss of segments then needs no targets of pairs
OF_SEGMENTS = "Use loss slidr or st_slidr with target_head none"

Pairs = tuple[np.ndarray, np.ndarray]  # of a view: the row of each pair's point in the sample, and the pair; int64


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Settings, section="sampling"):
    """Cameras and points of a sample; the defaults are those of the official ScaLR code.

    Raises:
        StudentError: a value that cannot be used.
    """

    views_per_sample: Count | Literal["all"] = 1  # cameras of a frame, drawn at random
    points: Literal["seen", "all"] = "seen"  # seen: by these cameras. all: of the scan; needs complete scans
    voxel_point: VoxelPoint = "random"  # the point that represents a voxel
    # Relative frequency of each store; None makes all frames of all stores equally likely.
    store_weights: Annotated[tuple[Weight, ...], at_least(1)] | None = None


class SampleId(NamedTuple):
    """The store and the views that a sample comes from."""

    store: int  # number of its --cache option
    rows: tuple[int, ...]  # rows of the store's views


@dataclass(frozen=True, eq=False)
class DistillSample:
    """One frame seen by one or several cameras, ready for the network."""

    id: SampleId
    scan: PreparedScan  # M rows
    point: np.ndarray | None  # (R,) int64 row of each pair in `scan`; None if pair r has row r
    targets: tuple[EncodedTargets, ...]  # per teacher, R pairs; empty if the loss needs means of segments only
    segments: SegmentTargets | None = None  # for a loss of segments

    @property
    def num_pairs(self) -> int:
        return len(self.targets[0]) if self.targets else len(self.segments.row)


@dataclass(frozen=True, eq=False)
class DistillBatch(Batch):
    """Several samples, packed: their points are concatenated without padding, and so are their pairs."""

    inputs: PackedBatch  # M rows in all
    point: torch.Tensor | None  # (R,) int64 row of each pair in `inputs`; None if pair r has row r
    sample: torch.Tensor  # (R,) int64 sample of each pair
    targets: tuple[EncodedTargets, ...]  # per teacher; `.decode()` on the training device gives (R, D) float32
    samples: tuple[SampleId, ...]  # B
    segments: SegmentTargets | None = None  # S segments, for a loss of segments

    @property
    def num_points(self) -> int:
        return self.inputs.num_points

    @property
    def num_pairs(self) -> int:
        return len(self.sample if self.segments is None else self.segments)

    def to(self, device: torch.device) -> DistillBatch:
        return self._map(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> DistillBatch:
        """Called by torch's DataLoader with `pin_memory=True`."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, function: Callable) -> DistillBatch:
        return replace(
            self,
            inputs=function(self.inputs),
            point=None if self.point is None else function(self.point),
            sample=function(self.sample),
            targets=tuple(function(each) for each in self.targets),
            segments=None if self.segments is None else function(self.segments),
        )


class DistillDataset(Dataset):
    """The frames of a store, sampled as in the official ScaLR code.

    A sample depends on (seed, visit, frame) only, not on the process that draws it or on the order of draws.

    Args:
        store: holds targets of `teachers`.
        teachers: teachers whose targets the student learns.
        inputs: how scans become the input of the student's backbone.
        sampling: cameras and points of a sample.
        augmentation: rotation, flips, scale, cuboid.
        seed: of all random choices.
        sources: sources whose frames are used; None uses all.
        number: number of the store, for the samples' ids.
        parts: the parts of targets that the loss needs.

    Raises:
        StoreError: no such teacher, no view that sees a point, or a store that lacks the targets that the loss needs.
    """

    def __init__(
        self,
        store: FeatureStore,
        teachers: Sequence[str],
        inputs: ScanInputs,
        sampling: SamplingConfig,
        augmentation: AugmentConfig,
        seed: int,
        sources: Sequence[Source] | None = None,
        number: int = 0,
        parts: TargetParts = PAIRS,
    ) -> None:
        self.store, self.teachers, self.seed, self.number = store, tuple(teachers), seed, number
        self.inputs, self.sampling, self.augmentation, self.parts = inputs, sampling, augmentation, parts
        for teacher in self.teachers if parts.pairs else ():
            store.require_targets_of_pairs(teacher, WITHOUT_HEAD if parts.segments else OF_SEGMENTS)
        for source in (store.sources if sources is None else sources) if parts.segments else ():
            store.require_superpixels(source)
        self.frames = _views_by_frame(store, self.teachers, sources)

    def __len__(self) -> int:
        return len(self.frames)

    def name_of(self, frame: int) -> str:
        """Store, block and frame, for messages."""
        return self._frame_of(self.frames[frame][0])

    def describe(self, rows: Sequence[int]) -> str:
        """Store, block, frame and cameras of some views of a frame, for messages."""
        return f"{self._frame_of(rows[0])} {self._cameras_of(rows)}"

    def __getitem__(self, key: tuple[int, int]) -> DistillSample:
        """The sample of `key` = (visit, frame); each visit of a frame has random draws of its own."""
        visit, frame = key
        rng = np.random.default_rng([self.seed, visit, frame])
        rows = self.frames[frame]
        count = len(rows) if self.sampling.views_per_sample == "all" else self.sampling.views_per_sample
        for _ in range(MAX_DRAWS):
            drawn = rng.choice(rows, size=min(count, len(rows)), replace=False).tolist()
            sample = self._sample(drawn, rng)
            if isinstance(sample, DistillSample):
                return sample
        raise sample

    def _frame_of(self, row: int) -> str:
        return f"{self.store.path} block {self.store.column('block')[row]} frame {self.store.views['token'][row]}"

    def _cameras_of(self, rows: Sequence[int]) -> str:
        cameras = self.store.views["camera"]
        return ", ".join(f"{cameras[row]} (view {row})" for row in rows)

    def _sample(self, rows: list[int], rng: np.random.Generator) -> DistillSample | StoreError:
        """A sample of these views, or the reason why this draw gives none."""
        views = [self.store.read_view(row) for row in rows]
        points, intensity = views[0].points, views[0].intensity
        inputs = inputs_for_distillation(self.inputs, views[0].dataset)
        seen = np.zeros(len(points), dtype=bool)
        for view in views:
            seen[view.point_index] = True
        # Order of the official code: voxels of the scan, camera, number of points, augmentation, field of view.
        wanted = seen if self.sampling.points == "seen" else None
        drawn = drawn_rows(inputs, points[:, :3], wanted, rng, self.sampling.voxel_point)
        cloud = points[drawn]
        cloud[:, :3] = augment(cloud[:, :3], rng, self.augmentation)
        inside = inside_mask(inputs, cloud[:, :3])
        if self.augmentation.drop_cuboid:
            left = inside & outside_cuboid(cloud[:, :3], rng, self.augmentation.drop_cuboid)
            if all(len(_pairs_of(view, drawn[left])[0]) >= MIN_PAIRS for view in views):
                inside = left
        pairs, segments = [_pairs_of(view, drawn[inside]) for view in views], None
        if not any(len(pair) for _, pair in pairs):
            return self._out_of_view(rows)
        if self.parts.segments:
            pairs, segments = self._segments(rows, views, pairs)
            if not len(segments):
                return self._no_segment(rows)
        scan = training_input(cloud[inside], intensity, inputs)
        point = scan.row[np.concatenate([point for point, _ in pairs])]
        return DistillSample(
            id=SampleId(self.number, tuple(rows)),
            scan=scan,
            point=None if np.array_equal(point, np.arange(len(scan.kept))) else point,
            targets=tuple(self._targets(each, rows, views, pairs) for each in self.teachers if self.parts.pairs),
            segments=segments,
        )

    def _targets(self, teacher: str, rows: list[int], views: list[StoredView], pairs: list[Pairs]) -> EncodedTargets:
        targets = EncodedTargets.concatenate(
            [
                self.store.read_targets_of(row, teacher, view.pixel).select(torch.from_numpy(pair))
                for row, view, (_, pair) in zip(rows, views, pairs, strict=True)
            ]
        )
        if targets.all_zero:
            raise self._all_zero(teacher, rows)
        return targets

    def _segments(
        self, rows: list[int], views: list[StoredView], pairs: list[Pairs]
    ) -> tuple[list[Pairs], SegmentTargets]:
        """The pairs whose segments are usable, and these segments."""
        (teacher,), parts = self.teachers, self.parts
        if not (parts.means or parts.directions):
            of_views = [view.superpixel[pair] for view, (_, pair) in zip(views, pairs, strict=True)]
            return pairs, SegmentTargets.of_sample([SegmentTargets.of_view(each, None, parts) for each in of_views])
        usable, segments = [], []
        stored = [self.store.read_segments(row, teacher) for row in rows]
        if not any(each.mean.any() for each in stored):
            raise self._all_zero(teacher, rows)
        for view, (point, pair), of_view in zip(views, pairs, stored, strict=True):
            kept = is_usable(view.superpixel[pair], of_view, parts)
            usable.append((point[kept], pair[kept]))
            segments.append(SegmentTargets.of_view(view.superpixel[pair[kept]], of_view, parts))
        return usable, SegmentTargets.of_sample(segments)

    def _out_of_view(self, rows: list[int]) -> StoreError:
        return StoreError(
            f"views {rows} keep no point inside the field of view",
            where=self._cameras_of(rows),
            fix="Enlarge the field of view, for example inputs.fov_min_m and inputs.fov_max_m of the recipe.",
        )

    def _no_segment(self, rows: list[int]) -> StoreError:
        return StoreError(
            f"views {rows} keep no point in a superpixel that is large enough to have features of {self.teachers[0]}",
            where=self._cameras_of(rows),
            fix="Extract with larger superpixels, or a larger --image-size, into another --out.",
        )

    def _all_zero(self, teacher: str, rows: list[int]) -> StoreError:
        return StoreError(
            f"all targets of {teacher} are zero",
            where=self._cameras_of(rows),
            fix=f"Run 'scalr verify {self.store.path} --sample 8' to compare targets with the teacher.",
        )


@dataclass(frozen=True)
class DistillCollate:
    """Packs samples into a batch. A class, so that it can be pickled for workers."""

    inputs: ScanInputs

    def __call__(self, samples: Sequence[DistillSample]) -> DistillBatch:
        inputs = packed(self.inputs, [sample.scan for sample in samples])
        pairs = torch.tensor([sample.num_pairs for sample in samples])
        return DistillBatch(
            samples=tuple(sample.id for sample in samples),
            inputs=inputs,
            point=_packed_points(samples, inputs),
            sample=torch.arange(len(samples)).repeat_interleave(pairs),
            targets=tuple(
                EncodedTargets.concatenate(parts) for parts in zip(*(s.targets for s in samples), strict=True)
            ),
            segments=None
            if samples[0].segments is None
            else SegmentTargets.of_batch([sample.segments for sample in samples]),
        )


def _packed_points(samples: Sequence[DistillSample], inputs: PackedBatch) -> torch.Tensor | None:
    """`DistillBatch.point` of a batch; in samples whose `point` is None, pair r has row r."""
    if all(sample.point is None for sample in samples):
        return None
    points = [np.arange(len(s.scan.kept)) if s.point is None else s.point for s in samples]
    firsts = inputs.scan_offsets[:-1].tolist()
    return torch.from_numpy(np.concatenate([point + first for point, first in zip(points, firsts, strict=True)]))


def _pairs_of(view: StoredView, kept: np.ndarray) -> Pairs:
    """The pairs of a view whose point is in the rows `kept`: position in `kept` and pair, both (R,) int64."""
    pair_of_point = np.full(len(view.points), -1)
    pair_of_point[view.point_index] = np.arange(len(view.point_index))
    pair = pair_of_point[kept]
    point = np.flatnonzero(pair >= 0)
    return point, pair[point]


class RowsByFrame(Sequence[np.ndarray]):
    """Rows of views, grouped by frame.

    Stored as two arrays. One small array per frame would be copied into every worker, which is slow for large stores.

    Args:
        rows: (V,) rows of all frames, concatenated.
        first: (F,) position in `rows` at which each frame begins.
    """

    def __init__(self, rows: np.ndarray, first: np.ndarray) -> None:
        self.rows, self._bounds = rows.astype(np.int32), np.append(first, len(rows)).astype(np.int32)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, frame: int) -> np.ndarray:
        if not 0 <= frame < len(self):
            raise IndexError(frame)
        return self.rows[self._bounds[frame] : self._bounds[frame + 1]]

    @property
    def first_rows(self) -> np.ndarray:
        """(F,) first row of each frame."""
        return self.rows[self._bounds[:-1]]


def _views_by_frame(store: FeatureStore, teachers: Sequence[str], sources: Sequence[Source] | None) -> RowsByFrame:
    """For each frame of `sources`, the rows of the views that see a point and have targets of all teachers."""
    used = store.column("pairs_stop") > store.column("pairs_start")
    for teacher in teachers:
        has_targets = np.zeros_like(used)
        has_targets[store.rows_with_targets(teacher)] = True
        used &= has_targets
    if sources is not None:
        used &= np.isin(store.column("block"), [block for source in sources for block in source.blocks])
    rows = np.flatnonzero(used)
    if not len(rows):
        raise StoreError(
            f"no view of the store has targets of {' and '.join(teachers)}",
            where=store.path,
            fix=f"Run 'scalr extract {' '.join(f'--teacher {teacher}' for teacher in teachers)}' first.",
        )
    # The views of a frame are consecutive rows and have the same scan.
    block, start = (store.column(name)[rows] for name in ("block", "points_start"))
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = (block[1:] != block[:-1]) | (start[1:] != start[:-1])
    return RowsByFrame(rows, np.flatnonzero(is_first))
