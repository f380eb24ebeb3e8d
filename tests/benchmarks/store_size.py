"""Bytes and errors of every encoding on real frames of four lidars, and what the full training sets would take.

    python tests/benchmarks/store_size.py ../shared/data --weights FILE [--image-size 448x896]   # DINOv2 ViT-S/14
    python tests/benchmarks/store_size.py ../shared/data                                         # ViT-L/14, RANDOM

The folder has nuScenes, SemanticKITTI and PandaSet frames in their own layouts. FILE is made by tests/real_teacher.py.
Of a ViT-L/14 with random weights, sizes are worth looking at, which hardly depend on values; errors are not. PandaSet
needs pandas.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from scalr.extract.datasets import open_dataset
from scalr.extract.encoding import ENCODINGS
from scalr.extract.estimate import patch_maps_of, statistics_of, write_sample
from scalr.extract.pipeline import teacher_footprint
from scalr.extract.preparation import PreparedFrame, Selection, prepare_frame
from scalr.extract.store import open_store
from scalr.extract.store.inspect import readable_bytes
from scalr.extract.targets import sample_targets
from scalr.extract.teachers.teacher import Teacher, load_teacher


class Lidar(NamedTuple):
    """Real frames of a lidar, and how many its training set has."""

    dataset: str
    folder: str
    frames: dict[str, list[str] | None]  # by split; None takes all
    training_frames: int


LIDARS = {
    "nuScenes": Lidar("nuscenes", "nuscenes", {"mini_train": None}, 28130),
    # 00/000000 has no image, and the scan of 01/000008 is cut to the camera's view already.
    "SemanticKITTI": Lidar(
        "semantic_kitti", "semantickitti", {"train": ["01/000001", "01/000002"], "val": ["08/000000"]}, 19130
    ),
    "Pandar64": Lidar("pandaset_64", "pandaset", {"train": None}, 3920),
    "PandarGT": Lidar("pandaset_gt", "pandaset", {"train": None}, 3920),
}


def prepared_frames(lidar: Lidar, root: Path, teacher: Teacher) -> list[PreparedFrame]:
    prepared = []
    for split, tokens in lidar.frames.items():
        dataset = open_dataset(lidar.dataset, root / lidar.folder, split)
        chosen = [frame for frame in dataset.frames if tokens is None or frame.token in tokens]
        prepared += [prepare_frame(dataset, frame, [teacher], Selection()) for frame in chosen]
    return prepared


def describe(lidar: str, frames: list[PreparedFrame]) -> str:
    """A row of docs/datasets.md, but for the bytes."""
    views = [view for frame in frames for view in frame.views]
    points = sum(len(frame.points) for frame in frames)
    seen = sum(len(np.unique(np.concatenate([view.point_index for view in frame.views]))) for frame in frames)
    pairs, hidden = sum(len(view.pixel) for view in views), sum(view.hidden for view in views)
    return (
        f"| {lidar} | {len(frames)} | {len(views)} | {points / len(frames):,.0f} | {seen / points:.1%} |"
        f" {pairs / len(frames):,.0f} | {hidden / pairs:.1%} |"
    )


def visible_only(prepared: PreparedFrame) -> PreparedFrame:
    seen = np.unique(np.concatenate([view.point_index for view in prepared.views]))
    views = [
        replace(view, point_index=np.searchsorted(seen, view.point_index).astype(np.uint32)) for view in prepared.views
    ]
    return replace(prepared, points=prepared.points[seen], views=views)


def errors(
    path: Path, teacher: Teacher, frames: list[PreparedFrame], patch_maps: list[torch.Tensor], mean: torch.Tensor
) -> dict:
    """Of decoded against exact float32 targets, at the pairs; `mean` (D,) is taken away for `centred`."""
    store, generator = open_store(path), torch.Generator().manual_seed(0)
    cosines, centred, bounds, changes = [], [], [], []
    views = [view for frame in frames for view in frame.views]
    for row, (view, patch_map) in enumerate(zip(views, patch_maps, strict=True)):
        exact = sample_targets(patch_map, teacher_footprint(teacher, view.pixel, view.image_shape))
        kept = torch.from_numpy(store.read_view(row, teacher.name).targets)
        centred.append(F.cosine_similarity(exact - mean, kept - mean, dim=1))
        exact, kept = F.normalize(exact, dim=1), F.normalize(kept, dim=1)
        cosines.append((exact.double() * kept.double()).sum(1))
        bounds.append(torch.linalg.vector_norm(exact - kept, dim=1))
        # A student whose loss is about 0.7, as in the middle of a training.
        noise = F.normalize(torch.randn(exact.shape, generator=generator), dim=1)
        student = F.normalize(exact + 0.75 * noise, dim=1)
        changes.append(
            torch.linalg.vector_norm(student - kept, dim=1) - torch.linalg.vector_norm(student - exact, dim=1)
        )
    cosines, bounds, changes = torch.cat(cosines), torch.cat(bounds), torch.cat(changes)
    return {
        "mean": cosines.mean().item(),
        "worst": cosines.min().item(),
        "centred": torch.cat(centred).mean().item(),
        "bound": bounds.mean().item(),
        "change": changes.double().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--image-size", default="224x448")
    arguments = parser.parse_args()
    root, (height, width) = arguments.data, map(int, arguments.image_size.split("x"))
    name = "dinov2_vits14" if arguments.weights else "dinov2_vitl14"
    teacher = load_teacher(name, weights=arguments.weights or "random", image_size=(height, width))
    print(f"{name} at {arguments.image_size}, weights {'from a file' if arguments.weights else 'RANDOM'}\n")
    names = [name for name, lidar in LIDARS.items() if lidar.folder != "pandaset" or importlib.util.find_spec("pandas")]
    if len(names) < len(LIDARS):
        print("PandaSet is left out: its files need pandas (pip install 'scalr-distill[pandaset]').")
    lidars = {name: prepared_frames(LIDARS[name], root, teacher) for name in names}
    print("| lidar | encoding | bytes/pair | MB/frame | full set | mean cosine | worst | centred | loss change |"
          " loss bound |")  # fmt: skip
    print("|---" * 10 + "|")
    totals: dict[str, float] = {}
    scans: dict[str, dict[str, float]] = {}
    rows = {lidar: describe(lidar, frames) for lidar, frames in lidars.items()}
    for lidar, frames in lidars.items():
        patch_maps = patch_maps_of(teacher, 0, frames, 8)
        statistics = statistics_of(teacher, patch_maps, frames)
        raw = sum(len(view.pixel) for frame in frames for view in frame.views) * 2 * teacher.dim
        totals["raw float16"] = totals.get("raw float16", 0) + raw / len(frames) * LIDARS[lidar].training_frames
        for encoding in ENCODINGS:
            name = f"{encoding.layout} {encoding.dtype}"
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "s.zarr"
                report = write_sample(
                    path, "nuscenes", "train", frames, [teacher], [patch_maps], [statistics], encoding
                )
                found = errors(path, teacher, frames, patch_maps, torch.from_numpy(statistics.mean).float())
            targets = report.teachers[teacher.name]
            rows[lidar] += f" {readable_bytes(targets.bytes / len(frames))} |"
            full = targets.bytes / len(frames) * LIDARS[lidar].training_frames
            totals[name] = totals.get(name, 0) + full
            print(
                f"| {lidar} | {name} | {targets.bytes_per_pair:.1f} | {targets.bytes / len(frames) / 1e6:.2f} |"
                f" {readable_bytes(full)} | {found['mean']:.7f} | {found['worst']:.6f} | {found['centred']:.6f} |"
                f" {found['change']:+.1e} |"
                f" {found['bound']:.1e} |",
                flush=True,
            )
        for points, kept in {"all": frames, "visible": [visible_only(frame) for frame in frames]}.items():
            with tempfile.TemporaryDirectory() as folder:
                report = write_sample(Path(folder) / "s.zarr", "nuscenes", "train", kept, [], [], [], ENCODINGS[0])
            scans.setdefault(points, {})[lidar] = report.scans.bytes / len(frames) * LIDARS[lidar].training_frames
            pairs = sum(report.pairs.values())
            print(
                f"| {lidar} | scans and pairs, --points {points} | {report.scans.bytes / pairs:.1f} |"
                f" {report.scans.bytes / len(frames) / 1e6:.2f} | {readable_bytes(scans[points][lidar])} | | | | | |"
                f" <!-- {pairs} pairs in {len(frames)} frames -->",
                flush=True,
            )
    print("\n| lidar | frames | views | points/frame | visible | pairs/frame | hidden | bytes/frame: ", end="")
    print(" | ".join(f"{encoding.layout} {encoding.dtype}" for encoding in ENCODINGS) + " |")
    print("|---" * (7 + len(ENCODINGS)) + "|")
    print("\n".join(rows.values()))
    print("\nThe training sets together:")
    for name, total in totals.items():
        print(f"  {name:<16} targets {readable_bytes(total):>8}", end="")
        for points, sizes in scans.items():
            print(f", with scans ({points}) {readable_bytes(total + sum(sizes.values())):>8}", end="")
        print()


if __name__ == "__main__":
    main()
