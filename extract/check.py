"""`scalr check`: find out whether all frames of a dataset's split can be used, before teachers run on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..counted import counted
from ..errors import DatasetError, DoubtfulError
from ..progress import progress
from .datasets import open_dataset
from .datasets.files import read_image
from .datasets.frame import Dataset, Frame
from .datasets.scans import read_labels, read_points
from .plausibility import findings
from .preparation import Selection, prepare_frame


@dataclass(frozen=True)
class FrameReport:
    """One frame: its problems, or its counts if there are none."""

    problems: list[str]
    points: int = 0
    visible: int = 0  # points that some view sees
    pairs: int = 0
    hidden: int = 0  # pairs that were found occluded


@dataclass(frozen=True)
class DatasetReport:
    """A split of a dataset; fractions and means are over the frames that can be used."""

    dataset: str
    split: str
    frames: int
    views: int
    points_per_frame: float
    visible_share: float
    pairs_per_frame: float
    hidden_share: float
    problems: list[str]
    warnings: list[str] = field(default_factory=list)  # implausible values, found on a sample of frames

    def as_json(self) -> dict:
        """Plain JSON values."""
        return asdict(self)

    def as_text(self) -> str:
        """A summary for people, then a line for each problem."""
        lines = [
            f"{self.dataset} {self.split}: {counted(self.frames, 'frame')}, {counted(self.views, 'view')}",
            f"{self.points_per_frame:,.0f} points per frame, {self.visible_share:.1%} of them visible;"
            f" {self.pairs_per_frame:,.0f} pairs per frame, {self.hidden_share:.1%} of them occluded",
            *self.problems,
            *(f"warning: {warning}" for warning in self.warnings),
            self._counts(),
        ]
        return "\n".join(lines)

    def _counts(self) -> str:
        counts = {"problem": len(self.problems), "warning": len(self.warnings)}
        return ", ".join(counted(count, noun) for noun, count in counts.items() if count) or "no problem found"


def check(name: str, root: Path, split: str) -> DatasetReport:
    """Read every scan, label file and image of a split, project every point, and test a sample for plausibility.

    Raises:
        DatasetError: the dataset cannot be opened at all.
    """
    dataset = open_dataset(name, root, split)
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(len(dataset.frames), "check", "frame") as bar,
    ):
        reports = []
        for report in pool.map(lambda frame: check_frame(dataset, frame), dataset.frames):
            reports.append(report)
            bar.update()
    return summarise(dataset, reports, findings(dataset, dataset.frames))


def check_frame(dataset: Dataset, frame: Frame) -> FrameReport:
    """Read all files of a frame and collect its problems."""
    problems: list[str] = []
    prepared = None

    def attempt(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except DatasetError as error:
            if str(error) not in problems:
                problems.append(str(error))
            return None

    if frame.views or frame.error:
        prepared = attempt(lambda: prepare_frame(dataset, frame, [], Selection()))
    points = attempt(lambda: read_points(dataset, frame)) if prepared is None else prepared.points
    if frame.labels is not None and points is not None:
        attempt(lambda: read_labels(dataset, frame, len(points)))
    for view in frame.views:
        attempt(lambda view=view: read_image(dataset.root, view))
    if problems or prepared is None:
        return FrameReport(problems, points=0 if points is None else len(points))
    seen = np.concatenate([view.point_index for view in prepared.views])
    return FrameReport(
        problems=[],
        points=len(prepared.points),
        visible=len(np.unique(seen)),
        pairs=len(seen),
        hidden=sum(view.hidden for view in prepared.views),
    )


def summarise(dataset: Dataset, reports: list[FrameReport], found: Sequence[DatasetError] = ()) -> DatasetReport:
    """Add up the reports of a split's frames, and add the findings of the plausibility tests."""
    problems = [problem for report in reports for problem in report.problems]
    problems += [str(each) for each in found if not isinstance(each, DoubtfulError)]
    sound = [report for report in reports if not report.problems]
    total = {name: sum(getattr(report, name) for report in sound) for name in ("points", "visible", "pairs", "hidden")}
    return DatasetReport(
        dataset=dataset.name,
        split=dataset.split,
        frames=len(reports),
        views=sum(len(frame.views) for frame in dataset.frames),
        points_per_frame=total["points"] / max(1, len(sound)),
        visible_share=total["visible"] / max(1, total["points"]),
        pairs_per_frame=total["pairs"] / max(1, len(sound)),
        hidden_share=total["hidden"] / max(1, total["pairs"]),
        problems=list(dict.fromkeys(problems)),  # each once
        warnings=[str(each) for each in found if isinstance(each, DoubtfulError)],
    )
