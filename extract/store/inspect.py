"""Report what a store holds, what is missing, and how large it is."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from math import nan
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...counted import counted
from ...errors import UnreadableError
from .files import readable, size_of
from .format import ASIDE, COSINES, GATHERED, SCANS
from .reader import FeatureStore
from .statistics_group import read_summary, statistics_name


@dataclass(frozen=True)
class KindReport:
    """Blocks and size of a store's scans, or of one teacher's targets."""

    committed_blocks: int
    missing_blocks: list[int]
    files: int
    bytes: int


@dataclass(frozen=True)
class StatisticsReport:
    """Statistics of a teacher's vectors in the sample of a split."""

    count: int  # number of vectors
    mean_unit_length: float  # length of the mean unit vector: 1 if all vectors have the same direction
    effective_rank: float


@dataclass(frozen=True)
class TargetsReport(KindReport):
    """One teacher's targets; cosines of stored and exact vectors, as they are and less their mean, NaN without any."""

    provenance: dict
    vectors: int
    segments: int  # segments of all views that hold a pair; 0 without superpixels
    bytes_per_pair: float
    mean_cosine: float
    worst_cosine: float
    mean_cosine_centred: float
    worst_cosine_centred: float
    statistics: dict[str, StatisticsReport]  # keys: dataset and split


@dataclass(frozen=True)
class StoreReport:
    """The result of `inspect_store`."""

    path: Path
    sources: list[dict]
    num_blocks: int
    frames: int
    views: int
    points: int
    pairs: dict[str, int]  # by camera
    pairs_hidden: int  # occluded pairs that were found; `pairs` includes them unless the source drops them
    skipped: dict[str, str]  # frames that could not be used: frame ID -> reason
    scans: KindReport
    teachers: dict[str, TargetsReport]
    leftovers: dict[str, int]  # bytes in scratch folders, by the part that left or is writing them
    aside: int  # bytes of removed files that are kept in the folder `aside`
    files: int
    bytes: int

    def as_json(self) -> dict:
        """Plain JSON values."""
        return asdict(self) | {"path": str(self.path)}

    def as_text(self) -> str:
        """A table for people."""
        splits = ", ".join(f"{source['dataset']} {source['split']}" for source in self.sources) or "nothing yet"
        total_pairs = sum(self.pairs.values())
        width = 2 + max(len(name) for name in ("scans and pairs", *self.teachers, *self.pairs))
        lines = [
            f"{self.path}: {splits}; {counted(self.frames, 'frame')}, {counted(self.views, 'view')},"
            f" {counted(total_pairs, 'pair')}",
            f"{readable_bytes(self.bytes)} in {self.files:,} files, {per_pair(self.bytes, total_pairs)} bytes per pair",
            "",
            f"{'':<{width}}{'blocks':>13}{'size':>10}{'bytes/pair':>12}{'files':>8}  encoding",
            _row(width, "scans and pairs", self.scans, self.num_blocks, per_pair(self.scans.bytes, total_pairs), ""),
        ]
        for name, targets in self.teachers.items():
            bytes_per_pair = f"{targets.bytes_per_pair:.1f}" if targets.vectors else "–"
            lines.append(_row(width, name, targets, self.num_blocks, bytes_per_pair, _encoding(targets)))
        for source in self.sources:
            if superpixels := source.get("superpixels"):
                how = ", ".join(f"{name} {value}" for name, value in superpixels.items())
                lines.append(f"superpixels of {source['dataset']} {source['split']}: {how}")
        lines.append("")
        for name, targets in self.teachers.items():
            lines.append(f"{name}: {describe_weights(targets.provenance)}")
            if targets.provenance["encoding"] != "segments" and targets.vectors:
                lines.append(f"{name}: {_cosines(targets)}")
            for split, found in targets.statistics.items():
                lines.append(
                    f"{name}: in a sample of {split}, {found.count:,} vectors, length of their mean unit vector"
                    f" {found.mean_unit_length:.3f}, effective rank {found.effective_rank:.1f}"
                )
        lines += ["", *(f"{camera:<{width}}{count:>13,} pairs" for camera, count in self.pairs.items())]
        for name, kind in {SCANS: self.scans, **self.teachers}.items():
            if kind.missing_blocks:
                lines.append(missing(name, kind.missing_blocks))
        if self.pairs_hidden:
            choices = {"keep": "kept", "drop": "dropped"}
            done = " or ".join(choices[each] for each in sorted({source["occlusion"] for source in self.sources}))
            lines.append(f"occluded pairs: {self.pairs_hidden:,} ({done})")
        lines += [f"skipped frame {token}: {reason}" for token, reason in self.skipped.items()]
        for owner, num_bytes in self.leftovers.items():
            lines.append(f"temporary files: {readable_bytes(num_bytes)} of {owner}, a running or killed job")
        if self.aside:
            lines.append(f"removed by --repair: {readable_bytes(self.aside)} in {self.path / ASIDE}, may be deleted")
        return "\n".join(lines)


def inspect_store(store: FeatureStore) -> StoreReport:
    """Count what is committed, from the indexes and the sizes of files; arrays are not read."""
    views = store.read_views(("dataset", "token", "camera", "pairs_hidden"))
    counts = store.column("pairs_stop").astype(np.int64) - store.column("pairs_start")
    of_camera = views.append_column("pairs", pa.array(counts)).group_by("camera", use_threads=False)
    pairs = of_camera.aggregate([("pairs", "sum")]).to_pydict()
    sizes = _Sizes(store)
    return StoreReport(
        path=store.path,
        sources=[source.attributes for source in store.sources],
        num_blocks=len(store.blocks),
        frames=views.group_by(["dataset", "token"], use_threads=False).aggregate([]).num_rows,
        views=views.num_rows,
        points=_num_points(store),
        pairs=dict(zip(pairs["camera"], pairs["pairs_sum"], strict=True)),
        pairs_hidden=pc.sum(views["pairs_hidden"]).as_py() or 0,
        skipped=_skipped(store),
        scans=KindReport(**_completeness(store, SCANS), files=sizes.files[SCANS], bytes=sizes.bytes[SCANS]),
        teachers={name: _targets_report(store, name, sizes) for name in store.teachers},
        leftovers=sizes.leftovers,
        aside=sizes.aside,
        files=sizes.all_files,
        bytes=sizes.all_bytes,
    )


def _num_points(store: FeatureStore) -> int:
    """The number of points of all scans; the views of a frame follow each other and share a scan."""
    scans = np.stack([store.column(name).astype(np.int64) for name in ("block", "points_start", "points_stop")])
    is_first = np.ones(scans.shape[1], dtype=bool)
    is_first[1:] = (scans[:, 1:] != scans[:, :-1]).any(axis=0)
    return int((scans[2] - scans[1])[is_first].sum())


def _skipped(store: FeatureStore) -> dict[str, str]:
    blocks = sorted(store.committed_blocks())
    return {token: reason for block in blocks for token, reason in store.skipped_frames(block).items()}


def _completeness(store: FeatureStore, kind: str) -> dict:
    committed = store.committed_blocks(kind)
    missing = sorted(set(store.blocks) - committed)
    return {"committed_blocks": len(committed), "missing_blocks": missing}


def _targets_report(store: FeatureStore, teacher: str, sizes: _Sizes) -> TargetsReport:
    rows = store.rows_with_targets(teacher)
    num_pairs = int((store.column("pairs_stop")[rows] - store.column("pairs_start")[rows]).sum())
    targets = store.read_target_views(teacher, ("start", "stop", *COSINES, "segments_start", "segments_stop"))
    vectors = targets["stop"].to_numpy() - targets["start"].to_numpy()
    cosines = {name: targets[name].to_numpy() for name in COSINES}
    means = {name: values for name, values in cosines.items() if name.startswith("mean")}
    has_vectors = bool(vectors.any())
    return TargetsReport(
        **_completeness(store, teacher),
        files=sizes.files[teacher],
        bytes=sizes.bytes[teacher],
        provenance=store.teachers[teacher],
        vectors=int(vectors.sum()),
        segments=_num_segments(targets),
        bytes_per_pair=sizes.bytes[teacher] / max(1, num_pairs),
        **{name: float(np.average(each, weights=vectors)) if has_vectors else nan for name, each in means.items()},
        **{name: float(each.min()) if has_vectors else nan for name, each in cosines.items() if name not in means},
        statistics=_statistics_reports(store, teacher),
    )


def _num_segments(targets: pa.Table) -> int:
    counts = pc.subtract(targets["segments_stop"], targets["segments_start"])
    return pc.sum(counts).as_py() or 0


def _statistics_reports(store: FeatureStore, teacher: str) -> dict[str, StatisticsReport]:
    found = {}
    for name, source in store.named_sources.items():
        if store.has_statistics(teacher, name):
            group = store.path / statistics_name(teacher, name)
            summary = read_summary(group, store.teacher(teacher), source.attributes)
            values = {field.name: summary[field.name] for field in fields(StatisticsReport)}
            found[f"{source.dataset} {source.split}"] = StatisticsReport(**values)
    return found


def describe_weights(provenance: dict) -> str:
    """Describe a teacher's weights for people; random ones in capitals."""
    origin = provenance["weights"]
    if origin == "random":
        return "RANDOM weights (for tests only)"
    return f"weights from {origin}, SHA-256 {provenance['weights_sha256'][:12]}"


def readable_bytes(number: float) -> str:
    """Format a number of bytes for people.

    >>> readable_bytes(1.3e12)
    '1.3 TB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def per_pair(num_bytes: float, num_pairs: int) -> str:
    """Bytes per pair for people; "–" without pairs.

    >>> per_pair(100, 8), per_pair(100, 0)
    ('12.5', '–')
    """
    return f"{num_bytes / num_pairs:.1f}" if num_pairs else "–"


def missing(kind: str, blocks: list[int]) -> str:
    """One line for people.

    >>> missing("scans", [3]), missing("dinov2_vits14", [0, 1])
    ('scans: 1 block missing (number 3)', 'targets of dinov2_vits14: 2 blocks missing (numbers 0-1)')
    """
    what = "scans" if kind == SCANS else f"targets of {kind}"
    number = "number" if len(blocks) == 1 else "numbers"
    return f"{what}: {counted(len(blocks), 'block')} missing ({number} {ranges(blocks)})"


def _row(width: int, name: str, kind: KindReport, num_blocks: int, bytes_per_pair: str, encoding: str) -> str:
    blocks = f"{kind.committed_blocks} of {num_blocks}"
    size = readable_bytes(kind.bytes)
    return f"{name:<{width}}{blocks:>13}{size:>10}{bytes_per_pair:>12}{kind.files:>8}  {encoding}".rstrip()


def _encoding(targets: TargetsReport) -> str:
    provenance = targets.provenance
    segments = f", {targets.segments:,} segments" if targets.segments else ""
    return f"{provenance['encoding']} {provenance['dtype']}, {provenance['dim']} dimensions{segments}"


def _cosines(targets: TargetsReport) -> str:
    return (
        f"cosine to unrounded features: mean {targets.mean_cosine:.6f}, minimum {targets.worst_cosine:.6f};"
        f" after subtracting the mean feature: {targets.mean_cosine_centred:.6f}, {targets.worst_cosine_centred:.6f}"
    )


def ranges(numbers: list[int], most: int = 8) -> str:
    """Format ascending numbers as ranges.

    >>> ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    there = set(numbers)
    starts = [number for number in numbers if number - 1 not in there]
    stops = [number for number in numbers if number + 1 not in there]
    runs = [str(start) if start == stop else f"{start}-{stop}" for start, stop in zip(starts, stops, strict=True)]
    return ", ".join(runs[:most]) + (", …" if len(runs) > most else "")


class _Sizes:
    """Files and bytes of scans, targets and scratch folders, in one walk."""

    def __init__(self, store: FeatureStore) -> None:
        self.files: dict[str, int] = dict.fromkeys([SCANS, *store.teachers], 0)
        self.bytes = dict(self.files)
        self.leftovers: dict[str, int] = {}
        self.all_files = self.all_bytes = 0
        self.aside = 0
        for folder, _, names in os.walk(store.path, onerror=_refuse):
            inside = Path(folder).relative_to(store.path).parts
            # An unreadable gathered file is ignored, since nothing depends on it.
            with suppress(*([UnreadableError] if inside == (GATHERED,) else [])):
                self._add(inside, len(names), sum(size_of(f"{folder}/{name}") or 0 for name in names))

    def _add(self, inside: tuple[str, ...], files: int, num_bytes: int) -> None:
        self.all_files += files
        self.all_bytes += num_bytes
        if inside[:1] == ("tmp",) and len(inside) > 1 and files:
            self.leftovers[inside[1]] = self.leftovers.get(inside[1], 0) + num_bytes
        if inside[:1] == (ASIDE,):
            self.aside += num_bytes
        kind = _kind_of(inside)
        if kind in self.files:
            self.files[kind] += files
            self.bytes[kind] += num_bytes


def _refuse(error: OSError) -> None:
    """Raise an error for a folder that cannot be listed, except for one that a running job has just moved."""
    with suppress(FileNotFoundError), readable(Path(error.filename)):
        raise error


def _kind_of(inside: tuple[str, ...]) -> str | None:
    """The kind that a folder belongs to: the scans, or a teacher's name; None for other folders."""
    if inside[:1] == ("index",) and len(inside) == 2:
        return inside[1]
    if inside[:1] == ("blocks",) and len(inside) > 1:
        return inside[3] if len(inside) > 3 and inside[2] == "targets" else SCANS
    return None
