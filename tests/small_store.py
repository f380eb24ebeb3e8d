"""A store of a few random blocks, written without dataset and teacher."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scalr.extract.statistics import TeacherStatistics
from scalr.extract.store import (
    Draft,
    NewTargets,
    NewView,
    ScanBlock,
    Source,
    StoreWriter,
    TargetBlock,
    create_store,
    open_store,
)
from scalr.extract.store.commit import ATTEMPTS, ScratchTakenError, taken_away_again
from scalr.extract.store.format import COSINES

SETTINGS = {
    "dataset": "nuscenes", "split": "train", "frames_per_block": 3, "num_blocks": 2,
    "intensity": {"mean": 18.0, "std": 22.0},
}  # fmt: skip
PROVENANCE = {
    "teacher": "t", "dim": 3, "image_size": [24, 32], "patch_size": 4, "encoding": "point", "dtype": "float16"
}  # fmt: skip

# Encoding and dtype of vectors: each of both in every run of the tests, the other pairs in the slow ones.
KEPT_AS = [
    ("point", "float16"),
    ("patch", "int8"),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (("point", "int8"), ("patch", "float16"))),
]


def a_block(block: int, views: int = 3) -> tuple[ScanBlock, TargetBlock]:
    """A block of `views` frames of one view each, and its targets."""
    rng = np.random.default_rng(block)
    num_points, num_pairs = rng.integers(5, 20, views), rng.integers(0, 5, views)
    points_stop, pairs_stop = np.cumsum(num_points), np.cumsum(num_pairs)
    same = {"block": block, "dataset": "nuscenes", "split": "train", "scene": "s", "camera": "CAM", "image": "i.jpg"}
    rows = [
        {
            **same, "token": f"{block}-{view}", "timestamp": view, "image_height": 48, "image_width": 64,
            "points_start": int(points_stop[view] - num_points[view]), "points_stop": int(points_stop[view]),
            "pairs_start": int(pairs_stop[view] - num_pairs[view]), "pairs_stop": int(pairs_stop[view]),
            "pairs_hidden": 0, "image_sha256": bytes(32), "scan_sha256": bytes(32),
        }
        for view in range(views)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    scans = ScanBlock(
        points=rng.normal(size=(points_stop[-1], 4)).astype(np.float32),
        point_index=rng.integers(0, 5, pairs_stop[-1]).astype(np.uint32),
        pixel=rng.integers(0, 48, (pairs_stop[-1], 2)).astype(np.uint16),
        views=table,
    )
    ranges = {name: table[name] for name in ("block", "token", "camera")}
    ranges |= {"start": table["pairs_start"], "stop": table["pairs_stop"]}
    ranges |= dict.fromkeys(COSINES, pa.array(np.ones(views, np.float32)))
    return scans, TargetBlock(rng.normal(size=(pairs_stop[-1], 3)).astype(np.float16), None, None, pa.table(ranges))


def write_scans(writer: StoreWriter, block: int, scans: ScanBlock) -> bool:
    """Commit scans without targets."""
    return write_block(writer, block, scans)


def write_targets(writer: StoreWriter, block: int, teacher: str, targets: TargetBlock) -> bool:
    """Commit a teacher's targets of scans that are there."""
    return write_block(writer, block, None, **{teacher: targets})


def write_block(writer: StoreWriter, block: int, scans: ScanBlock | None, **targets: TargetBlock) -> bool:
    """Commit targets together with scans, or (without) of those that are there; again where the scratch is taken."""
    for _ in range(ATTEMPTS):
        there = writer.store.read_scans(block) if scans is None else None
        draft = writer.draft(block, targets, there, {name: each.channels for name, each in targets.items()})
        try:
            if scans is not None:
                add_scans(draft, scans)
            for teacher, each in targets.items():
                add_targets(draft, teacher, each)
            return writer.commit(draft)
        except ScratchTakenError:
            continue
        finally:
            draft.scratch.remove()
    raise taken_away_again(writer.path)


def add_scans(draft: Draft, scans: ScanBlock) -> None:
    draft.skipped = scans.skipped
    for row in scans.views.to_pylist():
        pairs = slice(row["pairs_start"], row["pairs_stop"])
        superpixel = None if scans.superpixel is None else scans.superpixel[pairs]
        view = NewView(row, scans.point_index[pairs], scans.pixel[pairs], superpixel)
        draft.add_frame(scans.points[row["points_start"] : row["points_stop"]], [view])


def add_targets(draft: Draft, teacher: str, targets: TargetBlock) -> None:
    for row in targets.views.to_pylist():
        part = slice(row["start"], row["stop"])
        cosines = [_cosines(row[mean], row[worst]) for mean, worst in zip(COSINES[::2], COSINES[1::2], strict=True)]
        scale = None if targets.scale is None else targets.scale[part]
        segments = None
        if targets.segments is not None:
            segments = targets.segments[row["segments_start"] : row["segments_stop"]]
        draft.add_targets(teacher, NewTargets(targets.vectors[part], scale, *cosines, segments))


def _cosines(mean: float, worst: float) -> np.ndarray:
    """Two with this mean, of which the worse is `worst`."""
    return np.array([worst, 2 * mean - worst], np.float32)


def some_statistics(teachers: Iterable[str]) -> dict[str, TeacherStatistics]:
    """Of vectors (3,) that nobody has seen."""
    mean, spread, mean_unit = np.array([3.0, 2.0, 1.0]), np.diag([1.0, 4.0, 0.0]), np.array([0.5, 0.25, 0.0])
    return {name: TeacherStatistics(7, mean, spread, mean_unit) for name in teachers}


def add_inputs(writer: StoreWriter, settings: dict = SETTINGS, **teachers: dict) -> Source:
    """Record a source and teachers, with statistics of each."""
    source = writer.add_inputs(settings, record={}, teachers=teachers)
    writer.statistics(teachers, source, some_statistics)
    return source


def filled_store(path: Path, blocks=(0, 1), owner: str = "part-0-of-1"):
    writer = create_store(path, owner)
    add_inputs(writer, t=PROVENANCE)
    for block in blocks:
        scans, targets = a_block(block)
        write_block(writer, block, scans, t=targets)
    return open_store(path)
