"""How fast each teacher is in each precision, how much of an extraction it is, and what a second teacher costs.

    python tests/benchmarks/teachers.py [NAME …] [--device cuda]

Images of 224 x 448, random weights. A simulated world with images of nuScenes' size. Layer scales are set to one: as
they are initialised, blocks would change almost nothing, and every precision would look exact.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from extract_speed import Repeated, pipeline_into, seconds_of

from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.encoding import Encoding
from scalr.extract.preparation import Selection, prepare_frame
from scalr.extract.teachers.registry import TEACHERS
from scalr.extract.teachers.teacher import Teacher, load_teacher

TOO_LARGE = 3000  # million parameters, for 24 GB
LONG_S = 4.0  # a forward pass this long is run once
ENCODING = Encoding("patch", "int8")
FRAMES = 4  # of an extraction; fewer where a teacher is slow


def with_layer_scales(teacher: Teacher) -> Teacher:
    for name, parameter in teacher.model.named_parameters():
        if name.endswith(("gamma", "gamma_1", "gamma_2")):
            parameter.data.fill_(1)
    return teacher


def images_of(dataset, teacher: Teacher, frames: int) -> torch.Tensor:
    prepared = [prepare_frame(dataset, frame, [teacher], Selection()) for frame in dataset.frames[:frames]]
    return torch.stack([view.images[0] for frame in prepared for view in frame.views])


def rate(teacher: Teacher, images: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Images per second, and the patch map of the first."""

    def forward(batch: torch.Tensor) -> torch.Tensor:
        maps = teacher.patch_maps(batch)
        maps[0, 0, 0, 0].item()
        return maps

    start = time.perf_counter()
    maps = forward(images[:1])
    seconds = time.perf_counter() - start
    if seconds > LONG_S:
        return 1 / seconds, maps
    return len(images) / min(seconds_of(partial(forward, images)) for _ in range(3)), maps


def compare_precisions(names: list[str], dataset, device: str) -> None:
    columns = ("teacher", "parameters", "patch tokens", "float32", "bfloat16", "float16", "fraction")
    print("|", " | ".join([*columns, "cosine bfloat16", "cosine float16"]), "|")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        rates, maps = {}, {}
        for precision in ("float32", "bfloat16", "float16"):
            teacher = with_layer_scales(load_teacher(name, weights="random", precision=precision, device=device))
            images = images_of(dataset, teacher, 1)
            rates[precision], maps[precision] = rate(teacher, images)
            if precision == "float32":
                share = share_of_teacher(teacher, dataset, images)
        tokens = maps["float32"][0, ..., 0].numel()
        cosines = [
            F.cosine_similarity(maps["float32"], maps[precision], dim=-1) for precision in ("bfloat16", "float16")
        ]
        print(
            f"| `{name}` | {TEACHERS[name].million_parameters} M | {tokens} |",
            " | ".join(f"{value:.3g}" for value in rates.values()),
            f"| {share:.0%} |",
            " | ".join(f"{cosine.mean():.6f} ({cosine.min():.6f})" for cosine in cosines),
            "|",
            flush=True,
        )


def share_of_teacher(teacher: Teacher, dataset, images: torch.Tensor) -> float:
    """Bare forward passes over a whole extraction of the same frames, median of alternating rounds."""
    ratios = []
    for _ in range(3):
        alone = forward_seconds(teacher, images)
        frames = max(1, min(FRAMES, round(FRAMES * 2 * LONG_S / alone)))
        ratios.append(frames * alone / extraction_seconds([teacher], dataset, frames))
        if alone > LONG_S:
            break
    return float(np.median(ratios))


def forward_seconds(teacher: Teacher, images: torch.Tensor) -> float:
    return seconds_of(lambda: teacher.patch_maps(images)[0, 0, 0, 0].item())


def extraction_seconds(teachers: list[Teacher], dataset, frames: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        repeated = Repeated(dataset, frames)
        repeated.frames = repeated.frames[:frames]
        pipeline, blocks = pipeline_into(Path(folder) / "s.zarr", repeated, teachers, ENCODING, 2)
        return seconds_of(lambda: list(pipeline.run(blocks)))


def compare_two_with_each(dataset, device: str) -> None:
    """One call with two teachers, two calls with one each, and the bare forward passes of both."""
    teachers = [load_teacher(name, weights="random", device=device) for name in ("dinov2_vits14", "dino_vits16")]
    images = [images_of(dataset, teacher, 1) for teacher in teachers]
    rounds = []
    for number in range(6):
        forwards = [FRAMES * forward_seconds(*pair) for pair in zip(teachers, images, strict=True)]
        each = [extraction_seconds([teacher], dataset, FRAMES) for teacher in teachers]
        both = extraction_seconds(teachers, dataset, FRAMES)
        if number:  # the first round warms up
            rounds.append((sum(forwards), sum(each), both))
    forwards, each, both = np.median(rounds, axis=0) / len(images[0]) / FRAMES
    print(f"two teachers, {FRAMES} frames of six images, seconds by the image: forward passes {forwards:.3f},")
    print(f"two calls {each:.3f}, one call {both:.3f}: {both / forwards:.3f} of the passes, {both / each:.3f} of two")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    usual = [name for name, spec in TEACHERS.items() if spec.million_parameters < TOO_LARGE]
    usual = [name for name in usual if not name.endswith(("_reg", "_openai"))]  # as fast as those without
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder) / "world", train_scenes=1, val_scenes=1, keyframes=1, image_shape=(900, 1600))
        dataset = open_dataset("nuscenes", Path(folder) / "world", "train")
        compare_two_with_each(dataset, arguments.device)
        compare_precisions(arguments.names or usual, dataset, arguments.device)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
