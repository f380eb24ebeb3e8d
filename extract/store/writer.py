"""Writing a feature store: what a job adds is there whole or not at all, and nothing that stands is rewritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from ...errors import StoreError
from . import format as fmt
from .commit import Scratch, move_file, move_folder
from .format import SCANS
from .reader import FeatureStore, ScanBlock, Source, TargetBlock, open_store

FOLDERS = ("teachers", "sources", "blocks")  # zarr groups of their own


class StoreWriter:
    """Adds to a store; `create_store` gives one.

    Args:
        store: to be written to.
        owner: names the scratch folder, so that the next run under this name clears what a killed one left.
    """

    def __init__(self, store: FeatureStore, owner: str) -> None:
        self.store, self.path = store, store.path
        self._scratch = Scratch(store.path / "tmp", owner)

    def clear_leftovers(self) -> int:
        """Remove what killed runs of the same owner left; gives the number of leftovers."""
        return self._scratch.clear()

    def add_inputs(self, settings: dict, record: dict, teachers: dict[str, dict]) -> Source:
        """Record a split of a dataset and the teachers that look at it, or find them recorded.

        Args:
            settings: what the scans and pairs depend on, plain JSON values, `dataset`, `split`, `frames_per_block` and
                `num_blocks` among them; compared with what is recorded.
            record: what is worth knowing besides (dataset folder, versions), not compared.
            teachers: what each teacher's targets depend on; compared likewise.

        Raises:
            StoreError: the split or a teacher is there with other settings; nothing is recorded then.
        """
        self._find_source(settings)
        for name, provenance in teachers.items():
            self._refuse_other_teacher(name, provenance)
        for name, provenance in teachers.items():
            if not self._claim(f"teachers/{name}", provenance):
                self._refuse_other_teacher(name, provenance)
        while (source := self._find_source(settings)) is None:
            # Number and first block come from one look at the store. Should another job claim this number first,
            # the next round sees what it claimed it for.
            attributes = {**settings, "first_block": self.store.num_blocks, "record": record}
            self._claim(f"sources/{len(self.store.sources):03d}", attributes)
        return source

    def batch_size(self, teacher: str, measure: Callable[[], int]) -> int:
        """How many images a teacher sees at once, as the first job measured it for all: results of other batches may
        differ in their last bits.
        """
        name = f"teachers/{teacher}/batch"
        if not (self.path / name).exists():
            self._claim(name, {"batch_size": measure()})
        return fmt.read_attributes(self.path / name / "zarr.json", ["batch_size"])["batch_size"]

    def write_scans(self, block: int, scans: ScanBlock) -> int:
        """Commit the scans and pairs of a block, unless they are there; gives the bytes written."""

        def write(group: Path) -> None:
            for name in (".", "pairs", "targets"):
                fmt.write_group(group / name, {})
            fmt.write_array(group / "points", scans.points)
            fmt.write_array(group / "pairs/point_index", scans.point_index)
            fmt.write_array(group / "pairs/pixel", scans.pixel)

        return self._commit(SCANS, block, write, scans.views, scans.skipped)

    def write_targets(self, block: int, teacher: str, targets: TargetBlock) -> int:
        """Commit one teacher's targets of a block whose scans are there, unless they are there too."""

        def write(group: Path) -> None:
            fmt.write_group(group, {})
            fmt.write_array(group / "vectors", targets.vectors)
            if targets.scale is not None:
                fmt.write_array(group / "scale", targets.scale)

        return self._commit(teacher, block, write, targets.views)

    def recover(self, kind: str, block: int) -> bool:
        """Whether the scans (or a teacher's targets) of a block are committed, or whole and now committed.

        A job killed between its two renames leaves a whole group without an index. If every file is what the group's
        own index says, it counts from now on; otherwise it is removed.
        """
        if self.store.is_committed(kind, block):
            return True
        group = fmt.group_path(self.path, kind, block)
        if not group.exists():
            return False
        if not is_sound(group, kind):
            self.remove(kind, block)
            return False
        self._publish(kind, block)
        return True

    def remove(self, kind: str, block: int) -> None:
        """Take back a block's targets of one teacher, or its scans with the targets of every teacher."""
        kinds = [*self.store.teachers, SCANS] if kind == SCANS else [kind]
        group = fmt.group_path(self.path, kind, block)
        try:
            for each in kinds:
                fmt.index_path(self.path, each, block).unlink(missing_ok=True)
            self._scratch.discard(group)
        except OSError as error:
            raise StoreError(
                f"it cannot be taken out ({error.strerror})", where=group, fix="Check the store's permissions."
            ) from None

    def _find_source(self, settings: dict) -> Source | None:
        self.store.forget_inputs()
        for source in self.store.sources:
            if (source.dataset, source.split) == (settings["dataset"], settings["split"]):
                _refuse_other_settings(self.path, source.attributes, settings)
                return source
        return None

    def _refuse_other_teacher(self, name: str, provenance: dict) -> None:
        self.store.forget_inputs()
        if name in self.store.teachers:
            _refuse_other_settings(self.path / "teachers" / name, self.store.teachers[name], provenance)

    def _commit(
        self,
        kind: str,
        block: int,
        write: Callable[[Path], None],
        views: pa.Table,
        skipped: dict[str, str] | None = None,
    ) -> int:
        if self.recover(kind, block):
            return 0

        def attempt(scratch: Path) -> None:
            group = scratch / kind
            write(group)
            fmt.write_index(views, kind, group, skipped)
            # Where another job has put the same block meanwhile, its copy is as good as ours.
            move_folder(group, fmt.group_path(self.path, kind, block))

        self._scratch.attempt(attempt)
        self._publish(kind, block)
        group = fmt.group_path(self.path, kind, block)
        return sum(path.stat().st_size for path in fmt.files_of_group(group, kind))

    def _publish(self, kind: str, block: int) -> None:
        """Put a copy of a group's own index where readers look for it."""
        content = (fmt.group_path(self.path, kind, block) / fmt.GROUP_INDEX).read_bytes()
        target = fmt.index_path(self.path, kind, block)

        def attempt(scratch: Path) -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            (scratch / target.name).write_bytes(content)
            move_file(scratch / target.name, target)

        self._scratch.attempt(attempt)

    def _claim(self, name: str, attributes: dict) -> bool:
        """Make a group that nobody else has made; says whether it did."""
        if (self.path / name).exists():
            return False

        def attempt(scratch: Path) -> bool:
            fmt.write_group(scratch / "group", attributes)
            return move_folder(scratch / "group", self.path / name)

        return self._scratch.attempt(attempt)


def create_store(path: str | Path, owner: str) -> StoreWriter:
    """Make a store, or open the one that is there, to add to it.

    Args:
        path: the store's folder; its parent is made if it is missing.
        owner: of the scratch folder, such as "part-3-of-8".

    Raises:
        StoreError: the path holds something else or cannot be written.
    """
    path = Path(path)
    _refuse_other_content(path)
    if not (path / "zarr.json").exists():
        Scratch(path / "tmp", owner).attempt(lambda scratch: _write_skeleton(path, scratch))
    return StoreWriter(open_store(path), owner)


def is_sound(group: Path, kind: str) -> bool:
    """Whether a group's files are those that its own index lists, bit by bit."""
    try:
        return fmt.listed_files(group / fmt.GROUP_INDEX) == fmt.file_digests(group, kind)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return False


def _refuse_other_content(path: Path) -> None:
    found = {child.name for child in path.iterdir()} if path.is_dir() else set()
    if path.is_file() or ("zarr.json" not in found and not found <= {*FOLDERS, "index", "tmp"}):
        raise StoreError("something else is there, not a feature store", where=path, fix="Choose another --out.")


def _write_skeleton(path: Path, scratch: Path) -> None:
    """Every job writes the same files, so it does not matter which of several comes last."""
    attributes = {"format": fmt.FORMAT, "format_version": fmt.FORMAT_VERSION}
    for name in (*FOLDERS, "."):  # the root last: with it the store is there
        fmt.write_group(scratch / name / "group", attributes if name == "." else {})
        (path / name).mkdir(exist_ok=True)
        move_file(scratch / name / "group" / "zarr.json", path / name / "zarr.json")


def _refuse_other_settings(path: Path, there: dict, now: dict) -> None:
    differing = [key for key in now if there.get(key) != now[key]]
    if differing:
        pairs = "; ".join(f"{key} is {there.get(key)!r} in the store and {now[key]!r} now" for key in differing)
        raise StoreError(f"made with other settings: {pairs}", where=path, fix="Use these settings or another --out.")
