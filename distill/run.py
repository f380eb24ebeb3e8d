"""Stage two: a store and a recipe to a student."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml

from ..device import resolve_device
from ..errors import StoreError, StudentError
from ..extract.store import FeatureStore, open_store
from .checkpoint import save_student
from .dataset import DistillCollate, DistillDataset, EpochLoader
from .losses import similarity_loss
from .recipes import Recipe, recipe_values
from .training import train
from .waffleiron import Student

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One distillation; the fields are the options of `scalr distill`, the recipe resolved."""

    cache: Path
    out: Path
    teacher: str | None = None  # may be left out where the store has one
    split: str | None = None  # likewise
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "auto"


@dataclass(frozen=True)
class DistillSummary:
    """What a run made: the student's file and the loss of every step."""

    student: Path
    losses: list[float] = field(repr=False)


def distill(config: DistillConfig) -> DistillSummary:
    """Train a student on stored targets; neither images nor teacher nor dataset are needed.

    Writes `config.yaml`, `log.csv`, TensorBoard events and, last, `student.safetensors` into `config.out`.

    Raises:
        ScalrError: what is wrong with the store, the recipe or the output folder.
    """
    path = config.out / "student.safetensors"
    if path.exists():
        raise StudentError("a student is there already", where=path, fix="Choose another --out.")
    store = open_store(config.cache)
    teacher = _choose_teacher(store, config.teacher)
    split = _choose_split(store, config.split)
    _require_complete(store, teacher, split)
    device = resolve_device(config.device)
    recipe, training = with_head_for(config.recipe, store.target_dim(teacher)), config.recipe.training
    dataset = DistillDataset(store, teacher, recipe.inputs, recipe.augmentation, training.seed, split)
    provenance = _provenance(store, teacher, split, recipe)
    _write_config(config.out, provenance)
    student = new_student(recipe).to(device)
    loader = EpochLoader(
        dataset,
        DistillCollate(recipe.inputs),
        batch_size=training.batch_size,
        seed=training.seed,
        workers=training.workers,
    )
    logger.info("distilling %s from %d frames of %s", teacher, len(dataset), store.path)
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


def _provenance(store: FeatureStore, teacher: str, split: str, recipe: Recipe) -> dict:
    return {
        "store": {"sources": [source.attributes for source in store.sources if source.split == split]},
        "teacher": store.teachers.get(teacher, {}),
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
