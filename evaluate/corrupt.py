"""Corrupted copies of a validation set in Robo3D's layout, for users who do not have Robo3D's 300 GB.

out/<corruption>/<severity>/…      as in nuScenes-C and SemanticKITTI-C
out/corruptions.json               the copies, the seed and the strengths
out/v1.0-trainval                  nuScenes only: a link to the tables of the clean dataset
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np

from ..checkpoint_files import write_bytes
from ..errors import DatasetError, ScalrError, did_you_mean, remedy
from ..extract.datasets import open_dataset
from ..extract.datasets.corruptions import CORRUPTIONS, MANIFEST, SEVERITIES
from ..extract.datasets.frame import Dataset, Frame
from ..json_text import json_text
from ..paths import below
from ..progress import progress
from ..settings import PositiveAmount, Seed, Settings, Workers, above, up_to
from ..worker_processes import worker_context
from .corruptions import BENCHMARKS, CORRUPT, Strength, levels_of
from .corruptions.layout import LAYOUTS

logger = logging.getLogger(__name__)

OPTIONS = {"motion_blur": "--motion-blur-m", "crosstalk": "--crosstalk-share"}
NOT_COMPARABLE = "Made by 'scalr corrupt' from clean scans: scores on it are not comparable with published ones"


Share = Annotated[float, above(0), up_to(1)]


@dataclass(frozen=True, kw_only=True)
class CorruptConfig(Settings):
    """The copies to make, and the dataset to copy; the fields are the options of `scalr corrupt`.

    `motion_blur_m` and `crosstalk_share` replace the published strengths of light, moderate and heavy; for nuScenes
    only the light strengths are published. Robo3D's datasets have split val only, and so do their readers.
    """

    root: Path  # of the clean dataset
    out: Path
    dataset: str = "nuscenes"
    split: str = "val"
    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[str, ...] = SEVERITIES
    motion_blur_m: tuple[PositiveAmount, PositiveAmount, PositiveAmount] | None = None
    crosstalk_share: tuple[Share, Share, Share] | None = None
    seed: Seed = 0
    workers: Workers = 0  # processes; 0: everything in the main process

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("--dataset", (self.dataset,), tuple(BENCHMARKS))
        _check_names("--corruption", self.corruptions, CORRUPTIONS)
        _check_names("--severity", self.severities, SEVERITIES)

    def copies(self) -> list[Copy]:
        """The copies that the options ask for, in the order of Robo3D's tables."""
        levels = levels_of(BENCHMARKS[self.dataset], self.motion_blur_m, self.crosstalk_share)
        return [
            Copy(corruption, severity, strength)
            for corruption in CORRUPTIONS
            for severity, strength in zip(SEVERITIES, levels[corruption], strict=True)
            if corruption in self.corruptions and severity in self.severities
        ]


@dataclass(frozen=True)
class Copy:
    """One corruption at one severity."""

    corruption: str
    severity: str
    strength: Strength | None  # None: not published

    @property
    def folder(self) -> str:
        return f"{self.corruption}/{self.severity}"


@dataclass(frozen=True)
class CorruptSummary:
    """Complete folders, omitted folders with the reason, and the number of scans that this run wrote."""

    written: tuple[str, ...]
    left_out: dict[str, str]
    scans_made: int


@dataclass(frozen=True)
class _Job:
    """The missing copies of a frame."""

    frame: Frame
    copies: tuple[Copy, ...]


def corrupt(config: CorruptConfig) -> CorruptSummary:
    """Make the missing copies of every frame of a split.

    Random numbers of a copy depend on (seed, corruption, severity, frame) only, and not on the number of processes or
    on earlier runs.

    Raises:
        ScalrError: the dataset or the output folder cannot be used; copies that were written remain.
    """
    dataset = open_dataset(config.dataset, config.root, config.split, need="labels")
    frames = _frames(dataset, config)
    asked = config.copies()
    copies = [copy for copy in asked if copy.strength is not None]
    _write_manifest(config, copies)
    if config.dataset == "nuscenes":
        _link_tables(dataset.tables, config.out)
    jobs = list(_jobs(config, frames, copies))
    total, todo = len(frames) * len(copies), sum(len(job.copies) for job in jobs)
    logger.info("%d of %d corrupted scans remain to be written into %s", todo, total, config.out)
    with progress(total, "corrupt", "scan", done=total - todo) as bar:
        for made in _results(config, jobs):
            bar.update(made)
    left_out = {
        copy.folder: f"only the light strength is published by Robo3D; pass all three with {OPTIONS[copy.corruption]}"
        for copy in asked
        if copy.strength is None
    }
    return CorruptSummary(tuple(copy.folder for copy in copies), left_out, todo)


def generator(seed: int, copy: Copy, token: str) -> np.random.Generator:
    """The random stream of one copy of one frame."""
    digest = hashlib.sha256(f"{copy.folder}/{token}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:16], "big")])


def _results(config: CorruptConfig, jobs: Sequence[_Job]) -> Iterator[int]:
    """The number of copies that each job wrote, in the order of the jobs."""
    make = partial(_make, config)
    if not config.workers:
        yield from map(make, jobs)
        return
    # A terminal's Ctrl-C reaches all processes: the main process reports it for all.
    ignore_interrupts = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with ProcessPoolExecutor(config.workers, mp_context=worker_context(), **ignore_interrupts) as pool:
        try:
            yield from pool.map(make, jobs)
        except BrokenProcessPool:
            raise ScalrError(
                "a worker process died, perhaps because memory ran out",
                where="--workers",
                fix="Use fewer workers, and run the same command again: finished scans are kept.",
            ) from None


def _make(config: CorruptConfig, job: _Job) -> int:
    """Write the missing copies of a frame: labels first, so that every scan that exists has labels."""
    benchmark, layout = BENCHMARKS[config.dataset], LAYOUTS[config.dataset]
    scan = layout.read(config.root, job.frame)
    for copy in job.copies:
        rng = generator(config.seed, copy, job.frame.token)
        corrupted = CORRUPT[copy.corruption](scan, copy.strength, benchmark, rng)
        files = zip(layout.paths(job.frame), layout.contents(corrupted), strict=True)
        for name, content in reversed(list(files)):
            write_bytes(_path(config, copy, name), content)
    return len(job.copies)


def _frames(dataset: Dataset, config: CorruptConfig) -> list[Frame]:
    """The frames of the dataset, without their views.

    Raises:
        DatasetError: a frame has no labels, or the layout cannot hold all frames.
    """
    frames = [replace(frame, views=(), error=None) for frame in dataset.frames]
    for frame in frames:
        if frame.labels is None:
            dataset.read_labels(frame)  # raises an error that says which archive to unpack
    if len({LAYOUTS[config.dataset].paths(frame) for frame in frames}) < len(frames):
        raise DatasetError(
            f"scans of several sequences of '{config.split}' have the same numbers, and Robo3D's layout has"
            " no sequences",
            where="--split",
            fix="Use val, or one sequence.",
        )
    return frames


def _jobs(config: CorruptConfig, frames: Sequence[Frame], copies: Sequence[Copy]) -> Iterator[_Job]:
    """A job for every unfinished frame; folders are listed, as a query per file is slow on shared disks."""
    layout = LAYOUTS[config.dataset]
    listed: dict[Path, set[str]] = {}

    def is_there(path: Path) -> bool:
        if path.parent not in listed:
            listed[path.parent] = {file.name for file in path.parent.iterdir()} if path.parent.is_dir() else set()
        return path.name in listed[path.parent]

    for frame in frames:
        missing = tuple(
            copy for copy in copies if not all(is_there(_path(config, copy, name)) for name in layout.paths(frame))
        )
        if missing:
            yield _Job(frame, missing)


def _path(config: CorruptConfig, copy: Copy, name: str) -> Path:
    """The path of a file of a copy; `name` is given by nuScenes' tables."""
    return below(config.out / copy.folder, name, DatasetError)


def _write_manifest(config: CorruptConfig, copies: Sequence[Copy]) -> None:
    """Write the manifest before the first copy.

    Raises:
        ScalrError: the folder has copies of other scans, seeds or strengths, or copies that scalr did not make.
    """
    path = config.out / MANIFEST
    settings = {name: getattr(config, name) for name in ("dataset", "split", "seed")}
    strengths = json.loads(json.dumps({copy.folder: asdict(copy.strength) for copy in copies}))
    before = _read_manifest(path)
    if before is None:
        strangers = [copy.folder for copy in copies if (config.out / copy.folder).exists()]
        if strangers:
            raise ScalrError(
                f"the folder holds {strangers[0]} and no {MANIFEST}: 'scalr corrupt' did not write it",
                where=config.out,
                fix="Choose another --out.",
            )
        before = {**settings, "strengths": {}}
    for ours, theirs in ((settings, before), (strengths, before["strengths"])):
        for name in ours.keys() & theirs.keys():
            if ours[name] != theirs[name]:
                raise ScalrError(
                    f"the folder holds copies made with other settings: {name} was {_shown(theirs[name])},"
                    f" and is {_shown(ours[name])} now",
                    where=config.out,
                    fix="Choose another --out, or the same settings.",
                )
    merged = before["strengths"] | strengths
    manifest = {**settings, "comparable": False, "note": NOT_COMPARABLE, "strengths": merged}
    write_bytes(path, json_text(manifest, indent=2).encode())


def _read_manifest(path: Path) -> dict | None:
    try:
        manifest = json.loads(path.read_bytes())
        return {name: manifest[name] for name in ("dataset", "split", "seed")} | {"strengths": manifest["strengths"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ScalrError(
            f"the file does not record how the copies were made ({type(error).__name__}: {error})",
            where=path,
            fix=f"{remedy(error, 'Choose another --out')}.",
        ) from None


def _link_tables(tables: Path, out: Path) -> None:
    """Link the tables where the reader of nuScenes-C looks for them: beside the corruptions."""
    link = out / tables.name
    if link.is_dir():
        return
    try:
        link.unlink(missing_ok=True)  # a link to tables that were moved
        link.symlink_to(os.path.relpath(tables.resolve(), out.resolve()), target_is_directory=True)
    except OSError as error:
        logger.info("the link %s cannot be made (%s): set $NUSCENES before you read the copies", link, error.strerror)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check_names(option: str, names: Sequence[str], choices: Sequence[str]) -> None:
    for name in names:
        if name not in choices:
            raise ScalrError(
                f"'{name}' is unknown{did_you_mean(name, choices)}", where=option, fix=f"Use {', '.join(choices)}."
            )
    if not names:
        raise ScalrError("no value is given", where=option, fix=f"Use some of {', '.join(choices)}.")
