"""Compute a teacher's statistics from a sample of a split: the choice of views, and the patch tokens of their pairs."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from ..counted import counted
from ..errors import ScalrError
from ..progress import progress
from .datasets.frame import Dataset
from .pipeline import teacher_footprint
from .plan import spread
from .preparation import PreparedFrame, PreparedView, Selection, prepare_frame
from .statistics import TeacherStatistics
from .store import SCANS, FeatureStore, Source
from .targets import can_be_stored, patch_vectors
from .teachers.teacher import Teacher

logger = logging.getLogger(__name__)

SAMPLED_VIEWS = 64  # the pairs of so many views need many thousand patch tokens
TRIED_FRAMES = 128  # at most, to find these views: a split with few usable frames is not read completely


class VectorSums:
    """Statistics of vectors that arrive in batches, summed in float64 on the CPU.

    Args:
        dim: number of channels, D.
    """

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._sum, self._units = (torch.zeros(dim, dtype=torch.float64) for _ in range(2))
        self._products = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, vectors: torch.Tensor) -> None:
        """Add vectors (T, D), on any device."""
        vectors = vectors.cpu().double()
        self._count += len(vectors)
        with _one_thread():
            self._sum += vectors.sum(dim=0)
            self._units += F.normalize(vectors, dim=1).sum(dim=0)
            self._products += vectors.T @ vectors

    def statistics(self, frames_left_out: int = 0) -> TeacherStatistics:
        """The statistics of all vectors added so far; zeros if there are none."""
        count = max(1, self._count)
        mean = self._sum / count
        covariance = self._products / count - torch.outer(mean, mean)
        units = self._units / count
        return TeacherStatistics(self._count, mean.numpy(), covariance.numpy(), units.numpy(), frames_left_out)


def sample_statistics(
    dataset: Dataset,
    teachers: Sequence[Teacher],
    selection: Selection,
    batch_sizes: Mapping[str, int],
    store: FeatureStore,
    source: Source,
) -> dict[str, TeacherStatistics]:
    """Compute each teacher's statistics of the patch tokens, each counted once, that pairs of sampled views need.

    Views with vectors that cannot be stored are left out: the extraction of these views reports the error.

    Args:
        dataset: the dataset whose split is sampled.
        teachers: the teachers to run on each view.
        selection: which pairs are kept.
        batch_sizes: images per forward pass, by the teacher's name.
        store: the store, whose committed scans are not read again.
        source: the split's record in the store.

    Raises:
        TeacherError: a batch does not fit in the memory of the GPU.
    """
    sums = {teacher.name: VectorSums(teacher.dim) for teacher in teachers}
    waiting: dict[str, list[PreparedView]] = {teacher.name: [] for teacher in teachers}
    left_out: list[str] = []
    views = _sampled_views(dataset, teachers, selection, store, source, left_out)
    most = min(SAMPLED_VIEWS, sum(len(frame.views) for frame in dataset.frames))
    found = 0
    with progress(most, "sample", "view") as bar:
        for view in itertools.islice(views, SAMPLED_VIEWS):
            found += 1
            for position, teacher in enumerate(teachers):
                waiting[teacher.name].append(view)
                if len(waiting[teacher.name]) == batch_sizes[teacher.name]:
                    _add(sums[teacher.name], teacher, position, waiting[teacher.name])
            bar.update()
        bar.update(most - found)  # for views without points, or that cannot be used
        for position, teacher in enumerate(teachers):
            _add(sums[teacher.name], teacher, position, waiting[teacher.name])
    if left_out:
        logger.warning(
            "the sample for the teacher's statistics omits %s that cannot be used; the first: %s",
            *(counted(len(left_out), "frame"), left_out[0]),
        )
    return {name: each.statistics(len(left_out)) for name, each in sums.items()}


def _sampled_views(
    dataset: Dataset,
    teachers: Sequence[Teacher],
    selection: Selection,
    store: FeatureStore,
    source: Source,
    left_out: list[str],
) -> Iterator[PreparedView]:
    """Yield all views that see points, of frames spread over the split; append IDs of unusable frames to `left_out`."""
    for number in spread(len(dataset.frames))[:TRIED_FRAMES]:
        frame = _prepared(dataset, number, teachers, selection, store, source)
        if frame is None:
            left_out.append(dataset.frames[number].token)
            continue
        yield from (view for view in frame.views if len(view.pixel))


def _prepared(
    dataset: Dataset,
    number: int,
    teachers: Sequence[Teacher],
    selection: Selection,
    store: FeatureStore,
    source: Source,
) -> PreparedFrame | None:
    """Prepare a frame; None if it cannot be used, which only stops the job that extracts this frame."""
    block, frame = source.blocks[number // source.frames_per_block], dataset.frames[number]
    try:
        committed = store.read_scans(block) if store.is_committed(SCANS, block) else None
        if committed and frame.token in committed.skipped:  # it may be usable now
            committed = None
        return prepare_frame(dataset, frame, teachers, selection, committed)
    except ScalrError:
        return None


def _add(sums: VectorSums, teacher: Teacher, position: int, views: list[PreparedView]) -> None:
    """Run a teacher on views that were prepared for several teachers, among which it is at `position`."""
    if views:
        add_views(sums, teacher, teacher.patch_maps(torch.stack([view.images[position] for view in views])), views)
        views.clear()


def add_views(
    sums: VectorSums, teacher: Teacher, patch_maps: Iterable[torch.Tensor], views: Iterable[PreparedView]
) -> None:
    """Add the patch tokens that the pairs of some views need, unless a value cannot be stored."""
    for patch_map, view in zip(patch_maps, views, strict=True):
        vectors = patch_vectors(patch_map, teacher_footprint(teacher, view.pixel, view.image_shape))
        if can_be_stored(vectors):
            sums.add(vectors)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one torch thread: the order of sums, and so their last bits, depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
