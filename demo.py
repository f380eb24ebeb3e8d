"""The complete path on a simulated world, in one process: synth, extract, distill, probe, similarity maps, report.

The probe of the distilled student is compared with the same probe of the same student before distillation. If the
teacher's weights cannot be downloaded, random weights are used. Their features describe little more than the colours
around a pixel, but each class of the simulated world has its own colours, which is enough to see the path work.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .demo_report import DemoRun, Step, write_demo_report
from .distill.checkpoint import save_student
from .distill.recipe import Recipe, load_recipe, recipe_values
from .distill.run import DistillConfig, distill, new_student, with_head_for
from .errors import ScalrError
from .evaluate.probe import ProbeConfig, probe
from .evaluate.similarity import SimilarityConfig, similarity_maps
from .extract.datasets import open_dataset
from .extract.datasets.synthetic import write_world
from .extract.run import ExtractConfig, estimate_extraction, extract
from .extract.teachers.teacher import load_teacher
from .extract.teachers.weights import hub_answers

logger = logging.getLogger(__name__)

TEACHER = "dinov2_vits14"
WORLD = {"train_scenes": 8, "val_scenes": 4, "keyframes": 3}
IMAGE_SIZE = (224, 448)  # as in ScaLR
RECIPE = "demo"
# Options whose names differ from those of the fields that they set.
OPTIONS = {"teachers": "teacher", "caches": "cache"}

T = TypeVar("T")


@dataclass
class Steps:
    """Runs steps, each of which is also a command, and records the time of each."""

    done: list[Step] = field(default_factory=list)

    def run(self, command: str, function: Callable[..., T], *args: Any, **options: Any) -> T:
        logger.info("demo: %s", command)
        start = time.perf_counter()
        result = function(*args, **options)
        self.done.append(Step(command, time.perf_counter() - start))
        return result


def run_demo(out: Path, seed: int = 0, weights: str | None = None) -> DemoRun:
    """Run all steps in the folder `out`, and write `out/report.html`.

    Args:
        out: a new folder.
        seed: random seed of the world and of all steps.
        weights: teacher's weights: "hub", "random" or a file. None: the Hugging Face Hub if it answers, else random.

    Raises:
        ScalrError: `out` exists already, or the weights cannot be loaded.
    """
    if out.exists():
        raise ScalrError("the folder exists already", where=out, fix="Remove the folder, or choose another --out.")
    weights = weights or ("hub" if hub_answers() else "random")
    load_teacher(TEACHER, image_size=IMAGE_SIZE, weights=weights)  # wrong weights are an error before any work
    steps, recipe = Steps(), load_recipe(RECIPE, [f"training.seed={seed}"])
    world = {"out": out / "world", **WORLD, "seed": seed}
    steps.run(as_command("synth", world), write_world, world["out"], **WORLD, seed=seed)
    of_train = _extract_config(out, "store.zarr", "train", weights)
    encodings = steps.run(f"{as_command('extract', chosen(of_train))} --dry-run", estimate_extraction, of_train)
    store = steps.run(as_command("extract", chosen(of_train)), extract, of_train).store
    distillation = DistillConfig(caches=(of_train.out,), out=out / "distilled", recipe=recipe)
    command = as_command("distill", chosen(distillation)) + f" --recipe {RECIPE} --set training.seed={seed}"
    losses = steps.run(command, distill, distillation).losses
    save_undistilled(out / "undistilled/student.safetensors", recipe, store.teachers[TEACHER].provenance["dim"])
    probes = {student: _probe_config(out, student, seed) for student in ("distilled", "undistilled")}
    scores = {
        student: steps.run(as_command("evaluate probe", chosen(config)), probe, config).scores
        for student, config in probes.items()
    }
    frame = open_dataset("nuscenes", world["out"], "val").frames[0]
    of_scene = _extract_config(out, "val.zarr", frame.scene, weights)
    steps.run(as_command("extract", chosen(of_scene)), extract, of_scene)
    maps = SimilarityConfig(
        student=distillation.out / "student.safetensors", root=world["out"], out=out / "similarity", cache=of_scene.out
    )
    similarity = steps.run(as_command("evaluate similarity", chosen(maps)), similarity_maps, maps)
    run = DemoRun(
        out=out,
        seed=seed,
        world=WORLD,
        teacher=TEACHER,
        steps=steps.done,
        store=store,
        encodings=encodings,
        losses=losses,
        distilled=scores["distilled"],
        undistilled=scores["undistilled"],
        similarity=similarity,
    )
    write_demo_report(run)
    return run


def as_command(command: str, given: Mapping[str, Any]) -> str:
    """The command line for options, given by the names of the fields that they set."""
    words = ["scalr", *command.split()]
    for name, value in given.items():
        option = f"--{OPTIONS.get(name, name.replace('_', '-'))}"
        if name == "image_size":
            words += [option, "x".join(map(str, value))]
        elif value is True:
            words.append(option)
        else:
            for each in value if isinstance(value, tuple) else (value,):
                words += [option, str(each)]
    return shlex.join(words)


def chosen(config: Any) -> dict[str, Any]:
    """The fields of a configuration that differ from their defaults, without the recipe, which has a name."""
    defaults = {
        each.name: each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        for each in dataclasses.fields(config)
        if each.name != "recipe"
    }
    return {name: getattr(config, name) for name, value in defaults.items() if getattr(config, name) != value}


def _extract_config(out: Path, store: str, split: str, weights: str) -> ExtractConfig:
    return ExtractConfig(
        root=out / "world",
        out=out / store,
        teachers=(TEACHER,),
        split=split,
        image_size=IMAGE_SIZE,
        weights=(weights,),
        batch_size=8,  # not measured, so that the demo gives the same result on each run
    )


def save_undistilled(path: Path, recipe: Recipe, target_dim: int) -> None:
    """Write the student as it is before distillation."""
    recipe = with_head_for(recipe, target_dim)
    save_student(new_student(recipe), path, {"store": None, "recipe": recipe_values(recipe)})


def _probe_config(out: Path, student: str, seed: int) -> ProbeConfig:
    return ProbeConfig(
        student=out / student / "student.safetensors",
        root=out / "world",
        out=out / f"probe_{student}",
        fast=True,
        epochs=10,
        warmup_epochs=1,
        learning_rate=0.1,  # higher than the official probe's, which has far more steps
        seed=seed,
    )
