"""The memory of an extraction while it makes one block, beside what it holds before, against the block's raw size.

    python tests/benchmarks/extract_memory.py [frames in the block, 64]

Six views a frame with images of nuScenes' size, 1,024 dimensions, in each encoding, each in a process of its own. The
teacher is a stand-in that gives random features at once, so that only what surrounds a teacher is measured.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from extract_speed import Repeated, pipeline_into

from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.encoding import ENCODINGS, Encoding
from scalr.extract.estimate import bytes_of_frame
from scalr.extract.preparation import Selection, prepare_frame
from scalr.extract.teachers.teacher import load_teacher

DIM, FRAMES = 1024, 64


class RandomFeatures:
    """A teacher of ViT-L/14's size that needs no time and no weights."""

    def __init__(self, teacher) -> None:
        self._teacher, self.name, self.dim = teacher, "random_features", DIM
        self._maps = torch.randn(teacher.image_size[0] // 14, teacher.image_size[1] // 14, DIM)

    def __getattr__(self, name: str):
        return getattr(self._teacher, name)

    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        return self._maps.expand(len(images), -1, -1, -1)


def resident_mb() -> tuple[float, float]:
    """Now, and at most so far."""
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return now / 1e3, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure(world: Path, encoding: Encoding, num_frames: int) -> None:
    torch.set_num_threads(1)
    small = load_teacher("dinov2_vits14", weights="random")
    teacher = RandomFeatures(small)
    teacher.provenance = type(small.provenance)(**vars(small.provenance) | {"dim": DIM, "teacher": teacher.name})
    dataset = open_dataset("nuscenes", world, "train")
    dataset = Repeated(dataset, -(-num_frames // len(dataset.frames)))
    dataset.frames = dataset.frames[:num_frames]
    prepared = prepare_frame(dataset, dataset.frames[0], [], Selection())
    raw_mb = num_frames * bytes_of_frame(prepared, [teacher], encoding) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        pipeline, blocks = pipeline_into(Path(folder) / "s.zarr", dataset, [teacher], encoding, num_frames)
        before, _ = resident_mb()
        list(pipeline.run(blocks))
    peak = resident_mb()[1] - before
    print(
        f"{encoding.layout} {encoding.dtype}: block of {raw_mb:.0f} MB raw, peak {peak:.0f} MB beside {before:.0f} MB"
        f" ({peak / raw_mb:.2f} times)",
        flush=True,
    )


def main(num_frames: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        write_world(world, train_scenes=1, val_scenes=1, keyframes=4, image_shape=(900, 1600))
        for encoding in ENCODINGS:
            command = [sys.executable, __file__, str(world), encoding.layout, encoding.dtype, str(num_frames)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(Path(sys.argv[1]), Encoding(*sys.argv[2:4]), int(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else FRAMES)
