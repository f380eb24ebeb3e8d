"""Which losses, teachers, lidars and widths make better students, on the simulated world: the table of docs/distill.md.

    python tests/benchmarks/distillation_study.py FOLDER [--seeds 0 1 2] [--jobs 2]

Each seed is a world in nuScenes' and one in SemanticKITTI's layout, extracted with two teachers of random weights, and
trainings with that seed. What is in FOLDER is not made again, so that a study that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DINOV2, DINO = "dinov2_vits14", "dino_vits8"
LAYOUTS = {"nuscenes": ("--keyframes", "3", "--val-scenes", "4"), "semantic_kitti": ("--keyframes", "6")}
MLP = "student.head=mlp"
# As the demo's probe: far fewer steps than the official one.
PROBE = ("--fast", "--epochs", "10", "--learning-rate", "0.1")


@dataclass(frozen=True)
class Setting:
    """One student; all others see as many samples of each lidar as it does."""

    teachers: tuple[str, ...] = (DINOV2,)
    layouts: tuple[str, ...] = ("nuscenes",)
    overrides: tuple[str, ...] = ()


SETTINGS = {
    "similarity": Setting(),
    "contrastive": Setting(overrides=("objective.loss=contrastive",)),
    "contrastive, head on targets": Setting(overrides=("objective.loss=contrastive", "objective.target_head=linear")),
    "DINOv2 (MLP head)": Setting(overrides=(MLP,)),
    "DINO (MLP head)": Setting((DINO,), overrides=(MLP,)),
    "DINOv2 + DINO (MLP head)": Setting((DINOV2, DINO), overrides=(MLP,)),
    "width 96": Setting(overrides=("student.width=96",)),
    # 48 frames of one camera each, for 24 of six cameras, one of them at a time: half the epochs.
    "SemanticKITTI alone": Setting(layouts=("semantic_kitti",), overrides=("training.epochs=30",)),
    "both lidars": Setting(
        layouts=("nuscenes", "semantic_kitti"),
        overrides=("training.epochs=40", "sampling.store_weights=[1, 1]"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a core each")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        worlds = [(layout, seed) for seed in arguments.seeds for layout in LAYOUTS]
        list(pool.map(lambda world: make_store(arguments.folder, *world), worlds))
        runs = [(name, seed) for seed in arguments.seeds for name in arguments.only]
        list(pool.map(lambda run: train_and_probe(arguments.folder, *run), runs))
    for layout in LAYOUTS:
        print_table(arguments.folder, arguments.only, arguments.seeds, layout)


def make_store(folder: Path, layout: str, seed: int) -> None:
    world, store = folder / f"world-{layout}-{seed}", folder / f"{layout}-{seed}.zarr"
    if not world.exists():
        scalr("synth", "--out", world, "--layout", layout, "--train-scenes", 8, *LAYOUTS[layout], "--seed", seed)
    teachers = ("--teacher", DINOV2, "--teacher", DINO, "--weights", "random", "--image-size", "112x224")
    scalr("extract", *teachers, "--dataset", layout, "--root", world, "--out", store, "--encoding", "patch")


def train_and_probe(folder: Path, name: str, seed: int) -> None:
    setting = SETTINGS[name]
    run = folder / f"{name.replace(' ', '_')}-{seed}"
    overrides = (f"training.seed={seed}", "training.workers=0", *setting.overrides)
    scalr(
        "distill", "--recipe", "demo", "--out", run, "--resume",
        *(word for layout in setting.layouts for word in ("--cache", folder / f"{layout}-{seed}.zarr")),
        *(word for teacher in setting.teachers for word in ("--teacher", teacher)),
        *(word for override in overrides for word in ("--set", override)),
    )  # fmt: skip
    for layout in setting.layouts:
        probe = run / f"probe-{layout}"
        if not (probe / "result.json").exists():
            world = ("--dataset", layout, "--root", folder / f"world-{layout}-{seed}")
            student = run / "student.safetensors"
            scalr("evaluate", "probe", "--student", student, *world, *PROBE, "--seed", seed, "--out", probe)


def print_table(folder: Path, names: list[str], seeds: list[int], layout: str) -> None:
    print(f"\nprobe in the world of {layout}, mIoU %\n")
    print("| student | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |")
    print("|---" * (len(seeds) + 2) + "|")
    for name in names:
        if layout in SETTINGS[name].layouts:
            runs = [folder / f"{name.replace(' ', '_')}-{seed}" for seed in seeds]
            values = [100 * json.loads((run / f"probe-{layout}/result.json").read_text())["miou"] for run in runs]
            print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + f" | {np.mean(values):.1f} |")


def scalr(*arguments: object) -> None:
    command = [sys.executable, "-c", "from scalr.cli import main; main()", "-q", *(str(word) for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    main()
