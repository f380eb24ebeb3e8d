"""Blocks from scan to store in one process: reading and projection, teacher, and writing overlap.

Threads read ahead while the teacher works, and one thread writes a block while the next is computed. What a block
holds depends on the block alone: its teacher batches never reach into another block, so that every division of the
work gives the same store, bit by bit.
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
    """A block that is committed now, unless a frame that it should have cannot be used."""

    block: int
    num_frames: int
    num_bytes: int  # on disk; 0 where it is not committed
    skipped: list[SkippedFrame]


@dataclass(frozen=True, eq=False)
class BlockTask:
    """What is missing of a block."""

    block: Block
    teachers: list[Teacher]
    scans: ScanBlock | None  # already committed; None where they are made, too


PreparedItem = tuple[BlockTask, PreparedFrame | SkippedFrame]


class Pipeline:
    """Computes blocks and commits them.

    Args:
        dataset: whose frames the blocks count.
        teachers: recorded in the store.
        encoding: of their targets.
        writer: of the store.
        statistics: of each teacher's vectors, by its name.
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
        """Extract blocks one after the other and yield each once it is committed.

        A block of which another job has meanwhile committed other scans is made anew, with those.

        Raises:
            ScalrError: input that cannot be used, or a file system that refuses; committed blocks stay.
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
        """Compute a block, while a thread writes it; it is committed once that thread has come so far."""
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
        """What was committed; nothing where the block has to be made anew, which then is in `lost`."""
        done = writing.result()
        if done is None:
            lost.append(writing.task.block)
            return
        self._put_back(writing.task.block)
        yield done

    def _put_back(self, block: Block) -> None:
        """What was set aside of a block that cannot be made comes back as it was."""
        for kind in (SCANS, *(teacher.name for teacher in self.teachers)):
            if not self.writer.store.is_committed(kind, block.index) and self.writer.put_back(kind, block.index):
                logger.warning(
                    "block %d cannot be extracted again now: its removed %s are restored from the folder 'aside'",
                    *(block.index, kind),
                )

    def _frames_of_a_batch(self, blocks: Sequence[Block]) -> int:
        """So many are read while a teacher sees the batch before."""
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

    Where another run takes its scratch folder away, the rest is not written, and the block is to be made anew.

    Args:
        writer: of the store.
        task: which block.
        channels: of each teacher, see `TeacherStatistics.channels`.
        thread: does all writing of a pipeline, in order.
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
        """After all views; `result` tells how it went."""
        self._later(self._commit, skipped)

    def result(self) -> BlockDone | None:
        """Once all is written; None where the block has to be made anew."""
        while self._waiting:
            done = self._waiting.popleft().result()
        return None if self._is_lost else done

    def give_up(self) -> None:
        """Nothing of the block is committed."""
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
        # Targets of committed scans need all of their frames, and what replaces a block has to be whole.
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
    """Encodes one teacher's targets as views come in; the teacher sees full batches, whatever frames they are of.

    Args:
        encoder: of the teacher.
        batch_size: images at once.
        put: takes the teacher's name and the targets of each view, in the order they came.
    """

    def __init__(self, encoder: ViewEncoder, batch_size: int, put: Callable[[str, NewTargets], None]) -> None:
        self.encoder, self.batch_size, self._put = encoder, batch_size, put
        self._waiting: list[tuple[torch.Tensor, PreparedView]] = []

    def add(self, image: torch.Tensor, view: PreparedView) -> None:
        """Take a view, and its image (3, h, w) as it was prepared for the teacher."""
        self._waiting.append((image, replace(view, images=[])))
        if len(self._waiting) == self.batch_size:
            self.finish()

    def finish(self) -> None:
        """Encode the views that wait."""
        if not self._waiting:
            return
        teacher = self.encoder.teacher
        patch_maps = teacher.patch_maps(torch.stack([image for image, _ in self._waiting]))
        for patch_map, (_, view) in zip(patch_maps, self._waiting, strict=True):
            self._put(teacher.name, self.encoder.encode(patch_map, view))
        self._waiting.clear()


class ViewEncoder:
    """Encodes one teacher's patch maps where they are, and brings the results to the CPU.

    Args:
        teacher: whose.
        encoding: of the targets.
        channels: (2, D) float32, see `TeacherStatistics.channels`.
    """

    def __init__(self, teacher: Teacher, encoding: Encoding, channels: np.ndarray) -> None:
        self.teacher, self.encoding = teacher, encoding
        self._channels = torch.from_numpy(channels).to(teacher.device)

    def encode(self, patch_map: torch.Tensor, view: PreparedView) -> NewTargets:
        """What a view's pairs read of its map (h, w, D), and the vectors of its segments, if it has superpixels."""
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
    """What the pairs at `pixel` (R, 2) of an (H, W) image read of the teacher's patch map, on its device."""
    map_shape = tuple(side // teacher.patch_size for side in teacher.image_size)
    on_device = torch.from_numpy(pixel.astype(np.int64)).to(teacher.device)
    return footprint(on_device, image_shape, map_shape, teacher.patch_size)


def recorded_provenance(teacher: Teacher, encoding: Encoding) -> dict:
    """What a store records of a teacher: all that its targets there depend on."""
    kept = {"encoding": encoding.layout, "dtype": encoding.dtype}
    return provenance_attributes(teacher.provenance) | kept


def new_views(prepared: PreparedFrame, split: str) -> list[NewView]:
    """A frame's views as the store takes them."""
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
    """`map` that works on at most `depth` items ahead of the one asked for."""
    pending: deque = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def num_readers() -> int:
    """Threads that read scans and images."""
    return min(MAX_READERS, os.cpu_count() or 1)


@contextmanager
def reader_pool() -> Iterator[ThreadPoolExecutor]:
    """Their pool; left by an error, it drops what it has not begun."""
    # Readers that each start threads of torch's own would crowd out the teacher, whose thread keeps its number.
    pool = ThreadPoolExecutor(num_readers(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
