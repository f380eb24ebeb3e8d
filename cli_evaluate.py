"""The verbs of `scalr evaluate`: each parses and calls one function, and shows what it wrote on its card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_options import (
    AFTER_A_CHECKPOINT,
    FROM_THE_BEGINNING,
    Verbs,
    checkpoint_option,
    choice_option,
    classes_option,
    completed,
    dataset_option,
    device_option,
    going_on_later,
    is_first_process,
    json_option,
    loading_torch,
    model_option,
    out_option,
    path,
    precision_option,
    resume_option,
    root_option,
    seed_option,
    split_option,
    student_option,
    teacher_names,
    under,
    workers_option,
)

if TYPE_CHECKING:
    from .evaluate.scores import Scores
    from .evaluate.split_areas import SplitAreas


@click.group(
    cls=Verbs,
    stages={
        "What it knows": ("probe", "teacher", "similarity"),
        "What it learns from labels": ("finetune", "score"),
        "What it stands": ("robustness", "transfer"),
        "All runs": ("report",),
    },
    epilog="scalr evaluate probe --student runs/distill/student.safetensors",
)
def evaluate() -> None:
    """Measure a student: what it knows, what it learns from labels, what it stands."""


absent_classes_option = choice_option(
    "--absent-classes",
    ["left-out", "as-1"],
    "Classes in the mIoU that no point has as label or prediction. left-out: not counted, as in the code of ScaLR."
    " as-1: counted with an IoU of 1, as in the code of SLidR.",
)


def options_of_training(command: Callable) -> Callable:
    """How probing and finetuning are trained; what is left out has the official value."""
    data = under(
        "Data",
        student_option,
        dataset_option,
        root_option,
        click.option("--train-split", default="train", show_default=True, help="Split that is trained on."),
        click.option("--val-split", default="val", show_default=True, help="Split that is scored."),
        classes_option,
    )
    training = under(
        "Training",
        choice_option(
            "--schedule",
            ["scalr", "scalr_plus", "slidr"],
            "Whose published protocol. scalr, scalr_plus: AdamW; the head begins with a BatchNorm. slidr: SGD at a"
            " rate that changes between epochs; the head is a linear layer alone.",
        ),
        choice_option(
            "--augmentation",
            ["official", "joint"],
            "How training scans are moved. official: as published with the schedule; ScaLR moves coordinates and"
            " features apart. joint: both alike, as in pretraining.",
        ),
        click.option("--epochs", type=int, help="[default: the published number]"),
        click.option("--warmup-epochs", type=float, help="[default: the published number]"),
        click.option("--batch-size", type=int, help="Scans of a step.  [default: the published number]"),
        click.option("--learning-rate", type=float, help="Peak of the schedule.  [default: the published one]"),
        seed_option,
    )
    scoring = under("Scoring", absent_classes_option)
    run = under("Run", resume_option, checkpoint_option, workers_option, device_option)
    return data(training(scoring(run(json_option(command)))))


def show_file(written: Path) -> None:
    """What a run has written, as it is."""
    click.echo(written.read_text().rstrip())


def show_scores(scores: Scores, out: Path, as_json: bool) -> None:
    """IoU by class and mIoU, or the whole result card as JSON; once for all processes."""
    from .evaluate.metrics import NAME_OF_MEAN

    if not is_first_process():
        return
    if as_json:
        show_file(out / "result.json")
        return
    for name, iou in zip(scores.class_names, scores.iou.tolist(), strict=True):
        click.echo(f"  {name:<22} {iou:6.1%}" if iou == iou else f"  {name:<22}      –")
    low_high = f" ({scores.interval[0]:.1%} to {scores.interval[1]:.1%})" if scores.interval else ""
    mean = NAME_OF_MEAN.get(scores.mean_over, "mIoU")
    click.echo(f"{mean} {scores.miou:.1%}{low_high}, accuracy {scores.accuracy:.1%}   ({out}/result.md)")


@evaluate.command(epilog="scalr evaluate probe --student runs/distill/student.safetensors --root /data/nuscenes")
@options_of_training
@under("Training", click.option("--fast", is_flag=True, help="Fit the head on features computed once, unaugmented."))
@under("Run", out_option("runs/probe"))
@going_on_later(*AFTER_A_CHECKPOINT)
def probe(out: Path, as_json: bool, **options: Any) -> None:
    """Linear probing: BatchNorm + linear layer on the frozen student; by --schedule slidr a linear layer alone."""
    loading_torch()
    from .evaluate.probe import ProbeConfig
    from .evaluate.probe import probe as run

    show_scores(run(ProbeConfig(out=out, **options)).scores, out, as_json)


@evaluate.command(epilog="scalr evaluate finetune --student student.safetensors --root /data/nuscenes --labels 1%")
@options_of_training
@under(
    "Training",
    choice_option("--labels", ["100%", "10%", "1%"], "Share of the training labels, by the official subsets."),
    click.option("--from-scratch", is_flag=True, help="The student's architecture with new weights, as a baseline."),
    click.option(
        "--layer-decay", type=float, help="Of the learning rate, layer by layer.  [default: the published one]"
    ),
    click.option(
        "--head-factor",
        type=float,
        help="Learning rate of the head, as a multiple of --learning-rate.  [default: the published one]",
    ),
    precision_option,
    click.option("--activation-checkpointing", is_flag=True, help="Less memory for more time."),
)
@under("Run", out_option("runs/finetune"))
@going_on_later(*AFTER_A_CHECKPOINT)
def finetune(out: Path, as_json: bool, **options: Any) -> None:
    """Train the whole student on labels, all of them or few."""
    loading_torch()
    from .evaluate.finetune import FinetuneConfig
    from .evaluate.finetune import finetune as run

    show_scores(run(FinetuneConfig(out=out, **options)).scores, out, as_json)


@evaluate.command(epilog="scalr evaluate score --model runs/finetune/model.safetensors --root /data/nuscenes")
@under("Data", model_option, dataset_option, root_option, split_option("val", "Split that is scored."), classes_option)
@under("Scoring", absent_classes_option)
@under(
    "Run",
    out_option("runs/score"),
    click.option("--predictions", is_flag=True, help="Write them, too, as the dataset's benchmark takes them."),
    workers_option,
    device_option,
)
@json_option
@going_on_later(*FROM_THE_BEGINNING)
def score(out: Path, as_json: bool, **options: Any) -> None:
    """Score a finished model on a split: mIoU, IoU by class, accuracy, confusion matrix.

    Under torchrun --no-python, processes share the frames.
    """
    loading_torch()
    from .evaluate.score import ScoreConfig, score_model

    scores = score_model(ScoreConfig(out=out, **options))
    if scores is not None:
        show_scores(scores, out, as_json)
    if options["predictions"] and is_first_process():
        click.echo(f"predictions: {out}/submission", err=as_json)


@evaluate.command(
    epilog="scalr evaluate robustness --model model.safetensors --root /data/nuScenes-C --clean-root /data/nuscenes"
)
@under(
    "Data",
    model_option,
    choice_option("--dataset", ["nuscenes_c", "semantic_kitti_c"], "Which corruptions."),
    click.option("--root", type=path, required=True, help="Folder of the corruptions."),
    click.option("--clean-root", type=path, required=True, help="Folder of the clean dataset."),
)
@under("Run", out_option("runs/robustness"), workers_option, device_option)
@json_option
@going_on_later("what is scored stays")
def robustness(out: Path, as_json: bool, **options: Any) -> None:
    """Score a model on Robo3D's 24 corrupted copies: mCE and mRR.

    What was scored before is not scored again. Exit code 3 where copies are missing.
    """
    loading_torch()
    from .evaluate.robustness import RobustnessConfig
    from .evaluate.robustness import robustness as run

    result = run(RobustnessConfig(out=out, **options))
    if is_first_process():
        if as_json:
            show_file(out / "result.json")
        else:
            click.echo(f"mCE {result.mce:.2f}, mRR {result.mrr:.2f}, mIoU clean {result.clean:.2f}   ({out}/result.md)")
        if result.missing:
            click.echo(f"missing: {', '.join(result.missing)}", err=True)
    if result.missing:
        raise click.exceptions.Exit(3)


@evaluate.command(epilog="scalr evaluate transfer --model runs/source/model.safetensors --root /data/semantic_kitti")
@under(
    "Data",
    model_option,
    choice_option("--dataset", ["semantic_kitti", "semantic_poss"], "Target."),
    click.option("--root", type=path, required=True, help="Folder of the target."),
    split_option("val", "Split of the target."),
)
@under("Run", out_option("runs/transfer"), workers_option, device_option)
@json_option
@going_on_later(*FROM_THE_BEGINNING)
def transfer(out: Path, as_json: bool, **options: Any) -> None:
    """Score a model of nuScenes on a lidar that it has never seen.

    The model is made by 'scalr evaluate finetune --classes semantic_kitti_10' or 'probe'.
    """
    loading_torch()
    from .evaluate.transfer import TransferConfig
    from .evaluate.transfer import transfer as run

    show_scores(run(TransferConfig(out=out, **options)), out, as_json)


@evaluate.command(epilog="scalr evaluate teacher --cache train.zarr --val-cache val.zarr --root /data/nuscenes")
@under(
    "Data",
    click.option("--cache", type=path, default="store.zarr", show_default=True, help="Store with the training split."),
    click.option("--val-cache", type=path, help="Store with the validation split.  [default: the same]"),
    click.option("--teacher", help="Whose targets.  [default: the only one in the store]", **completed(teacher_names)),
    dataset_option,
    root_option,
    click.option("--train-split", default="train", show_default=True, help="Split that is trained on."),
    click.option("--val-split", default="val", show_default=True, help="Split that is scored."),
    choice_option(
        "--standardise",
        ["none", "centre", "phi_s"],
        "What is done to targets first, by the teacher's statistics in --cache: nothing; take the mean away; also "
        "rotate and scale.",
    ),
)
@under(
    "Training",
    click.option("--epochs", type=int, help="[default: as of linear probing]"),
    click.option("--batch-size", type=int, help="Frames of a step.  [default: 8]"),
    click.option("--learning-rate", type=float, help="Peak of the schedule.  [default: as of linear probing]"),
    seed_option,
)
@under("Run", out_option("runs/teacher"), workers_option, device_option)
@json_option
@going_on_later(*FROM_THE_BEGINNING)
def teacher(out: Path, as_json: bool, **options: Any) -> None:
    """Linear probing of the stored targets themselves: what the teacher knows, before any student is trained."""
    loading_torch()
    from .evaluate.teacher import TeacherProbeConfig, probe_teacher

    show_scores(probe_teacher(TeacherProbeConfig(out=out, **options)), out, as_json)


@evaluate.command(epilog="scalr evaluate similarity --student student.safetensors --root /data/nuscenes --class car")
@under(
    "Data",
    student_option,
    dataset_option,
    root_option,
    split_option("val", "Split of the frame."),
    click.option("--frame", help="Its token.  [default: the first]"),
)
@under(
    "Compared with",
    click.option("--point", type=int, help="Row of the point in the scan.  [default: one on a car]"),
    click.option("--class", "class_name", help="All points of a class instead, such as pedestrian."),
    click.option(
        "--centre/--no-centre",
        default=True,
        show_default=True,
        help="Take the mean of the scan's features away before features are compared. --no-centre: plain cosines, as in"
        " Figure 1 of ScaLR.",
    ),
)
@under(
    "The teacher beside it",
    click.option(
        "--cache",
        type=path,
        help="Store with the frame's targets. Areas under ROC curves are then over frames that the store has.",
    ),
    click.option("--teacher", help="Whose targets.  [default: the only one in the store]", **completed(teacher_names)),
)
@under(
    "Classes",
    click.option(
        "--area-frames",
        default=8,
        show_default=True,
        help="Number of labelled frames, spread evenly over the split, for the area under the ROC curve of each class."
        " 0: none.",
    ),
)
@under("Run", out_option("runs/similarity", "Folder for the pictures."), device_option)
@json_option
@going_on_later(*FROM_THE_BEGINNING)
def similarity(out: Path, as_json: bool, **options: Any) -> None:
    """Colour a scan by the similarity of its points to one: pictures, and a page in which a click recolours all.

    With labels, also how well features rank each class above the others: the area under the ROC curve.
    """
    loading_torch()
    from .evaluate.similarity import SimilarityConfig, similarity_maps

    result = similarity_maps(SimilarityConfig(out=out, **options))
    if as_json:
        show_file(out / "similarity.json")
        return
    lowest = ", ".join(f"{share} {cosine:.3f}" for share, cosine in result.cosines.items())
    click.echo(f"{result.num_points:,} points compared with {result.query.text}, {result.compared}")
    click.echo(f"  lowest cosine among the most similar points: {lowest}")
    for written in (result.top_view, result.perspective_view, result.page, result.pca):
        if written is not None:
            click.echo(f"  {written}")
    if result.areas is not None:
        show_areas(result.areas, options["split"])
    elif options["area_frames"]:
        click.echo("No areas under ROC curves: the split has no labels.")


def show_areas(areas: SplitAreas, split: str) -> None:
    """A row for each class, two columns for each kind of features; "–" where a class has too few points."""
    from .evaluate.class_areas import FEWEST_POINTS

    click.echo(f"\nArea under the ROC curve, class against the rest, {len(areas.frames)} frames of split {split}:")
    names = {"student": "student", "student_on_pairs": "student, pairs", "teacher": "teacher, pairs"}
    columns = areas.columns
    click.echo(f"  {'':<22}{'':>11}" + "".join(f"{names[what]:>18}" for what in columns))
    click.echo(f"  {'':<22}{'points':>11}" + f"{'plain':>9}{'centred':>9}" * len(columns))
    values = [each.tolist() for of in columns.values() for each in (of.plain, of.centred)]
    for name, points, *row in zip(areas.class_names, areas.points.tolist(), *values, strict=True):
        click.echo(f"  {name:<22}{points:>11,}" + "".join(map(_area, row)))
    means = [mean for of in columns.values() for mean in (of.means["plain"], of.means["centred"])]
    click.echo(f"  {'mean':<22}{'':>11}" + "".join(map(_area, means)))
    click.echo(f"  A class needs {FEWEST_POINTS} points in a frame; – where none has so many.")


def _area(value: float) -> str:
    return f"{value:9.3f}" if value == value else f"{'–':>9}"


@evaluate.command(epilog="scalr evaluate report runs/probe runs/finetune > results.md")
@click.argument("runs", type=path, nargs=-1, required=True)
def report(runs: tuple[Path, ...]) -> None:
    """Put finished runs side by side, with the papers' figures for the same setting, as Markdown."""
    from .evaluate.comparison import compare

    click.echo(compare(runs))
