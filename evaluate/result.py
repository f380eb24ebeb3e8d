"""Result files: what a run measured and how, as `result.json` for programs and `result.md` for people."""

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
from ..extract.datasets.simulated import SIMULATED, is_simulated
from ..json_text import json_text, sha256_of_values
from .metrics import NAME_OF_MEAN
from .origin import description
from .published import published_for
from .published_result import nearest, reasons_not_comparable
from .scores import Scores

if TYPE_CHECKING:  # finished runs are compared without torch
    from ..distill.backbones.backbone import ScanInputs
    from ..extract.datasets.frame import Dataset

FORMAT = "scalr-result"
RESULT = "result.json"
RECORD = "run"  # in a result, and in the header of a model: the record of the run that made it
DIGEST = "sha256"  # of all other values of a result, as they are read
IN_EVERY_RESULT = (
    *("title", "setting", "departures", "departures_of_protocol", "figures", "interval_95"),
    *("model", "protocol", "provenance", RECORD, DIGEST),
)
RUN_AGAIN = "Remove the file and run the evaluation again."
ABSENT_AS_0 = "absent classes as 0"  # in the names of values from SemanticKITTI's own mean


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of one run of an evaluation.

    Attributes:
        title: what was measured, for people.
        setting: what was measured, by its name among the published results; None if nothing is published for it.
        departures: deviations of the run from the published protocol.
        model: the model that was measured, by the names of `origin.origin_of`; empty if it is no student.
        figures: the measured values, mIoU among them, by name, as fractions of 1.
        interval: 95 % interval of the mIoU, as fractions of 1.
        tables: further values: title -> rows of label and fraction of 1.
        protocol: choices that change the measured values, as plain values.
        provenance: the files of the model, the student and the store.
        values: further entries of `result.json` only.
        record: `distill.run_record.RunRecord.values` of the run; None if it cannot be resumed.
    """

    title: str
    setting: str | None = None
    departures: Sequence[str] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float]
    interval: tuple[float, float] | None = None
    tables: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    protocol: Mapping[str, Any]
    provenance: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None

    @property
    def difference(self) -> str:
        """How model and protocol differ from the nearest published setting; empty if they do not, or there is none."""
        rows = published_for(self.setting)
        if not rows:
            return ""
        row = nearest(rows, self.model, self.protocol)
        found = row.otherwise(self.model, self.protocol)
        return f"differs from {row.name} in {found}" if found else ""


def result_of_scores(scores: Scores, **rest: Any) -> RunResult:
    """The result of scoring: means of the IoU, the interval of the first mean, accuracy, and IoU by class."""
    iou = dict(zip(scores.class_names, scores.iou.tolist(), strict=True))
    return RunResult(
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
    """The scores that a result of scoring was written for."""
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
    """The choices of the scoring that change the scores."""
    return {
        "dataset": dataset.name,
        **data_of(dataset.root),
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


def data_of(root: Path) -> dict[str, str]:
    """The entry of a protocol that says that a dataset is simulated; none for other datasets."""
    return {"data": SIMULATED} if is_simulated(root) else {}


def write_result(result: RunResult, out: Path) -> None:
    """Write `result.md`, then `result.json`: a run is finished if `result.json` exists.

    Raises:
        ScalrError: `out` cannot be written to.
    """
    values = {
        "format": FORMAT,
        "title": result.title,
        "setting": result.setting,
        "departures": [*result.departures, *filter(None, [result.difference])],
        "departures_of_protocol": list(result.departures),
        "model": dict(result.model),
        "figures": dict(result.figures),
        "interval_95": result.interval and list(result.interval),
        **result.values,
        "protocol": dict(result.protocol),
        "provenance": dict(result.provenance),
        RECORD: result.record,
    }
    signed = json_text({**values, DIGEST: sha256_of_values(json.loads(json_text(values)))})
    for name, text in (("result.md", _as_markdown(result)), (RESULT, signed)):
        write_bytes(out / name, f"{text}\n".encode(errors="surrogateescape"))  # with paths as they are


def read_result(folder: Path) -> dict:
    """The `result.json` of a run.

    Raises:
        StudentError: the file is missing, was written by another program or version, or was changed.
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
    if missing := [key for key in IN_EVERY_RESULT if key not in values]:
        raise StudentError(
            f"the result lacks {', '.join(missing)}; another version of scalr wrote it",
            where=path,
            fix=RUN_AGAIN,
        )
    if sha256_of_values({key: value for key, value in values.items() if key != DIGEST}) != values[DIGEST]:
        raise StudentError("the result file was cut off or changed since it was written", where=path, fix=RUN_AGAIN)
    return values


def _as_markdown(result: RunResult) -> str:
    lines = [f"# {result.title}", "", "| | |", "|---|---:|"]
    names = {"mIoU": NAME_OF_MEAN.get(result.protocol.get("mean_over"), "mIoU")}
    lines += [f"| {names.get(name, name)} | {percent(value)} |" for name, value in result.figures.items()]
    if result.interval:
        low, high = result.interval
        lines.append(f"| 95 % interval of the mIoU, over scenes | {percent(low)} to {percent(high)} |")
    if result.model:
        lines += ["", f"Model: {description(result.model)}."]
    if reasons := reasons_not_comparable(result.model, result.protocol):
        lines += ["", f"Not comparable with published results: {', '.join(reasons)}."]
    if result.departures:
        lines += ["", f"Deviations from the published protocol: {'; '.join(result.departures)}."]
    if result.difference:
        lines += ["", f"The result {result.difference}."]
    for title, rows in result.tables.items():
        lines += ["", f"## {title}", "", "| | |", "|---|---:|"]
        lines += [f"| {name} | {percent(value)} |" for name, value in rows]
    for title, values in (("Protocol", result.protocol), ("Provenance", result.provenance)):
        lines += ["", f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(lines)


def percent(value: float) -> str:
    """A fraction of 1 in per cent with two digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{100 * value:.2f} %"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json_text(value)
    return text.replace("|", "\\|")
