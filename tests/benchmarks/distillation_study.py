"""Which losses, teachers, lidars and widths make better students, on the simulated world: tables for docs/distill.md.

    python tests/benchmarks/distillation_study.py FOLDER [--seeds 0 1 2] [--jobs 2]

Three teachers are trained on a simulated world of their own (simulated_teacher.py). Each seed is then another world in
nuScenes' and in SemanticKITTI's layout, and trainings with that seed. What is in FOLDER is not made again, so that a
study that was killed goes on.
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
from simulated_teacher import train_teacher

# What each knows: all classes of nuScenes, what moves (and stands in its way), what does not.
TEACHERS = {
    "timm:vit_tiny_patch16_224": range(16),
    "timm:deit_tiny_patch16_224": range(10),
    "timm:vit_tiny_patch16_384": range(10, 16),
}
ALL, THINGS, STUFF = TEACHERS
IMAGE_SIZE, TEACHER_EPOCHS, TEACHER_SEED = (160, 320), 12, 100
LAYOUTS = {"nuscenes": ("--keyframes", "3", "--val-scenes", "4"), "semantic_kitti": ("--keyframes", "6")}
MLP = "student.head=mlp"
# Until it has converged: after a quarter of the epochs, features of one scale in all directions, as those of the
# contrastive loss, are ahead by more than they are in the end.
PROBE = ("--fast", "--epochs", "40", "--learning-rate", "0.1")


@dataclass(frozen=True)
class Setting:
    """One student; all see as many samples of each lidar as any other."""

    teachers: tuple[str, ...] = (ALL,)
    layouts: tuple[str, ...] = ("nuscenes",)
    epochs: int = 80  # of 24 frames
    overrides: tuple[str, ...] = ()


SETTINGS = {
    "similarity": Setting(),
    "contrastive": Setting(overrides=("objective.loss=contrastive",)),
    "contrastive, head on targets": Setting(overrides=("objective.loss=contrastive", "objective.target_head=linear")),
    "width 24": Setting(overrides=("student.width=24",)),
    "teacher of things": Setting((THINGS,), overrides=(MLP,)),
    "teacher of stuff": Setting((STUFF,), overrides=(MLP,)),
    "both teachers": Setting((THINGS, STUFF), overrides=(MLP,)),
    "SemanticKITTI alone": Setting(layouts=("semantic_kitti",), epochs=40),  # of 48 frames
    "both lidars": Setting(
        layouts=("nuscenes", "semantic_kitti"), epochs=54, overrides=("sampling.store_weights=[1, 1]",)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a core each")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()
    scalr("synth", "--out", arguments.folder / "world-of-teachers", "--train-scenes", 12, "--val-scenes", 0,
          "--keyframes", 3, "--seed", TEACHER_SEED)  # fmt: skip
    for name in TEACHERS:
        make_teacher(arguments.folder, name)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        worlds = [(layout, seed) for seed in arguments.seeds for layout in LAYOUTS]
        list(pool.map(lambda world: make_store(arguments.folder, *world), worlds))
        runs = [(name, seed) for seed in arguments.seeds for name in arguments.only]
        list(pool.map(lambda run: train_and_probe(arguments.folder, *run), runs))
    for layout in LAYOUTS:
        print_table(arguments.folder, arguments.only, arguments.seeds, layout)


def weights_of(folder: Path, teacher: str) -> Path:
    return folder / f"{teacher.removeprefix('timm:')}.pth"


def make_teacher(folder: Path, name: str) -> None:
    path = weights_of(folder, name)
    if not path.exists():
        classes, world = TEACHERS[name], folder / "world-of-teachers"
        rate = train_teacher(name.removeprefix("timm:"), world, IMAGE_SIZE, path, classes, TEACHER_EPOCHS, TEACHER_SEED)
        print(f"{name} tells {rate:.0%} of its training points", flush=True)


def make_store(folder: Path, layout: str, seed: int) -> None:
    world, store = folder / f"world-{layout}-{seed}", folder / f"{layout}-{seed}.zarr"
    scalr("synth", "--out", world, "--layout", layout, "--train-scenes", 8, *LAYOUTS[layout], "--seed", seed)
    teachers = [word for name in TEACHERS for word in ("--teacher", name)]
    teachers += [word for name in TEACHERS for word in ("--weights", f"{name}={weights_of(folder, name)}")]
    size = "x".join(map(str, IMAGE_SIZE))
    scalr(
        "extract",
        *teachers,
        "--image-size",
        size,
        "--dataset",
        layout,
        "--root",
        world,
        "--out",
        store,
        "--encoding",
        "patch",
    )


def train_and_probe(folder: Path, name: str, seed: int) -> None:
    setting = SETTINGS[name]
    run = folder / f"{name.replace(' ', '_')}-{seed}"
    overrides = (f"training.seed={seed}", f"training.epochs={setting.epochs}", "training.workers=0", *setting.overrides)
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


def scalr(verb: str, *arguments: object) -> None:
    if verb == "synth" and Path(arguments[1]).exists():
        return
    command = [sys.executable, "-c", "from scalr.cli import main; main()", "-q", verb, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    main()
