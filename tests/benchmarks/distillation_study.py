"""Which losses, teachers, lidars and widths make better students, on the simulated world: tables for docs/studies.md.

    python tests/benchmarks/distillation_study.py FOLDER [--seeds 0 1 2] [--jobs 2]

Three teachers are trained on a simulated world of their own (simulated_teacher.py). Each seed is then another world in
nuScenes' and in SemanticKITTI's layout, and trainings with that seed. What is in FOLDER is not made again, so that a
study that was killed goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from simulated_teacher import train_teacher
from studies import at_once, distil, evaluate, extract, miou, print_table, synth

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
    folder, seeds = arguments.folder, arguments.seeds
    for name in TEACHERS:
        make_teacher(folder, name)
    at_once(arguments.jobs, make_store, [(folder, layout, seed) for seed in seeds for layout in LAYOUTS])
    at_once(arguments.jobs, train_and_probe, [(folder, name, seed) for seed in seeds for name in arguments.only])
    for layout in LAYOUTS:
        names = [name for name in arguments.only if layout in SETTINGS[name].layouts]
        rows = {name: [miou(run_of(folder, name, seed) / f"probe-{layout}") for seed in seeds] for name in names}
        print_table(f"probe in the world of {layout}, mIoU %", rows, seeds)


def weights_of(folder: Path, teacher: str) -> Path:
    return folder / f"{teacher.removeprefix('timm:')}.pth"


def make_teacher(folder: Path, name: str) -> None:
    path = weights_of(folder, name)
    if not path.exists():
        classes, world = TEACHERS[name], folder / "world-of-teachers"
        synth(world, "--train-scenes", 12, "--val-scenes", 0, "--keyframes", 3, "--seed", TEACHER_SEED)
        rate = train_teacher(name.removeprefix("timm:"), world, IMAGE_SIZE, path, classes, TEACHER_EPOCHS, TEACHER_SEED)
        print(f"{name} tells {rate:.0%} of its training points", flush=True)


def make_store(folder: Path, layout: str, seed: int) -> None:
    world = folder / f"world-{layout}-{seed}"
    synth(world, "--layout", layout, "--train-scenes", 8, *LAYOUTS[layout], "--seed", seed)
    files = {name: weights_of(folder, name) for name in TEACHERS}
    extract(folder / f"{layout}-{seed}.zarr", files, IMAGE_SIZE, "--dataset", layout, "--root", world)


def train_and_probe(folder: Path, name: str, seed: int) -> None:
    setting, run = SETTINGS[name], run_of(folder, name, seed)
    stores = [folder / f"{layout}-{seed}.zarr" for layout in setting.layouts]
    teachers = [word for teacher in setting.teachers for word in ("--teacher", teacher)]
    distil(run, stores, seed, setting.epochs, *teachers, overrides=setting.overrides)
    for layout in setting.layouts:
        world = ("--dataset", layout, "--root", folder / f"world-{layout}-{seed}")
        student = ("--student", run / "student.safetensors", "--seed", seed)
        evaluate("probe", run / f"probe-{layout}", "result.json", *student, *world, *PROBE)


def run_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(' ', '_')}-{seed}"


if __name__ == "__main__":
    main()
