"""Stage one: one block from scans and images to the store, and the loop over blocks."""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from ..device import resolve_device
from ..errors import ScalrError
from .datasets import open_dataset
from .datasets.frame import Dataset, Frame, read_image
from .encoding import encode_point, sample_targets
from .plan import FRAMES_PER_BLOCK, Block, frames_digest, plan_blocks
from .projection import Pairs, project
from .store import SCANS_SCHEMA, TARGETS_SCHEMA, FeatureStore, ScanBlock, create_store
from .teachers import Precision, Teacher, load_teacher, provenance_attributes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """One extraction; the fields are the options of `scalr extract`."""

    root: Path
    out: Path = Path("store.zarr")
    teachers: tuple[str, ...]
    dataset: str = "nuscenes"
    split: str = "train"
    image_size: tuple[int, int] = (224, 448)
    weights: str = "hub"
    precision: Precision = "float32"
    device: str = "auto"
    frames_per_block: int = FRAMES_PER_BLOCK

    def __post_init__(self) -> None:
        if self.frames_per_block < 1:
            raise ScalrError(
                f"{self.frames_per_block} frames", where="--frames-per-block", fix="Use one frame or more."
            )
        if len(self.teachers) > 1 and self.weights not in ("hub", "random"):
            raise ScalrError(
                "one weights file cannot serve several teachers",
                where="--weights",
                fix="Run 'scalr extract' once per teacher on the same store.",
            )


@dataclass(frozen=True)
class ExtractSummary:
    """What a run found and did; `pairs` by camera, over the whole store."""

    store: Path
    frames: int
    views: int
    pairs: dict[str, int]
    blocks_written: int
    bytes_on_disk: int
    teachers: dict[str, dict] = field(repr=False)


def extract(config: ExtractConfig) -> ExtractSummary:
    """Run the teachers on every image of a split and store the targets of every visible point.

    Blocks that are committed stay; the same call after a crash goes on where it stopped.

    Raises:
        ScalrError: what is wrong with the input, the weights or the store; committed blocks stay whole.
    """
    dataset = open_dataset(config.dataset, config.root, config.split)
    device = resolve_device(config.device)
    teachers = [
        load_teacher(
            name, image_size=config.image_size, weights=config.weights, precision=config.precision, device=device
        )
        for name in config.teachers
    ]
    store = create_store(config.out, _settings(config, dataset), _record(config))
    for teacher in teachers:
        _warn_of_random_weights(teacher)
        store.add_teacher(teacher.name, provenance_attributes(teacher.provenance))
    written = _extract_blocks(dataset, teachers, store, config.frames_per_block)
    return summarise(FeatureStore(store.path, store.attributes), written)


def extract_block(dataset: Dataset, frames: list[Frame], teachers: list[Teacher]) -> tuple[ScanBlock, list[np.ndarray]]:
    """Compute one block: scans and pairs, and each teacher's targets (R, D) float16 in pair order.

    An image is decoded once however many teachers look at it.
    """
    points: list[np.ndarray] = []
    pairs: list[Pairs] = []
    targets: list[list[np.ndarray]] = [[] for _ in teachers]
    for frame in frames:
        scan = dataset.read_points(frame)
        images = [read_image(dataset.root, view) for view in frame.views]
        frame_pairs = [project(scan, view.calibration, view.image_shape, dataset.visibility) for view in frame.views]
        points.append(scan)
        pairs.extend(frame_pairs)
        for teacher, vectors in zip(teachers, targets, strict=True):
            vectors.extend(_frame_targets(teacher, images, frame_pairs))
    scans = ScanBlock(
        points=np.concatenate(points),
        point_index=np.concatenate([pair.point_index for pair in pairs]),
        pixel=np.concatenate([pair.pixel for pair in pairs]),
        views=_view_table(frames, [len(scan) for scan in points], [len(pair.point_index) for pair in pairs]),
    )
    return scans, [np.concatenate(vectors) for vectors in targets]


def summarise(store: FeatureStore, blocks_written: int = 0) -> ExtractSummary:
    """Count what a store holds."""
    views = store.views
    cameras = views["camera"].to_pylist()
    counts = views["pairs_stop"].to_numpy() - views["pairs_start"].to_numpy()
    pairs: dict[str, int] = dict.fromkeys(cameras, 0)
    for camera, count in zip(cameras, counts.tolist(), strict=True):
        pairs[camera] += count
    return ExtractSummary(
        store=store.path,
        frames=len(set(views["token"].to_pylist())),
        views=views.num_rows,
        pairs=pairs,
        blocks_written=blocks_written,
        bytes_on_disk=sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file()),
        teachers=store.teachers,
    )


def _extract_blocks(dataset: Dataset, teachers: list[Teacher], store: FeatureStore, frames_per_block: int) -> int:
    blocks = plan_blocks(len(dataset.frames), frames_per_block)
    missing = {block.index: _missing_teachers(store, teachers, block) for block in blocks}
    todo = [block for block in blocks if missing[block.index]]
    logger.info("%d of %d blocks to extract into %s", len(todo), len(blocks), store.path)
    num_frames = sum(block.stop - block.start for block in todo)
    with tqdm(total=num_frames, desc="extract", unit="frame", disable=None) as progress:
        for block in todo:
            _extract_and_commit(dataset, block, missing[block.index], store)
            progress.update(block.stop - block.start)
    return len(todo)


def _missing_teachers(store: FeatureStore, teachers: list[Teacher], block: Block) -> list[Teacher]:
    return [teacher for teacher in teachers if block.index not in store.committed_blocks(teacher.name)]


def _extract_and_commit(dataset: Dataset, block: Block, teachers: list[Teacher], store: FeatureStore) -> None:
    frames = list(dataset.frames[block.start : block.stop])
    scans, targets = extract_block(dataset, frames, teachers)
    store.write_scans(block.index, scans)
    ranges = {
        "token": scans.views["token"],
        "camera": scans.views["camera"],
        "start": scans.views["pairs_start"],
        "stop": scans.views["pairs_stop"],
    }
    for teacher, vectors in zip(teachers, targets, strict=True):
        store.write_targets(block.index, teacher.name, vectors, pa.table(ranges, schema=TARGETS_SCHEMA))


def _frame_targets(teacher: Teacher, images: list[np.ndarray], pairs: list[Pairs]) -> list[np.ndarray]:
    patch_maps = teacher.patch_maps(torch.stack([teacher.prepare(image) for image in images]))
    return [
        encode_point(
            sample_targets(
                patch_map,
                torch.from_numpy(pair.pixel.astype(np.int64)).to(patch_map.device),
                image.shape[:2],
                teacher.patch_size,
            )
        )
        for patch_map, image, pair in zip(patch_maps, images, pairs, strict=True)
    ]


def _view_table(frames: list[Frame], num_points: list[int], num_pairs: list[int]) -> pa.Table:
    points_stop, pairs_stop = np.cumsum(num_points).tolist(), np.cumsum(num_pairs).tolist()
    rows = []
    for number, frame in enumerate(frames):
        for view in frame.views:
            rows.append(
                {
                    "dataset": frame.dataset,
                    "scene": frame.scene,
                    "token": frame.token,
                    "timestamp": frame.timestamp,
                    "camera": view.camera,
                    "image": view.image,
                    "image_height": view.image_shape[0],
                    "image_width": view.image_shape[1],
                    "points_start": points_stop[number] - num_points[number],
                    "points_stop": points_stop[number],
                    "pairs_start": pairs_stop[len(rows)] - num_pairs[len(rows)],
                    "pairs_stop": pairs_stop[len(rows)],
                }
            )
    return pa.Table.from_pylist(rows, schema=SCANS_SCHEMA)


def _settings(config: ExtractConfig, dataset: Dataset) -> dict:
    """What the scans and pairs depend on, for every teacher alike."""
    blocks = plan_blocks(len(dataset.frames), config.frames_per_block)
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "num_frames": len(dataset.frames),
        "frames_per_block": config.frames_per_block,
        "num_blocks": len(blocks),
        "frames_sha256": frames_digest([frame.token for frame in dataset.frames]),
        "points": "all",
        "visibility": asdict(dataset.visibility),
    }


def _record(config: ExtractConfig) -> dict:
    packages = ("scalr-distill", "torch", "timm", "numpy", "zarr")
    return {
        "root": str(Path(config.root).resolve()),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def _warn_of_random_weights(teacher: Teacher) -> None:
    if teacher.provenance.weights == "random":
        logger.warning("%s has RANDOM weights: its targets are for tests and demos only", teacher.name)
