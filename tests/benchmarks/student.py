"""The student's training step, evaluation, sample preparation and memory, beside the official model where it is there.

    python tests/benchmarks/student.py [--data DIR] [--peer DIR] [--device cuda] [--only 256]

DIR of --data holds real frames (`nuscenes/`, split mini_train); without it, a simulated world stands in. DIR of --peer
is a checkout of valeoai/WaffleIron: its model then does the same work with the same weights, rounds alternate, and the
ratios are printed. Each contestant and task runs in a process of its own, whose peak memory is measured.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from official_waffleiron import official_model, padded

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.inputs import ScanInput, WaffleIronInputs, voxel_representatives
from scalr.distill.inputs import evaluation_input
from scalr.distill.student import Student
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.scans import read_points
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.projection import project

CONFIG = WaffleIronInputs()
PREPARATIONS = 20


class Setting(NamedTuple):
    """A student and how much it is given; 36 layers of width 768, because the official 48 need over 24 GB."""

    name: str
    width: int
    depth: int
    norm: str
    cameras: int
    rounds: int


SETTINGS = [Setting("WI-48-256", 256, 48, "batch", 2, 2), Setting("WI-36-768", 768, 36, "layer", 1, 1)]


class Work(NamedTuple):
    """What one process does again and again."""

    setting: Setting
    scans: Path  # of `prepare_scans`
    peer: Path | None  # the official model's, or ours
    device: str
    precision: str


# Scans


def open_scan(root: Path, split: str):
    """Points (N, 4), intensity statistics, and for each camera which points it sees (N,) bool."""
    dataset = open_dataset("nuscenes", root, split)
    frame = dataset.frames[0]
    points, seen = read_points(dataset, frame), []
    for view in frame.views:
        pairs = project(points, view.calibration, view.image_shape, dataset.visibility)
        seen.append(np.zeros(len(points), bool))
        seen[-1][pairs.point_index] = True
    return points, dataset.intensity, seen


def prepare_camera(points, statistics, seen, rng) -> ScanInput:
    """A training sample in ScaLR's order: voxels of the complete scan, then the points of one camera."""
    kept = voxel_representatives(points[:, :3], CONFIG.voxel_size_m, rng)
    kept = kept[seen[kept]]
    kept = kept[CONFIG.inside(points[kept, :3])]
    return CONFIG.prepare(points[kept], statistics).input


def prepare_scans(root: Path, split: str, path: Path) -> None:
    """Write one sample per camera, and the complete scan, for processes that need not open the dataset."""
    points, statistics, seen = open_scan(root, split)
    cameras = [prepare_camera(points, statistics, view, np.random.default_rng(0)) for view in seen]
    path.write_bytes(pickle.dumps((cameras, evaluation_input(points, statistics, CONFIG)[0])))


@lru_cache
def prepared_scans(path: Path) -> tuple[list[ScanInput], ScanInput]:
    return pickle.loads(path.read_bytes())


# Contestants


def our_student(setting: Setting) -> Student:
    torch.manual_seed(0)
    return Student(WaffleIronConfig(width=setting.width, depth=setting.depth, norm=setting.norm))


@lru_cache
def contestant(work: Work) -> tuple[torch.nn.Module, Callable]:
    """A model, and what makes its arguments of scans."""
    student = our_student(work.setting).to(work.device)
    if work.peer is None:
        return student, lambda scans: (CONFIG.pack(scans).to(work.device),)
    official = official_model(student, work.peer)
    return official, lambda scans: tuple(tensor.to(work.device) for tensor in padded(scans, CONFIG))


# Tasks: each returns seconds, and peak memory in GB beside that of the imports


@lru_cache
def imported_gb() -> float:
    """Of this process, before it does anything."""
    return peak_gb()


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def training_step(work: Work) -> tuple[float, float]:
    imported_gb()
    model, arguments = contestant(work)
    inputs = arguments(prepared_scans(work.scans)[0][: work.setting.cameras])

    def step() -> None:
        model.zero_grad()
        with torch.autocast(work.device, getattr(torch, work.precision), enabled=work.precision != "float32"):
            output = model(*inputs)
        output.float().square().mean().backward()

    return measured(step, work.device)


def evaluation(work: Work) -> tuple[float, float]:
    imported_gb()
    model, arguments = contestant(work)
    inputs = arguments([prepared_scans(work.scans)[1]])
    model.eval()

    def forward() -> None:
        with (
            torch.no_grad(),
            torch.autocast(work.device, getattr(torch, work.precision), enabled=work.precision != "float32"),
        ):
            model(*inputs)

    return measured(forward, work.device)


def measured(action: Callable, device: str) -> tuple[float, float]:
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    action()
    synchronise()
    seconds = time.perf_counter() - start
    if device == "cuda":
        return seconds, torch.cuda.max_memory_allocated() / 1e9
    return seconds, peak_gb() - imported_gb()


def outputs(work: Work) -> torch.Tensor:
    """(M, 1024), of the complete scan in eval mode."""
    model, arguments = contestant(work)
    with torch.no_grad():
        out = model.eval()(*arguments([prepared_scans(work.scans)[1]])).float().cpu()
    return out if work.peer is None else out[0].T


# Comparison


def compare(title: str, task: Callable, ours: Work, peer: Path | None, rounds: int) -> None:
    """Alternate rounds of both, each in a process of its own; the first round of each only warms up."""
    works = [ours] + ([ours._replace(peer=peer)] if peer else [])
    pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in works]
    times, peaks = [[] for _ in works], [0.0 for _ in works]
    for _ in range(rounds + 1):
        for number, (pool, work) in enumerate(zip(pools, works, strict=True)):
            seconds, peaks[number] = pool.submit(task, work).result()
            times[number].append(seconds)
    for pool in pools:
        pool.shutdown()
    best = [min(each[1:]) for each in times]
    line = f"{title:<42} {best[0]:8.3f} s {peaks[0]:6.2f} GB"
    if peer:
        line += f"   official {best[1]:8.3f} s {peaks[1]:6.2f} GB   {best[1] / best[0]:5.1f}x faster, "
        line += f"{peaks[0] / peaks[1]:.2f} of the memory"
    print(line, flush=True)


def compare_preparation(root: Path, split: str, peer: Path | None) -> None:
    """One core, as in a loader's worker."""
    torch.set_num_threads(1)
    points, statistics, seen = open_scan(root, split)
    rng = np.random.default_rng(0)
    ours = {
        "sample of one camera": lambda: prepare_camera(points, statistics, seen[0], rng),
        "complete scan for evaluation": lambda: evaluation_input(points, statistics, CONFIG),
    }
    theirs = peer_preparations(points, seen[0], peer) if peer else {}
    for title, action in ours.items():
        action()
        pairs = [(seconds_of(action), seconds_of(theirs[title]) if peer else np.nan) for _ in range(PREPARATIONS)]
        mine, official = np.median(pairs, axis=0)
        line = f"{title:<42} {1e3 * mine:8.1f} ms"
        print(line + (f"   official {1e3 * official:8.1f} ms   {official / mine:5.1f}x faster" if peer else ""))


def peer_preparations(points: np.ndarray, seen: np.ndarray, peer: Path) -> dict[str, Callable]:
    sys.path.insert(0, str(peer))
    from datasets.pc_dataset import PCDataset
    from scipy.spatial import cKDTree

    class OneScan(PCDataset):
        def load_pc(self, index):
            return points.copy(), np.zeros(len(points), np.uint8), ""

        def __len__(self):
            return 1

    settings = {
        "input_feat": ["intensity", "xyz", "radius"],
        "dim_proj": [2, 1, 0],
        "grids_shape": [plane.shape for plane in CONFIG.planes],
        "fov_xyz": (CONFIG.fov_min_m, CONFIG.fov_max_m),
    }
    training, validation = (OneScan(phase=phase, **settings) for phase in ("train", "val"))

    def camera() -> None:
        voxels, visible = training.downsample(training.prepare_input_features(points), seen)
        kept, _ = training.crop_to_fov(voxels[visible], visible[visible])
        training.get_occupied_2d_cells(kept)
        cKDTree(kept[:, :3]).query(kept[:, :3], k=CONFIG.num_neighbours + 1)

    return {"sample of one camera": camera, "complete scan for evaluation": lambda: validation[0]}


def seconds_of(action: Callable) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--only", type=int, help="one width")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, split = (options.data / "nuscenes", "mini_train") if options.data else (Path(folder) / "world", "train")
        if not options.data:
            write_world(root, layout="nuscenes", train_scenes=1, val_scenes=1, keyframes=1)
        compare_preparation(root, split, options.peer)
        scans = Path(folder) / "scans"
        prepare_scans(root, split, scans)
        for setting in SETTINGS:
            if options.only in (None, setting.width):
                work = Work(setting, scans, None, options.device, options.precision)
                name = f"{setting.name} {setting.norm} norm"
                if options.peer:
                    both = [outputs(work), outputs(work._replace(peer=options.peer))]
                    contestant.cache_clear()
                    difference = (both[0] - both[1]).norm() / both[1].norm()
                    print(f"{name}: relative difference of the outputs {difference:.1e}")
                compare(f"{name}, step of {setting.cameras}", training_step, work, options.peer, setting.rounds)
                compare(f"{name}, complete scan", evaluation, work, options.peer, setting.rounds)


if __name__ == "__main__":
    main()
