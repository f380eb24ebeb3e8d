"""Stage one: a dataset and its teachers to a store, in whatever processes."""

from __future__ import annotations

import importlib.metadata
import logging
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

from ..device import resolve_device
from ..errors import DatasetError, StoreError
from ..progress import progress
from .config import ExtractConfig
from .datasets import open_dataset
from .datasets.files import read_image
from .datasets.frame import Dataset, Frame
from .datasets.scans import intensity_of
from .encoding import Encoding
from .estimate import Estimate, estimate, warn_of_size
from .executors import Extractor, device_of_worker, existing_cluster, local_cluster, run_on_cluster
from .pipeline import BlockDone, Pipeline, recorded_provenance
from .plan import FRAMES_PER_BLOCK, Block, frames_digest, plan_blocks
from .preparation import PreparedFrame, Selection, SkippedFrame, prepare_frame, prepare_or_skip
from .store import SCANS, FeatureStore, Source, StoreWriter, create_store, open_store
from .store.inspect import StoreReport, inspect_store
from .teachers.batch_size import fitting_batch_size
from .teachers.choices import choose_weights
from .teachers.teacher import Teacher, load_teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractSummary:
    """What a run wrote, what of its part had to be left out, and what the store holds now."""

    blocks_written: int
    skipped: list[SkippedFrame]
    store: StoreReport

    def as_json(self) -> dict:
        """Plain JSON values."""
        skipped = {frame.token: frame.reason for frame in self.skipped}
        return {"blocks_written": self.blocks_written, "skipped": skipped, "store": self.store.as_json()}

    def as_text(self) -> str:
        """A table for people; what was skipped is told apart."""
        return f"{self.store.as_text()}\n{self.blocks_written} blocks written now"


def extract(config: ExtractConfig) -> ExtractSummary:
    """Run the teachers on every image of a split and store the targets of every visible point.

    Blocks that are committed stay; the same call after a crash goes on where it stopped. Frames that were skipped are
    tried again, and the blocks of those that can be used now are made anew.

    Raises:
        ScalrError: what is wrong with the input, the weights or the store; committed blocks stay whole.
    """
    config = replace(config, root=config.root.resolve(), out=config.out.resolve())  # workers have their own folder
    in_this_process = not config.workers and not config.scheduler
    dataset, teachers = _open_inputs(config, config.device if in_this_process else "cpu")
    writer = create_store(config.out, config.part.folder_name)
    if leftovers := writer.clear_leftovers():
        logger.info("cleared %d leftovers of a run of part %s that was killed", leftovers, config.part)
    for teacher in teachers:
        if teacher.provenance.weights == "random":
            logger.warning("%s has RANDOM weights: its targets are for tests and demos only", teacher.name)
    source = _add_to_store(config, writer, dataset, teachers)
    blocks = config.part.select(_blocks(dataset, source))
    _take_out_mended(config, dataset, writer, blocks)
    todo = [block for block in blocks if _is_missing(writer, config.teachers, block)]
    logger.info("%d of %d blocks to extract into %s", len(todo), len(blocks), config.out)
    if todo:
        first = _first_frame(config, dataset, writer.store, todo[0])
        if isinstance(first, PreparedFrame):
            warn_of_size(first, len(dataset.frames), teachers, Encoding(config.encoding, config.dtype))
    skipped = {}
    if todo and in_this_process:
        skipped = _follow(_pipeline(config, dataset, teachers, writer).run(todo), todo)
    elif todo:
        del teachers  # the workers have their own
        with existing_cluster(config.scheduler) if config.scheduler else local_cluster(config.workers) as client:
            skipped = _follow(run_on_cluster(client, extractor, config, todo), todo)
    writer.clear_leftovers()
    for block in blocks:
        skipped |= _skipped_before(writer.store, block)
    left_out = [SkippedFrame(token, reason) for token, reason in skipped.items()]
    return ExtractSummary(len(todo), left_out, inspect_store(open_store(config.out)))


def estimate_extraction(config: ExtractConfig) -> Estimate:
    """What `extract` with this configuration will take, measured on a few frames; nothing is written to `out`.

    Raises:
        ScalrError: what is wrong with the input or the weights.
    """
    dataset, teachers = _open_inputs(config, config.device)
    chosen = Encoding(config.encoding, config.dtype)
    batch_sizes = {each.name: config.batch_size or fitting_batch_size(each) for each in teachers}
    options = {name: getattr(config, name) for name in ("selection", "on_error", "frames_per_block")}
    return estimate(dataset, teachers, chosen, config.out, batch_sizes=batch_sizes, **options)


def extractor(config: ExtractConfig) -> Extractor:
    """What a worker process needs to extract blocks of a run that `extract` has set up.

    Raises:
        StoreError: this machine does not see the store, or other frames or weights than those it was made for.
    """
    if not (config.out / "zarr.json").exists():
        raise StoreError(
            "a worker does not see the store",
            where=f"{config.out} on {socket.gethostname()}",
            fix="Put --out on storage that every worker mounts under the same path.",
        )
    dataset, teachers = _open_inputs(config, device_of_worker(config.device))
    writer = create_store(config.out, config.part.folder_name)
    _add_to_store(config, writer, dataset, teachers)  # all is recorded: this compares
    return _pipeline(config, dataset, teachers, writer).run


def _open_inputs(config: ExtractConfig, device: str) -> tuple[Dataset, list[Teacher]]:
    dataset = open_dataset(config.dataset, config.root, config.split, need="images")
    options = {name: getattr(config, name) for name in ("image_size", "feature", "pos_embed", "precision")}
    options["device"] = resolve_device(device)
    weights = choose_weights(config.teachers, config.weights)
    return dataset, [load_teacher(name, weights=weights.get(name, "hub"), **options) for name in config.teachers]


def _pipeline(config: ExtractConfig, dataset: Dataset, teachers: list[Teacher], writer: StoreWriter) -> Pipeline:
    encoding = Encoding(config.encoding, config.dtype)
    batch_sizes = {
        each.name: config.batch_size or writer.batch_size(each.name, partial(fitting_batch_size, each))
        for each in teachers
    }
    options = {"selection": config.selection, "on_error": config.on_error}
    return Pipeline(dataset, teachers, encoding, writer, batch_sizes=batch_sizes, **options)


def _add_to_store(config: ExtractConfig, writer: StoreWriter, dataset: Dataset, teachers: list[Teacher]) -> Source:
    encoding = Encoding(config.encoding, config.dtype)
    provenances = {teacher.name: recorded_provenance(teacher, encoding) for teacher in teachers}
    return writer.add_inputs(_settings(config, dataset, writer.store), _record(config), provenances)


def _blocks(dataset: Dataset, source: Source) -> list[Block]:
    return plan_blocks(len(dataset.frames), source.frames_per_block, source.first_block)


def _is_missing(writer: StoreWriter, teachers: Iterable[str], block: Block) -> bool:
    return not all(writer.recover(kind, block.index) for kind in (SCANS, *teachers))


def _first_frame(
    config: ExtractConfig, dataset: Dataset, store: FeatureStore, block: Block
) -> PreparedFrame | SkippedFrame:
    """A block's first frame, without images."""
    frame = dataset.frames[block.start]
    if reason := _skipped_before(store, block).get(frame.token):
        return SkippedFrame(frame.token, reason)
    committed = store.read_scans(block.index) if store.is_committed(SCANS, block.index) else None
    return prepare_or_skip(dataset, frame, [], config.selection, config.on_error, committed)


def _skipped_before(store: FeatureStore, block: Block) -> dict[str, str]:
    return store.skipped_frames(block.index) if store.is_committed(SCANS, block.index) else {}


def _take_out_mended(config: ExtractConfig, dataset: Dataset, writer: StoreWriter, blocks: list[Block]) -> None:
    """Remove committed blocks that were made without a frame that can be used now."""
    for block in blocks:
        skipped = _skipped_before(writer.store, block)
        frames = [dataset.frames[number] for number in range(block.start, block.stop)] if skipped else []
        mended = [
            frame for frame in frames if frame.token in skipped and _can_be_used(dataset, frame, config.selection)
        ]
        if mended:
            logger.warning(
                "block %d is made anew, for all teachers: %d frames that were skipped can be used now, %s …",
                *(block.index, len(mended), mended[0].token),
            )
            writer.remove(SCANS, block.index)


def _can_be_used(dataset: Dataset, frame: Frame, selection: Selection) -> bool:
    try:
        for view in prepare_frame(dataset, frame, [], selection).frame.views:
            read_image(dataset.root, view)
    except DatasetError:
        return False
    return True


def _follow(reports: Iterator[BlockDone], todo: list[Block]) -> dict[str, str]:
    """Run to the end, showing frames and bytes per second and the time left; gives the frames left out, and why."""
    num_bytes, skipped = 0, {}
    with progress(sum(block.num_frames for block in todo), "extract", "frame") as bar:
        for done in reports:
            num_bytes += done.num_bytes
            skipped |= {frame.token: frame.reason for frame in done.skipped}
            seconds = max(bar.format_dict["elapsed"], 1e-3)
            bar.set_postfix_str(f"{num_bytes / seconds / 1e6:.1f} MB/s", refresh=False)
            bar.update(done.num_frames)
    return skipped


def _settings(config: ExtractConfig, dataset: Dataset, store: FeatureStore) -> dict:
    """What the scans and pairs depend on, for every teacher alike."""
    keys = (dataset.name, dataset.split)
    recorded = next((source for source in store.sources if (source.dataset, source.split) == keys), None)
    usual = recorded.frames_per_block if recorded else FRAMES_PER_BLOCK[config.encoding]
    frames_per_block = config.frames_per_block or usual
    # What was measured stays: another scan may be readable now.
    measured_before = recorded is not None and getattr(dataset, "intensity", None) is None
    intensity = recorded.intensity if measured_before else intensity_of(dataset)
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "num_frames": len(dataset.frames),
        "frames_per_block": frames_per_block,
        "num_blocks": len(plan_blocks(len(dataset.frames), frames_per_block)),
        "frames_sha256": frames_digest([frame.token for frame in dataset.frames]),
        "points": config.points,
        "occlusion": config.occlusion,
        "visibility": {name: value for name, value in asdict(dataset.visibility).items() if value is not None},
        "intensity": asdict(intensity),
    }


def _record(config: ExtractConfig) -> dict:
    packages = ("scalr-distill", "torch", "timm", "numpy", "zarr")
    return {
        "reader": config.dataset,
        "root": str(config.root),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
