"""The frames that a result depends on: a few are read, and of the others the sizes of label files are asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.evaluate import labelled_frames as module
from scalr.evaluate.labelled_frames import labelled_frames


class Labelled:
    """A dataset whose frames have points and labels of their own, which `change` may alter."""

    name, split = "nuscenes", "val"

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.read = root, []
        self.frames = [SimpleNamespace(token=f"t{number}", labels=f"{number}.label") for number in range(count)]
        root.mkdir()
        for number in range(count):
            (root / f"{number}.label").write_bytes(bytes(number + 1))

    def scan(self, frame: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
        number = int(frame.token[1:])
        self.read.append(number)
        return np.full((2, 4), number, np.float32), np.full(2, number, np.uint8)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Call with a number of frames, and the name of a folder."""
    monkeypatch.setattr(module, "read_labelled_scan", lambda dataset, frame: dataset.scan(frame))
    return lambda count, name="a": Labelled(tmp_path / name, count)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (3, [0, 1, 2]), (8, list(range(8))), (9, [0, 1, 2, 3, 4, 5, 6, 7]), (20, [0, 2, 5, 7, 10, 12, 15, 17])],
)
def test_eight_frames_spread_over_the_split_are_read(dataset, count, expected):
    frames = dataset(count)
    found = labelled_frames(frames)
    assert frames.read == expected
    assert (found["dataset"], found["split"], found["frames"]) == ("nuscenes", "val", count)


def test_the_digest_is_over_names_and_sizes_of_all_and_contents_of_some(dataset):
    frames = dataset(2)
    content = b"0.label 1\n1.label 2"
    for number in range(2):
        content += np.full((2, 4), number, np.float32).tobytes() + bytes([number, number])
    assert labelled_frames(frames)["labels_sha256"] == hashlib.sha256(content).hexdigest()
    assert labelled_frames(dataset(2, "elsewhere")) == labelled_frames(frames)


def test_any_label_file_that_is_missing_or_of_another_size_is_noticed(dataset):
    """Also of frames that are not read: of nine, the last."""
    frames = dataset(9)
    found = [labelled_frames(frames)]
    (frames.root / "8.label").write_bytes(bytes(10))
    found.append(labelled_frames(frames))
    (frames.root / "8.label").unlink()
    found.append(labelled_frames(frames))
    frames.frames[8].labels = None  # a split that names none; its root is a folder, and has a size, too
    found.append(labelled_frames(frames))
    assert len({each["labels_sha256"] for each in found}) == 4
    assert len({each["frames_sha256"] for each in found}) == 1
    assert 8 not in frames.read


def test_other_tokens_are_other_frames(dataset):
    frames = dataset(2)
    before = labelled_frames(frames)
    frames.scan = lambda frame: (np.zeros((1, 4), np.float32), np.zeros(1, np.uint8))
    frames.frames[1].token = "another"
    assert labelled_frames(frames)["frames_sha256"] != before["frames_sha256"]


def test_a_frame_that_cannot_be_read_is_named(dataset):
    frames = dataset(2)

    def unreadable(frame):
        raise DatasetError("labels are cut off", where="0.label", fix="Copy them again.")

    frames.scan = unreadable
    with pytest.raises(DatasetError, match=r"nuscenes split val frame t0.*labels are cut off"):
        labelled_frames(frames)
