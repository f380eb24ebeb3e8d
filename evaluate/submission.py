"""Predictions in the submission formats of benchmarks: nuScenes' lidar segmentation, SemanticKITTI, SemanticPOSS."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..checkpoint_files import write_bytes
from ..errors import ScalrError
from ..extract.datasets.frame import Dataset, Frame
from ..extract.datasets.nuscenes_tables import lidar_tokens
from ..paths import below
from .scoring import KeepPredictions

# Required by nuScenes' server.
NUSCENES_META = {
    "use_camera": False,
    "use_lidar": True,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}


def writer_for(dataset: Dataset, folder: Path) -> KeepPredictions:
    """The function that writes each frame's predictions into `folder`, in the format of the dataset's benchmark.

    nuScenes: `<split>/submission.json`, `lidarseg/<split>/<token>_lidarseg.bin`, one byte per point, classes from 1 on.
    SemanticKITTI and SemanticPOSS: `sequences/<sequence>/predictions/<scan>.label`, uint32 raw ids.

    Raises:
        ScalrError: the dataset has no submission format, or its own classes were replaced.
    """
    writers = {"nuscenes": _nuscenes, "semantic_kitti": _kitti, "semantic_poss": _kitti}
    if dataset.name not in writers:
        raise ScalrError(
            f"no submission format is known for {dataset.name}",
            where="--predictions",
            fix=f"Leave out --predictions; it supports {', '.join(writers)}.",
        )
    if dataset.class_names != type(dataset).class_names:
        raise ScalrError(
            "benchmarks take predictions of the dataset's own classes only",
            where="--predictions",
            fix="Leave out --classes.",
        )
    return writers[dataset.name](dataset, folder)


def _nuscenes(dataset: Dataset, folder: Path) -> KeepPredictions:
    tokens = lidar_tokens(dataset.tables)
    meta = below(folder, f"{dataset.split}/submission.json")
    write_bytes(meta, json.dumps({"meta": NUSCENES_META}).encode())

    def keep(frame: Frame, predictions: np.ndarray) -> None:
        path = below(folder / "lidarseg" / dataset.split, f"{tokens[frame.scan]}_lidarseg.bin")
        write_bytes(path, (predictions.astype(np.uint8) + 1).tobytes())

    return keep


def _kitti(dataset: Dataset, folder: Path) -> KeepPredictions:
    raw_of_class = np.array([ids[0] for ids in dataset.label_map.raw_ids.values()], dtype=np.uint32)

    def keep(frame: Frame, predictions: np.ndarray) -> None:
        path = below(folder, f"sequences/{frame.scene}/predictions/{Path(frame.scan).stem}.label")
        write_bytes(path, raw_of_class[predictions].tobytes())

    return keep
