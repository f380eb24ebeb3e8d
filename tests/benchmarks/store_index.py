"""Large stores with six views a frame: time to open one and draw the first batch, files opened, memory of a worker.

    python tests/benchmarks/store_index.py [frames, 30,000, 300,000 or 3,000,000]

One block of 64 frames is real; the others are hard links to its files with indexes of their own. Each figure is of a
fresh process, first with every index read by itself, then with the indexes gathered; what importing torch and zarr
takes is told apart. Of 3,000,000 frames the indexes are links, too, and only what is gathered is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from scalr.extract.encoding import Encoding
from scalr.extract.store import SCANS, NewTargets, NewView, create_store
from scalr.extract.store import format as fmt
from scalr.extract.store.gathered import GatheredBlock, write_gathered
from scalr.extract.store.gathering import PART_BLOCKS
from scalr.extract.targets import encode, footprint

FRAMES, FRAMES_PER_BLOCK, VIEWS, POINTS, PAIRS, DIM = 30_000, 64, 6, 30_000, 3_500, 384
MOST_INDEXES = 10_000  # that are written one by one
COMMON = """
import pickle, resource, sys, time
import numpy as np
from scalr.distill.dataset import DistillCollate, DistillDataset, SamplingConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.augmentation import AugmentConfig
from scalr.distill.sampling import EpochLoader
from scalr.extract.store import open_store
import scalr.extract.targets, torch, zarr
torch.set_num_threads(1)

def megabytes(*names):
    lines = (line.split() for line in open("/proc/self/status"))
    return sum(int(line[1]) for line in lines if line[0][:-1] in names) / 1e3

def mine():
    return megabytes("RssAnon")

def shared():
    return megabytes("RssFile", "RssShmem")
"""
WORKER = (
    COMMON
    + """
before, before_shared = mine(), shared()
start = time.perf_counter()
dataset = pickle.load(sys.stdin.buffer)
dataset[0, 0]
first, own, seen = time.perf_counter() - start, mine() - before, shared() - before_shared
for frame in np.random.default_rng(0).integers(0, len(dataset), 500):
    dataset.store.read_view(int(dataset.frames[int(frame)][0]), "t")
print(f"  worker: first sample {first:.2f} s; +{own:.0f} MB of its own, +{seen:.0f} MB shared; after 500 random views"
      f" +{mine() - before:.0f} MB, +{shared() - before_shared:.0f} MB")
"""
)
READER = (
    COMMON
    + """
import subprocess
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)

def files():
    return sum(name.startswith(sys.argv[1]) for name in opened)

before, start = mine() + shared(), time.perf_counter()
store = open_store(sys.argv[1])
dataset = DistillDataset(store, ("t",), WaffleIronInputs(), SamplingConfig(), AugmentConfig(), seed=0)
ready = time.perf_counter() - start
store.require_records()
store.require_files(("t",), store.sources)
checked, to_begin = time.perf_counter() - start - ready, files()
collate, cpu = DistillCollate(WaffleIronInputs()), torch.device("cpu")
loader = EpochLoader([dataset], collate, batch_size=8, seed=0, workers=0, device=cpu)
batch = next(iter(loader(0)))
first = time.perf_counter() - start
print(f"  {len(dataset):,} frames: open {ready:.2f} s, files checked {checked:.2f} s, first batch {first:.2f} s;"
      f" {to_begin} files opened before it, {files()} with it; {before:.0f} MB after imports,"
      f" +{mine() + shared() - before:.0f} MB (peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB)",
      flush=True)
subprocess.run([sys.executable, "-c", sys.argv[2]], input=pickle.dumps(dataset), check=True)
"""
)


INSPECT = """
import sys, time
from scalr.extract.store import open_store
from scalr.extract.store.inspect import inspect_store
start = time.perf_counter()
report = inspect_store(open_store(sys.argv[1]))
print(f"  inspect {time.perf_counter() - start:.2f} s, {report.files:,} files", flush=True)
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


def link_blocks(path: Path, blocks: range) -> None:
    """The files of block 0 under other numbers, without indexes."""
    first = path / "blocks/000000"
    folders = [found.relative_to(first) for found in sorted(first.rglob("*")) if found.is_dir()]
    files = [found.relative_to(first) for found in first.rglob("*") if found.is_file()]
    for block in blocks:
        group = fmt.group_path(path, SCANS, block)
        for folder in (Path(), *folders):
            os.mkdir(group / folder)
        for file in files:
            os.link(first / file, group / file)


def write_index(path: Path, kind: str, block: int, first: pa.Table) -> None:
    """The index of block 0 under another number, with tokens and images of its own."""
    others = {"block": pa.array(np.full(len(first), block, np.int32))}
    if kind == SCANS:
        before, now = f"{0:06d}", f"{block:06d}"  # in each token
        tokens = [token.replace(before, now, 1) for token in first["token"].to_pylist()]
        images = [image.replace("__0", f"__{block}-") for image in first["image"].to_pylist()]
        others |= {"token": pa.array(tokens), "image": pa.array(images)}
    metadata = {key: json.loads(value) for key, value in first.schema.metadata.items() if key in fmt.SIGNED_KEYS}
    metadata[fmt.GROUP_KEY] = fmt.group_name(kind, block)
    signature = fmt.digest({key.decode(): value for key, value in metadata.items()})
    metadata = {key: json.dumps(value) for key, value in (metadata | {fmt.SIGNATURE_KEY: signature}).items()}
    for name, values in others.items():
        first = first.set_column(first.schema.get_field_index(name), name, values)
    first = first.replace_schema_metadata(metadata)
    pq.write_table(first, fmt.index_path(path, kind, block), compression="zstd", write_page_checksum=True)


def gather_links(path: Path, kind: str, blocks: int) -> None:
    """Indexes that are links to that of block 0, gathered as if each were its own."""
    first = fmt.index_path(path, kind, 0)
    for block in range(1, blocks):
        os.link(first, fmt.index_path(path, kind, block))
    metadata, rows, found = fmt.read_metadata(first), fmt.read_index(first, kind), first.stat()
    files = {name: listed.bytes for name, listed in metadata.files.items()}
    entry = GatheredBlock(0, len(rows), found.st_size, found.st_mtime_ns, metadata.record, files, {})

    def parts() -> Iterator[tuple[list[GatheredBlock], pa.Table]]:
        for start in range(0, blocks, PART_BLOCKS):
            part = range(start, min(start + PART_BLOCKS, blocks))
            numbers = pa.array(np.repeat(np.array(part, np.int32), len(rows)))
            yield (
                [replace(entry, block=block) for block in part],
                pa.concat_tables([rows] * len(part)).set_column(0, fmt.schema_of(kind).field(0), numbers),
            )

    fmt.gathered_path(path, kind).parent.mkdir(exist_ok=True)
    write_gathered(parts(), kind, fmt.gathered_path(path, kind))


def read(path: Path) -> None:
    subprocess.run([sys.executable, "-c", READER, path, WORKER], check=True)
    subprocess.run([sys.executable, "-c", INSPECT, path], check=True)


def main(frames: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, blocks = Path(folder) / "s.zarr", -(-frames // FRAMES_PER_BLOCK)
        writer = create_store(path, "benchmark")
        settings = {"dataset": "nuscenes", "split": "train", "frames_per_block": FRAMES_PER_BLOCK, "num_blocks": blocks}
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
        write_block(writer, 0, FRAMES_PER_BLOCK)
        link_blocks(path, range(1, blocks))
        print(f"{frames:,} frames of {VIEWS} views in {blocks:,} blocks, {os.cpu_count()} cores", flush=True)
        if blocks > MOST_INDEXES:
            for kind in (SCANS, "t"):
                gather_links(path, kind, blocks)
        else:
            for kind in (SCANS, "t"):
                first = pq.read_table(fmt.index_path(path, kind, 0))
                for block in range(1, blocks):
                    write_index(path, kind, block, first)
            print("each index read by itself:", flush=True)
            read(path)
            start = time.perf_counter()
            create_store(path, "benchmark").gather_indexes()
            print(f"gathered in {time.perf_counter() - start:.1f} s")
        sizes = [fmt.gathered_path(path, kind).stat().st_size / 1e6 for kind in (SCANS, "t")]
        print(f"gathered ({sizes[0]:.1f} and {sizes[1]:.1f} MB):", flush=True)
        read(path)


if __name__ == "__main__":
    main(int(sys.argv[1].replace(",", "")) if len(sys.argv) > 1 else FRAMES)
