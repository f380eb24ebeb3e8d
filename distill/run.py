"""Stage two: stores and a recipe to a student."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch

from ..errors import StudentError
from ..extract.store import open_store
from ..settings import Amount, Count, Settings, at_least
from .checkpoint import save_student
from .choice import Chosen, Wanted, choose, read_started, write_config
from .dataset import DistillCollate, DistillDataset, SampleId
from .interruption import Checkpoints
from .objective import DistillObjective
from .processes import joined_processes, num_processes, process_index, summed
from .recipe import Recipe, recipe_values
from .sampling import EpochLoader
from .training import Observer, train
from .training_log import read_log
from .varying_targets import VaryingTargets
from .waffleiron import Student

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.yaml"
SEEDS_APART = 1_000_003  # of two stores in one run
# How the machine is used: a run may go on with others.
OF_THE_MACHINE = ("workers", "accumulate", "compile", "activation_checkpointing")

QuickProbe = Callable[[Student], float]


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Settings):
    """One distillation; the fields are the options of `scalr distill`, the recipe resolved."""

    caches: Annotated[tuple[Path, ...], at_least(1)]
    out: Path
    # Left out, teachers are the recipe's, else the only one of each store, and the split is the only one of each store;
    # a run that resumes keeps those that it was started with.
    teachers: tuple[str, ...] = ()
    split: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "auto"
    resume: bool = False  # go on with what is in `out`, or begin where nothing is there
    checkpoint_minutes: Amount = 10.0
    quick_probe: QuickProbe | None = None  # the student while it trains -> mIoU
    eval_every: Count = 1  # epochs between two quick probes


@dataclass(frozen=True)
class DistillSummary:
    """What a run made: the student's file, the loss of every step, and the share of its time spent waiting for data."""

    student: Path
    losses: list[float] = field(repr=False)
    data_wait: float | None = None  # None where nothing was left to do

    def as_json(self) -> dict:
        """Plain JSON values."""
        return {"student": str(self.student), "losses": self.losses, "data_wait": self.data_wait}

    def as_text(self) -> str:
        """Lines for people."""
        if not self.losses:
            return f"{self.student}: finished; log.csv does not have its losses any more"
        text = f"{self.student}: loss {self.losses[0]:.3f} -> {self.losses[-1]:.3f}, {len(self.losses)} steps"
        waited = "" if self.data_wait is None else f"\n{self.data_wait:.1%} of the time was spent waiting for data"
        return text + waited


def distill(config: DistillConfig) -> DistillSummary:
    """Train a student on the targets of one or several stores; neither images nor teacher nor dataset are needed.

    Writes `config.yaml`, `log.csv`, TensorBoard events, now and then `checkpoint.pt`, and, last, `student.safetensors`
    into `config.out`; the checkpoint is then removed. Where torchrun has started several processes, all call this, and
    the first one writes.

    Raises:
        StoppedError: by a signal; the checkpoint is written.
        ScalrError: what is wrong with the stores, the recipe or the output folder.
    """
    path = config.out / "student.safetensors"
    if path.exists():
        if not config.resume:
            raise StudentError("a student is there already", where=path, fix="Choose another --out.")
        logger.info("%s: finished already", path)
        (config.out / CHECKPOINT).unlink(missing_ok=True)  # where it was killed in between
        return DistillSummary(path, _losses(config.out))
    with joined_processes(config.device) as device:
        data_wait = _train(config, path, device)
    return DistillSummary(path, _losses(config.out), data_wait)


def with_head_for(recipe: Recipe, dim: int) -> Recipe:
    """The recipe with a head for targets of `dim` dimensions, whatever it named."""
    channels = recipe.objective.output_channels(dim)
    return replace(recipe, student=replace(recipe.student, out_channels=channels))


def new_student(recipe: Recipe) -> Student:
    """A student with initial weights drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return Student(recipe.student, recipe.inputs)


def _train(config: DistillConfig, path: Path, device: torch.device) -> float:
    """Train, write the student to `path`, and return the share of time without data."""
    chosen = _choose(config, device)
    first = chosen[0]
    objective_config = replace(config.recipe.objective, teachers=first.teachers)
    recipe = with_head_for(replace(config.recipe, objective=objective_config), first.target_dim)
    training, provenance = recipe.training, _provenance(chosen, recipe)
    checkpoints = Checkpoints(config.out / CHECKPOINT, config.checkpoint_minutes, _identity(provenance))
    resume = _seen_by_all(checkpoints.path, device)
    if resume and not config.resume:
        raise StudentError(
            "an interrupted run is here", where=config.out, fix="Go on with --resume, or choose another --out."
        )
    datasets = [_samples(each, recipe, number) for number, each in enumerate(chosen)]
    loader = EpochLoader(
        datasets,
        DistillCollate(recipe.inputs),
        batch_size=training.batch_size,
        seed=training.seed,
        workers=training.workers,
        device=device,
        part_weights=recipe.sampling.store_weights,
        accumulate=training.accumulate,
    )
    if process_index() == 0 and not resume:  # the checkpoint may yet turn out to be another run's
        write_config(config.out / CONFIG, provenance)
    student = new_student(recipe)
    student.waffleiron.activation_checkpointing = training.activation_checkpointing
    if training.compile:
        student.compile_layers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)  # of a head for the targets
        objective = DistillObjective(student, recipe.objective, tuple(first.teachers.values()), first.target_dim)
    for each, dataset in zip(chosen, datasets, strict=True):
        logger.info("distilling %s from %d frames of %s", " and ".join(each.teachers), len(dataset), each.store.path)
    observer = _observer(config, chosen, datasets, student)
    with loader:
        result = train(
            objective.to(device),
            VaryingTargets(loader, tuple(first.teachers), observer.describe),
            training,
            steps_per_epoch=loader.num_steps,
            device=device,
            description="distill",
            observer=observer,
            checkpoints=checkpoints,
            resume=resume,
        )
    if process_index() == 0:
        write_config(config.out / CONFIG, provenance)  # a resumed run may have used another machine or release
        save_student(student, path, provenance)
        checkpoints.remove()
    return result.data_wait


def _choose(config: DistillConfig, device: torch.device) -> list[Chosen]:
    stores = [open_store(path) for path in config.caches]
    weights, record = config.recipe.objective.teachers, config.out / CONFIG
    started = read_started(record) if config.resume and _seen_by_all(record, device) else None
    return choose(stores, Wanted(config.teachers or tuple(weights), config.split), weights, started)


def _seen_by_all(path: Path, device: torch.device) -> bool:
    """Whether the file is there."""
    (seen,) = summed([path.exists()], device)
    if 0 < seen < num_processes():
        raise StudentError(
            f"{seen:.0f} of {num_processes()} processes see this file", where=path, fix="Put --out on shared storage."
        )
    return seen > 0


def _observer(
    config: DistillConfig, chosen: Sequence[Chosen], datasets: Sequence[DistillDataset], student: Student
) -> Observer:
    names = [each.store.path.name for each in chosen]
    parts = [name if names.count(name) == 1 else f"{number}_{name}" for number, name in enumerate(names)]
    parts = parts if len(parts) > 1 else []  # of one store, it is the loss

    def describe(sample: SampleId) -> str:
        return datasets[sample.store].describe(sample.rows)

    def evaluate(epoch: int) -> dict[str, float]:
        due = config.quick_probe and (epoch + 1) % config.eval_every == 0
        return {"probe_miou": config.quick_probe(student)} if due else {}

    return Observer(
        folder=config.out,
        parts=parts,
        part_of=lambda sample: sample.store,
        describe=describe,
        evaluate=evaluate,
        columns=("probe_miou",) if config.quick_probe else (),
    )


def _samples(chosen: Chosen, recipe: Recipe, number: int) -> DistillDataset:
    """The samples of the store that was named as `number`, each with random choices of its own."""
    return DistillDataset(
        chosen.store,
        tuple(chosen.teachers),
        recipe.inputs,
        recipe.sampling,
        recipe.augmentation,
        recipe.training.seed + number * SEEDS_APART,
        chosen.sources,
        number,
    )


def _provenance(chosen: Sequence[Chosen], recipe: Recipe) -> dict:
    """What a student is made from; CONFIG_KEYS of `choice`."""
    return {
        "stores": [{"sources": [source.attributes for source in each.sources]} for each in chosen],
        "teachers": chosen[0].provenance,
        "recipe": recipe_values(recipe),
        "torch": str(torch.__version__),
    }


def _identity(provenance: dict) -> dict:
    """What an interrupted run may not change."""
    recipe = provenance["recipe"]
    training = {key: value for key, value in recipe["training"].items() if key not in OF_THE_MACHINE}
    return {
        # Not by store, as in checkpoints of runs that are under way.
        "store": {"sources": [source for store in provenance["stores"] for source in store["sources"]]},
        "teachers": provenance["teachers"],
        "recipe": {**recipe, "training": training},
    }


def _losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in read_log(folder / "log.csv")]
