"""Robustness: a model on the 24 corrupted copies of a validation set (Robo3D), relative to the published baseline."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..counted import counted
from ..distill.processes import joined_processes, locked_by_first, process_index
from ..distill.run_record import CONFIG, read_record, record_of, require_kind, run_record
from ..errors import StudentError
from ..extract.datasets import open_dataset
from ..extract.datasets.corruptions import CORRUPTIONS, MANIFEST, SEVERITIES
from ..extract.datasets.frame import Dataset
from ..extract.datasets.nuscenes_c import NuScenesC
from ..settings import Settings, Workers
from .corrupt import NOT_COMPARABLE
from .labelled_frames import labelled_frames
from .model import Model, load_model, require_classes, student_identity
from .result import (
    ABSENT_AS_0,
    RECORD,
    RESULT,
    RunResult,
    data_of,
    read_result,
    result_of_scores,
    scores_of,
    scoring_protocol,
    write_result,
)
from .robo3d import BASELINE, corruption_errors, mean_over, resilience_rates
from .scores import Scores
from .scoring import score

logger = logging.getLogger(__name__)

KIND = "robustness"
CLEAN = {"nuscenes_c": "nuscenes", "semantic_kitti_c": "semantic_kitti"}


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(Settings):
    """One robustness run; the fields are the options of `scalr evaluate robustness`."""

    model: Path
    root: Path  # folder of the corrupted copies
    clean_root: Path  # folder of the clean dataset
    out: Path
    dataset: str = "nuscenes_c"
    workers: Workers = 0
    device: str = "auto"


@dataclass(frozen=True)
class RobustnessResult:
    """Scores [%]; mCE and mRR are over the corruptions of which no copy is `missing`."""

    clean: float
    miou: dict[str, float] = field(repr=False)  # by copy, such as fog/light
    mce: float = float("nan")
    mrr: float = float("nan")
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> list[str]:
        """The corruptions that mCE and mRR are over: those with a copy of each severity."""
        return [name for name in CORRUPTIONS if not any(copy.startswith(f"{name}/") for copy in self.missing)]

    def as_text(self) -> str:
        """One line for people."""
        over = f" (over {len(self.complete)} of {len(CORRUPTIONS)} corruptions)" if self.missing else ""
        return f"mCE {self.mce:.2f}, mRR {self.mrr:.2f}{over}, mIoU clean {self.clean:.2f}"


def robustness(config: RobustnessConfig) -> RobustnessResult:
    """Score a model on the clean validation set and on every corrupted copy that exists, and write a result file.

    Each copy has a result file in `config.out/<corruption>/<severity>`. Copies that have one are not scored again: an
    interrupted run continues. If torchrun started several processes, all call this function.

    Raises:
        ScalrError: the model, a dataset or the output folder cannot be used, or no corruption is complete.
    """
    if config.dataset not in CLEAN:
        raise StudentError(
            f"{config.dataset} is not a corruption benchmark", where="--dataset", fix=f"Use {' or '.join(CLEAN)}."
        )
    with joined_processes(config.device) as device, locked_by_first(config.out):
        return _robustness(config, device)


def _require_own_folder(out: Path) -> None:
    """Refuse a folder with the run of another command.

    Raises:
        StudentError: the folder has such a run.
    """
    begun = read_record(out)
    if begun is not None:
        require_kind(begun.settings, KIND, out / CONFIG)
    if (out / RESULT).exists():
        finished = record_of(read_result(out)[RECORD])
        if finished is None:
            raise StudentError("the folder holds a result of another command", where=out, fix="Choose another --out.")
        require_kind(finished.settings, KIND, out / RESULT)


def _robustness(config: RobustnessConfig, device: torch.device) -> RobustnessResult:
    _require_own_folder(config.out)
    model = load_model(config.model)
    model.student.to(device)
    copies = [f"{corruption}/{severity}" for corruption in CORRUPTIONS for severity in SEVERITIES]
    there = [copy for copy in copies if (config.root / copy).is_dir()]
    missing = tuple(copy for copy in copies if copy not in there)
    whole = [name for name in CORRUPTIONS if not any(copy.startswith(f"{name}/") for copy in missing)]
    if not whole:
        raise StudentError(
            f"no corruption has all the severities {', '.join(SEVERITIES)}",
            where=config.root,
            fix="Pass --root with the folder that holds fog, snow and others; 'scalr corrupt' writes such a folder.",
        )
    clean_set = open_dataset(CLEAN[config.dataset], config.clean_root, "val", need="labels")
    clean = _scores_on(model, clean_set, config.out / "clean", config, device)
    scores = {copy: _scores_on(model, _open_copy(config, copy), config.out / copy, config, device) for copy in there}
    miou = {copy: 100 * each.miou for copy, each in scores.items()}
    means = _over_severities(miou, whole)
    errors = corruption_errors(means, BASELINE[config.dataset])
    rates = resilience_rates(means, 100 * clean.miou)
    result = RobustnessResult(100 * clean.miou, miou, mean_over(errors), mean_over(rates), missing)
    if process_index() == 0:
        run_result = _run_result(config, model, result, means, errors, rates, clean.num_frames)
        figures = run_result.figures | _of_all_classes(config, clean, scores, whole)
        settings = {"kind": KIND, "model": student_identity(model.student), "dataset": config.dataset, "copies": there}
        record = run_record(settings, device, workers=config.workers)
        write_result(replace(run_result, figures=figures, record=record.values), config.out)
    return result


def _over_severities(miou: dict[str, float], corruptions: list[str]) -> dict[str, float]:
    return {name: float(np.mean([miou[f"{name}/{severity}"] for severity in SEVERITIES])) for name in corruptions}


def _of_all_classes(
    config: RobustnessConfig, clean: Scores, scores: dict[str, Scores], whole: list[str]
) -> dict[str, float]:
    """The scores from SemanticKITTI's own mean, which differs if classes are absent, as in few frames."""
    means = _over_severities({copy: 100 * each.miou_of_all_classes for copy, each in scores.items()}, whole)
    figures = {
        "mCE": mean_over(corruption_errors(means, BASELINE[config.dataset])),
        "mRR": mean_over(resilience_rates(means, 100 * clean.miou_of_all_classes)),
        "mIoU clean": 100 * clean.miou_of_all_classes,
    }
    return {f"{name}, {ABSENT_AS_0}": value for name, value in _as_shares(figures).items()}


def _open_copy(config: RobustnessConfig, copy: str) -> Dataset:
    if config.dataset == NuScenesC.name:
        return NuScenesC(config.root, copy, config.clean_root)
    return open_dataset(config.dataset, config.root, copy, need="labels")


def _scores_on(model: Model, dataset: Dataset, out: Path, config: RobustnessConfig, device: torch.device) -> Scores:
    """The scores on one copy, read from its result file if it was scored before."""
    require_classes(model, dataset, config.model)
    settings = {
        "kind": KIND,
        "model": student_identity(model.student),
        **labelled_frames(dataset),
    }
    record = run_record(settings, device, workers=config.workers)
    if (out / RESULT).exists():
        before = read_result(out)
        record.require_made_with(before[RECORD], out / RESULT)
        return scores_of(before)
    logger.info("robustness: %s of %s, %s", dataset.split, dataset.name, counted(len(dataset.frames), "frame"))
    scores = score(model.student, dataset, device, workers=config.workers)
    if process_index() == 0:
        run_result = result_of_scores(
            scores,
            title=f"{config.model.name} on {dataset.split} of {dataset.name}",
            protocol=scoring_protocol(scores, dataset, model.student.input_config),
            **model.for_result,
            record=record.values,
        )
        write_result(run_result, out)
    return scores


def _run_result(
    config: RobustnessConfig,
    model: Model,
    result: RobustnessResult,
    means: dict[str, float],
    errors: dict[str, float],
    rates: dict[str, float],
    num_frames: int,
) -> RunResult:
    made_here = (config.root / MANIFEST).exists()
    departures = [NOT_COMPARABLE] if made_here else []
    if result.missing:
        departures.append(f"mCE and mRR are over {len(means)} of {len(CORRUPTIONS)} corruptions")
    corrupted = float(np.mean(list(means.values())))
    figures = {"mCE": result.mce, "mRR": result.mrr, "mIoU clean": result.clean, "mIoU corrupted": corrupted}
    tables = {
        "mIoU by copy": result.miou,
        "mIoU by corruption, mean over severities": means,
        "Corruption error (CE), by corruption": errors,
        "Resilience rate (RR), by corruption": rates,
    }
    return RunResult(
        title=f"Robustness on {config.dataset}",
        setting=f"robustness {config.dataset}",
        departures=departures,
        figures=_as_shares(figures),
        tables={title: list(_as_shares(rows).items()) for title, rows in tables.items()},
        protocol={
            "dataset": config.dataset,
            **data_of(config.clean_root),
            "frames": num_frames,
            "baseline": "MinkUNet-18 of Robo3D",
            "missing": list(result.missing),
            "corruptions": "made by 'scalr corrupt'" if made_here else "as downloaded",
        },
        **model.for_result,
        values={"miou_by_copy": _as_shares(result.miou), "corruption_error": errors, "resilience_rate": rates},
    )


def _as_shares(percentages: dict[str, float]) -> dict[str, float]:
    return {name: value / 100 for name, value in percentages.items()}
