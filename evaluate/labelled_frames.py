"""The identity of the labelled frames of a result, which differs for another folder, split or release."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import ScalrError
from ..extract.datasets.frame import Dataset, Frame
from ..extract.datasets.scans import read_labelled_scan
from ..extract.plan import frames_digest
from .labelled_scans import name_of_frame

WHOLE_FRAMES = 8  # frames whose points and labels are read; of all others, only the size of the label file
THREADS = 16  # threads that ask for file sizes: each waits for shared storage


def labelled_frames(dataset: Dataset) -> dict[str, int | str]:
    """The frames of a split and their labels, as plain values.

    `labels_sha256` is over the name and the size of every label file, and over the points and train ids of WHOLE_FRAMES
    frames spread evenly over the split: reading all frames of a large split would take minutes each time.

    Raises:
        ScalrError: one of these WHOLE_FRAMES frames cannot be read, or lacks labels.
    """
    frames = dataset.frames
    digest = hashlib.sha256("\n".join(_label_files(dataset)).encode(errors="surrogateescape"))
    count = min(WHOLE_FRAMES, len(frames))
    for number in range(count):
        frame = number * len(frames) // count
        try:
            points, labels = read_labelled_scan(dataset, frames[frame])
        except ScalrError as error:
            raise error.inside(name_of_frame(dataset, frame)) from None
        digest.update(points.tobytes() + labels.tobytes())
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "frames": len(frames),
        "frames_sha256": frames_digest([frame.token for frame in frames]),
        "labels_sha256": digest.hexdigest(),
    }


def _label_files(dataset: Dataset) -> list[str]:
    root = Path(dataset.root)

    def name_and_size(frame: Frame) -> str:
        path = root / (frame.labels or "")
        return f"{frame.labels} {path.stat().st_size if path.is_file() else None}"

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(name_and_size, dataset.frames))
