"""The demo's HTML page: the steps and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .evaluate import report
from .evaluate.scores import Scores
from .evaluate.similarity import SimilarityResult
from .extract.datasets import open_dataset
from .extract.datasets.files import read_image
from .extract.estimate import Estimate
from .extract.projection import project
from .extract.store.inspect import StoreReport, TargetsReport, describe_weights, readable_bytes


@dataclass(frozen=True)
class Step:
    """A command, and its time [s]."""

    command: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """Everything that the page shows of a run; its files are in the folder `out`."""

    out: Path
    seed: int
    world: Mapping[str, int]
    teacher: str
    steps: Sequence[Step]
    store: StoreReport
    encodings: Estimate
    losses: Sequence[float]
    distilled: Scores
    undistilled: Scores
    similarity: SimilarityResult

    @property
    def report(self) -> Path:
        """The page."""
        return self.out / "report.html"


def write_demo_report(run: DemoRun) -> None:
    """Write `out/report.html`: one file that loads nothing else, for light and dark colour schemes."""
    seconds = sum(step.seconds for step in run.steps)
    world, targets = run.world, run.store.teachers[run.teacher]
    report.write_report(
        run.report,
        title="scalr demo",
        summary=f"A simulated world, seed {run.seed}: {world['train_scenes']} training and {world['val_scenes']}"
        f" validation scenes of {world['keyframes']} keyframes. {teacher_sentences(run.teacher, targets)}",
        numbers=[
            report.Number(report.percent(run.distilled.miou), "mIoU of a linear probe, distilled student"),
            report.Number(report.percent(run.undistilled.miou), "the same student before distillation"),
            report.Number(f"{seconds / 60:.1f} min", "for all steps"),
        ],
        sections=[
            report.Section(
                "What ran",
                "Each step is a command. In Python, each is a function with the same arguments.",
                report.table(
                    ("command", "seconds"), [(step.command, f"{step.seconds:.1f}") for step in run.steps], code=True
                ),
            ),
            _pairs(run),
            _components(run),
            _similarity(run),
            report.Section(
                "Distillation",
                f"{len(run.losses)} training steps on targets from the store; the teacher is not in memory.",
                report.drawing(lambda: report.loss_figure(run.losses), "Loss of each step, and its moving average."),
            ),
            _classes(run),
            _store(run),
        ],
    )


def teacher_sentences(name: str, targets: TargetsReport) -> str:
    """The teacher, and what its features on this page can show."""
    if targets.provenance["weights"] == "random":
        return (
            f"Teacher {name} with RANDOM weights, whose features describe little more than colours: this page shows"
            " that the steps work, not the quality of DINOv2's features."
        )
    return (
        f"Teacher {name}, {describe_weights(targets.provenance)}. The streets are simulated: this page shows that the"
        " steps work, not the quality of these features on real streets."
    )


def _pairs(run: DemoRun) -> report.Section:
    dataset = open_dataset("nuscenes", run.out / "world", "train")
    frame = dataset.frames[0]
    view = frame.views[0]
    image = read_image(dataset.root, view)
    pairs = project(dataset.read_points(frame), view.calibration, view.image_shape, dataset.visibility)

    def draw() -> Figure:
        return report.overlay_figure(image, pairs.pixel, pairs.depth_m)

    caption = f"{len(pairs.pixel):,} points of {frame.scene} in {view.camera}, coloured by depth."
    return report.Section(
        "Points and pixels",
        "Lidar points at the pixels that they project to. A point and its pixel are a pair; the teacher's feature at"
        " the pixel is the target of the pair.",
        report.drawing(draw, caption),
    )


def _components(run: DemoRun) -> report.Section:
    return report.Section(
        "Teacher and student",
        "Features of a validation frame: their first three principal components as red, green and blue. The student"
        " sees lidar points only; its features are projected to the teacher's space.",
        report.photograph(
            run.similarity.pca,
            "Left: teacher; right: student. On the image with the most points, and on the scan from above.",
        ),
    )


def _similarity(run: DemoRun) -> report.Section:
    error, areas = run.similarity.page_error.centred, run.similarity.areas
    assert areas is not None, "the simulated world has labels"
    assert areas.student_on_pairs is not None, "the store of the scene is given"
    assert areas.teacher is not None, "the same"
    ranks = (
        " Area under the ROC curve, mean of classes: how well similarity to a class ranks its points before all others;"
        f" 0.5 is chance. The student's is {areas.student_on_pairs.means['centred']:.3f}, the teacher's"
        f" {areas.teacher.means['centred']:.3f}, on the pairs of {len(areas.frames)} frames."
    )
    caption = (
        f"{run.similarity.num_points:,} points of {run.similarity.frame}, first compared with"
        f" {run.similarity.query.text}. The page stores compressed features; similarities differ by at most"
        f" {error.maximum:.1g}."
    )
    return report.Section(
        "Similarity map",
        "Click a point to colour all others by their similarity to it. Drag to rotate; use the wheel or pinch to zoom.",
        report.page_within(run.similarity.page, caption + ranks),
    )


def _classes(run: DemoRun) -> report.Section:
    points = run.distilled.confusion.sum(axis=1).tolist()
    iou, other = run.distilled.iou.tolist(), run.undistilled.iou.tolist()
    return report.Section(
        "Linear probe by class",
        "IoU on the validation scenes, of a linear probe on the frozen student: distilled, and before distillation.",
        report.class_table(run.distilled.class_names, points, iou, other),
    )


def _store(run: DemoRun) -> report.Section:
    store, estimate, pairs = run.store, run.encodings, sum(run.store.pairs.values())
    written = store.teachers[run.teacher]

    def row(name: str, num_bytes: int, *cosines: float) -> tuple[str, ...]:
        known = [f"{cosine:.6f}" for cosine in cosines] or ["", ""]
        return name, readable_bytes(num_bytes), f"{num_bytes / pairs:.1f}", *known

    rows = [row("scans and pairs, as written", store.scans.bytes)]
    for each in estimate.encodings:
        name = f"{each.encoding.layout} {each.encoding.dtype}"
        if each.encoding == estimate.chosen:
            cosines = written.mean_cosine, written.mean_cosine_centred
            rows.append(row(f"targets as {name}, as written", written.bytes, *cosines))
        else:
            rows.append(row(f"targets as {name}", each.bytes, each.mean_cosine, each.mean_cosine_centred))
    return report.Section(
        "The store",
        f"{store.frames:,} frames, {store.views:,} views, {pairs:,} pairs; {readable_bytes(store.bytes)} in"
        f" {store.files} files. The other encodings are estimated from {estimate.sampled_frames} frames. Cosines are"
        " those of stored and exact features: as they are, and with the mean subtracted.",
        report.table(("", "size", "bytes per pair", "cosine", "cosine, mean subtracted"), rows),
    )
