"""Similarity maps: every point of a scan is coloured by the similarity of its feature to that of a point or class.

These are the correlation maps of Figure 1 of ScaLR (CVPR 2024), made with the backbone's features, which probing uses,
too. With a store, the principal components of teacher and student stand side by side. With labels, areas under ROC
curves say how well features rank each class above the others.

The figure shows plain cosines. Features of a real teacher's student share a large mean, so that all cosines are high.
By default the mean of the scan is therefore subtracted before features are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from ..checkpoint_files import write_bytes
from ..device import resolve_device
from ..distill.checkpoint import load_student, student_provenance
from ..distill.student import Student
from ..errors import DatasetError, ScalrError, did_you_mean
from ..extract.datasets import open_dataset
from ..extract.datasets.files import read_image
from ..extract.datasets.frame import Dataset, Frame
from ..extract.datasets.labels import IGNORE_LABEL
from ..extract.store import open_store
from ..folder_lock import locked
from ..json_text import json_text
from ..settings import CountOrZero, Settings
from .cloud_page import Cloud, PageErrors, cloud_page
from .cosines import similarity, unit
from .model import file_identity
from .pictures import as_png, cosines_at_shares, perspective_view, side_by_side, top_view
from .scan_features import ScanFeatures, StoredFeatures, in_space_of, scan_features, stored_features
from .split_areas import SplitAreas, areas_under_curve

logger = logging.getLogger(__name__)

USUAL_CLASS = "car"  # as in the figure, if neither a point nor a class is given
AROUND_M = 1.0
PCA_RANGE = (2, 98)  # percentiles of a component at the ends of its colour range
ROUNDING = 1e-5  # a component with a smaller range, relative to the largest value, is rounding error
COMPARED = {True: "mean feature of the scan subtracted", False: "plain cosine"}  # by the value of `centre`


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig(Settings):
    """Pictures of one scan; the fields are the options of `scalr evaluate similarity`."""

    student: Path
    root: Path  # folder of the dataset
    out: Path
    dataset: str = "nuscenes"
    split: str = "val"
    frame: str | None = None  # frame ID; None: the first frame of the split
    point: CountOrZero | None = None  # row of the query point in the scan
    class_name: str | None = None  # class as query instead of a point: the mean of its points' unit features
    cache: Path | None = None  # store with a teacher's targets of the frame, to show beside the student's features
    teacher: str | None = None  # None: the only teacher of the store
    centre: bool = True  # whether the mean of the scan's unit features is subtracted before they are compared
    area_frames: CountOrZero = 8  # frames of the split that areas under ROC curves are measured on
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.point is not None and self.class_name is not None:
            raise ScalrError(
                "a point and a class are given", where="--point and --class", fix="Pass one of the two options."
            )
        if self.teacher is not None and self.cache is None:
            raise ScalrError(
                "--teacher needs a store",
                where="--teacher",
                fix="Pass --cache with a store that has targets of the teacher.",
            )


@dataclass(frozen=True)
class Query:
    """The point or class that all points are compared with.

    Attributes:
        text: for people: "point 27205 (car)", "the mean of car".
        focus: row of the point; for a class, of the point most similar to its mean.
        point: row of the point; None for a class.
    """

    text: str
    focus: int
    point: int | None


@dataclass(frozen=True, kw_only=True)
class SimilarityResult:
    """The files that were written, and what they show."""

    frame: str
    num_points: int
    query: Query
    compared: str  # the cosine that the pictures show, and the page when it is opened
    cosines: Mapping[str, float]  # the lowest one among the most similar points, by their fraction of all: "3 %"
    top_view: Path
    perspective_view: Path
    page: Path
    page_error: PageErrors  # errors of the page's similarities
    pca: Path | None  # None without a store
    areas: SplitAreas | None  # None without labels


def pca_colours(features: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """The three leading principal components as red, green and blue.

    Each component goes from 0 at its 2nd percentile to 1 at its 98th. Its sign makes its third moment positive, so that
    colours depend neither on a rotation of the feature space nor on the linear algebra library.

    Args:
        features: (N, C).
        like: (M, C) features that define components and percentiles, so that equal features have equal colours; by
            default `features`.

    Returns:
        (N, 3) in 0..1; 0.5 for components that do not exist.
    """
    like = features if like is None else like
    mean = like.mean(axis=0)
    centred = like - mean
    _, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    axes = vectors[:, ::-1][:, :3]
    components = centred @ axes
    signs = np.where((components**3).sum(axis=0) < 0, -1, 1)
    axes, (low, high) = axes * signs, np.percentile(components * signs, PCA_RANGE, axis=0)
    varies = high - low > ROUNDING * np.abs(like).max()
    shares = ((features - mean) @ axes - low) / np.where(varies, high - low, 1)
    colours = np.full((len(features), 3), 0.5)
    colours[:, : axes.shape[1]] = np.where(varies, np.clip(shares, 0, 1), 0.5)
    return colours


def similarity_maps(config: SimilarityConfig) -> SimilarityResult:
    """Draw the similarity of all points of a scan to a point or class, as pictures and as a page to rotate and click.

    Writes into `config.out`, and replaces files of an earlier run: `top_view.png`, `perspective_view.png`,
    `cloud.html`, with a store `pca.png`, and `similarity.json`, which describes them.

    Raises:
        ScalrError: the student, the dataset, the point or class, the store or the output folder cannot be used.
    """
    with locked(config.out):
        return _similarity_maps(config)


def _similarity_maps(config: SimilarityConfig) -> SimilarityResult:
    student = load_student(config.student).to(resolve_device(config.device))
    need = "points" if config.class_name is None else "labels"
    dataset = open_dataset(config.dataset, config.root, config.split, need=need)
    frame = chosen_frame(dataset, config.frame)
    scan = scan_features(student, dataset, frame, config.dataset, labelled=config.class_name is not None)
    store, teacher, stored = None, config.teacher, None
    if config.cache is not None:
        if frame.error is not None:  # without an image to show with the teacher's features
            raise frame.error
        store = open_store(config.cache)
        teacher = teacher or store.only_teacher()
        store.require_targets_of_pairs(teacher)
        stored = stored_features(store, teacher, dataset, frame, scan)
    query, vector = chosen_query(scan, dataset.class_names, config.point, config.class_name)
    logger.info("frame %s of %s: cosine similarity to %s", frame.token, dataset.name, query.text)
    areas = areas_under_curve(
        student, dataset, config.dataset, num_frames=config.area_frames, store=store, teacher=teacher
    )
    of_points, compared = scan.similarity_to(vector, centre=config.centre), COMPARED[config.centre]
    title = f"Similarity to {query.text}, {compared}\n{config.student.name} on {dataset.name}, {frame.token}"
    out, shown = config.out, (scan.points, of_points)
    write_bytes(out / "top_view.png", as_png(top_view(*shown, query.point, title)))
    write_bytes(out / "perspective_view.png", as_png(perspective_view(*shown, query.focus, query.point, title)))
    page, page_error = cloud_page(_cloud(config, dataset, frame, scan, query, vector))
    write_bytes(out / "cloud.html", page.encode())
    if stored is None:
        (out / "pca.png").unlink(missing_ok=True)
    else:
        write_bytes(out / "pca.png", _pca_png(config, student, dataset, frame, scan, stored))
    result = SimilarityResult(
        frame=frame.token,
        num_points=len(scan.points),
        query=query,
        compared=compared,
        cosines=cosines_at_shares(of_points),
        top_view=out / "top_view.png",
        perspective_view=out / "perspective_view.png",
        page=out / "cloud.html",
        page_error=page_error,
        pca=None if stored is None else out / "pca.png",
        areas=areas,
    )
    record = {"config": asdict(config), "student": file_identity(config.student), **asdict(result)}
    record["areas"] = None if areas is None else areas.as_record()
    write_bytes(out / "similarity.json", f"{json_text(record, indent=2)}\n".encode())
    return result


def chosen_frame(dataset: Dataset, token: str | None) -> Frame:
    """The frame with a frame ID; by default the first frame.

    Raises:
        DatasetError: no such frame in the split.
    """
    if token is None:
        return dataset.frames[0]
    found = next((frame for frame in dataset.frames if frame.token == token), None)
    if found is None:
        tokens = [frame.token for frame in dataset.frames]
        raise DatasetError(
            f"no frame '{token}' in split {dataset.split} of {dataset.name}{did_you_mean(token, tokens)}",
            where="--frame",
            fix=f"Pass the ID of one of its {len(tokens)} frames, for example {tokens[0]}.",
        )
    return found


def chosen_query(
    scan: ScanFeatures, class_names: Sequence[str], point: int | None, class_name: str | None
) -> tuple[Query, np.ndarray]:
    """The query and its vector (C,) among unit features: a point, a class, or by default a point on a car.

    The default is the point with the most points of cars around it; without labels or cars, the point of median range.

    Raises:
        ScalrError: no such point, no such class, or no point of the class in the scan.
    """
    if class_name is not None:
        vector = _mean_of_class(scan, class_names, class_name)
        focus = scan.kept[np.argmax(similarity(scan.units, vector))]
        return Query(f"the mean of {class_name}", int(focus), None), vector
    point = _usual_point(scan, class_names) if point is None else point
    if not 0 <= point < len(scan.points):
        raise ScalrError(
            f"no point {point}, the scan has {len(scan.points)}",
            where="--point",
            fix=f"Use a row of the scan, 0 to {len(scan.points) - 1}.",
        )
    label = IGNORE_LABEL if scan.labels is None else scan.labels[point]
    of_class = "" if label == IGNORE_LABEL else f" ({class_names[label]})"
    return Query(f"point {point}{of_class}", int(point), int(point)), scan.units[scan.nearest[point]]


def _usual_point(scan: ScanFeatures, class_names: Sequence[str]) -> int:
    kept = scan.kept
    if scan.labels is not None and USUAL_CLASS in class_names:
        cars = kept[scan.labels[kept] == list(class_names).index(USUAL_CLASS)]
        if len(cars):
            xyz = scan.points[cars, :3]
            around = cKDTree(xyz).query_ball_point(xyz, AROUND_M, return_length=True)
            return int(cars[np.argmax(around)])
    by_range = np.argsort(np.linalg.norm(scan.points[kept, :3], axis=1))
    return int(kept[by_range[len(kept) // 2]])


def _mean_of_class(scan: ScanFeatures, class_names: Sequence[str], name: str) -> np.ndarray:
    assert scan.labels is not None, "who asks for a class has read labels"
    if name not in class_names:
        raise ScalrError(
            f"no class '{name}'{did_you_mean(name, class_names)}",
            where="--class",
            fix=f"Use one of: {', '.join(class_names)}.",
        )
    of_class = scan.labels == list(class_names).index(name)
    if not of_class.any():
        found = [class_names[label] for label in np.unique(scan.labels[scan.labels != IGNORE_LABEL])]
        raise ScalrError(
            f"no point of class {name} in this frame",
            where="--class",
            fix=f"Choose another --frame, or one of: {', '.join(found)}.",
        )
    return scan.units[scan.nearest[of_class]].mean(axis=0, dtype=np.float64).astype(np.float32)


def _cloud(
    config: SimilarityConfig, dataset: Dataset, frame: Frame, scan: ScanFeatures, query: Query, vector: np.ndarray
) -> Cloud:
    return cloud_of(
        *(scan, query, vector),
        title=f"{config.student.name} on {dataset.name}",
        summary=f"{frame.token} of split {dataset.split}: {len(scan.points):,} points, {len(scan.units):,} voxels",
        centre=config.centre,
        class_names=dataset.class_names,
    )


def cloud_of(scan: ScanFeatures, query: Query, vector: np.ndarray, **of_page: Any) -> Cloud:
    """The content of a page to click.

    Args:
        scan: the points, with their features.
        query: what the page compares points with when it is opened, as `chosen_query` gives it.
        vector: (C,) the unit feature of the query.
        of_page: the other attributes of `Cloud`: title, summary, centre, class_names and so on.
    """
    return Cloud(
        points=scan.points,
        voxels=scan.nearest,
        units=scan.units,
        mean=scan.mean,
        pca=pca_colours(scan.units),
        query=vector,
        query_text=query.text,
        selected=query.point,
        focus=query.focus,
        labels=scan.labels,
        **of_page,
    )


def _pca_png(
    config: SimilarityConfig,
    student: Student,
    dataset: Dataset,
    frame: Frame,
    scan: ScanFeatures,
    stored: StoredFeatures,
) -> bytes:
    targets = unit(stored.targets)
    of_teacher = np.full((len(scan.points), 3), np.nan)
    of_teacher[stored.rows] = pca_colours(targets)  # the last pair of a point counts: that in the image
    shared = in_space_of(stored, student, scan, student_provenance(config.student))
    if shared is None:
        how, of_student = "by its own components", pca_colours(scan.units)
    else:
        how, of_student = "in the teacher's space, by the teacher's components", pca_colours(shared, like=targets)
    view = next(view for view in frame.views if view.camera == stored.camera)
    colours = {
        f"teacher: {stored.teacher}": of_teacher,
        f"student: {config.student.name},\n{how}": of_student[scan.nearest],
    }
    rows = stored.rows[-len(stored.pixel) :]
    return as_png(side_by_side(read_image(dataset.root, view), stored.pixel, rows, scan.points, colours))
