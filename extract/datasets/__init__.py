"""Dataset readers by name, one module per dataset; `frame.py` defines the interface of a reader."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ...errors import DatasetError, did_you_mean
from ...own_class import own_class
from ...paths import expanded
from .frame import Dataset

Reader = Callable[[Path, str], Dataset]  # called with the dataset's top folder and a split


def _in_module(name: str, attribute: str) -> Reader:
    """A reader of this package; its module is imported only when the reader is called."""

    def reader(root: Path, split: str) -> Dataset:
        return getattr(importlib.import_module(f".{name}", __name__), attribute)(root, split)

    return reader


READERS: dict[str, Reader] = {
    "nuscenes": _in_module("nuscenes", "NuScenes"),
    "semantic_kitti": _in_module("semantic_kitti", "SemanticKitti"),
    "pandaset_64": _in_module("pandaset", "Pandar64"),
    "pandaset_gt": _in_module("pandaset", "PandarGT"),
    "semantic_poss": _in_module("semantic_poss", "SemanticPoss"),
    "nuscenes_c": _in_module("nuscenes_c", "NuScenesC"),
    "semantic_kitti_c": _in_module("semantic_kitti_c", "SemanticKittiC"),
    "frames": _in_module("frames", "Frames"),
}
NEEDED = ("name", "root", "split", "visibility", "frames", "read_points")


def open_dataset(
    name: str, root: str | Path, split: str, need: Literal["points", "images", "labels"] = "points"
) -> Dataset:
    """Open a split of a dataset.

    Args:
        name: a key of `READERS`, or `package.module:Class` for the user's own reader.
        root: the dataset's top folder, in its native layout.
        split: one of the reader's splits.
        need: what the caller needs at least.

    Raises:
        DatasetError: an unknown name or split, a missing folder, broken tables, or no frame with what is needed.
    """
    is_own = ":" in name
    reader = own_class(name, "reader", DatasetError, f"--dataset {name}") if is_own else READERS.get(name)
    if reader is None:
        raise DatasetError(
            f"unknown dataset '{name}'{did_you_mean(name, READERS)}",
            where="--dataset",
            fix=f"Use one of: {', '.join(READERS)}; or package.module:Class.",
        )
    root = expanded(root, DatasetError)
    if not root.is_dir():
        raise DatasetError(
            "the dataset folder is missing", where=root, fix="Pass --root with the top folder of the dataset."
        )
    dataset = reader(root, split)
    missing = [attribute for attribute in NEEDED if not hasattr(dataset, attribute)]
    if missing:
        raise DatasetError(
            f"the dataset reader {name} has no attribute '{missing[0]}'",
            where="--dataset",
            fix="Add the attribute; docs/own_dataset.md lists what a dataset reader has.",
        )
    if need == "images" and not any(frame.views or frame.error for frame in dataset.frames):
        raise DatasetError(
            "no frame of the dataset has an image",
            where=root,
            fix=f"Choose a dataset with cameras; {dataset.name} can be used for evaluation only.",
        )
    if need == "labels" and not getattr(dataset, "class_names", ()):
        raise DatasetError(
            "the dataset has no classes", where=root, fix="Name the classes; docs/own_dataset.md says how."
        )
    return dataset
