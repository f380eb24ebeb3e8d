"""Domain generalisation: a model trained on one lidar, scored on another that it has never seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..distill.processes import joined_processes, locked_by_first, process_index
from ..errors import StudentError
from ..extract.datasets import open_dataset
from ..settings import Settings, Workers
from .class_sets import RAW_IDS, with_classes
from .model import load_model, require_classes
from .result import result_of_scores, scoring_protocol, write_result
from .scores import Scores
from .scoring import score
from .supervision import require_new

# For each unseen dataset: its set of classes, and the range up to which it is annotated [m].
TARGETS: dict[str, tuple[str, float | None]] = {
    "semantic_kitti": ("semantic_kitti_10", 50.0),
    "semantic_poss": ("semantic_poss_6", None),
}
INTENSITY = "normalised by the target's own statistics (SALUDA, whose mappings these are, leaves it out)"


@dataclass(frozen=True, kw_only=True)
class TransferConfig(Settings):
    """One evaluation of domain generalisation; the fields are the options of `scalr evaluate transfer`."""

    model: Path  # trained on nuScenes with the unseen dataset's set of classes
    root: Path  # folder of the unseen dataset
    out: Path
    dataset: str = "semantic_kitti"  # the unseen dataset
    split: str = "val"
    workers: Workers = 0
    device: str = "auto"


def transfer(config: TransferConfig) -> Scores:
    """Score a model on a dataset that it was not trained on, by the conventions of SALUDA, and write a result file.

    SemanticKITTI has 10 classes, and its points at 50 m and beyond are removed before inference; SemanticPOSS has 6
    classes. If torchrun started several processes, all call this function.

    Raises:
        ScalrError: the model, the dataset or the output folder cannot be used.
    """
    if config.dataset not in TARGETS:
        raise StudentError(
            f"domain generalisation is not defined for {config.dataset}",
            where="--dataset",
            fix=f"Use {' or '.join(TARGETS)}.",
        )
    with joined_processes(config.device) as device, locked_by_first(config.out):
        require_new(config.out)
        return _transfer(config, device)


def _transfer(config: TransferConfig, device: torch.device) -> Scores:
    classes, max_range_m = TARGETS[config.dataset]
    model = load_model(config.model)
    dataset = with_classes(open_dataset(config.dataset, config.root, config.split, need="labels"), classes)
    if model.class_names is not None and model.class_names != tuple(RAW_IDS[classes]["nuscenes"]):
        raise StudentError(
            f"the model was trained for other classes than {classes}",
            where=config.model,
            fix=f"Train a model with 'scalr evaluate finetune --dataset nuscenes --classes {classes}'.",
        )
    require_classes(model, dataset, config.model)
    inputs = model.student.input_config
    scores = score(model.student.to(device), dataset, device, max_range_m=max_range_m, workers=config.workers)
    scores = replace(scores, mean_over="present")
    if process_index() == 0:
        result = result_of_scores(
            scores,
            title=f"Transfer to {dataset.name}: {len(scores.class_names)} classes",
            setting=f"transfer {config.dataset}",
            departures=[] if config.split == "val" else [f"scored on split {config.split}"],
            protocol={
                **scoring_protocol(scores, dataset, inputs, max_range_m),
                "classes_of": classes,
                "intensity": INTENSITY,
                "trained_on": model.training.get("training_frames_sha256"),
            },
            **model.for_result,
        )
        write_result(result, config.out)
    return scores
