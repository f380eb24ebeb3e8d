"""Scores of a finished model on a split and, on request, its predictions in the benchmark's submission format."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..distill.processes import joined_processes, locked_by_first, process_index
from ..extract.datasets import open_dataset
from ..extract.datasets.frame import Dataset
from ..settings import Settings, Workers
from .class_sets import with_classes
from .metrics import MEAN_WITH, AbsentClasses
from .model import Model, load_model, require_classes
from .result import result_of_scores, scoring_protocol, write_result
from .scores import Scores
from .scoring import score
from .submission import writer_for
from .supervision import OFFICIAL_SPLITS, absent_left_out, require_new

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Settings):
    """One scoring; the fields are the options of `scalr evaluate score`."""

    model: Path
    root: Path
    out: Path
    dataset: str = "nuscenes"
    split: str = "val"
    classes: str | None = None
    absent_classes: AbsentClasses = "left-out"  # how the mIoU counts them
    predictions: bool = False  # whether predictions are written to out/submission
    workers: Workers = 0
    device: str = "auto"


def score_model(config: ScoreConfig) -> Scores | None:
    """Score a model, write `result.md` and `result.json` into `config.out`, and return the counts.

    A split without labels, such as a benchmark's test split, has predictions only, and no scores. If torchrun started
    several processes, all call this function.

    Raises:
        ScalrError: the model, the dataset or the output folder cannot be used.
    """
    with joined_processes(config.device) as device, locked_by_first(config.out):
        require_new(config.out)
        return _score(config, device)


def _score(config: ScoreConfig, device: torch.device) -> Scores | None:
    model = load_model(config.model)
    dataset = with_classes(open_dataset(config.dataset, config.root, config.split, need="labels"), config.classes)
    require_classes(model, dataset, config.model)
    keep = writer_for(dataset, config.out / "submission") if config.predictions else None
    labelled = keep is None or any(frame.labels is not None for frame in dataset.frames)
    scores = score(model.student.to(device), dataset, device, labelled=labelled, keep=keep, workers=config.workers)
    if not labelled:
        logger.info("split %s has no labels: only predictions are written", config.split)
        return None
    scores = replace(scores, mean_over=MEAN_WITH[config.absent_classes])
    if process_index() == 0:
        result = result_of_scores(
            scores,
            title=f"{config.model.name} on split {config.split} of {dataset.name}",
            **_as_trained(model, dataset, scores),
            protocol={**scoring_protocol(scores, dataset, model.student.input_config), **_of_training(model)},
            **model.for_result,
        )
        write_result(result, config.out)
    return scores


def _as_trained(model: Model, dataset: Dataset, scores: Scores) -> dict[str, Any]:
    """The setting of the model's training, and its deviations, if its file says that it was trained on this dataset."""
    training = model.training
    if training.get("training_dataset") != dataset.name or not training.get("training_split"):
        return {}
    splits = (training["training_split"].split("-")[0], dataset.split)
    other_split = [] if splits in OFFICIAL_SPLITS else [f"scored on split {dataset.split}"]
    absent = absent_left_out(training.get("schedule_of"), scores)
    return {"setting": training.get("setting"), "departures": [*training.get("departures", ()), *other_split, *absent]}


def _of_training(model: Model) -> dict[str, Any]:
    """The values of the protocol by which published results of trained models are told apart."""
    names = ("schedule_of", "training_split", "training_frames")
    return {name: model.training[name] for name in names if name in model.training}
