"""Stage two: a store and a recipe to a student."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from ..device import resolve_device
from ..errors import StoreError, StudentError
from ..extract.store import FeatureStore, open_store
from .checkpoint import save_student
from .dataset import DistillCollate, DistillDataset, EpochLoader, MixedDataset
from .losses import similarity_loss
from .recipes import Recipe, recipe_values
from .training import train
from .waffleiron import Student

logger = logging.getLogger(__name__)

SEEDS_APART = 1_000_003  # of two stores in one run


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One distillation; the fields are the options of `scalr distill`, the recipe resolved."""

    caches: tuple[Path, ...]
    out: Path
    teacher: str | None = None  # may be left out where each store has one
    split: str | None = None  # likewise
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "auto"


@dataclass(frozen=True)
class DistillSummary:
    """What a run made: the student's file and the loss of every step."""

    student: Path
    losses: list[float] = field(repr=False)


def distill(config: DistillConfig) -> DistillSummary:
    """Train a student on the targets of one or several stores; neither images nor teacher nor dataset are needed.

    Writes `config.yaml`, `log.csv`, TensorBoard events and, last, `student.safetensors` into `config.out`.

    Raises:
        ScalrError: what is wrong with the store, the recipe or the output folder.
    """
    path = config.out / "student.safetensors"
    if path.exists():
        raise StudentError("a student is there already", where=path, fix="Choose another --out.")
    chosen = [_choose(open_store(path), config) for path in config.caches]
    _require_same_targets(chosen)
    device = resolve_device(config.device)
    first, training = chosen[0], config.recipe.training
    recipe = with_head_for(config.recipe, first.store.target_dim(first.teacher))
    parts = [_samples(each, recipe, number) for number, each in enumerate(chosen)]
    dataset = parts[0] if len(parts) == 1 else MixedDataset(parts)
    provenance = _provenance(chosen, recipe)
    _write_config(config.out, provenance)
    student = new_student(recipe).to(device)
    student.waffleiron.activation_checkpointing = training.activation_checkpointing
    loader = EpochLoader(
        dataset,
        DistillCollate(recipe.inputs),
        batch_size=training.batch_size,
        seed=training.seed,
        workers=training.workers,
    )
    for each, part in zip(chosen, parts, strict=True):
        logger.info("distilling %s from %d frames of %s", each.teacher, len(part), each.store.path)
    losses = train(
        student.parameters(),
        loader,
        lambda batch: similarity_loss(student(batch.inputs), batch.targets.decode()),
        training,
        steps_per_epoch=len(loader),
        device=device,
        log_folder=config.out,
        description="distill",
    )
    save_student(student, path, provenance)
    return DistillSummary(path, losses)


def with_head_for(recipe: Recipe, dim: int) -> Recipe:
    """The recipe with a head for targets of `dim` dimensions, whatever it named."""
    return replace(recipe, student=replace(recipe.student, out_channels=dim))


def new_student(recipe: Recipe) -> Student:
    """A student with initial weights drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return Student(recipe.student, recipe.inputs)


class Chosen(NamedTuple):
    """What is learnt from one store."""

    store: FeatureStore
    teacher: str
    split: str

    @property
    def provenance(self) -> dict:
        return self.store.teachers[self.teacher]


def _choose(store: FeatureStore, config: DistillConfig) -> Chosen:
    chosen = Chosen(store, _choose_teacher(store, config.teacher), _choose_split(store, config.split))
    _require_complete(*chosen)
    return chosen


def _require_same_targets(chosen: Sequence[Chosen]) -> None:
    """Targets can only be mixed where all that they depend on is the same."""
    first = chosen[0]
    for other in chosen[1:]:
        keys = sorted({*first.provenance, *other.provenance})
        pairs = [(key, first.provenance.get(key), other.provenance.get(key)) for key in keys]
        differing = "; ".join(f"{key} is {ours!r} and {theirs!r}" for key, ours, theirs in pairs if ours != theirs)
        if differing:
            raise StoreError(
                f"targets that cannot be mixed: {differing}",
                where=f"{first.store.path} and {other.store.path}",
                fix="Extract both with the same teacher and settings.",
            )


def _samples(chosen: Chosen, recipe: Recipe, number: int) -> DistillDataset:
    """The samples of the store that was named as `number`, each with random choices of its own."""
    seed = recipe.training.seed + number * SEEDS_APART
    return DistillDataset(chosen.store, chosen.teacher, recipe.inputs, recipe.augmentation, seed, chosen.split)


def _choose_teacher(store: FeatureStore, name: str | None) -> str:
    if name is not None or len(store.teachers) == 1:
        return name or next(iter(store.teachers))
    found = ", ".join(store.teachers) or "none"
    raise StoreError(f"which teacher? The store has: {found}", where=store.path, fix="Pass --teacher with one of them.")


def _choose_split(store: FeatureStore, name: str | None) -> str:
    splits = sorted({source.split for source in store.sources})
    if name in splits or (name is None and len(splits) == 1):
        return name or splits[0]
    found = ", ".join(splits) or "none"
    problem = "which split" if name is None else f"no split '{name}'"
    raise StoreError(f"{problem}? The store has: {found}", where=store.path, fix="Pass --split with one of them.")


def _require_complete(store: FeatureStore, teacher: str, split: str) -> None:
    blocks = {block for source in store.sources if source.split == split for block in source.blocks}
    missing = sorted(blocks - store.committed_blocks(teacher))
    if missing:
        raise StoreError(
            f"{len(missing)} of {len(blocks)} blocks have no targets of {teacher} (first: {missing[:5]})",
            where=store.path,
            fix="Run the same 'scalr extract' again: it goes on where it stopped.",
        )


def _provenance(chosen: Sequence[Chosen], recipe: Recipe) -> dict:
    sources = [source.attributes for each in chosen for source in each.store.sources if source.split == each.split]
    return {
        "store": {"sources": sources},
        "teacher": chosen[0].provenance,
        "recipe": recipe_values(recipe),
        "torch": str(torch.__version__),
    }


def _write_config(folder: Path, provenance: dict) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(provenance, sort_keys=False))
    except OSError as error:
        raise StudentError(
            f"the run's folder cannot be written ({error.strerror})", where=folder, fix="Choose another --out."
        ) from None
