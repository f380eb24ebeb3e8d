"""Run an extraction: from a dataset and its teachers to a store, in one or several processes."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from ..counted import counted
from ..device import resolve_device
from ..errors import DatasetError, DoubtfulError, StoreError
from ..progress import progress
from .config import ExtractConfig
from .datasets import open_dataset
from .datasets.files import read_image
from .datasets.frame import Dataset, Frame
from .datasets.scans import intensity_of
from .estimate import Estimate, estimate, frames_of_a_block, too_large, warn_of_size
from .executors import Extractor, device_of_worker, existing_cluster, local_cluster, run_on_cluster
from .frame_identity import first_difference, frames_sha256, frames_table
from .pipeline import BlockDone, Pipeline, recorded_provenance
from .plan import FRAMES_PER_BLOCK, Block, plan_blocks, spread
from .plausibility import findings
from .preparation import PreparedFrame, Selection, SkippedFrame, prepare_frame, prepare_or_skip
from .statistics import TeacherStatistics
from .store import SCANS, FeatureStore, Source, StoreWriter, create_store, open_store
from .store.inspect import StoreReport, inspect_store
from .superpixels import FOLDER, SLIC, SuperpixelFolder, Superpixels, map_sha256, open_superpixels, read_map
from .teacher_sample import sample_statistics
from .teachers.batch_size import fitting_batch_size, kind_of_device
from .teachers.choices import NO_FILE, choose_weights
from .teachers.registry import keeps_only_segments
from .teachers.teacher import Teacher, load_teacher

logger = logging.getLogger(__name__)

TRIED_FRAMES = 8  # frames to try until one is usable, whose size determines the frames per block
COMPARED_VIEWS = 12  # views whose images are compared with scans before the first block
COMPARED_MAPS = 16  # superpixel maps of stored views that are compared with the folder of a later run


@dataclass(frozen=True)
class ExtractSummary:
    """What a run wrote, which frames of its part were skipped, and the content of the store after it."""

    blocks_written: int
    skipped: list[SkippedFrame]
    store: StoreReport

    def as_json(self) -> dict:
        """Plain JSON values."""
        skipped = {frame.token: frame.reason for frame in self.skipped}
        return {"blocks_written": self.blocks_written, "skipped": skipped, "store": self.store.as_json()}

    def as_text(self) -> str:
        """A table for people, without the skipped frames, which are reported separately."""
        return f"{self.store.as_text()}\n{counted(self.blocks_written, 'block')} written in this run"


def extract(config: ExtractConfig) -> ExtractSummary:
    """Run the teachers on every image of a split and store the targets of every visible point.

    Committed blocks are kept, so that the same call continues an interrupted extraction. Frames that were skipped are
    tried again; a block whose frames can all be used now is computed again.

    Raises:
        ScalrError: unusable input, weights or store; committed blocks remain complete.
    """
    config = _with_whole_paths(config)
    in_this_process = not config.workers and not config.scheduler
    dataset, teachers = _open_inputs(config, config.device if in_this_process else "cpu")
    for teacher in teachers:
        if keeps_only_segments(teacher.name) and config.kept_as.of_pairs:
            raise too_large(teacher, sum(len(frame.views) for frame in dataset.frames))
    selection = _selection(config, dataset)
    writer = create_store(config.out, config.part.folder_name)
    if leftovers := writer.clear_leftovers():
        logger.info("removed %d temporary files of a killed run of part %s", leftovers, config.part)
    for teacher in teachers:
        if teacher.provenance.weights == "random":
            logger.warning("%s has RANDOM weights: its targets are for tests and demos only", teacher.name)
    warnings = [] if _source_with_blocks(dataset, writer.store) else _judge_first_block(config, dataset)
    source = _add_to_store(config, writer, dataset, teachers, selection, warnings)
    blocks = config.part.select(_blocks(dataset, source))
    mended = _mended(config, dataset, writer, blocks, selection)
    todo = [replace(block, anew=block in mended) for block in blocks]
    todo = [block for block in todo if block.anew or _is_missing(writer, config.teachers, block)]
    logger.info("%d of %d blocks remain to be extracted into %s", len(todo), len(blocks), config.out)
    if todo:
        first = _first_frame(config, dataset, writer.store, todo[0])
        if isinstance(first, PreparedFrame):
            warn_of_size(first, len(dataset.frames), teachers, config.kept_as)
    written, skipped = 0, {}
    if todo and in_this_process:
        written, skipped = _follow(_pipeline(config, dataset, teachers, writer, source, selection).run(todo), todo)
    elif todo:
        del teachers  # the workers have their own
        with existing_cluster(config.scheduler) if config.scheduler else local_cluster(config.workers) as client:
            written, skipped = _follow(run_on_cluster(client, extractor, config, todo), todo)
    elif writer.lacks_statistics(config.teachers, source):
        _pipeline(config, dataset, teachers, writer, source, selection)  # the pipeline begins with the statistics
    writer.gather_indexes()
    writer.clear_leftovers()
    for block in blocks:
        skipped |= _skipped_before(writer.store, block)
    left_out = [SkippedFrame(token, reason) for token, reason in skipped.items()]
    return ExtractSummary(written, left_out, inspect_store(open_store(config.out)))


def estimate_extraction(config: ExtractConfig) -> Estimate:
    """Estimate size, time and memory of `extract` with this configuration on a few frames; nothing is written to `out`.

    Raises:
        ScalrError: unusable input or weights.
    """
    dataset, teachers = _open_inputs(config, config.device)
    batch_sizes = {each.name: config.batch_size or fitting_batch_size(each) for each in teachers}
    options = {name: getattr(config, name) for name in ("on_error", "frames_per_block")}
    options |= {"selection": _selection(config, dataset), "batch_sizes": batch_sizes}
    return estimate(dataset, teachers, config.kept_as, config.out, **options)


def extractor(config: ExtractConfig) -> Extractor:
    """Build the function that extracts blocks in a worker process, for a run that `extract` has set up.

    Raises:
        StoreError: this machine does not see the store, or sees other frames or weights than the store records.
    """
    if not (config.out / "zarr.json").exists():
        raise StoreError(
            "a worker cannot see the store",
            where=f"{config.out} on {socket.gethostname()}",
            fix="Put --out on storage that every worker mounts under the same path.",
        )
    dataset, teachers = _open_inputs(config, device_of_worker(config.device))
    writer = create_store(config.out, config.part.folder_name)
    selection = _selection(config, dataset)
    source = _add_to_store(config, writer, dataset, teachers, selection)  # compares, as everything is recorded
    return _pipeline(config, dataset, teachers, writer, source, selection).run


def _with_whole_paths(config: ExtractConfig) -> ExtractConfig:
    """Make paths absolute, since each worker runs in a folder of its own."""
    whole = {"root": config.root.resolve(), "out": config.out.resolve(), "weights": _whole_paths_of_weights(config)}
    if config.superpixels not in (None, SLIC):
        whole["superpixels"] = config.superpixels.resolve()
    return replace(config, **whole)


def _whole_paths_of_weights(config: ExtractConfig) -> tuple[str, ...]:
    """Make paths absolute without following links: a link, as in Hugging Face's cache, has the file type's suffix."""
    chosen = choose_weights(config.teachers, config.weights)
    whole = {name: given if given in NO_FILE else os.path.abspath(given) for name, given in chosen.items()}
    return tuple(f"{name}={given}" for name, given in whole.items())


def _selection(config: ExtractConfig, dataset: Dataset) -> Selection:
    return replace(config.selection, superpixels=open_superpixels(config.superpixels, dataset))


def _open_inputs(config: ExtractConfig, device: str) -> tuple[Dataset, list[Teacher]]:
    dataset = open_dataset(config.dataset, config.root, config.split, need="images")
    options = {name: getattr(config, name) for name in ("image_size", "feature", "pos_embed", "precision")}
    options["device"] = resolve_device(device)
    weights = choose_weights(config.teachers, config.weights)
    return dataset, [load_teacher(name, weights=weights.get(name, "hub"), **options) for name in config.teachers]


def _pipeline(
    config: ExtractConfig,
    dataset: Dataset,
    teachers: list[Teacher],
    writer: StoreWriter,
    source: Source,
    selection: Selection,
) -> Pipeline:
    batch_sizes = {
        each.name: config.batch_size
        or writer.batch_size(each.name, kind_of_device(each.device), partial(fitting_batch_size, each))
        for each in teachers
    }

    def measure(names: list[str]) -> dict[str, TeacherStatistics]:
        lacking = [teacher for teacher in teachers if teacher.name in names]
        return sample_statistics(dataset, lacking, config.selection, batch_sizes, writer.store, source)

    statistics = writer.statistics(config.teachers, source, measure)
    options = {"selection": selection, "on_error": config.on_error, "batch_sizes": batch_sizes}
    return Pipeline(dataset, teachers, config.kept_as, writer, statistics=statistics, **options)


def _judge_first_block(config: ExtractConfig, dataset: Dataset) -> list[str]:
    """Test the run's first block for plausibility; log doubts, and return them for the store's record.

    Raises:
        DatasetError: something is certainly wrong; no teacher has run yet.
    """
    num_frames = len(dataset.frames)
    blocks = plan_blocks(num_frames, config.frames_per_block or FRAMES_PER_BLOCK[config.kept_as.layout])
    frames = [
        dataset.frames[each] for block in config.part.select(blocks)[:1] for each in range(block.start, block.stop)
    ]
    found = findings(dataset, frames, COMPARED_VIEWS)
    if certain := [each for each in found if not isinstance(each, DoubtfulError)]:
        raise certain[0]
    for doubt in found:
        logger.warning("%s", doubt)
    return [str(doubt) for doubt in found]


def _add_to_store(
    config: ExtractConfig,
    writer: StoreWriter,
    dataset: Dataset,
    teachers: list[Teacher],
    selection: Selection,
    warnings: Sequence[str] = (),
) -> Source:
    frames = frames_table(dataset.frames)
    provenances = {teacher.name: recorded_provenance(teacher, config.kept_as) for teacher in teachers}
    settings = _settings(config, dataset, teachers, writer.store, frames, selection)
    return writer.add_inputs(settings, _record(config, warnings), provenances, frames)


def _blocks(dataset: Dataset, source: Source) -> list[Block]:
    return plan_blocks(len(dataset.frames), source.frames_per_block, source.first_block)


def _is_missing(writer: StoreWriter, teachers: Iterable[str], block: Block) -> bool:
    return not all(writer.recover(kind, block.index) for kind in (SCANS, *teachers))


def _first_frame(
    config: ExtractConfig, dataset: Dataset, store: FeatureStore, block: Block
) -> PreparedFrame | SkippedFrame:
    """Prepare a block's first frame, without images."""
    frame = dataset.frames[block.start]
    if reason := _skipped_before(store, block).get(frame.token):
        return SkippedFrame(frame.token, reason)
    committed = store.read_scans(block.index) if store.is_committed(SCANS, block.index) else None
    return prepare_or_skip(dataset, frame, [], config.selection, config.on_error, committed)


def _skipped_before(store: FeatureStore, block: Block) -> dict[str, str]:
    return store.skipped_frames(block.index) if store.is_committed(SCANS, block.index) else {}


def _mended(
    config: ExtractConfig, dataset: Dataset, writer: StoreWriter, blocks: list[Block], selection: Selection
) -> set[Block]:
    """Find the committed blocks that lack frames, if all of these can be used now: a complete block can replace them.

    A block remains as it is if one of its frames still cannot be used, or if it has targets of a teacher that
    this run does not extract.
    """
    mended = set()
    for block in blocks:
        if not (skipped := _skipped_before(writer.store, block)):
            continue
        frames = [dataset.frames[number] for number in range(block.start, block.stop)]
        frames = [frame for frame in frames if frame.token in skipped]
        usable = [frame.token for frame in frames if _can_be_used(dataset, frame, selection)]
        others = [name for name in writer.store.teachers if writer.store.is_committed(name, block.index)]
        others = [name for name in others if name not in config.teachers]
        if usable and others:
            logger.warning(
                "block %d is not extracted again: %s can be used now, but the block also has targets of %s;"
                " to extract it"
                " again, name all these teachers with --teacher",
                *(block.index, _some(usable), " and ".join(others)),
            )
        elif usable and len(usable) < len(skipped):
            still = [token for token in skipped if token not in usable]
            logger.warning(
                "block %d is not extracted again: %s can be used now, but %s still cannot",
                *(block.index, _some(usable), _some(still)),
            )
        elif usable:
            logger.warning("block %d is extracted again: %s can be used now", block.index, _some(usable))
            mended.add(block)
    return mended


def _some(tokens: list[str]) -> str:
    return f"frame {tokens[0]}" if len(tokens) == 1 else f"{len(tokens)} frames, {tokens[0]} …"


def _can_be_used(dataset: Dataset, frame: Frame, selection: Selection) -> bool:
    try:
        for view in prepare_frame(dataset, frame, [], selection).frame.views:
            image = read_image(dataset.root, view)
            if selection.superpixels is not None:
                selection.superpixels.map_of(view, image)
    except DatasetError:
        return False
    return True


def _follow(reports: Iterator[BlockDone], todo: list[Block]) -> tuple[int, dict[str, str]]:
    """Consume the reports of all blocks, with a progress bar that shows frames and bytes per second.

    Returns:
        The number of committed blocks, and the skipped frames: frame ID -> reason.
    """
    num_bytes, written, skipped = 0, 0, {}
    with progress(sum(block.num_frames for block in todo), "extract", "frame") as bar:
        for done in reports:
            num_bytes += done.num_bytes
            written += done.num_bytes > 0
            skipped |= {frame.token: frame.reason for frame in done.skipped}
            seconds = max(bar.format_dict["elapsed"], 1e-3)
            bar.set_postfix_str(f"{num_bytes / seconds / 1e6:.1f} MB/s", refresh=False)
            bar.update(done.num_frames)
    return written, skipped


def _settings(
    config: ExtractConfig,
    dataset: Dataset,
    teachers: list[Teacher],
    store: FeatureStore,
    frames: pa.Table,
    selection: Selection,
) -> dict:
    """The settings of the source: everything that scans and pairs depend on, for all teachers alike."""
    digest = frames_sha256(frames)
    recorded = _source_with_blocks(dataset, store)
    if recorded is not None and recorded.attributes["frames_sha256"] != digest:
        _refuse_other_frames(store, recorded, frames)
        digest = recorded.attributes["frames_sha256"]  # the same except for rounding, or a repaired row
    frames_per_block = config.frames_per_block
    if frames_per_block is None:
        frames_per_block = (
            recorded.frames_per_block if recorded else _frames_per_block(config, dataset, teachers, selection)
        )
    # Measured statistics are kept: a new measurement would differ if another scan is readable now.
    measured_before = recorded is not None and getattr(dataset, "intensity", None) is None
    intensity = recorded.intensity if measured_before else intensity_of(dataset)
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "num_frames": len(dataset.frames),
        "frames_per_block": frames_per_block,
        "num_blocks": len(plan_blocks(len(dataset.frames), frames_per_block)),
        "frames_sha256": digest,
        "points": config.points,
        "occlusion": config.occlusion,
        "superpixels": _superpixels_settings(selection.superpixels, dataset, store, recorded),
        "visibility": {name: value for name, value in asdict(dataset.visibility).items() if value is not None},
        "intensity": asdict(intensity),
    }


def _source_with_blocks(dataset: Dataset, store: FeatureStore) -> Source | None:
    """The split's record; None if no block of it is committed, since such a record is not binding."""
    keys, committed = (dataset.name, dataset.split), store.committed_blocks()
    sources = (source for source in store.sources if (source.dataset, source.split) == keys)
    return next((source for source in sources if not committed.isdisjoint(source.blocks)), None)


def _refuse_other_frames(store: FeatureStore, source: Source, frames: pa.Table) -> None:
    try:
        difference = first_difference(store.read_frames(source), frames)
    except FileNotFoundError:
        difference = "its table of frames, which would tell where, is lost"
    if difference is not None:
        raise StoreError(
            f"the dataset's tables of {source.dataset} {source.split} have changed since the extraction began:"
            f" {difference}",
            where=store.path,
            fix="Use the unchanged dataset, or choose another --out.",
        )


def _superpixels_settings(
    superpixels: Superpixels | None, dataset: Dataset, store: FeatureStore, recorded: Source | None
) -> dict | None:
    """The settings that a store records for superpixels.

    If maps of a folder were repaired, or added for skipped frames, the recorded settings remain as long as the maps of
    the stored views are the same.
    """
    if superpixels is None:
        return None
    before = None if recorded is None else recorded.superpixels
    if before is None or not isinstance(superpixels, SuperpixelFolder) or before["method"] != FOLDER:
        return superpixels.settings
    _refuse_other_maps(superpixels, dataset, store, recorded)  # other maps may have the same sizes
    return before


def _refuse_other_maps(superpixels: SuperpixelFolder, dataset: Dataset, store: FeatureStore, source: Source) -> None:
    """Refuse a folder whose maps of some stored views differ from the stored digests."""
    frames = {frame.token: frame for frame in dataset.frames}
    rows = np.flatnonzero(np.isin(store.column("block"), list(source.blocks)))
    for number in spread(len(rows))[:COMPARED_MAPS]:
        row = store.views.slice(int(rows[number]), 1).to_pylist()[0]
        view = next(each for each in frames[row["token"]].views if each.camera == row["camera"])
        ids = read_map(superpixels.path_of(view), (row["image_height"], row["image_width"]))
        if map_sha256(ids) != row["superpixels_sha256"]:
            raise StoreError(
                f"the superpixel map has changed since frame {row['token']}, camera {row['camera']}, was stored",
                where=superpixels.path_of(view),
                fix="Pass --superpixels with the folder that the store was made from, or choose another --out.",
            )


def _frames_per_block(config: ExtractConfig, dataset: Dataset, teachers: list[Teacher], selection: Selection) -> int:
    """The encoding's default, or fewer if blocks of frames as large as the first usable one would be too large."""
    looking = [] if selection.superpixels is None else teachers  # segments can only be counted in images
    for frame in dataset.frames[:TRIED_FRAMES]:
        with suppress(DatasetError):
            prepared = prepare_frame(dataset, frame, looking, selection)
            return frames_of_a_block(prepared, teachers, config.kept_as)
    return FRAMES_PER_BLOCK[config.kept_as.layout]


def _record(config: ExtractConfig, warnings: Sequence[str]) -> dict:
    packages = ("scalr-distill", "torch", "timm", "numpy", "zarr")
    return {
        "reader": config.dataset,
        "root": str(config.root),
        **({} if config.superpixels in (None, SLIC) else {"superpixels": str(config.superpixels)}),
        **({"warnings": list(warnings)} if warnings else {}),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
