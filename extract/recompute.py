"""Compare stored targets with the teacher: recompute some views from their images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..counted import counted
from ..errors import StoreError
from ..paths import expanded
from ..progress import progress
from .datasets import open_dataset
from .datasets.frame import Dataset, Frame
from .pipeline import teacher_footprint
from .preparation import PreparedView, Selection, prepare_frame
from .segments import segments_of
from .store import FeatureStore, Segments, Source
from .superpixels import FOLDER, SLIC, open_superpixels
from .targets import sample_targets
from .teachers.choices import choose_weights
from .teachers.teacher import Teacher, load_teacher

logger = logging.getLogger(__name__)

SEED = 0  # of the random choice of views
# Tolerance: by how much the mean cosine of a teacher's forward passes on two machines may fall short of 1.
APART = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
KINDS = {SLIC: "SLIC", FOLDER: "a folder of maps"}  # names of the kinds of superpixels in messages
# A pair's target is a weighted mean of patch tokens, and rounding may turn it by more than each of the tokens.
ALLOWANCE = 4


@dataclass(frozen=True)
class Recomputed:
    """One view of the store against its recomputation in float32."""

    row: int  # of `store.views`
    of: str  # names frame and camera
    teacher: str
    pairs: int
    same_image: bool  # the image file is the one from which the store was made
    same_pairs: bool  # points and pixels are equal; otherwise nothing else is compared
    least_cosine: float  # lower bound of the mean; it follows from the encoding and the teacher's precision
    mean_cosine: float
    worst_cosine: float
    # Mean distance of the unit vectors. The similarity loss is a mean of such distances, so that its values on stored
    # and on exact targets differ by no more, for any student.
    loss_difference: float
    has_targets: bool = True  # False if the store has segments only: cosines are 1 then
    # If the source has superpixels:
    same_superpixels: bool = True  # the complete map is equal; otherwise segments are not compared
    segments: int = 0  # number of segments that hold a pair
    segments_cosine: float = 1.0  # mean over the vectors of these segments
    least_segments_cosine: float = 0.0

    @property
    def as_stored(self) -> bool:
        """Whether the stored view agrees with the dataset and the teacher."""
        same_input = self.same_image and self.same_pairs and self.same_superpixels
        same_segments = self.segments_cosine >= self.least_segments_cosine
        return same_input and self.mean_cosine >= self.least_cosine and same_segments

    def __str__(self) -> str:
        name = f"view {self.row} ({self.of}), {self.teacher}: {counted(self.pairs, 'pair')}"
        if not self.same_pairs:
            return f"{name}, OTHER POINTS OR PIXELS than the dataset gives"
        cosines, least = [], []
        if self.has_targets:
            least_of_all = f"minimum {self.worst_cosine:.6f}; loss differs by {self.loss_difference:.2g} at most"
            cosines.append(f"cosine to recomputed features: mean {self.mean_cosine:.6f}, {least_of_all}")
            least.append(f"mean {self.least_cosine:.6f} or more")
        if self.segments and self.same_superpixels:
            cosines.append(f"{counted(self.segments, 'segment')}, mean cosine {self.segments_cosine:.6f}")
            least.append(f"mean {self.least_segments_cosine:.6f} or more of segments")
        cosine = "".join(f", {each}" for each in cosines)
        if not self.same_image:
            return f"{name}, ANOTHER IMAGE than the store was made from{cosine}"
        if not self.same_superpixels:
            return f"{name}, OTHER SUPERPIXELS than the store was made from{cosine}"
        if not self.as_stored:
            return f"{name}, OTHER TARGETS than the teacher gives{cosine}; expected: {' and '.join(least)}"
        return name + cosine


def recompute_targets(
    store: FeatureStore,
    num_views: int,
    *,
    root: Path | None,
    superpixels: str | Path | None = None,
    weights: tuple[str, ...],
    device: torch.device,
) -> Iterator[Recomputed]:
    """Recompute `num_views` views of each teacher, drawn at random among those that see a point.

    Args:
        root: the dataset's folder; None takes the recorded one.
        superpixels: the folder of maps, or "slic"; None takes what is recorded.
        weights: see `choose_weights`; teachers without an entry take hub or random, as recorded.

    Raises:
        ScalrError: dataset, superpixels or weights that are missing or differ from those of the store.
    """
    _require_made_by(store, superpixels)
    folder = None if superpixels in (None, SLIC) else expanded(superpixels)

    @cache
    def frames_of(dataset_name: str, split: str) -> tuple[Dataset, Selection, dict[str, Frame]]:
        (source,) = [each for each in store.sources if (each.dataset, each.split) == (dataset_name, split)]
        record = source.attributes["record"]
        dataset = open_dataset(record["reader"], root or Path(record["root"]), split)
        selection = _recorded_selection(source, dataset, folder)
        return dataset, selection, {frame.token: frame for frame in dataset.frames}

    given = choose_weights(tuple(store.teachers), weights)
    for name in store.teachers:
        teacher = _recorded_teacher(store, name, given.get(name), device)
        rows = _rows_with_pairs(store, name, num_views)
        with progress(len(rows), f"recompute {name}", "view") as bar:
            for row in rows:
                view = store.views.slice(row, 1).to_pylist()[0]
                dataset, selection, frames = frames_of(view["dataset"], view["split"])
                if view["token"] not in frames:
                    raise StoreError(
                        f"frame {view['token']} is in the store, but not in this dataset",
                        where=dataset.root,
                        fix="Pass --root with the dataset that the store was made from.",
                    )
                yield _recompute(store, row, teacher, dataset, selection, frames[view["token"]])
                bar.update()


def _recompute(
    store: FeatureStore, row: int, teacher: Teacher, dataset: Dataset, selection: Selection, frame: Frame
) -> Recomputed:
    record, has_targets = store.views.slice(row, 1).to_pylist()[0], store.encoding(teacher.name).of_pairs
    prepared = prepare_frame(dataset, frame, [teacher], selection)
    stored = store.read_view(row, teacher.name if has_targets else None)
    view = next((view for view in prepared.views if view.record.camera == record["camera"]), None)
    found = {
        "row": row,
        "of": f"frame {record['token']}, camera {record['camera']}",
        "teacher": teacher.name,
        "pairs": len(stored.pixel),
        "same_image": view is not None and view.image_sha256 == record["image_sha256"],
        "same_pairs": view is not None
        and np.array_equal(view.pixel, stored.pixel)
        and np.array_equal(view.point_index, stored.point_index)
        and np.array_equal(prepared.points, stored.points)
        and prepared.scan_sha256 == record["scan_sha256"],
        "least_cosine": _least_cosine(store, row, teacher),
        "has_targets": has_targets,
        "same_superpixels": view is not None and view.superpixels_sha256 == record["superpixels_sha256"],
    }
    if not found["same_pairs"]:
        return Recomputed(**found, **dict.fromkeys(("mean_cosine", "worst_cosine", "loss_difference"), float("nan")))
    patch_map = teacher.patch_maps(view.images[0][None])[0]
    if view.superpixel is not None and found["same_superpixels"]:
        found |= _compare_segments(store.read_segments(row, teacher.name), patch_map, view, teacher)
    if not has_targets:
        return Recomputed(**found, mean_cosine=1.0, worst_cosine=1.0, loss_difference=0.0)
    exact = sample_targets(patch_map, teacher_footprint(teacher, view.pixel, view.image_shape)).cpu()
    exact, kept = F.normalize(exact, dim=1), F.normalize(torch.from_numpy(stored.targets), dim=1)
    cosine = (exact.double() * kept.double()).sum(dim=1)
    return Recomputed(
        **found,
        mean_cosine=cosine.mean().item(),
        worst_cosine=cosine.min().item(),
        loss_difference=torch.linalg.vector_norm(exact - kept, dim=1).mean().item(),
    )


def _require_made_by(store: FeatureStore, superpixels: str | Path | None) -> None:
    """Check that the given superpixels are of the kind that the store has.

    Raises:
        StoreError: they are of another kind.
    """
    methods = {source.superpixels["method"] for source in store.sources if source.superpixels is not None}
    given = SLIC if superpixels == SLIC else FOLDER
    if superpixels is not None and given not in methods:
        raise StoreError(
            "the superpixels of the store are from"
            f" {' and '.join(KINDS[each] for each in sorted(methods)) or 'no method'},"
            f" and --superpixels names {KINDS[given]}",
            where=store.path,
            fix="Leave out --superpixels, or pass the folder of maps that the store was made from.",
        )


def _recorded_selection(source: Source, dataset: Dataset, folder: Path | None) -> Selection:
    """The selection with which the source was extracted."""
    kept, recorded = (source.attributes[name] for name in ("points", "occlusion")), source.superpixels
    if recorded is None:
        return Selection(*kept)
    choice = SLIC if recorded["method"] == SLIC else str(folder or source.attributes["record"]["superpixels"])
    superpixels = open_superpixels(choice, dataset)
    differing = [name for name in superpixels.settings if superpixels.settings[name] != recorded.get(name)]
    if differing and recorded["method"] == SLIC:
        logger.warning(
            "the superpixels of %s %s were made by SLIC with %s, and are compared with SLIC with %s",
            *(source.dataset, source.split),
            *(", ".join(f"{name} {each.get(name)}" for name in differing) for each in (recorded, superpixels.settings)),
        )
    return Selection(*kept, superpixels)


def _compare_segments(stored: Segments, patch_map: torch.Tensor, view: PreparedView, teacher: Teacher) -> dict:
    """The fields of `Recomputed` that describe segments."""
    exact = segments_of(patch_map, view.segment_maps[teacher.image_size], view.superpixel, teacher.patch_size)
    kept, made = (
        torch.from_numpy(np.concatenate([each.mean, each.direction]).astype(np.float64)) for each in (stored, exact)
    )
    # For unit vectors this is the cosine, and 1 for two vectors of zeros; for means it depends on their length, too.
    cosine = 1 - (kept - made).square().sum(dim=1) / 2
    least = 1 - APART[teacher.provenance.precision]
    return {"segments": len(stored), "segments_cosine": cosine.mean().item(), "least_segments_cosine": least}


def _least_cosine(store: FeatureStore, row: int, teacher: Teacher) -> float:
    """The lower bound of the mean cosine: the rounding error recorded with the view, and the teacher's tolerance."""
    kept = store.stored_cosine(row, teacher.name)
    return 1 - ALLOWANCE * (1 - kept) - APART[teacher.provenance.precision]


def _recorded_teacher(store: FeatureStore, name: str, weights: str | None, device: torch.device) -> Teacher:
    provenance = store.teachers[name]
    if weights is None and provenance["weights"] == "file":
        raise StoreError(
            f"the targets of {name} were made from a weights file",
            where=store.path,
            fix="Pass --weights with this file.",
        )
    teacher = load_teacher(
        name,
        image_size=tuple(provenance["image_size"]),
        weights=weights or provenance["weights"],
        **{key: provenance[key] for key in ("feature", "pos_embed", "precision")},
        device=device,
    )
    if teacher.provenance.weights_sha256 != provenance["weights_sha256"]:
        raise StoreError(
            f"the targets of {name} were made with other weights (SHA-256 {provenance['weights_sha256'][:12]},"
            f" these have {teacher.provenance.weights_sha256[:12]})",
            where=store.path,
            fix="Pass --weights with the file that the targets were made from.",
        )
    return teacher


def _rows_with_pairs(store: FeatureStore, teacher: str, number: int) -> list[int]:
    rows = store.rows_with_targets(teacher)
    rows = rows[store.column("pairs_stop")[rows] > store.column("pairs_start")[rows]]
    chosen = np.random.default_rng(SEED).choice(rows, min(number, len(rows)), replace=False)
    return sorted(chosen.tolist())
