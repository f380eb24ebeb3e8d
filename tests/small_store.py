"""A store of a few random blocks, written without dataset and teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from scalr.extract.store import ScanBlock, TargetBlock, create_store, open_store

SETTINGS = {
    "dataset": "nuscenes", "split": "train", "frames_per_block": 3, "num_blocks": 2,
    "intensity": {"mean": 18.0, "std": 22.0},
}  # fmt: skip
PROVENANCE = {
    "teacher": "t", "dim": 3, "image_size": [24, 32], "patch_size": 4, "encoding": "point", "dtype": "float16"
}  # fmt: skip


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
            "pairs_hidden": 0,
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
    ranges |= dict.fromkeys(("mean_cosine", "worst_cosine"), pa.array(np.ones(views, np.float32)))
    return scans, TargetBlock(rng.normal(size=(pairs_stop[-1], 3)).astype(np.float16), None, pa.table(ranges))


def filled_store(path: Path, blocks=(0, 1), owner: str = "part-0-of-1"):
    writer = create_store(path, owner)
    writer.add_inputs(SETTINGS, record={}, teachers={"t": PROVENANCE})
    for block in blocks:
        scans, targets = a_block(block)
        writer.write_scans(block, scans)
        writer.write_targets(block, "t", targets)
    return open_store(path)
