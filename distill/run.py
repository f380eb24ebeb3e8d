"""Distillation: from stores and a recipe to a student."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..checkpoint_files import tensors_digest
from ..counted import counted
from ..errors import StudentError
from ..extract.plan import frames_digest
from ..extract.statistics import TeacherStatistics
from ..extract.store import Source, open_store
from ..settings import Amount, Count, Settings, at_least
from .checkpoint import load_student, save_student, student_provenance
from .choice import KIND, Chosen, Wanted, choose, started
from .dataset import DistillCollate, DistillDataset, SampleId
from .interruption import Checkpoints
from .objective import DistillObjective, unrelated_loss
from .processes import joined_processes, locked_by_first, num_processes, process_index, summed
from .recipe import Recipe, recipe_values
from .run_record import CONFIG, STATISTICS, TARGETS, RunRecord, read_record, run_record, write_record
from .sampling import EpochLoader
from .standardisation import Standardisation
from .student import Student
from .training import Observer, train
from .training_log import read_log
from .varying_targets import VaryingTargets

logger = logging.getLogger(__name__)

STUDENT = "student.safetensors"
CHECKPOINT = "checkpoint.pt"
MUCH_WAITING = 0.1  # fraction of the time above which more workers would shorten a run
SEEDS_APART = 1_000_003  # between the seeds of two stores in one run
ROWS_AS_TEXT = 1 << 16  # rows of a store's views that become text at a time
# Keys of `training` that say how the machine is used: a resumed run may have other values.
OF_THE_MACHINE = ("workers", "accumulate", "compile", "activation_checkpointing")

QuickProbe = Callable[[Student], float]


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Settings):
    """Settings of one distillation: the options of `scalr distill`, with the resolved recipe."""

    caches: Annotated[tuple[Path, ...], at_least(1)]
    out: Path
    # Default teachers: the recipe's, else the only one of each store. Default split: the only one of each store. A
    # resumed run keeps those that it was started with.
    teachers: tuple[str, ...] = ()
    split: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "auto"
    resume: bool = False  # continue the run in `out`, or begin if there is none
    checkpoint_minutes: Amount = 10.0
    quick_probe: QuickProbe | None = None  # student during training -> mIoU
    eval_every: Count = 1  # epochs between two quick probes

    def __post_init__(self) -> None:
        super().__post_init__()
        places = [os.path.realpath(path) for path in self.caches]
        for number, path in enumerate(self.caches):
            if places[number] in places[:number]:
                raise StudentError(
                    f"the store {path} is given twice",
                    where="--cache",
                    fix="Pass each --cache once; sampling.store_weights sets how often each store is sampled.",
                )


@dataclass(frozen=True)
class DistillSummary:
    """Result of a run: the student's file, the loss of every step, the fraction of time spent waiting for data."""

    student: Path
    losses: list[float] = field(repr=False)
    data_wait: float | None = None  # None if the run had already finished
    unrelated_loss: float | None = None  # see `objective.unrelated_loss`

    def as_json(self) -> dict:
        """Plain JSON values."""
        return {"student": str(self.student), "losses": self.losses, "data_wait": self.data_wait}

    def as_text(self) -> str:
        """Lines for the command line."""
        if not self.losses:
            return f"{self.student}: finished; log.csv does not have the losses any more"
        steps = counted(len(self.losses), "step")
        text = f"{self.student}: {steps}, loss {self.losses[0]:.3f} (first step), {self.losses[-1]:.3f} (last)"
        if self.unrelated_loss is not None:
            text += f"; unrelated features give {self.unrelated_loss:.2f}"
        if self.data_wait is not None:
            text += f"\n{self.data_wait:.1%} of the time was spent waiting for data"
            text += ": increase training.workers" if self.data_wait > MUCH_WAITING else ""
        return text


def distill(config: DistillConfig) -> DistillSummary:
    """Train a student on the targets of one or several stores. Images, teacher and dataset are not needed.

    Writes into `config.out`: `config.yaml`, `log.csv`, TensorBoard events, `checkpoint.pt` at intervals and after the
    last step, and at the end `student.safetensors`; the checkpoints are then removed. If torchrun has started several
    processes, all call this function, and the first one writes.

    Raises:
        StoppedError: a signal stopped the run; a checkpoint has been written.
        ScalrError: stores, recipe or output folder cannot be used.
    """
    path = config.out / STUDENT
    with joined_processes(config.device) as device, locked_by_first(config.out):
        if path.exists() and not config.resume:
            raise StudentError(
                "a finished run is in this folder",
                where=config.out,
                fix="Choose another --out, or pass --resume to show its result again.",
            )
        data_wait = _train(config, device)
    return DistillSummary(path, _losses(config.out), data_wait, unrelated_loss(config.recipe.objective))


def with_head_for(recipe: Recipe, dim: int) -> Recipe:
    """The recipe with a head for targets of `dim` channels, which replaces `student.out_channels`."""
    channels = recipe.objective.output_channels(dim)
    return replace(recipe, student=replace(recipe.student, out_channels=channels))


def new_student(recipe: Recipe) -> Student:
    """A student with initial weights drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return Student(recipe.student, recipe.inputs)


def _train(config: DistillConfig, device: torch.device) -> float | None:
    """Train, write the student, and return the fraction of time spent waiting for data; None if already finished."""
    path, before = config.out / STUDENT, _record_of_start(config, device)
    chosen = _choose(config, before)
    first = chosen[0]
    objective_config = replace(config.recipe.objective, teachers=first.teachers)
    recipe = with_head_for(replace(config.recipe, objective=objective_config), first.target_dim)
    training = recipe.training
    datasets = [_samples(each, recipe, number) for number, each in enumerate(chosen)]
    if recipe.objective.reads.segments:
        _say_mixed_superpixels(chosen)
    statistics = {} if recipe.objective.standardise == "none" else _statistics(chosen)
    record = _record(chosen, datasets, recipe, statistics, device)
    checkpoints = Checkpoints(config.out / CHECKPOINT, config.checkpoint_minutes, record)
    if before is not None:
        record.require_same(before.settings, config.out / CONFIG)
    if config.resume and _seen_by_all((path,), device):
        record.require_made_with(_provenance_of_whole(path), path)
        logger.info("%s: the run is finished already", path)
        checkpoints.remove()  # left if the run was killed before it removed them
        return None
    resume = _seen_by_all((checkpoints.path, checkpoints.before), device)
    if resume and not config.resume:
        raise StudentError(
            "an interrupted run is in this folder",
            where=config.out,
            fix="Continue it with --resume, or choose another --out.",
        )
    loader = _loader(datasets, recipe, device)
    objective = _new_objective(recipe, first, statistics)
    if process_index() == 0 and not resume:  # an existing checkpoint may be another run's
        write_record(config.out, record)
    if before is not None:
        record.say_changes_of_machine(before.machine)
    for each, dataset in zip(chosen, datasets, strict=True):
        logger.info(
            "distilling %s from %s of %s",
            *(" and ".join(each.teachers), counted(len(dataset), "frame"), each.store.path),
        )
    observer = _observer(config, chosen, datasets, objective.student)
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
        write_record(config.out, record)  # a resumed run may use another machine or release
        save_student(objective.student, path, record.values)
        checkpoints.remove()
    return result.data_wait


def _say_mixed_superpixels(chosen: Sequence[Chosen]) -> None:
    """Warn that segments of SLIC and of a folder, which differ in size and meaning, are each other's negatives."""
    methods: dict[str, list[str]] = {}
    for source in (source for each in chosen for source in each.sources):
        methods.setdefault(source.superpixels["method"], []).append(f"{source.dataset} {source.split}")
    if len(methods) > 1:
        found = "; ".join(f"{method}: {', '.join(names)}" for method, names in methods.items())
        logger.warning("the student is trained on superpixels of different kinds (%s)", found)


def _loader(datasets: Sequence[DistillDataset], recipe: Recipe, device: torch.device) -> EpochLoader:
    training = recipe.training
    return EpochLoader(
        datasets,
        DistillCollate(recipe.inputs),
        batch_size=training.batch_size,
        seed=training.seed,
        workers=training.workers,
        device=device,
        part_weights=recipe.sampling.store_weights,
        accumulate=training.accumulate,
    )


def _new_objective(recipe: Recipe, chosen: Chosen, statistics: Mapping[str, TeacherStatistics]) -> DistillObjective:
    """A new student in its objective."""
    student, training, weights = new_student(recipe), recipe.training, tuple(chosen.teachers.values())
    student.standardisation = Standardisation.of(
        recipe.objective.standardise, statistics, weights, "objective.standardise"
    )
    if training.activation_checkpointing:
        student.checkpoint_activations("training.activation_checkpointing")
    if training.compile:
        student.compile_layers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)  # for the head on the targets
        return DistillObjective(student, recipe.objective, weights, chosen.target_dim)


def _statistics(chosen: Sequence[Chosen]) -> dict[str, TeacherStatistics]:
    """Statistics of each teacher's vectors, pooled over all sources in use."""
    return {
        name: TeacherStatistics.pooled([each.store.statistics(name, each.sources) for each in chosen])
        for name in chosen[0].teachers
    }


def _provenance_of_whole(path: Path) -> dict:
    """The provenance of a finished student, after a check that its file is undamaged."""
    try:
        load_student(path)
        return student_provenance(path)
    except StudentError as error:
        raise StudentError(
            f"the finished student cannot be used: {error.what}",
            where=path,
            fix="Remove the file and run the same command with --resume: it trains again.",
        ) from None


def _record_of_start(config: DistillConfig, device: torch.device) -> RunRecord | None:
    """The record of the resumed run, written when the run began; None for a new run."""
    return read_record(config.out) if config.resume and _seen_by_all((config.out / CONFIG,), device) else None


def _choose(config: DistillConfig, before: RunRecord | None) -> list[Chosen]:
    stores, weights = [open_store(path) for path in config.caches], config.recipe.objective.teachers
    wanted = Wanted(config.teachers or tuple(weights), config.split)
    return choose(stores, wanted, weights, None if before is None else started(before, config.out / CONFIG))


def _seen_by_all(paths: Sequence[Path], device: torch.device) -> bool:
    """Whether one of the files exists; all processes must agree."""
    (seen,) = summed([any(path.exists() for path in paths)], device)
    if 0 < seen < num_processes():
        raise StudentError(
            f"{seen:.0f} of {num_processes()} processes see this file",
            where=paths[0],
            fix="Put --out on shared storage.",
        )
    return seen > 0


def _observer(
    config: DistillConfig, chosen: Sequence[Chosen], datasets: Sequence[DistillDataset], student: Student
) -> Observer:
    names = [each.store.path.name for each in chosen]
    parts = [name if names.count(name) == 1 else f"{number}_{name}" for number, name in enumerate(names)]
    parts = parts if len(parts) > 1 else []  # for a single store it would equal the loss

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
    """The samples of store `number`, which has random choices of its own."""
    return DistillDataset(
        chosen.store,
        tuple(chosen.teachers),
        recipe.inputs,
        recipe.sampling,
        recipe.augmentation,
        recipe.training.seed + number * SEEDS_APART,
        chosen.sources,
        number,
        recipe.objective.reads,
    )


def _record(
    chosen: Sequence[Chosen],
    datasets: Sequence[DistillDataset],
    recipe: Recipe,
    statistics: Mapping[str, TeacherStatistics],
    device: torch.device,
) -> RunRecord:
    """The settings that a student depends on, and the use of the machine."""
    values = recipe_values(recipe)
    machine = {name: values["training"].pop(name) for name in OF_THE_MACHINE}
    stores = [
        {"sources": [_without_record(source) for source in each.sources], **_in_use(dataset, each.sources)}
        for each, dataset in zip(chosen, datasets, strict=True)
    ]
    settings = {"kind": KIND, "stores": stores, "teachers": chosen[0].provenance, "recipe": values}
    targets = {name: _targets_sha256(chosen, datasets, name) for name in chosen[0].teachers}
    made_of = {TARGETS: targets} | ({STATISTICS: _statistics_sha256(statistics)} if statistics else {})
    return run_record(settings, device, **made_of, **machine)


def _without_record(source: Source) -> dict:
    """The attributes that scans depend on, without the dataset's folder and library versions."""
    return {name: value for name, value in source.attributes.items() if name != "record"}


def _in_use(dataset: DistillDataset, sources: Sequence[Source]) -> dict[str, int | str | list[int]]:
    """The number of frames in use per source, since frames may have been skipped, and a digest of their content.

    `views_sha256` covers the names of the views and the checksums of their points and pairs.
    """
    rows = dataset.frames.rows
    names = ("dataset", "scene", "token", "camera", "crc32c")
    views = dataset.store.read_views(names)
    blocks = dataset.store.column("block")[dataset.frames.first_rows]
    return {
        "frames_in_use": [int(np.isin(blocks, source.blocks).sum()) for source in sources],
        "views_in_use": len(rows),
        "views_sha256": frames_digest(_lines(views, rows)),
    }


def _lines(views: pa.Table, rows: np.ndarray) -> Iterator[str]:
    """Some rows as text, a few at a time: all of a large store, as Python's values, would take gigabytes."""
    for first in range(0, len(rows), ROWS_AS_TEXT):
        columns = [column.cast(pa.string()) for column in views.take(rows[first : first + ROWS_AS_TEXT]).columns]
        yield from pc.binary_join_element_wise(
            *columns, "\t", null_handling="replace", null_replacement="None"
        ).to_pylist()


def _targets_sha256(chosen: Sequence[Chosen], datasets: Sequence[DistillDataset], teacher: str) -> str:
    """A digest of the checksums of all targets in use."""
    digest = hashlib.sha256()
    for each, dataset in zip(chosen, datasets, strict=True):
        of_view = np.zeros(len(each.store.column("block")), dtype="<u4")
        of_view[each.store.rows_with_targets(teacher)] = each.store.read_target_views(teacher, ["crc32c"])["crc32c"]
        digest.update(of_view[dataset.frames.rows].tobytes())
    return digest.hexdigest()


def _statistics_sha256(statistics: Mapping[str, TeacherStatistics]) -> dict[str, str]:
    return {
        name: tensors_digest({"mean": torch.from_numpy(each.mean), "covariance": torch.from_numpy(each.covariance)})
        for name, each in statistics.items()
    }


def _losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in read_log(folder / "log.csv")]
