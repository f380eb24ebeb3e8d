"""Dataset readers by name, one module per dataset; `frame.py` says what a reader gives."""

from __future__ import annotations

from pathlib import Path

from ...errors import DatasetError, did_you_mean
from .frame import Dataset
from .nuscenes import NuScenes

READERS = {reader.name: reader for reader in (NuScenes,)}


def open_dataset(name: str, root: str | Path, split: str) -> Dataset:
    """Open a split of a dataset.

    Args:
        name: a key of `READERS`.
        root: the dataset's top folder, in its native layout.
        split: one of the reader's splits.

    Raises:
        DatasetError: unknown name or split, missing folder, broken tables.
    """
    if name not in READERS:
        raise DatasetError(
            f"unknown dataset '{name}'{did_you_mean(name, READERS)}",
            where="--dataset",
            fix=f"Use one of: {', '.join(READERS)}.",
        )
    if not Path(root).is_dir():
        raise DatasetError(
            "the dataset folder is missing", where=root, fix="Pass --root with the top folder of the dataset."
        )
    return READERS[name](Path(root), split)
