"""Predictions of a model for every point of a split, each frame once, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import groupby

import numpy as np
import torch

from ..distill.backbones.calls import packed
from ..distill.processes import num_processes, process_index, summed
from ..distill.student import Student
from ..extract.datasets.frame import Dataset, Frame
from ..extract.plan import frames_digest
from ..progress import progress
from .labelled_scans import EvaluationScan, EvaluationScans, unlabelled
from .metrics import confusion_matrix
from .scores import Scores

SCENE_FRAMES = 100  # longer sequences are cut into scenes: SemanticKITTI has a single validation sequence

# Called with a frame and the train ids (N,) uint8 that are predicted for its raw points.
KeepPredictions = Callable[[Frame, np.ndarray], None]


def score(
    model: Student,
    dataset: Dataset,
    device: torch.device,
    *,
    max_range_m: float | None = None,
    labelled: bool = True,
    keep: KeepPredictions | None = None,
    workers: int = 0,
) -> Scores:
    """Predict every raw point of every frame, and count points by (label, prediction).

    Every raw point, also outside the field of view, takes the prediction of the row that stands for it. Several
    processes each take every n-th frame, no frame twice, and all of them return the same counts.

    Args:
        model: with a head for the dataset's classes, on `device`, in eval mode.
        max_range_m: points at this distance and beyond are removed first.
        labelled: False counts nothing: predictions go to `keep` only.
        keep: called with the predictions of each frame.
        workers: processes that prepare scans; 0 prepares them in the main process.

    Raises:
        ScalrError: a frame cannot be read or lacks labels, or no frame has a labelled point.
    """
    num_classes = len(dataset.class_names)
    scene_of_frame, scenes = scenes_of(dataset.frames)
    confusions = np.zeros((len(scenes), num_classes, num_classes), dtype=np.int64)
    scans = EvaluationScans(dataset, model.input_config, max_range_m=max_range_m, labelled=labelled)
    mine = range(process_index(), len(dataset.frames), num_processes())
    tokens_of_scans = tokens_of(model, scans, mine, device, "score", workers)
    with torch.inference_mode(), closing(tokens_of_scans):  # its workers end with it
        for scan, tokens in tokens_of_scans:
            predictions = model.project(tokens).argmax(dim=1).to(torch.uint8).cpu().numpy()[scan.scan.row]
            if scan.labels is not None:
                confusions[scene_of_frame[scan.frame]] += confusion_matrix(scan.labels, predictions, num_classes)
            if keep is not None:
                keep(dataset.frames[scan.frame], predictions)
    total = summed(confusions.ravel().tolist(), device)
    if labelled and not any(total):
        raise unlabelled(dataset)
    return Scores(
        class_names=tuple(dataset.class_names),
        scenes=scenes,
        confusions=np.array(total).round().astype(np.int64).reshape(confusions.shape),
        num_frames=len(dataset.frames),
        frames_sha256=frames_digest([frame.token for frame in dataset.frames]),
    )


def tokens_of(
    model: Student,
    scans: EvaluationScans,
    numbers: Sequence[int],
    device: torch.device,
    description: str,
    workers: int = 0,
) -> Iterator[tuple[EvaluationScan, torch.Tensor]]:
    """For each frame: its scan, and the backbone's features (M, C) of its rows."""
    with progress(len(numbers), description, "frame") as bar:
        for scan in scans.read(numbers, workers):
            yield scan, model.tokens(packed(model.input_config, [scan.scan]).to(device))
            bar.update()


def scenes_of(frames: Sequence[Frame]) -> tuple[list[int], tuple[str, ...]]:
    """The index of each frame's scene, and the scenes' names; sequences are cut every `SCENE_FRAMES` frames."""
    index, names = [], []
    for scene, members in groupby(frames, key=lambda frame: frame.scene):
        for number, _ in enumerate(members):
            if number % SCENE_FRAMES == 0:
                names.append(f"{scene}+{number}" if number else scene)
            index.append(len(names) - 1)
    return index, tuple(names)
