"""Result cards: what a run found and how, as `result.json` for programs and `result.md` for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint_files import shortened, write_bytes
from ..errors import StudentError, remedy
from ..extract.datasets.labels import IGNORE_LABEL
from ..json_text import json_text, sha256_of_values
from .metrics import NAME_OF_MEAN
from .origin import description
from .published import nearest, published_for
from .scores import Scores

if TYPE_CHECKING:  # finished runs are compared without torch
    from ..distill.backbones.backbone import ScanInputs
    from ..extract.datasets.frame import Dataset

FORMAT = "scalr-result"
RESULT = "result.json"
RECORD = "run"  # in a result, and in the header of a model: the record of the run that made it
DIGEST = "sha256"  # of all other values of a result, as they are read
ON_EVERY_CARD = (
    *("title", "setting", "departures", "departures_of_protocol", "figures", "interval_95"),
    *("model", "protocol", "provenance", RECORD, DIGEST),
)
RUN_AGAIN = "Remove the file and run the evaluation again."
ABSENT_AS_0 = "absent classes as 0"  # of figures from SemanticKITTI's own mean


@dataclass(frozen=True, kw_only=True)
class ResultCard:
    """One run of an evaluation.

    Attributes:
        title: what was measured, for people.
        setting: its name among the published figures; None where nothing is published for it.
        departures: in what its protocol is not as published.
        model: what was measured, by the names of `origin.origin_of`; empty where it is no student.
        figures: percentages that are the result, mIoU among them, by name.
        tables: further figures: title -> rows of label and value.
        protocol: choices that change the figures, plain values.
        provenance: its files: model, student, store.
        values: more for `result.json` alone.
        record: of the run, `distill.run_record.RunRecord.values`; None where nothing is resumed.
    """

    title: str
    setting: str | None = None
    departures: Sequence[str] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float]
    interval: tuple[float, float] | None = None  # of the mIoU
    tables: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    protocol: Mapping[str, Any]
    provenance: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None

    def all_departures(self) -> list[str]:
        """Those of the protocol, and in what the model is not of the nearest published setting."""
        rows = published_for(self.setting)
        if not rows:
            return list(self.departures)
        row = nearest(rows, self.model, self.protocol)
        found = row.otherwise(self.model, self.protocol)
        return [*self.departures, *([f"other than {row.name} in {found}"] if found else [])]


def card_of_scores(scores: Scores, **rest: Any) -> ResultCard:
    """A card for a confusion matrix: means of the IoU, the interval of the first, accuracy, IoU by class."""
    iou = dict(zip(scores.class_names, scores.iou.tolist(), strict=True))
    return ResultCard(
        figures={
            "mIoU": scores.miou,
            f"mIoU, {ABSENT_AS_0}": scores.miou_of_all_classes,
            "fwIoU": scores.fwiou,
            "accuracy": scores.accuracy,
        },
        interval=scores.interval,
        tables={"IoU by class": list(iou.items())},
        values={
            "miou": scores.miou,
            "miou_of_all_classes": scores.miou_of_all_classes,
            "fwiou": scores.fwiou,
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


def scoring_protocol(scores: Scores, dataset: Dataset, inputs: ScanInputs, max_range_m: float | None = None) -> dict:
    """How points were scored, as far as other ways would give other figures."""
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "frames": scores.num_frames,
        "frames_sha256": scores.frames_sha256,
        "classes": len(scores.class_names),
        "ignored_label": IGNORE_LABEL,
        "mean_over": scores.mean_over,
        "scored_points": "every labelled raw point, also outside the field of view, as its nearest kept point or voxel"
        if max_range_m is None
        else f"labelled raw points nearer than {max_range_m:g} m; those farther are removed before inference",
        "inputs": asdict(inputs),
        "interval": "95 %, percentile bootstrap over scenes" if scores.interval else "none: a single scene",
    }


def write_result(card: ResultCard, out: Path) -> None:
    """Write `result.md`, then `result.json`, whose presence says that the run is finished.

    Raises:
        ScalrError: `out` cannot be written to.
    """
    values = {
        "format": FORMAT,
        "title": card.title,
        "setting": card.setting,
        "departures": card.all_departures(),
        "departures_of_protocol": list(card.departures),
        "model": dict(card.model),
        "figures": dict(card.figures),
        "interval_95": card.interval and list(card.interval),
        **card.values,
        "protocol": dict(card.protocol),
        "provenance": dict(card.provenance),
        RECORD: card.record,
    }
    signed = json_text({**values, DIGEST: sha256_of_values(json.loads(json_text(values)))})
    for name, text in (("result.md", _as_markdown(card)), (RESULT, signed)):
        write_bytes(out / name, f"{text}\n".encode(errors="surrogateescape"))  # with paths as they are


def read_result(folder: Path) -> dict:
    """The `result.json` of a run.

    Raises:
        StudentError: there is none, it is of another program or version, or not what was written.
    """
    path = folder / RESULT if folder.is_dir() else folder
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise StudentError(
            "no result file exists here", where=path, fix="Pass the --out of a finished evaluation."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        fix = remedy(error, RUN_AGAIN)
        raise StudentError(f"the result file cannot be read ({shortened(error)})", where=path, fix=fix) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise StudentError(
            "the file is not a result of scalr", where=path, fix="Pass the --out of a finished evaluation."
        )
    if missing := [key for key in ON_EVERY_CARD if key not in values]:
        raise StudentError(
            f"the result lacks {', '.join(missing)}; another version of scalr wrote it",
            where=path,
            fix=RUN_AGAIN,
        )
    if sha256_of_values({key: value for key, value in values.items() if key != DIGEST}) != values[DIGEST]:
        raise StudentError("the result file was cut off or changed since it was written", where=path, fix=RUN_AGAIN)
    return values


def _as_markdown(card: ResultCard) -> str:
    lines = [f"# {card.title}", "", "| | |", "|---|---:|"]
    names = {"mIoU": NAME_OF_MEAN.get(card.protocol.get("mean_over"), "mIoU")}
    lines += [f"| {names.get(name, name)} | {percent(value)} |" for name, value in card.figures.items()]
    if card.interval:
        low, high = card.interval
        lines.append(f"| 95 % interval of the mIoU, over scenes | {percent(low)} to {percent(high)} |")
    if card.model:
        lines += ["", f"Model: {description(card.model)}."]
    if departures := card.all_departures():
        lines += ["", f"Not as published: {'; '.join(departures)}."]
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
