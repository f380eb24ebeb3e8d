"""A store of 30,000 frames with six views: time to open it and draw the first batch, memory of a reader.

    python tests/benchmarks/store_index.py [frames per block, 16 or 64]

One block is real; the others are hard links to its files with indexes of their own. Time and memory are those of a
fresh process, as a DataLoader worker is one; what importing torch and zarr takes is told apart.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from scalr.extract.encoding import Encoding
from scalr.extract.store import SCANS, NewTargets, NewView, create_store
from scalr.extract.store import format as fmt
from scalr.extract.targets import encode, footprint

FRAMES, VIEWS, POINTS, PAIRS, DIM = 30_000, 6, 30_000, 3_500, 384
READER = """
import os, resource, sys, time
import numpy as np
from scalr.distill.dataset import DistillCollate, DistillDataset, SamplingConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.augmentation import AugmentConfig
from scalr.distill.sampling import EpochLoader
from scalr.extract.store import open_store
import torch, pyarrow.dataset, zarr
torch.set_num_threads(1)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

before, start = resident(), time.perf_counter()
store = open_store(sys.argv[1])
dataset = DistillDataset(store, ("t",), WaffleIronInputs(), SamplingConfig(), AugmentConfig(), seed=0)
opened = time.perf_counter() - start
store.require_records()
store.require_files(("t",), store.sources)
checked = time.perf_counter() - start - opened
collate, cpu = DistillCollate(WaffleIronInputs()), torch.device("cpu")
loader = EpochLoader([dataset], collate, batch_size=8, seed=0, workers=0, device=cpu)
batch = next(iter(loader(0)))
first = time.perf_counter() - start
print(f"{len(store.column('block'))} views in {len(store.blocks)} blocks:"
      f" open {opened:.2f} s, files checked {checked:.2f} s, first batch {first:.2f} s;"
      f" {before:.0f} MB after imports, +{resident() - before:.0f} MB", end="")
start = time.perf_counter()
for row in np.random.default_rng(0).integers(0, len(store.column('block')), 1000):
    store.read_view(int(row), "t")
print(f", +{resident() - before:.0f} MB after 1000 random views ({time.perf_counter() - start:.3f} s)")
"""


def write_block(writer, block: int, frames: int) -> None:
    rng, rows = np.random.default_rng(block), index_of(block, frames).to_pylist()
    channels = np.stack([np.zeros(DIM, np.float32), np.ones(DIM, np.float32)])
    draft, encoding = writer.draft(block, ["t"], channels={"t": channels}), Encoding("patch", "int8")
    for frame in range(frames):
        points = (rng.normal(size=(POINTS, 4)) * [20, 20, 2, 30]).astype(np.float32)
        views = []
        for row in rows[frame * VIEWS : (frame + 1) * VIEWS]:
            pixel = np.stack([rng.integers(400, 900, PAIRS), rng.integers(0, 1600, PAIRS)], 1).astype(np.uint16)
            index = np.sort(rng.choice(POINTS, PAIRS, replace=False)).astype(np.uint32)
            views.append(NewView(row, index, pixel))
        draft.add_frame(points, views)
        for view in views:
            reads = footprint(torch.from_numpy(view.pixel.astype(np.int64)), (900, 1600), (16, 32), 14)
            stored = encode(torch.randn(16, 32, DIM), reads, encoding, torch.from_numpy(channels))
            draft.add_targets("t", NewTargets(*(part.numpy() for part in stored)))
    writer.commit(draft)
    draft.scratch.remove()


def index_of(block: int, frames: int) -> pa.Table:
    number = np.arange(frames * VIEWS)
    frame = number // VIEWS
    tokens = [f"{block:06d}{value:02d}" + "0123456789abcdef" * 2 for value in frame]
    image = "samples/CAM_{}/n015-2018-07-24-11-22-45+0800__CAM__{}{}.jpg"
    return pa.table(
        {
            "block": np.full(len(number), block),
            "dataset": ["nuscenes"] * len(number),
            "split": ["train"] * len(number),
            "scene": [f"scene-{block:04d}"] * len(number),
            "token": tokens,
            "timestamp": number + 1_532_402_927_647_951,
            "camera": [f"CAM_{value % VIEWS}" for value in number],
            "image": [image.format(value % VIEWS, block, value) for value in number],
            "image_height": np.full(len(number), 900),
            "image_width": np.full(len(number), 1600),
            "pairs_hidden": np.zeros(len(number), int),
            "image_sha256": [os.urandom(32) for _ in number],
            "scan_sha256": [os.urandom(32) for _ in number],
        }
    )


def link_block(path: Path, block: int, frames: int) -> None:
    """The files of block 0 under another number, with indexes that say so."""
    shutil.copytree(path / "blocks/000000", path / f"blocks/{block:06d}", copy_function=os.link)
    for kind in (SCANS, "t"):
        first = fmt.index_path(path, kind, 0)
        table, record = fmt.read_index(first, kind), fmt.read_metadata(first).record
        others = {"block": np.full(len(table), block)}
        if kind == SCANS:
            others |= {name: index_of(block, frames)[name] for name in ("scene", "token", "timestamp", "image")}
        for name, values in others.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.chunked_array([values]))
        group = fmt.group_path(path, kind, block)
        (group / fmt.GROUP_INDEX).unlink()
        fmt.write_index(table, kind, block, group, record)
        shutil.copy(group / fmt.GROUP_INDEX, fmt.index_path(path, kind, block))


def main(frames_per_block: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, blocks = Path(folder) / "s.zarr", -(-FRAMES // frames_per_block)
        writer = create_store(path, "benchmark")
        settings = {"dataset": "nuscenes", "split": "train", "frames_per_block": frames_per_block, "num_blocks": blocks}
        settings["intensity"] = {"mean": 18.7, "std": 22.0}
        provenance = {
            "teacher": "t",
            "dim": DIM,
            "image_size": [224, 448],
            "patch_size": 14,
            "encoding": "patch",
            "dtype": "int8",
        }
        writer.add_inputs(settings, {}, {"t": provenance})
        write_block(writer, 0, frames_per_block)
        for block in range(1, blocks):
            link_block(path, block, frames_per_block)
        for _ in range(3):
            subprocess.run([sys.executable, "-c", READER, path], check=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
