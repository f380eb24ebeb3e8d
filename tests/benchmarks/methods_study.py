"""ScaLR beside the methods that it is compared with, on two backbones: the table of docs/studies.md.

    python tests/benchmarks/methods_study.py FOLDER WEIGHTS [--seeds 0 1 2] [--jobs 2] [--only BACKBONE, METHOD …]

WEIGHTS are DINOv2 ViT-S/14's (tests/real_teacher.py). A seed is a simulated world of its own, 24 frames of nuScenes'
lidar and cameras with SLIC superpixels, and a training on it. What is in FOLDER is not made again, so that a study
that was killed goes on; FOLDER/rows.json has each row as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from studies import at_once, distil, evaluate, extract, miou, print_table, synth

from scalr.checkpoint_files import written_aside
from scalr.errors import ScalrError

TEACHER, IMAGE_SIZE = "dinov2_vits14", (224, 448)
EPOCHS = 10  # of 6 steps of 4 frames
SAMPLING = ("sampling.views_per_sample=all", "sampling.points=all")  # six images and whole scans, as in Table 2
BACKBONES = {  # a step of either takes about two seconds of one core
    "WaffleIron": (),
    "MinkUNet": (
        "student.backbone=minkunet",
        "student.stem_width=16",
        "student.widths=[16, 32, 64, 96, 96, 64, 48, 48]",
        "student.blocks=[1, 1, 1, 1, 1, 1, 1, 1]",
        "inputs.features=scalr",
    ),
}
HEAD = "objective.target_head=linear"
METHODS = {
    "similarity (ScaLR)": (),
    "PPKT": ("objective.loss=contrastive", HEAD),
    "SLidR": ("objective.loss=slidr", HEAD),
    "ST-SLidR": ("objective.loss=st_slidr", HEAD),
}
NAMES = [f"{backbone}, {method}" for backbone in BACKBONES for method in METHODS]
PROBE = ("--fast", "--epochs", "10", "--warmup-epochs", "1", "--learning-rate", "0.1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, a core each")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="ROW")
    arguments = parser.parse_args()
    folder, seeds, names = arguments.folder, arguments.seeds, arguments.only
    at_once(arguments.jobs, make_store, [(folder, arguments.weights, seed) for seed in seeds])
    rows = Rows(folder / "rows.json")
    at_once(arguments.jobs, train_and_score, [(folder, name, seed, rows) for seed in seeds for name in names])
    print_table("linear probe, mIoU %", rows.of(names, seeds), seeds)


class Rows:
    """What came of each training so far, on disk as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock()
        self.values = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, seed: int, value: float) -> None:
        with self.lock:
            self.values.setdefault(name, {})[str(seed)] = value
            with written_aside(self.path, ScalrError) as temporary:
                temporary.write_text(json.dumps(self.values, indent=1))

    def of(self, names: Sequence[str], seeds: Sequence[int]) -> dict[str, list[float]]:
        return {name: [self.values[name][str(seed)] for seed in seeds] for name in names}


def make_store(folder: Path, weights: Path, seed: int) -> None:
    world = folder / f"world-{seed}"
    synth(world, "--train-scenes", 8, "--val-scenes", 4, "--keyframes", 3, "--seed", seed)
    options = ("--root", world, "--superpixels", "slic")
    extract(folder / f"store-{seed}.zarr", {TEACHER: weights}, IMAGE_SIZE, *options)


def train_and_score(folder: Path, name: str, seed: int, rows: Rows) -> None:
    backbone, _, method = name.partition(", ")
    run = folder / f"{backbone}-{method.split()[0]}-{seed}"
    overrides = (*SAMPLING, *BACKBONES[backbone], *METHODS[method])
    distil(run, [folder / f"store-{seed}.zarr"], seed, EPOCHS, overrides=overrides)
    of_student = ("--student", run / "student.safetensors", "--root", folder / f"world-{seed}")
    evaluate("probe", run / "probe", "result.json", *of_student, *PROBE, "--seed", seed)
    rows.add(name, seed, miou(run / "probe"))


if __name__ == "__main__":
    main()
