"""What fewer bytes a vector cost a real teacher's features: bits, scales of channels, rotations, principal components.

    python tests/benchmarks/encodings.py ../shared/data WEIGHTS [--image-size 448x896]

WEIGHTS are DINOv2 ViT-S/14's (tests/real_teacher.py), the frames are real. Each way is tried on the patch
vectors that some pair reads, with statistics of those vectors. `centred` is the cosine of what is left of the kept and
the exact vectors once the mean is taken away: what tells points apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from scalr.extract.datasets import open_dataset
from scalr.extract.pipeline import teacher_footprint
from scalr.extract.preparation import Selection, prepare_frame
from scalr.extract.teachers.teacher import Teacher, load_teacher

TEACHER = "dinov2_vits14"
FRAMES = {  # dataset, folder, split, every so many-th frame
    "nuScenes": ("nuscenes", "nuscenes", "mini_train", 1),
    "SemanticKITTI": ("semantic_kitti", "semantickitti_11", "train", 4),
    "Pandar64": ("pandaset_64", "pandaset", "train", 1),
}
Way = Callable[[torch.Tensor], torch.Tensor]  # vectors (T, D) float32 -> the same, as they would be read again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--image-size", default="224x448")
    arguments = parser.parse_args()
    height, width = map(int, arguments.image_size.split("x"))
    teacher = load_teacher(TEACHER, image_size=(height, width), weights=arguments.weights)
    print(f"\n{TEACHER} at {height}x{width}\n")
    print("| lidar | kept as | bytes/vector | mean cosine | worst | centred mean | centred worst |")
    print("|---" * 7 + "|")
    for lidar, (reader, folder, split, step) in FRAMES.items():
        if (arguments.data / folder).is_dir():
            vectors = torch.cat(list(read_vectors(teacher, reader, arguments.data / folder, split, step)))
            print_rows(lidar, vectors)


def read_vectors(teacher: Teacher, reader: str, root: Path, split: str, step: int) -> Iterator[torch.Tensor]:
    """For each view: the patch vectors (T, D) float32 that its pairs read."""
    dataset = open_dataset(reader, root, split)
    for frame in dataset.frames[::step]:
        for view in prepare_frame(dataset, frame, [teacher], Selection()).views:
            flat = teacher.patch_maps(view.images[0][None])[0].flatten(0, 1)
            yield flat[teacher_footprint(teacher, view.pixel, view.image_shape).touched]


def print_rows(lidar: str, vectors: torch.Tensor) -> None:
    mean, unit_mean = vectors.mean(dim=0), F.normalize(vectors, dim=1).mean(dim=0)
    peaks = vectors.abs().amax(dim=0)
    print(
        f"<!-- {len(vectors)} vectors; mean unit vector {unit_mean.norm():.3f} long; largest value of a channel",
        end=" ",
    )
    print(f"{peaks.max():.1f}, median channel {peaks.median():.1f}; variance in", ", ".join(shares(vectors)), "-->")
    for name, num_bytes, way in ways(vectors):
        kept = way(vectors)
        plain, centred = (F.cosine_similarity(kept - away, vectors - away, dim=1) for away in (0, mean))
        print(
            f"| {lidar} | {name} | {num_bytes:.0f} | {plain.mean():.7f} | {plain.min():.6f} | {centred.mean():.6f} |"
            f" {centred.min():.5f} |",
            flush=True,
        )


def shares(vectors: torch.Tensor) -> Iterator[str]:
    """How much of the variance the leading components have."""
    variance = torch.linalg.eigvalsh(torch.cov(vectors.T.double())).flip(0)
    for kept in component_counts(vectors.shape[1]):
        yield f"{kept} components: {variance[:kept].sum() / variance.sum():.1%}"


def component_counts(dim: int) -> tuple[int, ...]:
    return dim // 3, dim // 2, 2 * dim // 3


def ways(vectors: torch.Tensor) -> Iterator[tuple[str, float, Way]]:
    """Name, bytes of a vector before compression, and the way."""
    dim, mean, deviation = vectors.shape[1], vectors.mean(dim=0), vectors.std(dim=0)
    centred = (vectors - mean).double()
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes.flip(1).float()
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)))[0]
    yield "float16", 2 * dim, lambda v: v.half().float()
    yield "int8, a scale a vector", dim + 4, lambda v: rounded(v, 8)
    yield "int8, mean taken away", dim + 4, lambda v: rounded(v - mean, 8) + mean
    for bits in (8, 6, 5, 4):
        yield (
            f"{bits} bits, mean and deviation of channels",
            bits / 8 * dim + 4,
            lambda v, bits=bits: rounded((v - mean) / deviation, bits) * deviation + mean,
        )
    yield "int8, mean and a random rotation", dim + 4, lambda v: rounded((v - mean) @ rotation, 8) @ rotation.T + mean
    for kept in component_counts(dim):
        few = axes[:, :kept]
        yield (
            f"int8, {kept} principal components",
            kept + 4,
            lambda v, few=few: rounded((v - mean) @ few, 8) @ few.T + mean,
        )


def rounded(vectors: torch.Tensor, bits: int) -> torch.Tensor:
    """Each vector to so many bits a value, by a scale of its own."""
    largest = 2 ** (bits - 1) - 1
    scale = vectors.abs().amax(dim=1, keepdim=True) / largest
    return (vectors / scale).round() * scale


if __name__ == "__main__":
    main()
