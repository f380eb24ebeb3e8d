"""Estimate the size, time and memory of an extraction: measured on a few frames, extrapolated to all."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..counted import counted
from ..errors import DatasetError, StoreError
from ..progress import progress
from .datasets.frame import Dataset
from .encoding import ENCODINGS, OF_SEGMENTS, Encoding
from .intensity import IntensityStatistics
from .pipeline import ViewEncoder, new_views, num_readers, reader_pool, recorded_provenance, teacher_footprint
from .plan import BLOCK_BYTES, FRAMES_PER_BLOCK, plan_blocks
from .preparation import OnError, PreparedFrame, PreparedView, Selection, prepare_or_skip
from .statistics import TeacherStatistics
from .store import SCANS, create_store
from .store.arrays import SHARD_BYTES
from .store.files import files_below
from .store.format import SUPERPIXEL, group_path
from .store.inspect import StoreReport, inspect_store, readable_bytes
from .superpixels import SLIC
from .teacher_sample import VectorSums, add_views
from .teachers.batch_size import bytes_per_image
from .teachers.features import num_layers
from .teachers.teacher import Teacher

logger = logging.getLogger(__name__)

SAMPLED_FRAMES = 4
MUCH_SMALLER = 3  # times
# Parts of the memory of a process, as tests/benchmarks/extract_memory.py measures it:
LIBRARIES_BYTES = 600_000_000
SHARDS_HELD = 6  # shards of an array in memory: rows that wait, the shard being encoded, and the shard read back
FRAMES_AHEAD = 8
SLIC_BYTES = 125  # per pixel, as tests/benchmarks/superpixels.py measures it


@dataclass(frozen=True)
class EncodingEstimate:
    """Size and error of the targets of all teachers in one encoding.

    The cosines compare stored and exact vectors, as they are and after their mean has been subtracted (`centred`).
    """

    encoding: Encoding
    bytes: int
    files: int
    mean_cosine: float
    worst_cosine: float
    mean_cosine_centred: float
    worst_cosine_centred: float


@dataclass(frozen=True)
class Estimate:
    """Size, time and memory of the extraction of a complete split."""

    frames: int
    views: int
    pairs: int
    scan_bytes: int
    scan_files: int
    superpixel_bytes: int  # the part of it that the pairs' segment ids take; 0 without superpixels
    encodings: list[EncodingEstimate]
    chosen: Encoding
    free_bytes: int
    memory_bytes: int  # peak of one process, without GPU memory
    seconds: float  # on this machine, in one process
    sampled_frames: int

    def as_json(self) -> dict:
        """Plain JSON values."""
        return asdict(self)

    def as_text(self) -> str:
        """A table for people."""
        lines = [
            f"{counted(self.frames, 'frame')}, {counted(self.views, 'view')}, about {counted(self.pairs, 'pair')}"
            f" (extrapolated from {counted(self.sampled_frames, 'frame')})",
            f"scans and pairs: {readable_bytes(self.scan_bytes)} in {self.scan_files:,} files"
            + (
                f", including {readable_bytes(self.superpixel_bytes)} of superpixel ids"
                if self.superpixel_bytes
                else ""
            ),
            "",
            f"{'encoding':<18}{'size':>10}{'bytes/pair':>12}{'files':>10}"
            f"{'mean cosine':>14}{'minimum':>10}{'centred':>12}{'minimum':>10}",
        ]
        for each in self.encodings:
            name = f"{each.encoding.layout} {each.encoding.dtype}"
            cosines = (
                f"{each.mean_cosine:>14.6f}{each.worst_cosine:>10.6f}"
                f"{each.mean_cosine_centred:>12.6f}{each.worst_cosine_centred:>10.6f}"
            )
            lines.append(
                f"{name:<18}{readable_bytes(each.bytes):>10}{each.bytes / max(1, self.pairs):>12.1f}{each.files:>10,}"
                + (cosines if each.encoding.of_pairs else f"{'-':>14}{'-':>10}{'-':>12}{'-':>10}")
                + ("   chosen" if each.encoding == self.chosen else "")
            )
        if OF_SEGMENTS in [each.encoding for each in self.encodings]:
            lines.append("All encodings include the vectors of superpixels; 'segments' holds only these.")
        lines.append("Cosines compare stored with unrounded features; centred: after subtracting the mean feature.")
        lines += ["", f"free disk space: {readable_bytes(self.free_bytes)}"]
        if self.bytes > self.free_bytes:
            lines.append(f"NOT ENOUGH DISK SPACE: {readable_bytes(self.bytes)} are needed")
        lines.append(f"peak memory of a process: about {readable_bytes(self.memory_bytes)}")
        lines.append(f"time on this machine, in one process: about {readable_seconds(self.seconds)}")
        return "\n".join(lines)

    @property
    def bytes(self) -> int:
        """Size of scans, pairs and targets in the chosen encoding."""
        return self.scan_bytes + next(each.bytes for each in self.encodings if each.encoding == self.chosen)


def readable_seconds(seconds: float) -> str:
    """
    >>> readable_seconds(5400)
    '1.5 hours'
    """
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"


def estimate(
    dataset: Dataset,
    teachers: Sequence[Teacher],
    chosen: Encoding,
    out: Path,
    *,
    selection: Selection,
    batch_sizes: Mapping[str, int],
    on_error: OnError = "stop",
    frames_per_block: int | None = None,
) -> Estimate:
    """Extract a few frames into a temporary store, in every encoding, and extrapolate.

    Sizes are those of real files, compression included. The time is that of the chosen encoding, with all steps in
    sequence; an extraction overlaps the steps and takes a little less.

    Args:
        out: path of the future store, whose free disk space is reported.
        frames_per_block: None takes each encoding's default, or less if the frames are large.

    Raises:
        ScalrError: input that cannot be used.
    """
    for teacher in teachers:  # the first forward pass of a process is slower than later ones
        teacher.patch_maps(torch.zeros(1, 3, *teacher.image_size, device=teacher.device))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        frames = _sampled_frames(dataset, teachers, selection, on_error)
        patch_maps = [
            patch_maps_of(teacher, position, frames, batch_sizes[teacher.name])
            for position, teacher in enumerate(teachers)
        ]
        statistics = [statistics_of(*each, frames) for each in zip(teachers, patch_maps, strict=True)]
        shared_seconds = time.perf_counter() - start
        encodings = ENCODINGS if selection.superpixels is None else (*ENCODINGS, OF_SEGMENTS)
        settings = None if selection.superpixels is None else selection.superpixels.settings
        measured = {}
        for encoding in encodings:
            start = time.perf_counter()
            path = Path(folder) / f"{encoding.layout}-{encoding.dtype}"
            sample = (path, dataset.name, dataset.split, frames, teachers, patch_maps, statistics, encoding)
            report = write_sample(*sample, superpixels=settings)
            measured[encoding] = (report, shared_seconds + time.perf_counter() - start)
            superpixel_bytes = _superpixel_bytes(path)
    report, seconds = measured[chosen]
    scale = len(dataset.frames) / len(frames)
    in_a_block = {each: frames_per_block or frames_of_a_block(frames[0], teachers, each) for each in encodings}
    num_blocks = {each: len(plan_blocks(len(dataset.frames), number)) for each, number in in_a_block.items()}
    return Estimate(
        frames=len(dataset.frames),
        views=sum(len(frame.views) for frame in dataset.frames),
        pairs=round(sum(report.pairs.values()) * scale),
        scan_bytes=round(report.scans.bytes * scale),
        superpixel_bytes=round(superpixel_bytes * scale),
        scan_files=report.scans.files * num_blocks[chosen],
        encodings=[
            _encoding_estimate(encoding, measured[encoding][0], scale, num_blocks[encoding]) for encoding in encodings
        ],
        chosen=chosen,
        free_bytes=shutil.disk_usage(_nearest_folder(out)).free,
        memory_bytes=peak_memory(frames[0], teachers, chosen, batch_sizes, in_a_block[chosen])
        + _memory_of_slic(frames[0], settings),
        seconds=seconds * scale,
        sampled_frames=len(frames),
    )


def _sampled_frames(
    dataset: Dataset, teachers: Sequence[Teacher], selection: Selection, on_error: OnError
) -> list[PreparedFrame]:
    """Read a few frames, spread evenly over the split; skipped frames are left out."""
    numbers = np.unique(np.linspace(0, len(dataset.frames) - 1, SAMPLED_FRAMES).round().astype(int)).tolist()
    with reader_pool() as readers:  # as an extraction does: SLIC takes longer than most teachers
        options = (teachers, selection, on_error)
        tried = list(readers.map(lambda number: prepare_or_skip(dataset, dataset.frames[number], *options), numbers))
    frames = [frame for frame in tried if isinstance(frame, PreparedFrame)]
    if not frames:
        raise DatasetError(
            f"none of {len(tried)} sampled frames can be used; the first: {tried[0].reason}",
            where=dataset.root,
            fix="Run 'scalr check' on this dataset: it lists all problems.",
        )
    return frames


def bytes_of_frame(frame: PreparedFrame, teachers: Sequence[Teacher], encoding: Encoding) -> int:
    """Bytes of a frame's scan and pairs, and of its largest teacher's targets, before compression."""
    arrays = [frame.points, *(array for view in frame.views for array in (view.point_index, view.pixel))]
    targets = [
        sum(encoding.bytes_per_view(*_counts(teacher, view), teacher.dim, _num_segments(view)) for view in frame.views)
        for teacher in teachers
    ]
    return sum(array.nbytes for array in arrays) + max(targets, default=0)


def frames_of_a_block(frame: PreparedFrame, teachers: Sequence[Teacher], encoding: Encoding) -> int:
    """Return the encoding's default, or fewer if a block of frames like this one would exceed BLOCK_BYTES."""
    return max(
        1, min(FRAMES_PER_BLOCK[encoding.layout], BLOCK_BYTES // max(1, bytes_of_frame(frame, teachers, encoding)))
    )


def peak_memory(
    frame: PreparedFrame,
    teachers: Sequence[Teacher],
    encoding: Encoding,
    batch_sizes: Mapping[str, int],
    frames_per_block: int,
) -> int:
    """Peak memory of a process in bytes: libraries, frames read ahead, shards being written, teachers on the CPU.

    A block is written while it is computed, so writing takes a few shards, however long the block is.
    """
    block = frames_per_block * bytes_of_frame(frame, teachers, encoding)
    written = len(teachers) * SHARDS_HELD * min(block, SHARD_BYTES)
    pixels = sum(3 * height * width for height, width in (view.image_shape for view in frame.views))
    ahead = FRAMES_AHEAD * (frame.points.nbytes + pixels * (1 + torch.float32.itemsize))
    on_cpu = [teacher for teacher in teachers if teacher.device.type == "cpu"]
    weights = sum(parameter.nbytes for teacher in on_cpu for parameter in teacher.model.parameters())
    activations = max((batch_sizes[teacher.name] * bytes_per_image(teacher) for teacher in on_cpu), default=0)
    return LIBRARIES_BYTES + written + ahead + weights + activations


def _memory_of_slic(frame: PreparedFrame, superpixels: dict | None) -> int:
    """Bytes that SLIC takes in all reading threads together."""
    if superpixels is None or superpixels["method"] != SLIC:
        return 0
    return (
        num_readers() * SLIC_BYTES * max(height * width for height, width in (each.image_shape for each in frame.views))
    )


def _counts(teacher: Teacher, view: PreparedView) -> tuple[int, int]:
    """The number of pairs of a view, and of the patches that they need."""
    return len(view.pixel), len(teacher_footprint(teacher, view.pixel, view.image_shape).touched)


def _num_segments(view: PreparedView) -> int:
    """The number of segments of a view that hold a pair; 0 without superpixels, or if its image was not read."""
    return 0 if view.superpixel is None else len(np.unique(view.superpixel))


def warn_of_size(frame: PreparedFrame, num_frames: int, teachers: Sequence[Teacher], chosen: Encoding) -> None:
    """Warn if another encoding of the pairs of `num_frames` frames like this one is much smaller."""
    if not chosen.of_pairs:
        return
    views = [(*_counts(teacher, view), teacher.dim) for teacher in teachers for view in frame.views]
    sizes = {encoding: num_frames * sum(encoding.bytes_per_view(*view) for view in views) for encoding in ENCODINGS}
    smallest = min(sizes, key=sizes.__getitem__)
    if sizes[chosen] > MUCH_SMALLER * sizes[smallest]:
        logger.warning(
            "the targets of the whole split take about %s with --encoding %s --dtype %s; %s with --encoding"
            " %s --dtype %s"
            " (before compression; 'scalr extract --dry-run' measures)",
            *(readable_bytes(sizes[chosen]), chosen.layout, chosen.dtype),
            *(readable_bytes(sizes[smallest]), smallest.layout, smallest.dtype),
        )


def too_large(teacher: Teacher, num_views: int) -> StoreError:
    """The error for a teacher whose maps are too large to store targets of pairs, with sizes for `num_views` views."""
    height, width = (side // teacher.patch_size for side in teacher.image_size)
    whole_map = Encoding("patch", "int8").bytes_per_view(0, height * width, teacher.dim)
    pair = Encoding("point", "int8").bytes_per_view(1, 0, teacher.dim)
    segment = OF_SEGMENTS.bytes_per_view(0, 0, teacher.dim, num_segments=1)
    return StoreError(
        f"the patch maps of {height}x{width} vectors are too large to store: up to"
        f" {readable_bytes(whole_map)} per image"
        f" with --encoding patch --dtype int8 ({readable_bytes(num_views * whole_map)} for all"
        f" {num_views:,} images), or"
        f" {readable_bytes(pair)} per pair with --encoding point; superpixels take"
        f" {readable_bytes(segment)} per segment",
        where=teacher.name,
        fix="Pass --superpixels slic or a folder of maps, and no --encoding; extract other teachers in a separate run"
        " ('scalr extract --dry-run' measures sizes).",
    )


def patch_maps_of(teacher: Teacher, position: int, frames: list[PreparedFrame], batch_size: int) -> list[torch.Tensor]:
    """Patch maps of all images of the frames, which were prepared for several teachers; this one is at `position`."""
    images = [view.images[position] for frame in frames for view in frame.views]
    maps: list[torch.Tensor] = []
    with progress(len(images), f"dry run of {teacher.name}", "image") as bar:
        for start in range(0, len(images), batch_size):
            maps += teacher.patch_maps(torch.stack(images[start : start + batch_size]))
            bar.update(len(maps) - start)
    return maps


def statistics_of(
    teacher: Teacher, patch_maps: Sequence[torch.Tensor], frames: Sequence[PreparedFrame]
) -> TeacherStatistics:
    """Statistics from the measured frames, in place of the larger sample that an extraction takes."""
    sums = VectorSums(teacher.dim)
    add_views(sums, teacher, patch_maps, [view for frame in frames for view in frame.views])
    return sums.statistics()


def write_sample(
    path: Path,
    dataset: str,
    split: str,
    frames: Sequence[PreparedFrame],
    teachers: Sequence[Teacher],
    patch_maps: Sequence[Sequence[torch.Tensor]],
    statistics: Sequence[TeacherStatistics],
    encoding: Encoding,
    *,
    superpixels: dict | None = None,
) -> StoreReport:
    """Write a store of one block: for each teacher the targets from `patch_maps`, which has a map for every view."""
    writer = create_store(path, "estimate")
    settings = {"dataset": dataset, "split": split, "frames_per_block": len(frames), "num_blocks": 1}
    settings["superpixels"] = superpixels
    settings["intensity"] = asdict(IntensityStatistics(0.0, 1.0))  # required by the format; nobody trains on this store
    recorded = {teacher.name: recorded_provenance(teacher, encoding) for teacher in teachers}
    writer.add_inputs(settings, record={}, teachers=recorded)
    channels = {
        teacher.name: each.channels(num_layers(teacher.provenance.feature))
        for teacher, each in zip(teachers, statistics, strict=True)
    }
    draft = writer.draft(0, recorded, channels=channels)
    for frame in frames:
        draft.add_frame(frame.points, new_views(frame, split))
    views = [view for frame in frames for view in frame.views]
    for teacher, maps in zip(teachers, patch_maps, strict=True):
        encoder = ViewEncoder(teacher, encoding, channels[teacher.name])
        for patch_map, view in zip(maps, views, strict=True):
            draft.add_targets(teacher.name, encoder.encode(patch_map, view))
    writer.commit(draft)
    return inspect_store(writer.store)


def _encoding_estimate(encoding: Encoding, report: StoreReport, scale: float, num_blocks: int) -> EncodingEstimate:
    targets = report.teachers.values()
    num_bytes = round(sum(each.bytes for each in targets) * scale)
    more_shards = sum(int(each.bytes * scale / num_blocks // SHARD_BYTES) for each in targets)
    return EncodingEstimate(
        encoding=encoding,
        bytes=num_bytes,
        files=(sum(each.files for each in targets) + more_shards) * num_blocks,
        mean_cosine=float(np.mean([each.mean_cosine for each in targets])),
        worst_cosine=min(each.worst_cosine for each in targets),
        mean_cosine_centred=float(np.mean([each.mean_cosine_centred for each in targets])),
        worst_cosine_centred=min(each.worst_cosine_centred for each in targets),
    )


def _superpixel_bytes(store: Path) -> int:
    """Size of the pairs' segment ids in a store of one block."""
    return sum(file.stat().st_size for file in files_below(group_path(store, SCANS, 0) / SUPERPIXEL))


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in [path, *path.absolute().parents] if folder.is_dir())
