"""What a caller cannot do without is asked of a split as a whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scalr.errors import DatasetError
from scalr.extract import datasets
from scalr.extract.datasets import open_dataset

SEEN = SimpleNamespace(views=("a view",), error=None)
BLIND = SimpleNamespace(views=(), error=None)
BROKEN = SimpleNamespace(views=(), error=DatasetError("no image", where="1.jpg", fix="Copy it again."))


@pytest.mark.parametrize(
    ("frames", "has_images"), [([SEEN, BLIND], True), ([BLIND, BROKEN], True), ([BLIND, BLIND], False)]
)
def test_one_frame_with_an_image_is_enough(monkeypatch, tmp_path, frames, has_images):
    dataset = SimpleNamespace(
        name="mine", root=tmp_path, split="train", visibility=None, frames=frames, read_points=None, class_names=("a",)
    )
    monkeypatch.setitem(datasets.READERS, "mine", lambda root, split: dataset)
    assert open_dataset("mine", tmp_path, "train", need="labels") is dataset
    if has_images:
        assert open_dataset("mine", tmp_path, "train", need="images") is dataset
    else:
        with pytest.raises(DatasetError, match="no frame of the dataset has an image"):
            open_dataset("mine", tmp_path, "train", need="images")
