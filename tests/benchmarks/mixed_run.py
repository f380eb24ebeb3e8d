"""Two lidars of the simulated world, each alone and both together, probed on each.

    python tests/benchmarks/mixed_run.py [SEED]

Eight scenes as nuScenes' and as SemanticKITTI's sensors see them, four others (one in SemanticKITTI's layout) to
validate. The teacher has random weights. Every student takes about as many steps.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from scalr.distill.checkpoint import save_student
from scalr.distill.recipe import load_recipe, recipe_values
from scalr.distill.run import DistillConfig, distill, new_student, with_head_for
from scalr.evaluate.probe import ProbeConfig, probe
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.run import ExtractConfig, extract

TEACHER, TEACHER_DIM = "dinov2_vits14", 384
STEPS = 360
DATASETS = {"nuscenes": {"val_scenes": 4, "keyframes": 3}, "semantic_kitti": {"val_scenes": 1, "keyframes": 12}}


def make_stores(folder: Path, seed: int) -> tuple[dict[str, Path], dict[str, int]]:
    """The stores, and how many frames each has."""
    stores, frames = {}, {}
    for name, size in DATASETS.items():
        write_world(folder / name, layout=name, train_scenes=8, seed=seed, **size)
        stores[name] = folder / f"{name}.zarr"
        summary = extract(
            ExtractConfig(
                dataset=name, root=folder / name, out=stores[name], teachers=(TEACHER,), weights=("random",),
                image_size=(112, 224), encoding="patch",
            )
        )  # fmt: skip
        frames[name] = summary.store.frames
    return stores, frames


def main(seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores, frames = make_stores(folder, seed)
        choices = {"undistilled": (), **{name: (name,) for name in stores}, "both": tuple(stores)}
        print("| distilled from | steps | " + " | ".join(f"mIoU on {name}" for name in stores) + " |")
        print("|---|---|" + "---|" * len(stores))
        for title, chosen in choices.items():
            student = folder / title / "student.safetensors"
            recipe = load_recipe("demo", [f"training.seed={seed}"])
            steps_per_epoch = sum(frames[name] for name in chosen) // recipe.training.batch_size
            epochs = max(1, round(STEPS / max(1, steps_per_epoch)))
            recipe = load_recipe("demo", [f"training.seed={seed}", f"training.epochs={epochs}"])
            if chosen:
                summary = distill(
                    DistillConfig(caches=tuple(stores[name] for name in chosen), out=folder / title, recipe=recipe)
                )
            else:
                student.parent.mkdir()
                recipe = with_head_for(recipe, TEACHER_DIM)
                save_student(new_student(recipe), student, {"store": None, "recipe": recipe_values(recipe)})
            scores = [
                probe(
                    ProbeConfig(
                        student=student, dataset=name, root=folder / name, out=folder / f"{title}-{name}", fast=True,
                        epochs=10, warmup_epochs=1, learning_rate=0.1, seed=seed,
                    )
                ).scores.miou
                for name in stores
            ]  # fmt: skip
            taken = len(summary.losses) if chosen else 0
            print(f"| {title} | {taken} | " + " | ".join(f"{score:.1%}" for score in scores) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
