"""A model's classes, or a student's features, for scans that are files of their own: no dataset, no labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import torch

from ..checkpoint_files import write_bytes
from ..counted import counted
from ..device import resolve_device
from ..distill.backbones.backbone import ScanInputs
from ..distill.backbones.calls import inputs_for, packed
from ..distill.checkpoint import load_student
from ..distill.student import BATCH_POINTS, Student
from ..errors import ScalrError, did_you_mean
from ..extract.datasets.scans import intensity_of
from ..extract.intensity import IntensityStatistics
from ..folder_lock import locked
from ..progress import progress
from ..settings import MANY, Count, Settings, Workers, at_least, up_to
from .class_sets import OWN
from .labelled_scans import in_order
from .model import Model, file_identity, load_model
from .prediction_files import ClassFiles, ClassFormat, FeatureFiles, FeatureFormat, FeatureType
from .prediction_folder import FinishedScan, PredictionFolder
from .prediction_picture import PICTURES, Picture
from .raw_scans import LIDARS, NonFinite, PreparedScans, RawScan, RawScans, Reading
from .scan_list import ScanFile, ScanList, list_scans

logger = logging.getLogger(__name__)

Intensity = Annotated[float, at_least(-MANY), up_to(MANY)]


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Settings):
    """One prediction; the fields are the options of `scalr predict`."""

    scans: Annotated[tuple[Path, ...], at_least(1)]  # files, folders, patterns
    out: Path
    model: Path | None = None  # whose classes are written; or
    student: Path | None = None  # whose features are
    dataset: str | None = None  # whose lidar recorded the scans; None: the one that the model was trained on
    columns: Annotated[int, at_least(4), up_to(64)] | None = None  # float32 values of a point in a .bin file
    intensity_range: tuple[Intensity, Intensity] | None = None  # of the files; None: the dataset's
    intensity: tuple[Intensity, Intensity] | None = (
        None  # mean and standard deviation; None: the dataset's, or measured
    )
    non_finite: NonFinite = "refuse"
    format: ClassFormat | FeatureFormat | None = None  # of files; None: label for classes, npy for features
    dtype: FeatureType | None = None  # of features; None: float16
    colours: bool = False
    picture: Literal["none", "png", "page"] = "none"
    on_error: Literal["stop", "skip"] = "stop"
    batch_points: Count = BATCH_POINTS  # that go through the network at a time; a scan is never cut
    workers: Workers = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.student is None):
            raise ScalrError(
                "predict needs one of the two options, and not both",
                where="--model and --student",
                fix="Pass --model for classes or --student for features.",
            )
        formats = get_args(FeatureFormat if self.model is None else ClassFormat)
        if self.format is not None and self.format not in formats:
            raise self.refused("format", self.format, f"Use {' or '.join(formats)}.")
        if self.model is None and self.colours:
            raise ScalrError(
                "features have no class colours", where="--colours", fix="Leave out --colours, or pass --model."
            )
        if self.model is not None and self.dtype is not None:
            raise ScalrError(
                "the option is for features, and --model writes classes",
                where="--dtype",
                fix="Leave out --dtype, or pass --student.",
            )
        if self.dataset is not None and self.dataset not in LIDARS:
            raise ScalrError(
                f"no lidar of a dataset '{self.dataset}' is known{did_you_mean(self.dataset, LIDARS)}",
                where="--dataset",
                fix=f"Use one of: {', '.join(LIDARS)}; frames is any other lidar.",
            )
        if self.intensity_range is not None and not self.intensity_range[0] < self.intensity_range[1]:
            raise self.refused("intensity_range", self.intensity_range, "Give the lowest intensity, then the highest.")


@dataclass(frozen=True, kw_only=True)
class PredictionSummary:
    """What is in the folder, and what this run added to it.

    Attributes:
        out: the folder.
        num_scans, num_points: finished, in this run and before.
        num_new: scans finished in this run.
        points_by_class: predicted points by class; None for features.
        skipped: by the path of a scan, why it could not be used.
        picture: of the first scan; None where none was asked for.
    """

    out: Path
    num_scans: int
    num_points: int
    num_new: int
    points_by_class: dict[str, int] | None
    skipped: dict[str, str]
    picture: Path | None

    def as_json(self) -> dict:
        return asdict(self)

    def as_text(self) -> str:
        scans = counted(self.num_scans, "scan")
        lines = [f"{self.out}: {scans} ({self.num_new:,} in this run), {self.num_points:,} points"]
        if self.points_by_class:
            lines[0] += ", by class:"
        total = max(1, self.num_points)
        for name, points in (self.points_by_class or {}).items():
            lines.append(f"  {name:<22} {points / total:6.1%}")
        return "\n".join([*lines, *([f"  {self.picture}"] if self.picture else [])])


@dataclass(frozen=True, eq=False)
class Network:
    """The network that scans go through.

    Attributes:
        student: with a head for classes or without, in eval mode.
        inputs: how scans become its input.
        class_names: None for features.
        dataset: whose lidar recorded the scans.
    """

    student: Student
    inputs: ScanInputs
    class_names: tuple[str, ...] | None
    dataset: str

    def of_rows(self, scans: list[RawScan]) -> list[np.ndarray]:
        """For each scan (M, K) float32: logits of its rows, or features.

        Raises:
            ScalrError: the memory of the GPU is too small for them.
        """
        batch = packed(self.inputs, [scan.prepared for scan in scans])
        try:
            tokens = self.student.tokens(batch.to(self.student.device))
            outputs = tokens if self.class_names is None else self.student.project(tokens)
        except torch.OutOfMemoryError:
            raise ScalrError(
                f"the GPU's memory is too small for {batch.num_points:,} points at once",
                where="--batch-points",
                fix="Pass fewer, or --device cpu if a single scan is too large.",
            ) from None
        per_scan = outputs.float().cpu().split([len(scan.prepared.kept) for scan in scans])
        return [rows.numpy() for rows in per_scan]


@torch.inference_mode()
def predict(config: PredictConfig) -> PredictionSummary:
    """Write the classes or features of all points of scans below `config.out`, named as the scans are.

    To continue a run that was interrupted, call this again: scans that are finished, and whose files have not changed
    since, are not predicted again.

    Raises:
        ScalrError: what is wrong with the model, the scans or the folder.
    """
    with locked(config.out):
        return _predict(config)


def _predict(config: PredictConfig) -> PredictionSummary:
    network = _network(config)
    folder = PredictionFolder(config.out)
    before = folder.record or {}
    reading = Reading(
        dataset=network.dataset,
        columns=config.columns,
        intensity_range=config.intensity_range,
        non_finite=config.non_finite,
    )
    listed = list_scans(config.scans, reading.endings, config.out, Path(before["root"]) if before else None)
    scans = RawScans(listed.scans, listed.root, reading, _known_intensity(config, before))
    scans.warn_of_doubts()
    intensity = scans.intensity or intensity_of(scans)
    logger.info(
        "%s, read with --dataset %s: intensities are normalised by mean %.6g and standard deviation %.6g",
        *(counted(len(listed.scans), "scan"), network.dataset, intensity.mean, intensity.std),
    )
    files = _files(config, network)
    record = _record(config, network, listed, files, intensity)
    folder.require_same(record["settings"])
    finished = [folder.finished(scan, files.endings) for scan in listed.scans]
    todo = [number for number, each in enumerate(finished) if each is None]
    prepared = PreparedScans(scans, intensity, network.inputs)
    added: list[FinishedScan] = []
    skipped: dict[str, str] = {}
    with closing(_predicted(config, network, prepared, todo, skipped)) as predicted:  # its workers end with it
        for results in predicted:
            folder.begin(record, files.legend)
            added += [_write(folder, files, listed.scans[scan.number], scan, of_rows) for scan, of_rows in results]
    return _summary(config, network, [*filter(None, finished)], added, skipped, _draw(config, network, prepared))


def _network(config: PredictConfig) -> Network:
    device = resolve_device(config.device)
    if config.model is not None:
        model = load_model(config.model)
        dataset = config.dataset or _lidar_of(model)
        return Network(model.student.to(device), model.student.input_config, _names(model, dataset), dataset)
    student = load_student(config.student).to(device)
    if config.dataset is None:
        raise _no_lidar(config.student)
    return Network(student, inputs_for(student.input_config, config.dataset), None, config.dataset)


def _lidar_of(model: Model) -> str:
    if model.trained_on is None:
        raise _no_lidar(Path(model.provenance["file"]))
    return model.trained_on if model.trained_on in LIDARS else "frames"


def _no_lidar(path: Path) -> ScalrError:
    return ScalrError(
        "the file does not say which dataset's lidar the scans are of",
        where=path,
        fix=f"Pass --dataset, one of: {', '.join(LIDARS)}.",
    )


def _names(model: Model, dataset: str) -> tuple[str, ...]:
    """Names of the model's classes; a converted official file has the dataset's if their number is the same."""
    count = model.student.config.out_channels
    of_dataset = OWN[dataset].class_names if dataset in OWN else ()
    numbered = tuple(f"class {number}" for number in range(count))
    return model.class_names or (of_dataset if len(of_dataset) == count else numbered)


def _files(config: PredictConfig, network: Network) -> ClassFiles | FeatureFiles:
    if network.class_names is None:
        return FeatureFiles(config.format or "npy", config.dtype or "float16")
    return ClassFiles(network.class_names, config.format or "label", config.colours)


def _known_intensity(config: PredictConfig, before: dict) -> IntensityStatistics | None:
    """Statistics that are given, or that an earlier run in the folder measured; None: those of the dataset."""
    if config.intensity is not None:
        return IntensityStatistics(*config.intensity)
    if before.get("intensity") is not None and before["settings"].get("intensity") is None:
        return IntensityStatistics(**before["intensity"])
    return None


def _record(
    config: PredictConfig,
    network: Network,
    listed: ScanList,
    files: ClassFiles | FeatureFiles,
    intensity: IntensityStatistics,
) -> dict:
    """What the results depend on, as plain values."""
    identity = file_identity(config.model or config.student)
    reading = {name: getattr(config, name) for name in ("columns", "intensity_range", "intensity")}
    return {
        "settings": {"weights_sha256": identity["sha256"], "dataset": network.dataset, **reading, **files.settings},
        "file": identity["file"],
        "root": str(listed.root),
        "intensity": asdict(intensity),
    }


def _predicted(
    config: PredictConfig, network: Network, prepared: PreparedScans, todo: Sequence[int], skipped: dict[str, str]
) -> Iterator[Iterator[tuple[RawScan, np.ndarray]]]:
    """The scans `todo` with the network's output, batch by batch; why a scan is skipped goes into `skipped`."""
    listed = prepared.scans.scans
    if not todo:
        return
    with progress(len(listed), "predict", "scan", done=len(listed) - len(todo)) as bar:

        def usable() -> Iterator[RawScan]:
            for number, scan in zip(todo, in_order(prepared, todo, config.workers), strict=True):
                if not isinstance(scan, ScalrError):
                    yield scan
                elif config.on_error == "stop":
                    raise scan
                else:
                    skipped[str(listed[number].path)] = str(scan)
                    bar.update()

        for batch in _batches(usable(), config.batch_points):
            yield zip(batch, network.of_rows(batch), strict=True)
            bar.update(len(batch))


def _write(
    folder: PredictionFolder, files: ClassFiles | FeatureFiles, listed: ScanFile, scan: RawScan, of_rows: np.ndarray
) -> FinishedScan:
    by_class = files.write(folder.path / listed.name, scan, of_rows)
    return folder.add(listed, scan.state, len(scan.points), by_class)


def _batches(scans: Iterable[RawScan], most: int) -> Iterator[list[RawScan]]:
    """Scans whose rows are at most so many together; one that has more is alone."""
    waiting: list[RawScan] = []
    rows = 0
    for scan in scans:
        rows += len(scan.prepared.kept)
        if waiting and rows > most:
            yield waiting
            waiting, rows = [], len(scan.prepared.kept)
        waiting.append(scan)
    if waiting:
        yield waiting


def _draw(config: PredictConfig, network: Network, prepared: PreparedScans) -> Path | None:
    """Draw the first scan that can be used."""
    if config.picture == "none":
        return None
    scan = next((scan for number in range(len(prepared)) if isinstance(scan := prepared[number], RawScan)), None)
    if scan is None:
        return None
    picture: Picture = PICTURES[config.picture]
    name = prepared.scans.scans[scan.number].name
    path = config.out / f"{name}{picture.ending}"
    title = os.fsencode(name).decode(errors="replace")  # names of files need not be UTF-8
    write_bytes(path, picture.draw(network.student, network.inputs, scan, network.class_names, title))
    return path


def _summary(
    config: PredictConfig,
    network: Network,
    before: list[FinishedScan],
    added: list[FinishedScan],
    skipped: dict[str, str],
    picture: Path | None,
) -> PredictionSummary:
    finished, names = [*before, *added], network.class_names
    counts = np.array([each.by_class for each in finished], dtype=np.int64).reshape(len(finished), len(names or ()))
    return PredictionSummary(
        out=config.out,
        num_scans=len(finished),
        num_points=sum(each.points for each in finished),
        num_new=len(added),
        points_by_class=None if names is None else dict(zip(names, counts.sum(axis=0).tolist(), strict=True)),
        skipped=skipped,
        picture=picture,
    )
