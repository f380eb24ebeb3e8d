"""Corrupted copies of a validation set in Robo3D's folders, for those who do not have its downloads.

The strengths are Robo3D's; the code that makes fog, snow and wet ground is not, and its draws are others, so scores on
these copies are not comparable with published ones.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ..checkpoint_files import write_bytes
from ..errors import DatasetError, ScalrError, did_you_mean
from ..extract.datasets import open_dataset
from ..extract.datasets.corruptions import CORRUPTIONS, MANIFEST, SEVERITIES
from ..extract.datasets.frame import Dataset, Frame
from ..progress import progress
from .corruption import BENCHMARKS, ECHO_SHARE, FOG_BACKSCATTER, SNOWFALL, WATER_HEIGHT_M, Benchmark, RawScan, corrupted
from .sensor_faults import rings_of_turns

logger = logging.getLogger(__name__)

OPTION_OF = {"motion_blur": "--motion-blur-m", "crosstalk": "--crosstalk-share"}
NOT_COMPARABLE = "made by 'scalr corrupt': scores are not comparable with published ones"


@dataclass(frozen=True, kw_only=True)
class CorruptConfig:
    """Which copies to make; the fields are the options of `scalr corrupt`."""

    root: Path  # of the clean dataset
    out: Path
    dataset: str = "nuscenes"
    split: str = "val"
    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[str, ...] = SEVERITIES
    motion_blur_m: tuple[float, ...] | None = None  # light, moderate, heavy, in place of Robo3D's
    crosstalk_share: tuple[float, ...] | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset not in BENCHMARKS:
            raise ScalrError(
                f"no corruptions are known for {self.dataset}", where="--dataset", fix=f"Use {' or '.join(BENCHMARKS)}."
            )
        for names, choices, option in (
            (self.corruptions, CORRUPTIONS, "--corruption"),
            (self.severities, SEVERITIES, "--severity"),
        ):
            for name in names:
                if name not in choices:
                    raise ScalrError(
                        f"'{name}' is unknown{did_you_mean(name, choices)}",
                        where=option,
                        fix=f"Use {', '.join(choices)}.",
                    )
        for option, values in (
            (OPTION_OF["motion_blur"], self.motion_blur_m),
            (OPTION_OF["crosstalk"], self.crosstalk_share),
        ):
            if values is not None and (len(values) != len(SEVERITIES) or not all(value >= 0 for value in values)):
                raise ScalrError(f"{values}", where=option, fix=f"Give three numbers: {', '.join(SEVERITIES)}.")

    def strengths(self) -> dict[str, tuple]:
        """Of each corruption, by severity; None where it is not published and was not given."""
        benchmark = BENCHMARKS[self.dataset]
        return {
            "fog": FOG_BACKSCATTER,
            "wet_ground": tuple(zip(WATER_HEIGHT_M, benchmark.noise_floor, strict=True)),
            "snow": SNOWFALL,
            "motion_blur": self.motion_blur_m or benchmark.motion_blur_m,
            "beam_missing": benchmark.missing,
            "crosstalk": self.crosstalk_share or benchmark.crosstalk_share,
            "incomplete_echo": ECHO_SHARE,
            "cross_sensor": benchmark.ring_step,
        }


@dataclass(frozen=True)
class CorruptSummary:
    """Copies that are there now, and those that could not be made, with the reason."""

    made: tuple[str, ...]
    left_out: dict[str, str]


def corrupt(config: CorruptConfig) -> CorruptSummary:
    """Make the copies; files that are there are not made again, so that a killed run goes on.

    What is random about a scan depends on seed, corruption, severity and frame alone.

    Raises:
        ScalrError: what is wrong with the dataset or the output folder.
    """
    dataset = open_dataset(config.dataset, config.root, config.split, need="labels")
    strengths = config.strengths()
    asked = [(corruption, severity) for corruption in config.corruptions for severity in config.severities]
    unknown = {
        f"{corruption}/{severity}": f"its strength is not published; give {OPTION_OF[corruption]}"
        for corruption, severity in asked
        if strengths[corruption][SEVERITIES.index(severity)] is None
    }
    copies = [(corruption, severity) for corruption, severity in asked if f"{corruption}/{severity}" not in unknown]
    _claim(config, strengths)
    _link_tables(dataset, config.out)
    work = partial(_write_copies, config, dataset, copies)
    numbers = range(len(dataset.frames))
    with progress(len(numbers), "corrupt", "frame") as bar:
        if config.workers == 0:
            for number in numbers:
                work(number)
                bar.update()
        else:
            with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
                for _ in pool.map(work, numbers):
                    bar.update()
    return CorruptSummary(tuple("/".join(copy) for copy in copies), unknown)


def _write_copies(config: CorruptConfig, dataset: Dataset, copies: Sequence[tuple[str, str]], number: int) -> None:
    frame = dataset.frames[number]
    benchmark, strengths = BENCHMARKS[config.dataset], config.strengths()
    places = {copy: _files_of(config, copy, frame) for copy in copies}
    wanted = {copy: files for copy, files in places.items() if not all(path.exists() for path in files)}
    if not wanted:
        return
    scan = _read(dataset, frame, benchmark)
    for (corruption, severity), (scan_path, label_path) in wanted.items():
        level = SEVERITIES.index(severity)
        key = [config.seed, CORRUPTIONS.index(corruption), level, *frame.token.encode()]
        values, raw_labels = corrupted(
            scan, corruption, strengths[corruption][level], benchmark, dataset.class_names, np.random.default_rng(key)
        )
        write_bytes(label_path, raw_labels.tobytes())
        write_bytes(scan_path, values.tobytes())


def _read(dataset: Dataset, frame: Frame, benchmark: Benchmark) -> RawScan:
    labels = dataset.read_labels(frame)  # first: it says what is wrong with a frame without labels
    num_points = len(dataset.read_points(frame))
    values = np.fromfile(dataset.root / frame.scan, np.float32).reshape(-1, benchmark.columns)
    raw_labels = np.fromfile(dataset.root / frame.labels, benchmark.label_dtype)
    if not len(values) == len(raw_labels) == num_points:
        raise DatasetError(
            f"{len(raw_labels)} labels for {num_points} points",
            where=dataset.root / frame.labels,
            fix="Copy both files again from the dataset's archives.",
        )
    ring = values[:, 4].astype(np.int64) if benchmark.columns > 4 else rings_of_turns(values)
    return RawScan(values, raw_labels, labels, ring)


def _files_of(config: CorruptConfig, copy: tuple[str, str], frame: Frame) -> tuple[Path, Path]:
    """Where scan and labels of a copy go, as Robo3D's readers expect them."""
    folder = config.out.joinpath(*copy)
    if config.dataset == "nuscenes":
        return folder / frame.scan, folder / frame.labels
    name = Path(frame.scan).stem
    return folder / "velodyne" / f"{name}.bin", folder / "labels" / f"{name}.label"


def _claim(config: CorruptConfig, strengths: dict[str, tuple]) -> None:
    """Write down how the copies are made; copies of another making are not mixed with these.

    Raises:
        ScalrError: such are there.
    """
    made = {
        "note": NOT_COMPARABLE,
        "dataset": config.dataset,
        "split": config.split,
        "seed": config.seed,
        "strengths": json.loads(json.dumps(strengths)),
    }
    path = config.out / MANIFEST
    if path.exists():
        before = json.loads(path.read_text())
        for key, ours in made.items():
            if before.get(key) != ours:
                raise ScalrError(
                    f"copies of another making are here: {key} was {before.get(key)!r} and is {ours!r}",
                    where=config.out,
                    fix="Choose another --out.",
                )
        return
    write_bytes(path, json.dumps(made, indent=1).encode())


def _link_tables(dataset: Dataset, out: Path) -> None:
    """nuScenes-C has no tables of its own: those of the clean set, where the file system can link to them."""
    tables = getattr(dataset, "tables", None)
    link = out / "v1.0-trainval"
    if tables is not None and not link.exists():
        with suppress(OSError):
            os.symlink(os.path.relpath(tables, out), link)
