"""A whole extraction against the bare forward passes of its teacher, and its memory against the number of blocks.

    python tests/benchmarks/extract_speed.py [ROOT of a nuScenes folder, with its split]

Without a folder, a simulated world with images of nuScenes' size. Rounds alternate, so that a noisy machine
slows both sides; compare the ratios.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.synthetic import write_nuscenes
from scalr.extract.encoding import Encoding
from scalr.extract.pipeline import Pipeline, prepare_frame
from scalr.extract.plan import plan_blocks
from scalr.extract.store import create_store
from scalr.extract.teachers import load_teacher, provenance_attributes

BLOCKS, FRAMES, BATCH, ROUNDS = 4, 2, 6, 3


class Repeated:
    """A dataset whose frames come again and again."""

    def __init__(self, dataset, times: int) -> None:
        self._dataset, self.frames = dataset, list(dataset.frames) * times

    def __getattr__(self, name: str):
        return getattr(self._dataset, name)


def pipeline_into(path: Path, dataset, teacher, encoding: Encoding, frames_per_block: int):
    writer = create_store(path, "benchmark")
    blocks = plan_blocks(len(dataset.frames), frames_per_block)
    settings = {"dataset": dataset.name, "split": dataset.split, "frames_per_block": frames_per_block}
    kept = {"encoding": encoding.layout, "dtype": encoding.dtype}
    provenance = provenance_attributes(teacher.provenance) | kept
    writer.add_inputs({**settings, "num_blocks": len(blocks)}, {}, {teacher.name: provenance})
    return Pipeline(dataset, [teacher], encoding, writer, points="all", batch_size=BATCH), blocks


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
        for view in prepare_frame(dataset, frame, [teacher], "all").views
        for image in view.images
    ]
    batches = [torch.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    teacher.patch_maps(batches[0])
    times: dict[str, list[float]] = {"teacher alone": []}
    for _ in range(ROUNDS):
        times["teacher alone"].append(seconds_of(lambda: [teacher.patch_maps(batch) for batch in batches]))
        for encoding in (Encoding("point", "float16"), Encoding("patch", "int8")):
            with tempfile.TemporaryDirectory() as folder:
                pipeline, blocks = pipeline_into(Path(folder) / "s.zarr", dataset, teacher, encoding, FRAMES)
                name = f"extraction, {encoding.layout} {encoding.dtype}"
                times.setdefault(name, []).append(seconds_of(partial(list, pipeline.run(blocks))))
    alone = np.array(times["teacher alone"])
    for name, seconds in times.items():
        ratio = np.array(seconds) / alone
        print(f"{name:<28} {np.median(seconds) / len(images) * 1e3:6.0f} ms/image, ratio median {np.median(ratio):.3f}"
              f" (each round {', '.join(f'{value:.3f}' for value in ratio)})", flush=True)  # fmt: skip


def memory(root: Path, split: str, blocks: int) -> None:
    """In a process of its own: peak memory of `blocks` blocks."""
    import resource

    teacher = load_teacher("dinov2_vits14", weights="random", image_size=(28, 56))
    dataset = open_dataset("nuscenes", root, split)
    dataset = Repeated(dataset, blocks)
    dataset.frames = dataset.frames[:blocks] if len(dataset.frames) > blocks else dataset.frames
    with tempfile.TemporaryDirectory() as folder:
        encoding = Encoding("point", "float16")
        pipeline, planned = pipeline_into(Path(folder) / "s.zarr", dataset, teacher, encoding, 1)
        list(pipeline.run(planned))
    print(f"{blocks:>4} blocks: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, split = (Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else (Path(folder) / "world", "train")
        if len(sys.argv) <= 2:
            write_nuscenes(root, train_scenes=1, val_scenes=1, keyframes=2, image_shape=(900, 1600))
        speed(open_dataset("nuscenes", root, split))
        for blocks in (8, 32, 128):
            subprocess.run([sys.executable, __file__, "memory", root, split, str(blocks)], check=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.argv[1:2] == ["memory"]:
        memory(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
