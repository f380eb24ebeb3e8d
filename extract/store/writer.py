"""Write a feature store: what a job adds is committed completely or not at all, and nothing committed is deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import DamagedError, StoreError
from ...paths import expanded
from ..statistics import TeacherStatistics
from . import format as fmt
from .aside import AsideFolder
from .commit import Scratch, move_file, move_folder
from .contents import ScanBlock, Source
from .draft import Draft
from .files import is_folder, is_litter, is_there, names_in, read_bytes
from .format import SCANS
from .gathering import gather, not_gathered
from .reader import FeatureStore, open_store
from .statistics_group import statistics_name, write_statistics

logger = logging.getLogger(__name__)


class StoreWriter:
    """Adds to a store; `create_store` opens one.

    Args:
        store: the store to write to.
        owner: name of the scratch folder; the next run under this name clears what a killed one left.
    """

    def __init__(self, store: FeatureStore, owner: str) -> None:
        self.store, self.path = store, store.path
        self.aside = AsideFolder(store.path)
        self._scratch = Scratch(store.path / fmt.TMP, owner)

    def clear_leftovers(self) -> int:
        """Remove what killed runs of the same owner left; return the number of leftovers."""
        return self._scratch.clear()

    def gather_indexes(self, anew: Collection[str] = ()) -> None:
        """Gather the indexes in one file per kind, if there are many, so that readers open one file.

        Nothing depends on these files, so any error is only a warning.

        Args:
            anew: kinds whose gathered file is wrong.
        """
        try:
            for kind in (SCANS, *self.store.teachers):
                if kind in anew:
                    self._drop_gathered(kind)
                before: list[int] = []
                # Repeated if another job committed blocks meanwhile: this rename may have replaced that job's file.
                while (left := not_gathered(self.path, kind)) and left != before:
                    self._scratch.attempt(partial(self._gather, kind))
                    before = left
        except StoreError as error:
            logger.warning("the index files were not merged, so that the store opens more slowly: %s", error)

    def _gather(self, kind: str, scratch: Path) -> None:
        target = fmt.gathered_path(self.path, kind)
        gather(self.path, kind, scratch / target.name)
        target.parent.mkdir(exist_ok=True)
        move_file(scratch / target.name, target)

    def _drop_gathered(self, kind: str) -> None:
        self._scratch.attempt(lambda _: self._scratch.discard(fmt.gathered_path(self.path, kind)))

    # --- records -----------------------------------------------------------------------------------------------

    def add_inputs(
        self, settings: dict, record: dict, teachers: dict[str, dict], frames: pa.Table | None = None
    ) -> Source:
        """Record a split of a dataset and its teachers, or compare them with existing records.

        A source or teacher without a committed block is not binding: other settings replace it.

        Args:
            settings: everything that scans and pairs depend on, in plain JSON values, including `dataset`, `split`,
                `frames_per_block` and `num_blocks`; compared with the record. A value of None means that the setting
                does not apply, and is not recorded.
            record: further information (dataset folder, versions), which is not compared.
            teachers: everything that each teacher's targets depend on; compared with the record.
            frames: the dataset's table of the frames, stored with the source.

        Raises:
            StoreError: the split or a teacher is recorded with other settings, or a record is damaged or lost; nothing
                is recorded then.
        """
        self.store.forget_inputs()
        self.store.require_records()
        self._find_source(settings)
        for name, provenance in teachers.items():
            self._find_teacher(name, provenance)
        for name, provenance in teachers.items():
            while not self._find_teacher(name, provenance):
                self._claim(f"teachers/{name}", partial(fmt.write_record, attributes=provenance))
        if settings.get("superpixels") is not None:
            self._require_readers_of_superpixels()
        while (source := self._find_source(settings)) is None:
            # Number and first block come from the listing that found no such source. If another job claims this number
            # first, the next round finds that job's record.
            known = {name: value for name, value in settings.items() if value is not None}
            attributes = {**known, "first_block": self._next_block(), "record": record}
            self._claim(f"sources/{self._next_source():03d}", partial(_write_source, attributes, frames))
        if any(each.superpixels for each in self.store.sources):
            self._require_readers_of_superpixels()  # another job may have written its own root meanwhile
        self._keep_frames(source, frames)
        return source

    def batch_size(self, teacher: str, device: str, measure: Callable[[], int]) -> int:
        """Return a teacher's batch size on one kind of device, which the first job on that kind measures for all jobs.

        Batches of other sizes may change the last bits of the features.
        """
        name = f"teachers/{teacher}/batch/{device}"
        if not is_there(self.path / name):
            self._claim(name, partial(fmt.write_record, attributes={"batch_size": measure()}))
        return fmt.read_record(self.path / name / "zarr.json", ["batch_size"])["batch_size"]

    def statistics(
        self, teachers: Iterable[str], source: Source, measure: Callable[[list[str]], dict[str, TeacherStatistics]]
    ) -> dict[str, TeacherStatistics]:
        """Return teachers' statistics on the sample of a source, which the first job measures for all jobs.

        Statistics of a sample that lacked frames are replaced by those of a more complete one, as long as no block
        depends on them.

        Args:
            teachers: names of teachers that the store records.
            source: a source that the store records.
            measure: called with the names of teachers whose statistics are missing, damaged or replaceable.

        Raises:
            UnreadableError: something cannot be read now.
        """
        teachers, folder = list(teachers), self.store.folder_of(source).name
        before = {name: self._find_statistics(name, source) for name in teachers}
        lacking = [name for name, found in before.items() if self._may_be_replaced(name, source, found)]
        for name, made in (measure(lacking) if lacking else {}).items():
            if (found := before[name]) is not None:
                if made.frames_left_out >= found.frames_left_out:
                    continue
                self._scratch.discard(self.path / statistics_name(name, folder))
            write = partial(write_statistics, statistics=made, teacher=self.store.teachers[name])
            self._claim(statistics_name(name, folder), partial(write, source=source.attributes))
        return {name: self.store.statistics(name, [source]) if name in lacking else before[name] for name in teachers}

    def lacks_statistics(self, teachers: Iterable[str], source: Source) -> bool:
        """Whether `statistics` would call `measure`."""
        return any(self._find_statistics(name, source) is None for name in teachers)

    # --- blocks ------------------------------------------------------------------------------------------------

    def draft(
        self,
        block: int,
        teachers: Iterable[str],
        scans: ScanBlock | None = None,
        channels: Mapping[str, np.ndarray] | None = None,
    ) -> Draft:
        """Begin a block: with committed `scans`, only targets of `teachers` are added; without, scans and targets.

        The caller removes the scratch folder at the end: `draft.scratch.remove()`.

        Args:
            block: number of the block.
            teachers: names of the teachers whose targets are added.
            scans: the committed scans, or None.
            channels: (2, D) float32 for each teacher with int8 vectors, see `TeacherStatistics.channels`.
        """
        records = {name: self.store.teachers[name] for name in teachers}
        source, views = self.store.record_of(SCANS, block), None if scans is None else scans.views
        return Draft(block, self._scratch.new_folder(), source, records, channels or {}, views)

    def commit(self, draft: Draft, *, replacing: bool = False) -> bool:
        """Commit a draft; return False if other scans of the block are committed, so that it must be computed again.

        Scans and their targets are moved into place by one rename: if two jobs have written the same block, perhaps
        from different frames, the first rename decides for scans and targets.

        Args:
            draft: a draft with each teacher's targets of all of its views.
            replacing: first move the committed block, which has fewer frames, to the folder `aside`.

        Raises:
            ScratchTakenError: another run removed the draft's scratch folder.
            StoreError: the file system refuses, or the settings have been replaced since the draft was begun.
        """
        draft.finish()
        self._require_recorded(draft)
        with draft.scratch.writing():
            if replacing:
                self.set_aside(SCANS, draft.block)
            stands = self._put(draft)
        if stands and draft.brings_scans:
            self._take_back_targets(draft.block)
        return stands

    def recover(self, kind: str, block: int) -> bool:
        """Whether the scans (or a teacher's targets) of a block are committed; a complete group is committed if needed.

        A job that is killed between its two renames leaves a complete group without an index. If every file agrees with
        the group's own index, the group is committed now; otherwise it is moved to the folder `aside`.
        """
        if self.store.is_committed(kind, block):
            return True
        group = fmt.group_path(self.path, kind, block)
        if not is_there(group):
            return False
        if kind != SCANS and not is_there(group / fmt.GROUP_INDEX):
            return False  # an empty folder or a stray file
        if not self._is_sound(kind, block):
            self.set_aside(kind, block)
            return False
        self._publish(kind, block)
        return True

    def set_aside(self, kind: str, block: int) -> Path | None:
        """Remove a block's targets of one teacher, or its scans with the targets of every teacher, from the store.

        Nothing is deleted: the removed parts are kept in the folder `aside`; the path is returned.

        Raises:
            StoreError: the file system refuses.
        """
        # Scans last, since targets need them.
        kinds = sorted(self.store.indexed_kinds(), key=lambda each: each == SCANS) if kind == SCANS else [kind]
        indexes = [fmt.index_path(self.path, each, block) for each in kinds]
        for each in kinds:  # on a file system without times of files, the next index could pass for this one
            self._drop_gathered(each)
        return self.aside.take(kind, block, indexes)

    def put_back(self, kind: str, block: int) -> bool:
        """Restore the part of a block that was set aside last, if nothing has replaced it; return whether it was."""
        return not is_there(fmt.group_path(self.path, kind, block)) and self.aside.give_back(kind, block)

    def rewrite_record(self, name: str, attributes: Mapping | None) -> Path | None:
        """Write a damaged or lost zarr.json again; return the path at which the damaged one is kept.

        Args:
            name: path in the store.
            attributes: attributes of a record; None for a group without attributes.
        """
        kept, target = self.aside.take_file(self.path / name), self.path / name

        def attempt(scratch: Path) -> None:
            write = fmt.write_group if attributes is None else fmt.write_record
            write(scratch / "group", attributes or {})
            target.parent.mkdir(parents=True, exist_ok=True)
            move_file(scratch / "group" / target.name, target)

        self._scratch.attempt(attempt)
        return kept

    def rewrite_index(self, kind: str, block: int, content: bytes) -> Path | None:
        """Replace the copy of a group's index that disagrees with its files; return the path at which it is kept."""
        kept = None
        copies = (fmt.group_path(self.path, kind, block) / fmt.GROUP_INDEX, fmt.index_path(self.path, kind, block))
        for target in copies:
            if not is_there(target) or read_bytes(target) != content:
                kept = self.aside.take_file(target)
                self._replace(target, content)
        return kept

    # --- how ---------------------------------------------------------------------------------------------------

    def _put(self, draft: Draft) -> bool:
        """Move a draft's groups into place and commit them; False if other scans are already there."""
        if draft.brings_scans and self._put_group(SCANS, draft):
            for name in draft.teachers:  # moved together with the scans
                self._publish(name, draft.block)
            return True
        if self._views_differ(draft):
            return False
        for name in draft.teachers:
            self._put_group(name, draft)
        return True

    def _put_group(self, kind: str, draft: Draft) -> bool:
        """Move one group into place and commit it; return whether it is the draft's own group that is committed now.

        If another job has committed the same group meanwhile, its copy is equally good. A group that a killed job left
        is committed if it is complete, and moved to the folder `aside` otherwise.
        """
        group, target = draft.group(kind), fmt.group_path(self.path, kind, draft.block)
        is_there(target)  # gives a clear error for a link to storage that is not mounted
        ours = move_folder(group, target, draft.scratch.path)
        if not ours and not self.recover(kind, draft.block):
            ours = move_folder(group, target, draft.scratch.path)
        if ours:
            self._publish(kind, draft.block)
        return ours

    def _views_differ(self, draft: Draft) -> bool:
        """Whether the committed scans differ from those to which the draft's targets belong."""
        index = fmt.group_path(self.path, SCANS, draft.block) / fmt.GROUP_INDEX
        try:
            return not fmt.read_index(index, SCANS).equals(draft.views)
        except FileNotFoundError:
            return True

    def _is_sound(self, kind: str, block: int) -> bool:
        """Whether a group's files equal those in its own index, bit by bit, and the index has the current record."""
        group = fmt.group_path(self.path, kind, block)
        try:
            metadata = fmt.read_metadata(group / fmt.GROUP_INDEX)
            return (
                metadata.group == fmt.group_name(kind, block)
                and metadata.record == self.store.record_of(kind, block)
                and fmt.files_are_as_listed(group, metadata)
                and (kind == SCANS or self._same_views(kind, block))
            )
        except (FileNotFoundError, DamagedError):
            return False

    def _same_views(self, teacher: str, block: int) -> bool:
        columns = ("token", "camera")
        indexes = [
            fmt.read_index(fmt.group_path(self.path, kind, block) / fmt.GROUP_INDEX, kind, columns)
            for kind in (SCANS, teacher)
        ]
        return indexes[0].equals(indexes[1])

    def _take_back_targets(self, block: int) -> None:
        """Restore undamaged targets that were set aside with damaged scans, once equal scans are committed again."""
        for teacher in self.store.teachers:
            if not self.store.is_committed(teacher, block) and self.aside.give_back_targets(teacher, block):
                if self.recover(teacher, block) and self._targets_fit(teacher, block):
                    logger.info("block %d: the targets of %s were restored from the folder 'aside'", block, teacher)
                elif self.store.is_committed(teacher, block):
                    self.set_aside(teacher, block)

    def _targets_fit(self, teacher: str, block: int) -> bool:
        try:
            self.store.read_targets(block, teacher)
            return True
        except DamagedError:
            return False

    def _require_recorded(self, draft: Draft) -> None:
        """Check that the draft's records are current: another run may have replaced those without blocks."""
        self.store.forget_inputs()
        recorded = {name: self.store.teachers.get(name) for name in draft.teachers}
        drafted = {name: draft.record_of(name) for name in draft.teachers}
        if self.store.record_of(SCANS, draft.block) != draft.source or recorded != drafted:
            raise StoreError(
                "another run replaced or removed the settings of this run before a block was committed",
                where=self.path,
                fix="Run all jobs of one extraction with the same options.",
            )

    def _require_readers_of_superpixels(self) -> None:
        """Raise the format version before superpixels are stored, so that releases that do not know them refuse it."""
        root = fmt.root_attributes(with_superpixels=True)
        if fmt.read_record(self.path / "zarr.json") != root:
            self._scratch.attempt(lambda scratch: _write_group(self.path, ".", root, scratch))

    def _find_source(self, settings: dict) -> Source | None:
        self.store.forget_inputs()
        for source in self.store.sources:
            if (source.dataset, source.split) == (settings["dataset"], settings["split"]):
                differing = _differing(source.attributes, settings)
                if not differing:
                    return source
                if self.store.committed_blocks() & set(source.blocks):
                    raise _other_settings(self.store.folder_of(source), source.attributes, settings, differing)
                self._drop_statistics(self.store.folder_of(source).name)
                self._drop(self.store.folder_of(source), differing)
                return self._find_source(settings)  # another job may have recorded it meanwhile
        return None

    def _find_teacher(self, name: str, provenance: dict) -> bool:
        self.store.forget_inputs()
        there = self.store.teachers.get(name)
        if there is None:
            return False
        if differing := _differing(there, provenance):
            folder = self.path / "teachers" / name
            if self.store.committed_blocks(name):
                raise _other_settings(folder, there, provenance, differing)
            self._drop(folder, differing)
            return False
        return True

    def _find_statistics(self, teacher: str, source: Source) -> TeacherStatistics | None:
        """Read undamaged statistics, or None; damaged ones are moved to the folder `aside`."""
        folder = self.store.folder_of(source).name
        if not self.store.has_statistics(teacher, folder):
            return None
        try:
            return self.store.statistics(teacher, [source])
        except DamagedError as error:
            kept = self.aside.take_file(self.path / statistics_name(teacher, folder))
            logger.warning("%s; they are computed again, and the damaged ones are kept in %s", error.what, kept)
            return None

    def _may_be_replaced(self, teacher: str, source: Source, found: TeacherStatistics | None) -> bool:
        if found is None:
            return True
        has_blocks = not self.store.committed_blocks(teacher).isdisjoint(source.blocks)
        return found.frames_left_out > 0 and not (has_blocks and found.count)

    def _keep_frames(self, source: Source, frames: pa.Table | None) -> None:
        """Write the table of frames again if it was lost."""
        target = self.store.folder_of(source) / fmt.FRAMES_TABLE
        if frames is not None and not is_there(target):
            self._scratch.attempt(
                lambda scratch: move_file(fmt.write_frames(frames, scratch), target)  # all jobs write the same table
            )

    def _drop(self, folder: Path, differing: list[str]) -> None:
        """Delete the record of a source or teacher without committed blocks."""
        logger.warning(
            "%s: this run replaces %s of an earlier run that committed nothing", folder, " and ".join(differing)
        )
        self._scratch.discard(folder)

    def _drop_statistics(self, source: str) -> None:
        for teacher in self.store.teachers:
            self._scratch.discard(self.path / statistics_name(teacher, source))

    def _next_source(self) -> int:
        return max((int(name) for name in self.store.named_sources if name.isdigit()), default=-1) + 1

    def _next_block(self) -> int:
        return max([*self.store.blocks, *self.store.committed_blocks()], default=-1) + 1

    def _publish(self, kind: str, block: int) -> None:
        """Commit a group: copy its own index to where readers look for it."""
        content = (fmt.group_path(self.path, kind, block) / fmt.GROUP_INDEX).read_bytes()
        self._replace(fmt.index_path(self.path, kind, block), content)

    def _replace(self, target: Path, content: bytes) -> None:
        def attempt(scratch: Path) -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            (scratch / target.name).write_bytes(content)
            move_file(scratch / target.name, target)

        self._scratch.attempt(attempt)

    def _claim(self, name: str, write: Callable[[Path], object]) -> bool:
        """Create a record and its files, unless another job has created it; return whether this job did."""
        if is_there(self.path / name):  # folder and record appear by one rename, so neither exists alone
            if is_there(self.path / name / "zarr.json"):
                return False
            self._scratch.discard(self.path / name)  # its record was lost before the first block

        def attempt(scratch: Path) -> bool:
            write(scratch / "group")
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            return move_folder(scratch / "group", self.path / name, scratch)

        return self._scratch.attempt(attempt)


def create_store(path: str | Path, owner: str) -> StoreWriter:
    """Create a store, or open an existing one, to add to it.

    Args:
        path: the store's folder; its parent is created if it is missing.
        owner: name of the scratch folder, such as "part-3-of-8".

    Raises:
        StoreError: the path holds something else or cannot be written.
        UnreadableError: the path exists, but cannot be read.
    """
    path = expanded(path, StoreError)
    _refuse_other_content(path)
    if not is_there(path / "zarr.json"):
        Scratch(path / fmt.TMP, owner).attempt(lambda scratch: _write_skeleton(path, scratch))
    return StoreWriter(open_store(path), owner)


def _write_source(attributes: dict, frames: pa.Table | None, group: Path) -> None:
    fmt.write_record(group, attributes)
    if frames is not None:
        fmt.write_frames(frames, group)


def _refuse_other_content(path: Path) -> None:
    is_file = is_there(path) and not is_folder(path)
    found = set() if is_file else {name for name in names_in(path) if not is_litter(name)}
    ours = {*fmt.SKELETON, "index", fmt.GATHERED, fmt.TMP, fmt.ASIDE}
    if is_file or ("zarr.json" not in found and not found <= ours):
        raise StoreError(
            "a file or folder with this name exists, and it is not a feature store",
            where=path,
            fix="Choose another --out.",
        )


def _write_skeleton(path: Path, scratch: Path) -> None:
    """Write the groups of an empty store; every job writes the same files, so their order does not matter."""
    for name in fmt.SKELETON:
        _write_group(path, name, None, scratch)
    _write_group(path, ".", fmt.root_attributes(with_superpixels=False), scratch)  # last: the store exists from here on


def _write_group(path: Path, name: str, record: dict | None, scratch: Path) -> None:
    """Write the zarr.json of a folder of the store; None for a group without attributes."""
    if record is None:
        fmt.write_group(scratch / name / "group", {})
    else:
        fmt.write_record(scratch / name / "group", record)
    (path / name).mkdir(exist_ok=True)
    move_file(scratch / name / "group" / "zarr.json", path / name / "zarr.json")


def _differing(there: dict, now: dict) -> list[str]:
    return [key for key in now if there.get(key) != now[key]]


def _other_settings(path: Path, there: dict, now: dict, differing: list[str]) -> StoreError:
    values = []
    for key in differing:
        before, after = there.get(key), now[key]
        if isinstance(before, dict) and isinstance(after, dict):  # only the entries that differ
            inner = [name for name in {**before, **after} if before.get(name) != after.get(name)]
            values += [(f"{key}.{name}", before.get(name), after.get(name)) for name in inner]
        else:
            values.append((key, before, after))
    pairs = "; ".join(f"{name} is {before!r} in the store and {after!r} now" for name, before, after in values)
    return StoreError(
        f"the store was made with other settings: {pairs}",
        where=path,
        fix="Use the settings of the store, or choose another --out.",
    )
