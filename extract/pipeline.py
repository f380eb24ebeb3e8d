"""Blocks from scan to store in one process: reading and projection, teacher, and writing overlap.

Threads read ahead while the teacher works, and one thread writes a block while the next is computed. What a block
holds depends on the block alone: its teacher batches never reach into another block, so that every division of the
work gives the same store, bit by bit.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from .datasets.frame import Dataset
from .encoding import Encoding
from .plan import Block
from .preparation import OnError, PreparedFrame, Selection, SkippedFrame, prepare_or_skip
from .store import SCANS, ScanBlock, StoreWriter, TargetBlock
from .store.format import SCANS_SCHEMA, TARGETS_SCHEMA
from .targets import Footprint, StoredVectors, encode, footprint
from .teachers.teacher import Teacher, provenance_attributes

MAX_READERS = 8  # threads that read scans and images

T, R = TypeVar("T"), TypeVar("R")


@dataclass(frozen=True)
class BlockDone:
    """A block that is committed now, unless a frame that it should have can no longer be used."""

    block: int
    num_frames: int
    num_bytes: int  # on disk
    skipped: list[SkippedFrame]


@dataclass(frozen=True, eq=False)
class BlockTask:
    """What is missing of a block."""

    block: Block
    teachers: list[Teacher]
    scans: ScanBlock | None  # already committed


class Pipeline:
    """Computes blocks and commits them.

    Args:
        dataset: whose frames the blocks count.
        teachers: recorded in the store.
        encoding: of their targets.
        writer: of the store.
        selection: which points and pairs are kept.
        on_error: at a frame that cannot be used, stop or go on without it.
        batch_sizes: images that each teacher sees at once, by its name; the last batch of a block may be smaller.
    """

    def __init__(
        self,
        dataset: Dataset,
        teachers: Sequence[Teacher],
        encoding: Encoding,
        writer: StoreWriter,
        *,
        selection: Selection,
        batch_sizes: Mapping[str, int],
        on_error: OnError = "stop",
    ) -> None:
        self.dataset, self.teachers, self.encoding, self.writer = dataset, teachers, encoding, writer
        self.selection, self.batch_sizes, self.on_error = selection, batch_sizes, on_error

    def run(self, blocks: Sequence[Block]) -> Iterator[BlockDone]:
        """Extract blocks one after the other and yield each once it is committed.

        Raises:
            ScalrError: input that cannot be used, or a file system that refuses; committed blocks stay.
        """
        num_readers = min(MAX_READERS, os.cpu_count() or 1)
        with _pool(num_readers) as readers, ThreadPoolExecutor(1) as writers:
            depth = max(num_readers, self._frames_of_a_batch(blocks))
            prepared = _ahead(readers, self._prepare, self._frames_of(blocks), depth)
            writing = None
            for block in blocks:
                task, first = next(prepared)
                others = (frame for _, frame in itertools.islice(prepared, block.num_frames - 1))
                computed = self._compute(task, itertools.chain([first], others))
                if writing is not None:
                    yield writing.result()
                writing = writers.submit(self._write, task, *computed)
            if writing is not None:
                yield writing.result()

    def _frames_of_a_batch(self, blocks: Sequence[Block]) -> int:
        """So many are read while a teacher sees the batch before."""
        views = len(self.dataset.frames[blocks[0].start].views) if blocks else 0
        return -(-max(self.batch_sizes.values(), default=1) // max(1, views))

    def _frames_of(self, blocks: Iterable[Block]) -> Iterator[tuple[BlockTask, int]]:
        store = self.writer.store
        for block in blocks:
            missing = [teacher for teacher in self.teachers if not store.is_committed(teacher.name, block.index)]
            scans = store.read_scans(block.index) if store.is_committed(SCANS, block.index) else None
            task = BlockTask(block, missing, scans)
            yield from ((task, number) for number in range(block.num_frames))

    def _prepare(self, item: tuple[BlockTask, int]) -> tuple[BlockTask, PreparedFrame | SkippedFrame]:
        task, number = item
        frame = self.dataset.frames[task.block.start + number]
        if task.scans is not None and frame.token in task.scans.skipped:
            return task, SkippedFrame(frame.token, task.scans.skipped[frame.token])
        arguments = (self.dataset, frame, task.teachers, self.selection, self.on_error, task.scans)
        return task, prepare_or_skip(*arguments)

    def _compute(
        self, task: BlockTask, frames: Iterable[PreparedFrame | SkippedFrame]
    ) -> tuple[ScanBlock, list[list[StoredVectors]], list[SkippedFrame]]:
        encoders = [TargetEncoder(teacher, self.encoding, self.batch_sizes[teacher.name]) for teacher in task.teachers]
        seen, skipped = [], []
        for prepared in frames:
            if isinstance(prepared, SkippedFrame):
                skipped.append(prepared)
                continue
            for view in prepared.views:
                for encoder, image in zip(encoders, view.images, strict=True):
                    encoder.add(image, view.pixel, view.image_shape)
            seen.append(prepared.without_images())
        scans = task.scans or scan_block(task.block.index, self.dataset.split, seen, skipped)
        return scans, [encoder.finish() for encoder in encoders], skipped

    def _write(
        self, task: BlockTask, scans: ScanBlock, stored: list[list[StoredVectors]], skipped: list[SkippedFrame]
    ) -> BlockDone:
        block, num_bytes = task.block.index, 0
        if len(skipped) == len(scans.skipped):  # else a frame of the committed scans cannot be used any more
            num_bytes += self.writer.write_scans(block, scans)
            for teacher, vectors in zip(task.teachers, stored, strict=True):
                targets = target_block(scans.views, vectors, teacher.dim, self.encoding)
                num_bytes += self.writer.write_targets(block, teacher.name, targets)
        return BlockDone(block, task.block.num_frames, num_bytes, skipped)


class TargetEncoder:
    """Encodes one teacher's targets as views come in; the teacher sees full batches, whatever frames they are of."""

    def __init__(self, teacher: Teacher, encoding: Encoding, batch_size: int) -> None:
        self.teacher, self.encoding, self.batch_size = teacher, encoding, batch_size
        self._waiting: list[tuple[torch.Tensor, np.ndarray, tuple[int, int]]] = []
        self._stored: list[StoredVectors] = []

    def add(self, image: torch.Tensor, pixel: np.ndarray, image_shape: tuple[int, int]) -> None:
        """Take a view: its prepared image (3, h, w), pixel (R, 2), and (H, W) of the original image."""
        self._waiting.append((image, pixel, image_shape))
        if len(self._waiting) == self.batch_size:
            self._encode_waiting()

    def finish(self) -> list[StoredVectors]:
        """The targets of every view, in the order they came."""
        if self._waiting:
            self._encode_waiting()
        return self._stored

    def _encode_waiting(self) -> None:
        patch_maps = self.teacher.patch_maps(torch.stack([image for image, _, _ in self._waiting]))
        for patch_map, (_, pixel, image_shape) in zip(patch_maps, self._waiting, strict=True):
            self._stored.append(encode_view(self.teacher, self.encoding, patch_map, pixel, image_shape))
        self._waiting.clear()


def encode_view(
    teacher: Teacher, encoding: Encoding, patch_map: torch.Tensor, pixel: np.ndarray, image_shape: tuple[int, int]
) -> StoredVectors:
    """Encode where the patch map is, and bring the result to the CPU."""
    encoded = encode(patch_map, teacher_footprint(teacher, pixel, image_shape), encoding)
    return StoredVectors(*(None if part is None else part.cpu() for part in encoded))


def teacher_footprint(teacher: Teacher, pixel: np.ndarray, image_shape: tuple[int, int]) -> Footprint:
    """What the pairs at `pixel` (R, 2) of an (H, W) image read of the teacher's patch map, on its device."""
    map_shape = tuple(side // teacher.patch_size for side in teacher.image_size)
    on_device = torch.from_numpy(pixel.astype(np.int64)).to(teacher.device)
    return footprint(on_device, image_shape, map_shape, teacher.patch_size)


def recorded_provenance(teacher: Teacher, encoding: Encoding) -> dict:
    """What a store records of a teacher: all that its targets there depend on."""
    kept = {"encoding": encoding.layout, "dtype": encoding.dtype}
    return provenance_attributes(teacher.provenance) | kept


def scan_block(
    block: int, split: str, frames: Sequence[PreparedFrame], skipped: Sequence[SkippedFrame] = ()
) -> ScanBlock:
    """The scans and pairs of a block's frames, one after the other; none where all are skipped."""
    views = [view for prepared in frames for view in prepared.views]
    return ScanBlock(
        points=np.concatenate([np.empty((0, 4), np.float32), *(prepared.points for prepared in frames)]),
        point_index=np.concatenate([np.empty(0, np.uint32), *(view.point_index for view in views)]),
        pixel=np.concatenate([np.empty((0, 2), np.uint16), *(view.pixel for view in views)]),
        views=_view_table(block, split, frames),
        skipped={frame.token: frame.reason for frame in skipped},
    )


def target_block(scan_views: pa.Table, stored: Sequence[StoredVectors], dim: int, encoding: Encoding) -> TargetBlock:
    """One teacher's targets of a block's views, one after the other."""
    stop = np.cumsum([len(view.vectors) for view in stored], dtype=np.int64)
    table = {name: scan_views[name] for name in ("block", "token", "camera")}
    table |= {"start": stop - [len(view.vectors) for view in stored], "stop": stop}
    cosines = [view.cosine if len(view.cosine) else torch.ones(1) for view in stored]
    table |= {"mean_cosine": [cosine.mean().item() for cosine in cosines]}
    table |= {"worst_cosine": [cosine.min().item() for cosine in cosines]}
    scales = [np.empty(0, np.float32), *(view.scale.numpy() for view in stored if view.scale is not None)]
    return TargetBlock(
        vectors=np.concatenate([np.empty((0, dim), encoding.dtype), *(view.vectors.numpy() for view in stored)]),
        scale=np.concatenate(scales) if encoding.dtype == "int8" else None,
        views=pa.table(table, schema=TARGETS_SCHEMA),
    )


def _view_table(block: int, split: str, frames: Sequence[PreparedFrame]) -> pa.Table:
    rows, points_stop, pairs_stop = [], 0, 0
    for prepared in frames:
        points_start, points_stop = points_stop, points_stop + len(prepared.points)
        for record, view in zip(prepared.frame.views, prepared.views, strict=True):
            pairs_start, pairs_stop = pairs_stop, pairs_stop + len(view.pixel)
            rows.append(
                {
                    "block": block,
                    "dataset": prepared.frame.dataset,
                    "split": split,
                    "scene": prepared.frame.scene,
                    "token": prepared.frame.token,
                    "timestamp": prepared.frame.timestamp,
                    "camera": record.camera,
                    "image": record.image,
                    "image_height": view.image_shape[0],
                    "image_width": view.image_shape[1],
                    "points_start": points_start,
                    "points_stop": points_stop,
                    "pairs_start": pairs_start,
                    "pairs_stop": pairs_stop,
                    "pairs_hidden": view.hidden,
                }
            )
    return pa.Table.from_pylist(rows, schema=SCANS_SCHEMA)


def _ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """`map` that works on at most `depth` items ahead of the one asked for."""
    pending: deque = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A thread pool that, left by an error, drops what it has not begun."""
    # Readers that each start threads of torch's own would crowd out the teacher, whose thread keeps its number.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
