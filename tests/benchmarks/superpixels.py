"""What superpixels cost: the time and memory of SLIC, of vectors of segments, and their bytes in a store.

    python tests/benchmarks/superpixels.py ../shared/data/nuscenes [weights of dinov2_vits14]

The images of one real keyframe. Without weights the teacher's are random, on which sizes hardly depend.
"""

from __future__ import annotations

import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.encoding import OF_SEGMENTS, Encoding
from scalr.extract.estimate import patch_maps_of, statistics_of, write_sample
from scalr.extract.preparation import Selection, prepare_frame
from scalr.extract.segments import segments_of
from scalr.extract.store.files import files_below
from scalr.extract.superpixels import SlicSuperpixels, read_map, resized
from scalr.extract.teachers.teacher import load_teacher

LARGE_MAP = (56, 112, 2048)  # of a ResNet-50 at stride 4


def seconds_of(action) -> tuple[float, float]:
    """Of this process on its cores, and of the clock."""
    cores, clock = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cores, time.perf_counter() - clock


def time_of_slic(dataset, views) -> list[np.ndarray]:
    slic, images = SlicSuperpixels(), [read_image(dataset.root, view) for view in views]
    tracemalloc.start()
    maps = [slic.map_of(views[0], images[0])]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    cores, clock = seconds_of(lambda: maps.extend(map(slic.map_of, views[1:], images[1:])))
    print(f"SLIC: {cores / len(images[1:]):.2f} s of a core an image of {images[0].shape[:2]}, {clock:.1f} s in a row")
    with ThreadPoolExecutor(2) as pool:
        cores, clock = seconds_of(lambda: list(pool.map(slic.map_of, views[1:], images[1:])))
    print(f"in two threads: {cores / len(images[1:]):.2f} s of a core an image, {clock:.1f} s for the same images")
    print(f"memory of one: {peak / 1e6:.0f} MB, {peak / images[0][..., 0].size:.0f} bytes a pixel")
    return maps


def time_of_maps(maps: list[np.ndarray], folder: Path) -> None:
    paths = [folder / f"{number}.png" for number in range(len(maps))]
    for path, ids in zip(paths, maps, strict=True):
        Image.fromarray(ids.astype(np.uint8)).save(path)
    cores, _ = seconds_of(lambda: [read_map(path, maps[0].shape) for path in paths])
    size = np.mean([path.stat().st_size for path in paths])
    print(f"maps as PNG of 8 bits: {size / 1e3:.1f} kB each, read in {1e3 * cores / len(paths):.0f} ms of a core")


def time_of_segments(segment_map: np.ndarray, patch_map: torch.Tensor) -> None:
    patch_size = 224 // len(patch_map)
    arguments = (patch_map, resized(segment_map, (224, 448)), np.unique(segment_map), patch_size)
    segments_of(*arguments)
    cores, _ = seconds_of(lambda: [segments_of(*arguments) for _ in range(5)])
    print(f"vectors of segments of a map {tuple(patch_map.shape)}: {1e3 * cores / 5:.0f} ms of a core an image")


def main(root: Path, weights: str) -> None:
    dataset = open_dataset("nuscenes", root, "mini_train")
    views = dataset.frames[0].views
    maps = time_of_slic(dataset, views)
    print(f"segments an image: {', '.join(str(len(np.unique(each))) for each in maps)}")
    with tempfile.TemporaryDirectory() as folder:
        time_of_maps(maps, Path(folder))
    teacher, generator = load_teacher("dinov2_vits14", weights=weights), torch.Generator().manual_seed(0)
    frame = prepare_frame(dataset, dataset.frames[0], [teacher], Selection(superpixels=SlicSuperpixels()))
    held = [len(np.unique(view.superpixel)) for view in frame.views]
    print(f"of these hold a pair: {', '.join(map(str, held))}; {sum(held)} a frame")
    patch_maps = patch_maps_of(teacher, 0, [frame], 6)
    cores, _ = seconds_of(lambda: teacher.patch_maps(frame.views[0].images[0][None]))
    print(f"the teacher takes {1e3 * cores:.0f} ms of a core an image")
    time_of_segments(maps[0], patch_maps[0])
    time_of_segments(maps[0], torch.rand(LARGE_MAP, generator=generator))
    statistics = [statistics_of(teacher, patch_maps, [frame])]
    for encoding in (Encoding(), OF_SEGMENTS):
        with tempfile.TemporaryDirectory() as folder:
            sample = ("nuscenes", "mini_train", [frame], [teacher], [patch_maps], statistics, encoding)
            report = write_sample(Path(folder) / "s.zarr", *sample, superpixels={"method": "slic"})
            block = report.path / "blocks/000000"
            sizes = {
                "pairs/superpixel": block / "pairs/superpixel",
                "segments": block / "targets/dinov2_vits14/segments",
            }
            found = {name: sum(file.stat().st_size for file in files_below(path)) for name, path in sizes.items()}
            print(
                f"{encoding.layout} {encoding.dtype}: targets {report.teachers['dinov2_vits14'].bytes / 1e3:.0f} kB"
                f" a frame, {', '.join(f'{name} {size / 1e3:.0f} kB' for name, size in found.items())}"
            )
    for dim in (384, 768, 1024, 2048):
        print(f"segments of {dim} dimensions, raw: {sum(held) * (4 * dim + 6) / 1e6:.2f} MB a frame")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "random")
