"""The whole path on a simulated world, in one process: synth, extract, distill, probe, report.

The teacher has random weights, since a demo cannot fetch real ones: its features tell little more than the colours
around a pixel, and the simulated world paints each class in colours of its own. That is enough to see the path work:
the probe of the distilled student is compared with the same probe of the same student before distillation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .distill.checkpoint import save_student
from .distill.recipes import load_recipe, recipe_values
from .distill.run import DistillConfig, distill, new_student, with_head_for
from .errors import ScalrError
from .evaluate import report
from .evaluate.probe import ProbeConfig, probe
from .evaluate.supervision import SupervisedResult
from .extract.datasets import open_dataset
from .extract.datasets.files import read_image
from .extract.datasets.synthetic import write_world
from .extract.projection import project
from .extract.run import ExtractConfig, ExtractSummary, extract
from .extract.store.inspect import StoreReport, readable_bytes

logger = logging.getLogger(__name__)

TEACHER = "dinov2_vits14"
TRAIN_SCENES, VAL_SCENES, KEYFRAMES = 8, 4, 3
IMAGE_SIZE = (112, 224)  # a quarter of ScaLR's pixels


@dataclass(frozen=True)
class DemoResult:
    """Both probes, and the page that shows them."""

    report: Path
    distilled: SupervisedResult
    undistilled: SupervisedResult


@dataclass
class Timings:
    """Seconds that each step took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        logger.info("demo: %s", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def run_demo(out: Path, seed: int = 0) -> DemoResult:
    """Make everything below `out`, ending in `out/report.html`.

    Raises:
        ScalrError: `out` is there already.
    """
    if out.exists():
        raise ScalrError("the folder is there already", where=out, fix="Remove it, or choose another --out.")
    timings, world = Timings(), out / "world"
    with timings.step("synth"):
        write_world(world, train_scenes=TRAIN_SCENES, val_scenes=VAL_SCENES, keyframes=KEYFRAMES, seed=seed)
    with timings.step("extract"):
        extraction = extract(_extract_config(out))
    recipe = load_recipe("demo", [f"training.seed={seed}"])
    with timings.step("distill"):
        distillation = distill(DistillConfig(caches=(out / "store.zarr",), out=out / "distilled", recipe=recipe))
    undistilled_path = out / "undistilled" / "student.safetensors"
    undistilled_path.parent.mkdir()
    recipe = with_head_for(recipe, extraction.store.teachers[TEACHER].provenance["dim"])
    save_student(new_student(recipe), undistilled_path, {"store": None, "recipe": recipe_values(recipe)})
    with timings.step("probe of the distilled student"):
        distilled = probe(_probe_config(out, "distilled", seed))
    with timings.step("probe of the undistilled student"):
        undistilled = probe(_probe_config(out, "undistilled", seed))
    result = DemoResult(out / "report.html", distilled, undistilled)
    _write_page(result, extraction, distillation.losses, timings, seed)
    return result


def _extract_config(out: Path) -> ExtractConfig:
    return ExtractConfig(
        root=out / "world",
        out=out / "store.zarr",
        teachers=(TEACHER,),
        image_size=IMAGE_SIZE,
        weights=("random",),
        batch_size=8,  # not as measured: the demo gives the same result again
    )


def _probe_config(out: Path, student: str, seed: int) -> ProbeConfig:
    return ProbeConfig(
        student=out / student / "student.safetensors",
        root=out / "world",
        out=out / f"probe_{student}",
        fast=True,
        epochs=10,
        warmup_epochs=1,
        learning_rate=0.1,  # for far fewer steps than the official probe's
        seed=seed,
    )


def _write_page(
    result: DemoResult, extraction: ExtractSummary, losses: list[float], timings: Timings, seed: int
) -> None:
    out = result.report.parent
    report.write_report(
        result.report,
        title="scalr demo",
        summary=f"A simulated world, seed {seed}: {TRAIN_SCENES} training and {VAL_SCENES} validation scenes of"
        f" {KEYFRAMES} keyframes. Teacher {TEACHER} with RANDOM weights: a demonstration of the path, not of DINOv2.",
        numbers=[
            report.Number(report.percent(result.distilled.scores.miou), "mIoU, distilled student"),
            report.Number(report.percent(result.undistilled.scores.miou), "mIoU, undistilled student"),
            report.Number(f"{sum(timings.seconds.values()):.0f} s", "from nothing to this page"),
        ],
        sections=[
            report.Section("What the lidar sees in a camera", _overlay(out)),
            report.Section("Linear probe by class", _classes(result)),
            report.Section(
                "Distillation", report.picture(report.loss_figure(losses), "Loss of each step, and its mean")
            ),
            report.Section("The store", _store_table(extraction.store)),
            report.Section("What it took", _timing_table(timings)),
        ],
    )


def _overlay(out: Path) -> str:
    dataset = open_dataset("nuscenes", out / "world", "train")
    frame = dataset.frames[0]
    view = frame.views[0]
    image = read_image(dataset.root, view)
    pairs = project(dataset.read_points(frame), view.calibration, view.image_shape, dataset.visibility)
    figure = report.overlay_figure(image, pairs.pixel, pairs.depth_m)
    return report.picture(figure, f"{len(pairs.pixel)} points of {frame.scene} in {view.camera}, coloured by depth")


def _classes(result: DemoResult) -> str:
    distilled, undistilled = result.distilled.scores, result.undistilled.scores
    points = distilled.confusion.sum(axis=1).tolist()
    return report.class_table(distilled.class_names, points, distilled.iou.tolist(), undistilled.iou.tolist())


def _store_table(store: StoreReport) -> str:
    pairs = sum(store.pairs.values())
    rows = [
        ("frames", f"{store.frames:,}"),
        ("views", f"{store.views:,}"),
        ("pairs (point, pixel)", f"{pairs:,}"),
        ("size on disk", readable_bytes(store.bytes)),
        ("bytes a pair", f"{store.bytes / max(1, pairs):.0f}"),
    ]
    return report.table(("store.zarr", ""), rows)


def _timing_table(timings: Timings) -> str:
    return report.table(("step", "seconds"), [(name, f"{value:.1f}") for name, value in timings.seconds.items()])
