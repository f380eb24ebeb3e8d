"""Which losses make better students of a real teacher: tables for docs/studies.md.

    python tests/benchmarks/real_study.py FOLDER WEIGHTS [--data DIR] [--seeds 0 1 2] [--jobs 2]

WEIGHTS are DINOv2 ViT-S/14's (tests/real_teacher.py). With --data, streets are real: the 33 training frames of
DIR/semantickitti_11, and for scores the 4 of its sequence 08. Without, each seed is a simulated world. What is in
FOLDER is not made again, so that a study that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from studies import at_once, distil, evaluate, extract, miou, print_table, synth

from scalr.demo import save_undistilled
from scalr.distill.recipe import load_recipe
from scalr.extract.store import open_store

TEACHER, IMAGE_SIZE = "dinov2_vits14", (224, 448)
CENTRE = "objective.standardise=centre"
UNDISTILLED = "undistilled"
STUDENTS = {
    UNDISTILLED: (),
    "similarity": (),
    "contrastive": ("objective.loss=contrastive",),
    "similarity, centre": (CENTRE,),
    "cosine, centre": ("objective.loss=cosine", CENTRE),
}
TARGETS = {"targets": (), "targets, centre": ("--standardise", "centre")}  # probed themselves
PROBE = ("--fast", "--epochs", "10", "--warmup-epochs", "1", "--learning-rate", "0.1")
PROBE_OF_TARGETS = ("--epochs", "20", "--batch-size", "4", "--learning-rate", "0.1")
AREAS = ("plain", "centred")


@dataclass(frozen=True)
class Streets:
    """Where a student is trained and scored."""

    dataset: str
    root: Path
    stores: Path  # folder of both splits' stores
    epochs: int  # about 320 steps
    batch_size: int  # in views: a KITTI camera sees three times the points of nuScenes' one

    def store(self, split: str) -> Path:
        return self.stores / f"{split}.zarr"

    @property
    def options(self) -> tuple[object, ...]:
        return ("--dataset", self.dataset, "--root", self.root)


def streets(folder: Path, data: Path | None, seed: int) -> Streets:
    if data is not None:
        return Streets("semantic_kitti", data / "semantickitti_11", folder, epochs=29, batch_size=3)
    return Streets("nuscenes", folder / f"world-{seed}", folder / f"stores-{seed}", epochs=54, batch_size=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, help="folder with semantickitti_11")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, a core each")
    parser.add_argument("--only", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    arguments = parser.parse_args()
    folder, seeds, names = arguments.folder, arguments.seeds, arguments.only
    by_seed = {seed: streets(folder, arguments.data, seed) for seed in seeds}
    if arguments.data is None:
        for seed in seeds:
            synth(by_seed[seed].root, "--train-scenes", 8, "--val-scenes", 4, "--keyframes", 3, "--seed", seed)
    stores = {(each, split) for each in by_seed.values() for split in ("train", "val")}
    at_once(arguments.jobs, make_store, [(arguments.weights, *each) for each in stores])
    at_once(arguments.jobs, probe_targets, [(folder, by_seed[seed], name, seed) for seed in seeds for name in TARGETS])
    at_once(arguments.jobs, train_and_score, [(folder, by_seed[seed], name, seed) for seed in seeds for name in names])
    print_tables(folder, names, seeds)


def make_store(weights: Path, streets: Streets, split: str) -> None:
    extract(streets.store(split), {TEACHER: weights}, IMAGE_SIZE, *streets.options, "--split", split)


def probe_targets(folder: Path, streets: Streets, name: str, seed: int) -> None:
    stores = ("--cache", streets.store("train"), "--val-cache", streets.store("val"))
    options = (*TARGETS[name], *PROBE_OF_TARGETS, "--seed", seed)
    evaluate("teacher", run_of(folder, name, seed), "result.json", *stores, *streets.options, *options)


def train_and_score(folder: Path, streets: Streets, name: str, seed: int) -> None:
    run, store = run_of(folder, name, seed), streets.store("train")
    student = run / "student.safetensors"
    if name != UNDISTILLED:
        batch_size = f"training.batch_size={streets.batch_size}"
        distil(run, [store], seed, streets.epochs, overrides=(batch_size, *STUDENTS[name]))
    elif not student.exists():
        recipe = load_recipe("demo", [f"training.seed={seed}"])
        save_undistilled(student, recipe, open_store(store).target_dim(TEACHER))
    of_student = ("--student", student, *streets.options)
    evaluate("probe", run / "probe", "result.json", *of_student, *PROBE, "--seed", seed)
    evaluate("similarity", run / "similarity", "similarity.json", *of_student, "--cache", streets.store("val"))


def run_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(', ', '-')}-{seed}"


def print_tables(folder: Path, names: list[str], seeds: list[int]) -> None:
    rows = {name: [miou(run_of(folder, name, seed)) for seed in seeds] for name in TARGETS}
    rows |= {name: [miou(run_of(folder, name, seed) / "probe") for seed in seeds] for name in names}
    print_table("linear probe, mIoU %; of targets: of pairs, of students: of all points", rows, seeds)
    means = {
        (name, seed): json.loads((run_of(folder, name, seed) / "similarity/similarity.json").read_text())["areas"][
            "mean"
        ]
        for name in names
        for seed in seeds
    }
    for kind in AREAS:
        rows = {"targets": [means[names[0], seed]["teacher"][kind] for seed in seeds]}
        rows |= {name: [means[name, seed]["student_on_pairs"][kind] for seed in seeds] for name in names}
        print_table(f"area under the ROC curve, mean of classes, {kind}; of pairs", rows, seeds, digits=3)


if __name__ == "__main__":
    main()
