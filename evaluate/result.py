"""Result cards: what a run found and how, as `result.json` for programs and `result.md` for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint_files import write_bytes
from ..errors import StudentError
from ..extract.datasets.labels import IGNORE_LABEL
from ..extract.plan import frames_digest
from ..json_text import json_text
from .scores import Scores

if TYPE_CHECKING:  # finished runs are compared without torch
    from ..distill.inputs import InputConfig
    from ..extract.datasets.frame import Dataset

FORMAT = "scalr-result"
# What of a teacher's provenance says which feature was learnt.
OF_TEACHER = ("model", "weights_sha256", "feature", "image_size", "pos_embed")


@dataclass(frozen=True, kw_only=True)
class ResultCard:
    """One run of an evaluation.

    Attributes:
        title: what was measured, for people.
        setting: its name among the published figures; None where nothing is published for it.
        departures: in what it is not as published.
        figures: percentages that are the result, mIoU among them, by name.
        tables: further figures: title -> rows of label and value.
        protocol: choices that change the figures, plain values.
        provenance: what was measured: model, student, store.
        values: more for `result.json` alone.
    """

    title: str
    setting: str | None = None
    departures: Sequence[str] = ()
    figures: Mapping[str, float]
    interval: tuple[float, float] | None = None  # of the mIoU
    tables: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    protocol: Mapping[str, Any]
    provenance: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)


def card_of_scores(scores: Scores, **rest: Any) -> ResultCard:
    """A card for a confusion matrix: mIoU, its interval, accuracy, IoU by class."""
    iou = dict(zip(scores.class_names, scores.iou.tolist(), strict=True))
    return ResultCard(
        figures={"mIoU": scores.miou, "accuracy": scores.accuracy},
        interval=scores.interval,
        tables={"IoU by class": list(iou.items())},
        values={
            "miou": scores.miou,
            "accuracy": scores.accuracy,
            "iou": iou,
            "confusion": scores.confusion.tolist(),
            "scenes": dict(zip(scores.scenes, scores.confusions.tolist(), strict=True)),
        },
        **rest,
    )


def scores_of(result: Mapping[str, Any]) -> Scores:
    """The scores that a card of scores was written for."""
    protocol = result["protocol"]
    return Scores(
        class_names=tuple(result["iou"]),
        scenes=tuple(result["scenes"]),
        confusions=np.array(list(result["scenes"].values())),
        num_frames=protocol["frames"],
        frames_sha256=protocol["frames_sha256"],
        mean_over=protocol["mean_over"],
    )


def scoring_protocol(scores: Scores, dataset: Dataset, inputs: InputConfig, max_range_m: float | None = None) -> dict:
    """How points were scored, as far as other ways would give other figures."""
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "frames": scores.num_frames,
        "frames_sha256": scores.frames_sha256,
        "classes": len(scores.class_names),
        "ignored_label": IGNORE_LABEL,
        "mean_over": scores.mean_over,
        "scored_points": "every labelled raw point, also outside the field of view, by its nearest kept point"
        if max_range_m is None
        else f"labelled raw points nearer than {max_range_m:g} m; those farther are removed before inference",
        "voxel_size_m": inputs.voxel_size_m,
        "fov_min_m": list(inputs.fov_min_m),
        "fov_max_m": list(inputs.fov_max_m),
        "interval": "95 %, percentile bootstrap over scenes" if scores.interval else "none: a single scene",
    }


def training_frames(dataset: Dataset) -> dict:
    """Which frames' labels were learnt from."""
    return {
        "training_split": dataset.split,
        "training_frames": len(dataset.frames),
        "training_frames_sha256": frames_digest([frame.token for frame in dataset.frames]),
    }


def teacher_summary(provenance: Mapping[str, Any]) -> dict:
    """Of each teacher that a student learnt from: which feature, at which image size."""
    teachers = provenance.get("teachers") or {}
    return {name: {key: values.get(key) for key in OF_TEACHER} for name, values in teachers.items()}


def write_result(card: ResultCard, out: Path) -> None:
    """Write `result.md`, then `result.json`, whose presence says that the run is finished.

    Raises:
        ScalrError: `out` cannot be written to.
    """
    values = {
        "format": FORMAT,
        "title": card.title,
        "setting": card.setting,
        "departures": list(card.departures),
        "figures": dict(card.figures),
        "interval_95": card.interval and list(card.interval),
        **card.values,
        "protocol": dict(card.protocol),
        "provenance": dict(card.provenance),
    }
    for name, text in (("result.md", _as_markdown(card)), ("result.json", json_text(values))):
        write_bytes(out / name, f"{text}\n".encode())


def read_result(folder: Path) -> dict:
    """The `result.json` of a run.

    Raises:
        StudentError: there is none, or it is of another program.
    """
    path = folder / "result.json" if folder.is_dir() else folder
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise StudentError("no result here", where=path, fix="Pass the --out of a finished evaluation.") from None
    except (OSError, ValueError) as error:
        raise StudentError(
            f"the result cannot be read ({error})", where=path, fix="Run the evaluation again."
        ) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise StudentError("not a result of scalr", where=path, fix="Pass the --out of a finished evaluation.")
    return values


def _as_markdown(card: ResultCard) -> str:
    lines = [f"# {card.title}", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {percent(value)} |" for name, value in card.figures.items()]
    if card.interval:
        low, high = card.interval
        lines.append(f"| 95 % interval of the mIoU, over scenes | {percent(low)} to {percent(high)} |")
    if card.departures:
        lines += ["", f"Not as published: {'; '.join(card.departures)}."]
    for title, rows in card.tables.items():
        lines += ["", f"## {title}", "", "| | |", "|---|---:|"]
        lines += [f"| {name} | {percent(value)} |" for name, value in rows]
    for title, values in (("Protocol", card.protocol), ("Provenance", card.provenance)):
        lines += ["", f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(lines)


def percent(value: float) -> str:
    """Per cent with two digits, or a dash for what is not there."""
    return "–" if math.isnan(value) else f"{100 * value:.2f} %"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json_text(value)
    return text.replace("|", "\\|")
