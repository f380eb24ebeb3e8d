"""A whole extraction against the bare forward passes of its teacher, and its memory against the number of blocks.

    python tests/benchmarks/extract_speed.py [ROOT of a nuScenes folder, with its split]

Without a folder, a simulated world with images of nuScenes' size. Rounds alternate, so that a noisy machine
slows both sides; compare the ratios.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.encoding import Encoding
from scalr.extract.pipeline import Pipeline, recorded_provenance
from scalr.extract.plan import plan_blocks
from scalr.extract.preparation import Selection, prepare_frame
from scalr.extract.store import create_store
from scalr.extract.teacher_sample import VectorSums
from scalr.extract.teachers.teacher import load_teacher

BLOCKS, FRAMES, BATCH, ROUNDS = 4, 2, 6, 3


class Repeated:
    """A dataset whose frames come again and again."""

    def __init__(self, dataset, times: int) -> None:
        self._dataset, self.frames = dataset, list(dataset.frames) * times

    def __getattr__(self, name: str):
        return getattr(self._dataset, name)


def pipeline_into(path: Path, dataset, teachers, encoding: Encoding, frames_per_block: int):
    writer = create_store(path, "benchmark")
    blocks = plan_blocks(len(dataset.frames), frames_per_block)
    settings = {"dataset": dataset.name, "split": dataset.split, "frames_per_block": frames_per_block}
    settings["intensity"] = asdict(dataset.intensity)
    recorded = {teacher.name: recorded_provenance(teacher, encoding) for teacher in teachers}
    writer.add_inputs({**settings, "num_blocks": len(blocks)}, {}, recorded)
    batch_sizes = dict.fromkeys(recorded, BATCH)
    statistics = {teacher.name: VectorSums(teacher.dim).statistics() for teacher in teachers}  # not measured here
    options = {"selection": Selection(), "batch_sizes": batch_sizes, "statistics": statistics}
    return Pipeline(dataset, teachers, encoding, writer, **options), blocks


def seconds_of(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def speed(dataset) -> None:
    teacher = load_teacher("dinov2_vits14", weights="random")
    dataset = Repeated(dataset, -(-BLOCKS * FRAMES // len(dataset.frames)))
    dataset.frames = dataset.frames[: BLOCKS * FRAMES]
    images = [
        image
        for frame in dataset.frames
        for view in prepare_frame(dataset, frame, [teacher], Selection()).views
        for image in view.images
    ]
    batches = [torch.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    teacher.patch_maps(batches[0])
    times: dict[str, list[float]] = {"teacher alone": []}
    for _ in range(ROUNDS):
        times["teacher alone"].append(seconds_of(lambda: [teacher.patch_maps(batch) for batch in batches]))
        for encoding in (Encoding("point", "float16"), Encoding("patch", "int8")):
            with tempfile.TemporaryDirectory() as folder:
                pipeline, blocks = pipeline_into(Path(folder) / "s.zarr", dataset, [teacher], encoding, FRAMES)
                name = f"extraction, {encoding.layout} {encoding.dtype}"
                times.setdefault(name, []).append(seconds_of(partial(list, pipeline.run(blocks))))
    alone = np.array(times["teacher alone"])
    for name, seconds in times.items():
        ratio = np.array(seconds) / alone
        print(f"{name:<28} {np.median(seconds) / len(images) * 1e3:6.0f} ms/image, ratio median {np.median(ratio):.3f}"
              f" (each round {', '.join(f'{value:.3f}' for value in ratio)})", flush=True)  # fmt: skip


def memory(dataset) -> None:
    """Resident memory after each block, of a run of many; blocks are as large as they come at this many dimensions."""
    teacher = load_teacher("dinov2_vits14", weights="random", image_size=(28, 56))
    dataset = Repeated(dataset, 128)
    resident = []
    with tempfile.TemporaryDirectory() as folder:
        pipeline, blocks = pipeline_into(Path(folder) / "s.zarr", dataset, [teacher], Encoding("point", "float16"), 1)
        for _ in pipeline.run(blocks):
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    quarter = len(resident) // 4
    for number in range(4):
        part = resident[number * quarter : (number + 1) * quarter]
        print(
            f"blocks {number * quarter + 1} to {(number + 1) * quarter}: {min(part):.0f} to {max(part):.0f} MB resident"
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, split = (Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else (Path(folder) / "world", "train")
        if len(sys.argv) <= 2:
            write_world(root, train_scenes=1, val_scenes=1, keyframes=2, image_shape=(900, 1600))
        dataset = open_dataset("nuscenes", root, split)
        speed(dataset)
        memory(dataset)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
