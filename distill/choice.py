"""The teachers and sources of a run's stores.

They are chosen when the run begins and written to its `config.yaml`. When the run resumes, they are read from there,
because teachers, splits and datasets may have been added to the stores in the meantime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import StoreError, StudentError
from ..extract.store import SCANS, FeatureStore, Source
from ..extract.store.format import index_path
from .run_record import RunRecord, require_kind

KIND = "distillation"


class Chosen(NamedTuple):
    """The teachers and sources that a run uses from one store."""

    store: FeatureStore
    teachers: dict[str, float]  # teacher: weight
    sources: tuple[Source, ...]

    @property
    def provenance(self) -> dict[str, dict]:
        return {name: self.store.teacher(name) for name in self.teachers}

    @property
    def target_dim(self) -> int:
        return sum(self.store.target_dim(name) for name in self.teachers)


class Wanted(NamedTuple):
    """What the user asks for. Empty and None leave the choice to the run or the stores."""

    teachers: tuple[str, ...]
    split: str | None


class Started(NamedTuple):
    """What a run was started with, from its `config.yaml`."""

    path: Path
    teachers: tuple[str, ...]  # in the order in which their targets are concatenated
    sources: tuple[tuple[tuple[str, str], ...], ...]  # (dataset, split) of each source, for each store

    @property
    def splits(self) -> set[str]:
        return {split for sources in self.sources for _, split in sources}


def choose(
    stores: Sequence[FeatureStore], wanted: Wanted, weights: Mapping[str, float], started: Started | None
) -> list[Chosen]:
    """Choose teachers and sources of each store.

    Args:
        stores: in the order of the --cache options.
        wanted: what the user asks for.
        weights: weight of each teacher by name; 1 if a name is missing.
        started: what a resumed run was started with; None for a first run.

    Raises:
        StudentError: `wanted` or the number of stores contradicts `started`.
        StoreError: the choice is ambiguous, or a store lacks what was chosen, or files of what was chosen are missing.
    """
    for store in stores:
        store.require_records()
    if started is None:
        found = [(wanted.teachers or (store.only_teacher(),), _sources_of(store, wanted.split)) for store in stores]
    else:
        _require_as_started(started, wanted, len(stores))
        pairs = zip(stores, started.sources, strict=True)
        found = [(started.teachers, _recorded_sources(store, keys)) for store, keys in pairs]
    chosen = [
        Chosen(store, {name: float(weights.get(name, 1.0)) for name in teachers}, sources)
        for store, (teachers, sources) in zip(stores, found, strict=True)
    ]
    for each in chosen:
        _require_complete(each)
        each.store.require_files(each.teachers, each.sources)
    _require_same_targets(chosen)
    return chosen


def started(record: RunRecord, path: Path) -> Started:
    """What a distillation was started with, from its record.

    Raises:
        StudentError: the record is another command's.
    """
    settings = record.settings
    require_kind(settings, KIND, path)
    sources = tuple(
        tuple((source["dataset"], source["split"]) for source in store["sources"]) for store in settings["stores"]
    )
    return Started(path, tuple(settings["teachers"]), sources)


def _require_as_started(started: Started, wanted: Wanted, num_stores: int) -> None:
    # Teachers may be given in another order: the run keeps the order that it was started with.
    pairs = {
        "teacher": (set(started.teachers), set(wanted.teachers) or set(started.teachers)),
        "split": (started.splits, started.splits if wanted.split is None else _wanted(wanted.split, started.splits)),
        "number of stores": ({len(started.sources)}, {num_stores}),
    }
    differing = "; ".join(
        f"{name} was {_names(was)} and is {_names(now)}" for name, (was, now) in pairs.items() if was != now
    )
    if differing:
        raise StudentError(
            f"the run in --out was started with other options: {differing}",
            where=started.path,
            fix="Resume the run with the options that it was started with, or choose another --out.",
        )


def _names(values: set) -> str:
    return ", ".join(sorted(map(str, values)))


def _recorded_sources(store: FeatureStore, keys: Sequence[tuple[str, str]]) -> tuple[Source, ...]:
    found = {(source.dataset, source.split): source for source in store.sources}
    for dataset, split in keys:
        if (dataset, split) not in found:
            listed = ", ".join(f"{split} of {dataset}" for dataset, split in found) or "none"
            raise StoreError(
                f"the run was started with split {split} of {dataset}, and the store has: {listed}",
                where=store.path,
                fix="Pass each --cache that the run was started with, in the same order, or choose another --out.",
            )
    return tuple(found[key] for key in keys)


def _sources_of(store: FeatureStore, name: str | None) -> tuple[Source, ...]:
    splits = sorted({source.split for source in store.sources})
    if name is None and len(splits) == 1:
        (name,) = splits
    if name is not None and (wanted := _wanted(name, splits)) <= {*splits}:
        return tuple(source for source in store.sources if source.split in wanted)
    found = ", ".join(splits) or "none"
    problem = "no --split is given" if name is None else f"no split '{name}'"
    raise StoreError(
        f"{problem}, and the store has the splits: {found}", where=store.path, fix="Pass --split with one of them."
    )


def _wanted(name: str, splits: Collection[str]) -> set[str]:
    """The splits that a name such as `train,val` means: one split extracted under this name, or several splits."""
    return {name} if name in splits else {each.strip() for each in name.split(",")}


def _require_complete(chosen: Chosen) -> None:
    for name in chosen.teachers:
        chosen.store.teacher(name)
    blocks = {block for source in chosen.sources for block in source.blocks}
    for kind in (SCANS, *chosen.teachers):
        missing = sorted(blocks - chosen.store.committed_blocks(kind))
        if missing:
            what = "scans" if kind == SCANS else f"targets of {kind}"
            raise StoreError(
                f"{len(missing)} of {len(blocks)} blocks have no {what};"
                f" the first is block {missing[0]}, without this file",
                where=index_path(chosen.store.path, kind, missing[0]),
                fix="Repeat the 'scalr extract' command that wrote the store: it completes the extraction.",
            )


def _require_same_targets(chosen: Sequence[Chosen]) -> None:
    first, *others = chosen
    for other in others:
        for teacher in first.teachers:
            first.store.require_same_targets(other.store, teacher)
