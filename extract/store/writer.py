"""Writing a feature store: what a job adds is there whole or not at all, and nothing that stands is deleted."""

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
    """Adds to a store; `create_store` gives one.

    Args:
        store: to be written to.
        owner: names the scratch folder, so that the next run under this name clears what a killed one left.
    """

    def __init__(self, store: FeatureStore, owner: str) -> None:
        self.store, self.path = store, store.path
        self.aside = AsideFolder(store.path)
        self._scratch = Scratch(store.path / fmt.TMP, owner)

    def clear_leftovers(self) -> int:
        """Remove what killed runs of the same owner left; gives the number of leftovers."""
        return self._scratch.clear()

    def gather_indexes(self, anew: Collection[str] = ()) -> None:
        """Gather the indexes that stand by themselves, where there are many, for readers to open one file.

        Nothing depends on it, so whatever prevents it is a warning.

        Args:
            anew: kinds of which the gathered file is wrong.
        """
        try:
            for kind in (SCANS, *self.store.teachers):
                if kind in anew:
                    self._drop_gathered(kind)
                before: list[int] = []
                # Again where another job committed blocks meanwhile: its own file may be the one that was replaced.
                while (left := not_gathered(self.path, kind)) and left != before:
                    self._scratch.attempt(partial(self._gather, kind))
                    before = left
        except StoreError as error:
            logger.warning("the indexes are not gathered, so that readers take longer to begin: %s", error)

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
        """Record a split of a dataset and the teachers that look at it, or find them recorded.

        A source or teacher of which no block is committed yet binds nobody: other settings replace it.

        Args:
            settings: what the scans and pairs depend on, plain JSON values, `dataset`, `split`, `frames_per_block` and
                `num_blocks` among them; compared with what is recorded. None says that there is no such thing, and is
                not recorded.
            record: what is worth knowing besides (dataset folder, versions), not compared.
            teachers: what each teacher's targets depend on; compared likewise.
            frames: what the dataset's tables say of the frames, kept beside the source.

        Raises:
            StoreError: the split or a teacher is there with other settings, or a record is damaged or lost; nothing is
                recorded then.
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
            # Number and first block come from the look at the store that found no such source. Should another job
            # claim this number first, the next round sees what it claimed it for.
            known = {name: value for name, value in settings.items() if value is not None}
            attributes = {**known, "first_block": self._next_block(), "record": record}
            self._claim(f"sources/{self._next_source():03d}", partial(_write_source, attributes, frames))
        if any(each.superpixels for each in self.store.sources):
            self._require_readers_of_superpixels()  # another job may have begun the store just then, with its own root
        self._keep_frames(source, frames)
        return source

    def batch_size(self, teacher: str, device: str, measure: Callable[[], int]) -> int:
        """How many images a teacher sees at once on one kind of device, as the first job there measured it for all:
        results of other batches may differ in their last bits.
        """
        name = f"teachers/{teacher}/batch/{device}"
        if not is_there(self.path / name):
            self._claim(name, partial(fmt.write_record, attributes={"batch_size": measure()}))
        return fmt.read_record(self.path / name / "zarr.json", ["batch_size"])["batch_size"]

    def statistics(
        self, teachers: Iterable[str], source: Source, measure: Callable[[list[str]], dict[str, TeacherStatistics]]
    ) -> dict[str, TeacherStatistics]:
        """What teachers' vectors in the sample of a source have in common, as the first job measured it for all.

        Statistics of a sample that lacked frames are replaced by those of a more complete one, as long as no block was
        made with them.

        Args:
            teachers: recorded in the store.
            source: likewise.
            measure: called with the names of those teachers that have none, damaged ones or such as may be replaced.

        Raises:
            UnreadableError: something cannot be looked at now.
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
        """Whether `statistics` would have to measure."""
        return any(self._find_statistics(name, source) is None for name in teachers)

    # --- blocks ------------------------------------------------------------------------------------------------

    def draft(
        self,
        block: int,
        teachers: Iterable[str],
        scans: ScanBlock | None = None,
        channels: Mapping[str, np.ndarray] | None = None,
    ) -> Draft:
        """Begin a block: with `scans`, as they are committed, only targets of `teachers` are added; without, both.

        The scratch folder is to be removed in the end: `draft.scratch.remove()`.

        Args:
            block: its number.
            teachers: whose targets it gets.
            scans: as they are committed, or None.
            channels: (2, D) float32 of each teacher whose vectors are int8, see `TeacherStatistics.channels`.
        """
        records = {name: self.store.teachers[name] for name in teachers}
        source, views = self.store.record_of(SCANS, block), None if scans is None else scans.views
        return Draft(block, self._scratch.new_folder(), source, records, channels or {}, views)

    def commit(self, draft: Draft, *, replacing: bool = False) -> bool:
        """Make a draft count; False where other scans of the block stand, so that it has to be made anew.

        Scans come into place together with their targets, by one rename: where two jobs have made the same block, and
        perhaps of other frames, the first rename decides for both kinds.

        Args:
            draft: of whole views, each teacher's targets of every one of them.
            replacing: put the committed block aside first, which has fewer frames.

        Raises:
            ScratchTakenError: another run took the draft's scratch folder away.
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
        """Whether the scans (or a teacher's targets) of a block are committed, or whole and now committed.

        A job killed between its two renames leaves a whole group without an index. If every file is what the group's
        own index says, it counts from now on; otherwise it is put aside.
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
        """Take a block's targets of one teacher, or its scans with the targets of every teacher, out of the store.

        Nothing is deleted: what is taken out is kept in the folder `aside`, which is given.

        Raises:
            StoreError: the file system refuses.
        """
        # Scans last: without them, targets are of nothing.
        kinds = sorted(self.store.indexed_kinds(), key=lambda each: each == SCANS) if kind == SCANS else [kind]
        indexes = [fmt.index_path(self.path, each, block) for each in kinds]
        for each in kinds:  # on a file system without times of files, the next index could pass for this one
            self._drop_gathered(each)
        return self.aside.take(kind, block, indexes)

    def put_back(self, kind: str, block: int) -> bool:
        """Bring back what was last set aside of a block, where nothing has taken its place; says whether it did."""
        return not is_there(fmt.group_path(self.path, kind, block)) and self.aside.give_back(kind, block)

    def rewrite_record(self, name: str, attributes: Mapping | None) -> Path | None:
        """Write a zarr.json that was damaged or lost anew; gives where the damaged one is kept.

        Args:
            name: path in the store.
            attributes: of a record; None of a group without.
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
        """Write that copy of a group's index anew which does not fit its files; gives where the other is kept."""
        kept = None
        copies = (fmt.group_path(self.path, kind, block) / fmt.GROUP_INDEX, fmt.index_path(self.path, kind, block))
        for target in copies:
            if not is_there(target) or read_bytes(target) != content:
                kept = self.aside.take_file(target)
                self._replace(target, content)
        return kept

    # --- how ---------------------------------------------------------------------------------------------------

    def _put(self, draft: Draft) -> bool:
        """Move a draft's groups into place and let them count; False where other scans stand there."""
        if draft.brings_scans and self._put_group(SCANS, draft):
            for name in draft.teachers:  # came with the scans
                self._publish(name, draft.block)
            return True
        if self._views_differ(draft):
            return False
        for name in draft.teachers:
            self._put_group(name, draft)
        return True

    def _put_group(self, kind: str, draft: Draft) -> bool:
        """Whether it is the draft's own group that stands now, and counts.

        Where another job has put the same group meanwhile, its copy is as good as ours; what a killed one left counts
        if it is whole, and is put aside otherwise.
        """
        group, target = draft.group(kind), fmt.group_path(self.path, kind, draft.block)
        is_there(target)  # else a link to storage that is not mounted would be a riddle to whoever reads the error
        ours = move_folder(group, target, draft.scratch.path)
        if not ours and not self.recover(kind, draft.block):
            ours = move_folder(group, target, draft.scratch.path)
        if ours:
            self._publish(kind, draft.block)
        return ours

    def _views_differ(self, draft: Draft) -> bool:
        """Whether the scans that stand are others than the draft's targets belong to."""
        index = fmt.group_path(self.path, SCANS, draft.block) / fmt.GROUP_INDEX
        try:
            return not fmt.read_index(index, SCANS).equals(draft.views)
        except FileNotFoundError:
            return True

    def _is_sound(self, kind: str, block: int) -> bool:
        """Whether a group's files are those that its own index lists, bit by bit, made as is recorded now."""
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
        """Sound targets that were set aside with damaged scans belong to the scans that are made anew."""
        for teacher in self.store.teachers:
            if not self.store.is_committed(teacher, block) and self.aside.give_back_targets(teacher, block):
                if self.recover(teacher, block) and self._targets_fit(teacher, block):
                    logger.info("block %d: the targets of %s that were set aside are back", block, teacher)
                elif self.store.is_committed(teacher, block):
                    self.set_aside(teacher, block)

    def _targets_fit(self, teacher: str, block: int) -> bool:
        try:
            self.store.read_targets(block, teacher)
            return True
        except DamagedError:
            return False

    def _require_recorded(self, draft: Draft) -> None:
        """Other settings replace those of a source or teacher without blocks, so this may have happened since."""
        self.store.forget_inputs()
        recorded = {name: self.store.teachers.get(name) for name in draft.teachers}
        drafted = {name: draft.record_of(name) for name in draft.teachers}
        if self.store.record_of(SCANS, draft.block) != draft.source or recorded != drafted:
            raise StoreError(
                "another run has replaced the settings of this one, or removed them, before a block was committed",
                where=self.path,
                fix="Run all jobs of one extraction with the same options.",
            )

    def _require_readers_of_superpixels(self) -> None:
        """From now on, releases that do not know superpixels refuse the store; before anything of theirs is in it."""
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
                return self._find_source(settings)  # another job may have begun it meanwhile
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
        """Sound ones that are there; damaged ones are kept aside."""
        folder = self.store.folder_of(source).name
        if not self.store.has_statistics(teacher, folder):
            return None
        try:
            return self.store.statistics(teacher, [source])
        except DamagedError as error:
            kept = self.aside.take_file(self.path / statistics_name(teacher, folder))
            logger.warning("%s; they are made anew, and the damaged ones kept in %s", error.what, kept)
            return None

    def _may_be_replaced(self, teacher: str, source: Source, found: TeacherStatistics | None) -> bool:
        if found is None:
            return True
        has_blocks = not self.store.committed_blocks(teacher).isdisjoint(source.blocks)
        return found.frames_left_out > 0 and not (has_blocks and found.count)

    def _keep_frames(self, source: Source, frames: pa.Table | None) -> None:
        """Write the table of frames again where it was lost."""
        target = self.store.folder_of(source) / fmt.FRAMES_TABLE
        if frames is not None and not is_there(target):
            self._scratch.attempt(
                lambda scratch: move_file(fmt.write_frames(frames, scratch), target)  # equal for all who write it
            )

    def _drop(self, folder: Path, differing: list[str]) -> None:
        """A false start does not bind."""
        logger.warning(
            "%s: %s of a run that committed nothing is replaced by this one's", folder, " and ".join(differing)
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
        """Put a copy of a group's own index where readers look for it."""
        content = (fmt.group_path(self.path, kind, block) / fmt.GROUP_INDEX).read_bytes()
        self._replace(fmt.index_path(self.path, kind, block), content)

    def _replace(self, target: Path, content: bytes) -> None:
        def attempt(scratch: Path) -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            (scratch / target.name).write_bytes(content)
            move_file(scratch / target.name, target)

        self._scratch.attempt(attempt)

    def _claim(self, name: str, write: Callable[[Path], object]) -> bool:
        """Make a record, and what belongs to it, that nobody else has made; says whether it did."""
        if is_there(self.path / name):  # folder and record come by one rename, so this order cannot see one alone
            if is_there(self.path / name / "zarr.json"):
                return False
            self._scratch.discard(self.path / name)  # its record was lost before there was a block

        def attempt(scratch: Path) -> bool:
            write(scratch / "group")
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            return move_folder(scratch / "group", self.path / name, scratch)

        return self._scratch.attempt(attempt)


def create_store(path: str | Path, owner: str) -> StoreWriter:
    """Make a store, or open the one that is there, to add to it.

    Args:
        path: the store's folder; its parent is made if it is missing.
        owner: of the scratch folder, such as "part-3-of-8".

    Raises:
        StoreError: the path holds something else or cannot be written.
        UnreadableError: something is there that may not be looked at.
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
        raise StoreError("something else is there, not a feature store", where=path, fix="Choose another --out.")


def _write_skeleton(path: Path, scratch: Path) -> None:
    """Every job writes the same files, so it does not matter which of several comes last."""
    for name in fmt.SKELETON:
        _write_group(path, name, None, scratch)
    _write_group(path, ".", fmt.root_attributes(with_superpixels=False), scratch)  # last: with it the store is there


def _write_group(path: Path, name: str, record: dict | None, scratch: Path) -> None:
    """Write the zarr.json of a folder of the store; None: of a group without attributes."""
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
        if isinstance(before, dict) and isinstance(after, dict):  # only what differs of them
            inner = [name for name in {**before, **after} if before.get(name) != after.get(name)]
            values += [(f"{key}.{name}", before.get(name), after.get(name)) for name in inner]
        else:
            values.append((key, before, after))
    pairs = "; ".join(f"{name} is {before!r} in the store and {after!r} now" for name, before, after in values)
    return StoreError(f"made with other settings: {pairs}", where=path, fix="Use these settings or another --out.")
