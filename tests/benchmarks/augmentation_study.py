"""What the official downstream augmentation is worth beside the joint one, on the simulated world: the table of
docs/studies.md.

    python tests/benchmarks/augmentation_study.py FOLDER [--seeds 0 1 2]

Each seed is a world of 24 labelled training scans, a small student distilled from a teacher with random weights, and
trainings on labels with that seed. What is in FOLDER is not made again, so that a study that was killed goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.evaluate.finetune import FinetuneConfig, finetune
from scalr.evaluate.probe import ProbeConfig, probe
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.run import ExtractConfig, extract

TEACHER = "dinov2_vits14"
RECIPE = ("student.width=32", "student.depth=6", "training.epochs=20", "training.workers=0")
PROBING = {"epochs": 40, "warmup_epochs": 2, "learning_rate": 0.02, "batch_size": 4}
FINETUNING = {"epochs": 15, "warmup_epochs": 1, "learning_rate": 0.01, "batch_size": 4}
SETTINGS = {
    "probing, official": (ProbeConfig, PROBING),
    "probing, joint": (ProbeConfig, PROBING | {"augmentation": "joint"}),
    "probing, --fast": (ProbeConfig, PROBING | {"fast": True}),
    "finetuning, official": (FinetuneConfig, FINETUNING),
    "finetuning, joint": (FinetuneConfig, FINETUNING | {"augmentation": "joint"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    miou = {name: [] for name in SETTINGS}
    for seed in arguments.seeds:
        folder = arguments.folder / str(seed)
        student = make_student(folder, seed)
        for name in SETTINGS:
            miou[name].append(train_on_labels(folder, name, student, seed))
            print(f"seed {seed}, {name}: {miou[name][-1]:.1%}", flush=True)
    print("\nmIoU %\n")
    print("| training | " + " | ".join(f"seed {seed}" for seed in arguments.seeds) + " | mean |")
    print("|---|" + "---:|" * (len(arguments.seeds) + 1))
    for name, values in miou.items():
        print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in [*values, np.mean(values)]) + " |")


def make_student(folder: Path, seed: int) -> Path:
    world, store = folder / "world", folder / "store.zarr"
    if not world.exists():
        write_world(world, train_scenes=8, val_scenes=4, keyframes=3, seed=seed)
    extract(
        ExtractConfig(
            root=world, out=store, teachers=(TEACHER,), weights=("random",), image_size=(112, 224), encoding="patch"
        )
    )
    if not (folder / "distilled/student.safetensors").exists():
        recipe = load_recipe("demo", [f"training.seed={seed}", *RECIPE])
        distill(DistillConfig(caches=(store,), out=folder / "distilled", recipe=recipe, resume=True))
    return folder / "distilled/student.safetensors"


def train_on_labels(folder: Path, name: str, student: Path, seed: int) -> float:
    config, options = SETTINGS[name]
    out = folder / name.replace(", ", "-")
    run = probe if config is ProbeConfig else finetune
    return run(config(student=student, root=folder / "world", out=out, seed=seed, resume=True, **options)).scores.miou


if __name__ == "__main__":
    main()
