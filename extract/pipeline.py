"""Compute blocks from scan to store in one process; reading and projection, the teacher, and writing overlap.

Threads read ahead while the teacher runs, and one thread writes a block while the next one is computed. The content of
a block depends on the block alone: no teacher batch contains images of two blocks. So every division of the work gives
the same store, bit by bit.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from ..errors import DatasetError
from .datasets.frame import Dataset
from .encoding import Encoding
from .plan import Block
from .preparation import OnError, PreparedFrame, PreparedView, Selection, SkippedFrame, prepare_or_skip
from .segments import segments_of
from .statistics import TeacherStatistics
from .store import SCANS, NewTargets, NewView, ScanBlock, StoreWriter
from .store.commit import ATTEMPTS, ScratchTakenError, taken_away_again
from .targets import Footprint, encode, footprint
from .teachers.features import num_layers
from .teachers.teacher import Teacher, provenance_attributes

logger = logging.getLogger(__name__)

MAX_READERS = 8  # threads that read scans and images
MAX_WAITING = 8  # frames and targets of views that wait to be written

T, R = TypeVar("T"), TypeVar("R")


@dataclass(frozen=True)
class BlockDone:
    """A block that was committed, or that could not be since a frame that it needs cannot be used."""

    block: int
    num_frames: int
    num_bytes: int  # on disk; 0 if the block was not committed
    skipped: list[SkippedFrame]


@dataclass(frozen=True, eq=False)
class BlockTask:
    """The parts of a block that are missing."""

    block: Block
    teachers: list[Teacher]
    scans: ScanBlock | None  # already committed; None if this run writes them, too


PreparedItem = tuple[BlockTask, PreparedFrame | SkippedFrame]


class Pipeline:
    """Computes blocks and commits them.

    Args:
        dataset: the dataset whose frames are divided into blocks.
        teachers: the teachers to run, as recorded in the store.
        encoding: how their targets are stored.
        writer: writes to the store.
        statistics: statistics of each teacher's vectors, by the teacher's name.
        selection: which points and pairs are kept.
        on_error: whether an unusable frame stops the run or is skipped.
        batch_sizes: images per forward pass, by the teacher's name; the last batch of a block may be smaller.
    """

    def __init__(
        self,
        dataset: Dataset,
        teachers: Sequence[Teacher],
        encoding: Encoding,
        writer: StoreWriter,
        *,
        statistics: Mapping[str, TeacherStatistics],
        selection: Selection,
        batch_sizes: Mapping[str, int],
        on_error: OnError = "stop",
    ) -> None:
        self.dataset, self.teachers, self.encoding, self.writer = dataset, teachers, encoding, writer
        self.channels = {
            each.name: statistics[each.name].channels(num_layers(each.provenance.feature)) for each in teachers
        }
        self.selection, self.batch_sizes, self.on_error = selection, batch_sizes, on_error

    def run(self, blocks: Sequence[Block]) -> Iterator[BlockDone]:
        """Extract blocks in sequence and yield each once it is committed.

        If another job has meanwhile committed other scans of a block, the block is computed again with those scans.

        Raises:
            ScalrError: input that cannot be used, or a file system that refuses; committed blocks remain.
        """
        for _ in range(ATTEMPTS):
            lost: list[Block] = []
            yield from self._run_once(blocks, lost)
            blocks = lost
            if not blocks:
                return
        raise taken_away_again(self.writer.path)

    def _run_once(self, blocks: Sequence[Block], lost: list[Block]) -> Iterator[BlockDone]:
        with reader_pool() as readers, ThreadPoolExecutor(1) as writers:
            depth = max(num_readers(), self._frames_of_a_batch(blocks))
            prepared = _ahead(readers, self._prepare, self._frames_of(blocks), depth)
            before: BlockWriting | None = None
            for block in blocks:
                try:
                    writing = self._write(block, prepared, writers)
                except DatasetError:
                    writers.submit(self._put_back, block)
                    raise
                if before is not None:
                    yield from self._done(before, lost)
                before = writing
            if before is not None:
                yield from self._done(before, lost)

    def _write(self, block: Block, prepared: Iterator[PreparedItem], thread: ThreadPoolExecutor) -> BlockWriting:
        """Compute a block while a thread writes it; the thread commits it at the end."""
        task, first = next(prepared)
        others = (frame for _, frame in itertools.islice(prepared, block.num_frames - 1))
        writing = BlockWriting(self.writer, task, self.channels, thread)
        try:
            writing.commit(self._compute(task, itertools.chain([first], others), writing))
        except BaseException:
            writing.give_up()
            raise
        return writing

    def _done(self, writing: BlockWriting, lost: list[Block]) -> Iterator[BlockDone]:
        """Yield the committed block, or append it to `lost` if it must be computed again."""
        done = writing.result()
        if done is None:
            lost.append(writing.task.block)
            return
        self._put_back(writing.task.block)
        yield done

    def _put_back(self, block: Block) -> None:
        """Restore the old copy of a block that cannot be computed again from the folder `aside`."""
        for kind in (SCANS, *(teacher.name for teacher in self.teachers)):
            if not self.writer.store.is_committed(kind, block.index) and self.writer.put_back(kind, block.index):
                logger.warning(
                    "block %d cannot be extracted again now: its removed %s are restored from the folder 'aside'",
                    *(block.index, kind),
                )

    def _frames_of_a_batch(self, blocks: Sequence[Block]) -> int:
        """The number of frames that fill one batch, which are read while a teacher sees the previous batch."""
        views = len(self.dataset.frames[blocks[0].start].views) if blocks else 0
        return -(-max(self.batch_sizes.values(), default=1) // max(1, views))

    def _frames_of(self, blocks: Iterable[Block]) -> Iterator[tuple[BlockTask, int]]:
        store = self.writer.store
        for block in blocks:
            if store.is_committed(SCANS, block.index) and not block.anew:
                missing = [teacher for teacher in self.teachers if not store.is_committed(teacher.name, block.index)]
                task = BlockTask(block, missing, store.read_scans(block.index))
            else:
                task = BlockTask(block, list(self.teachers), None)
            yield from ((task, number) for number in range(block.num_frames))

    def _prepare(self, item: tuple[BlockTask, int]) -> PreparedItem:
        task, number = item
        frame = self.dataset.frames[task.block.start + number]
        if task.scans is not None and frame.token in task.scans.skipped:
            return task, SkippedFrame(frame.token, task.scans.skipped[frame.token])
        arguments = (self.dataset, frame, task.teachers, self.selection, self.on_error, task.scans)
        return task, prepare_or_skip(*arguments)

    def _compute(
        self, task: BlockTask, frames: Iterable[PreparedFrame | SkippedFrame], writing: BlockWriting
    ) -> list[SkippedFrame]:
        encoders = [
            TargetEncoder(
                ViewEncoder(teacher, self.encoding, self.channels[teacher.name]),
                self.batch_sizes[teacher.name],
                writing.add_targets,
            )
            for teacher in task.teachers
        ]
        skipped = []
        for prepared in frames:
            if isinstance(prepared, SkippedFrame):
                skipped.append(prepared)
                continue
            if task.scans is None:
                writing.add_frame(prepared.points, new_views(prepared, self.dataset.split))
            for view in prepared.views:
                for encoder, image in zip(encoders, view.images, strict=True):
                    encoder.add(image, view)
        for encoder in encoders:
            encoder.finish()
        return skipped


class BlockWriting:
    """A block that a thread writes while the next views are computed.

    If another run removes the block's scratch folder, the rest is not written, and the block must be computed again.

    Args:
        writer: writes to the store.
        task: the block and its missing parts.
        channels: each teacher's offsets and scales, see `TeacherStatistics.channels`.
        thread: the pool with one thread that does all writing of a pipeline, in order.
    """

    def __init__(
        self, writer: StoreWriter, task: BlockTask, channels: Mapping[str, np.ndarray], thread: ThreadPoolExecutor
    ) -> None:
        self.writer, self.task, self._thread = writer, task, thread
        names = [teacher.name for teacher in task.teachers]
        self._draft = writer.draft(task.block.index, names, task.scans, channels)
        self._waiting: deque[Future] = deque()
        self._is_lost = False

    def add_frame(self, points: np.ndarray, views: list[NewView]) -> None:
        self._later(self._draft.add_frame, points, views)

    def add_targets(self, teacher: str, targets: NewTargets) -> None:
        self._later(self._draft.add_targets, teacher, targets)

    def commit(self, skipped: list[SkippedFrame]) -> None:
        """Commit the block after all views; `result` returns the outcome."""
        self._later(self._commit, skipped)

    def result(self) -> BlockDone | None:
        """Wait until the block is written; None if the block must be computed again."""
        while self._waiting:
            done = self._waiting.popleft().result()
        return None if self._is_lost else done

    def give_up(self) -> None:
        """Discard the block; nothing of it is committed."""
        self._thread.submit(self._draft.scratch.remove)

    def _later(self, function: Callable, *arguments: object) -> None:
        self._waiting.append(self._thread.submit(self._unless_lost, function, *arguments))
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft().result()

    def _unless_lost(self, function: Callable, *arguments: object) -> object:
        if self._is_lost:
            return None
        try:
            return function(*arguments)
        except ScratchTakenError:
            self._is_lost = True
            return None

    def _commit(self, skipped: list[SkippedFrame]) -> BlockDone:
        block, draft = self.task.block, self._draft
        before = {} if self.task.scans is None else self.task.scans.skipped
        # Targets of committed scans need all frames of these scans, and a replacement of a block must be complete.
        lacks_frames = bool(block.anew and skipped) if self.task.scans is None else len(skipped) > len(before)
        num_bytes = 0
        try:
            if not lacks_frames:
                draft.skipped = {frame.token: frame.reason for frame in skipped}
                self._is_lost = not self.writer.commit(draft, replacing=block.anew)
                num_bytes = draft.num_bytes
        finally:
            draft.scratch.remove()
        return BlockDone(block.index, block.num_frames, num_bytes, skipped)


class TargetEncoder:
    """Encodes one teacher's targets as views arrive; the teacher sees full batches, which may span frames.

    Args:
        encoder: encodes the teacher's patch maps.
        batch_size: images per forward pass.
        put: called with the teacher's name and the targets of each view, in the order of the views.
    """

    def __init__(self, encoder: ViewEncoder, batch_size: int, put: Callable[[str, NewTargets], None]) -> None:
        self.encoder, self.batch_size, self._put = encoder, batch_size, put
        self._waiting: list[tuple[torch.Tensor, PreparedView]] = []

    def add(self, image: torch.Tensor, view: PreparedView) -> None:
        """Add a view and its image (3, h, w), prepared for the teacher."""
        self._waiting.append((image, replace(view, images=[])))
        if len(self._waiting) == self.batch_size:
            self.finish()

    def finish(self) -> None:
        """Encode the views of the last, incomplete batch."""
        if not self._waiting:
            return
        teacher = self.encoder.teacher
        patch_maps = teacher.patch_maps(torch.stack([image for image, _ in self._waiting]))
        for patch_map, (_, view) in zip(patch_maps, self._waiting, strict=True):
            self._put(teacher.name, self.encoder.encode(patch_map, view))
        self._waiting.clear()


class ViewEncoder:
    """Encodes one teacher's patch maps on their device, and copies the results to the CPU.

    Args:
        teacher: the teacher that made the maps.
        encoding: how the targets are stored.
        channels: (2, D) float32, see `TeacherStatistics.channels`.
    """

    def __init__(self, teacher: Teacher, encoding: Encoding, channels: np.ndarray) -> None:
        self.teacher, self.encoding = teacher, encoding
        self._channels = torch.from_numpy(channels).to(teacher.device)

    def encode(self, patch_map: torch.Tensor, view: PreparedView) -> NewTargets:
        """Encode the vectors of a map (h, w, D) that a view's pairs need, and those of its segments if it has any."""
        segments = None
        if view.superpixel is not None:
            segment_map = view.segment_maps[self.teacher.image_size]
            segments = segments_of(patch_map, segment_map, view.superpixel, self.teacher.patch_size)
        if not self.encoding.of_pairs:
            return NewTargets(None, None, np.empty(0), np.empty(0), segments)
        reads = teacher_footprint(self.teacher, view.pixel, view.image_shape)
        encoded = encode(patch_map, reads, self.encoding, self._channels)
        return NewTargets(*(None if part is None else part.cpu().numpy() for part in encoded), segments)


def teacher_footprint(teacher: Teacher, pixel: np.ndarray, image_shape: tuple[int, int]) -> Footprint:
    """The patches of the teacher's map that the pairs at `pixel` (R, 2) of an (H, W) image need, on its device."""
    map_shape = tuple(side // teacher.patch_size for side in teacher.image_size)
    on_device = torch.from_numpy(pixel.astype(np.int64)).to(teacher.device)
    return footprint(on_device, image_shape, map_shape, teacher.patch_size)


def recorded_provenance(teacher: Teacher, encoding: Encoding) -> dict:
    """The attributes that a store records for a teacher: all that its targets depend on."""
    kept = {"encoding": encoding.layout, "dtype": encoding.dtype}
    return provenance_attributes(teacher.provenance) | kept


def new_views(prepared: PreparedFrame, split: str) -> list[NewView]:
    """Convert a frame's views to the form in which the store takes them."""
    frame = prepared.frame
    of_frame = {name: getattr(frame, name) for name in ("dataset", "scene", "token", "timestamp")}
    return [
        NewView(
            {
                **of_frame,
                "split": split,
                "camera": view.record.camera,
                "image": view.record.image,
                "image_height": view.image_shape[0],
                "image_width": view.image_shape[1],
                "pairs_hidden": view.hidden,
                "image_sha256": view.image_sha256,
                "scan_sha256": prepared.scan_sha256,
                "superpixels_sha256": view.superpixels_sha256,
            },
            view.point_index,
            view.pixel,
            view.superpixel,
        )
        for view in prepared.views
    ]


def _ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """`map` in a thread pool that works at most `depth` items ahead of the consumer."""
    pending: deque = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def num_readers() -> int:
    """The number of threads that read scans and images."""
    return min(MAX_READERS, os.cpu_count() or 1)


@contextmanager
def reader_pool() -> Iterator[ThreadPoolExecutor]:
    """A pool of reading threads; on an error, it drops the items that have not begun."""
    # If each reader started torch threads of its own, they would slow the teacher down. The teacher's thread keeps its.
    pool = ThreadPoolExecutor(num_readers(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
