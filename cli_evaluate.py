"""The commands of `scalr evaluate`: each parses its options, calls one function, and shows its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_options import (
    AFTER_A_CHECKPOINT,
    FROM_THE_BEGINNING,
    StagedCommands,
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
    show_result,
    split_option,
    student_option,
    teacher_names,
    under,
    workers_option,
)
from .counted import counted

if TYPE_CHECKING:
    from .evaluate.scores import Scores
    from .evaluate.split_areas import SplitAreas


@click.group(
    cls=StagedCommands,
    stages={
        "Frozen features": ("probe", "teacher", "similarity"),
        "Training with labels": ("finetune", "score"),
        "Robustness and domain generalisation": ("robustness", "transfer"),
        "Comparison of runs": ("report",),
    },
    epilog="scalr evaluate probe --student runs/distill/student.safetensors",
)
def evaluate() -> None:
    """Evaluate a student: linear probing, finetuning, robustness, domain generalisation."""


train_split_option = click.option("--train-split", default="train", show_default=True, help="Split to train on.")
val_split_option = click.option("--val-split", default="val", show_default=True, help="Split to score.")
teacher_option = click.option(
    "--teacher",
    help="Teacher whose targets are read.  [default: the only one in the store]",
    **completed(teacher_names),
)
absent_classes_option = choice_option(
    "--absent-classes",
    ["left-out", "as-1"],
    "How the mIoU treats classes that no point has as label or prediction. left-out: not counted, as in ScaLR's code."
    " as-1: counted with an IoU of 1, as in SLidR's code.",
)


def options_of_training(command: Callable) -> Callable:
    """Options of probing and finetuning; an option that is left out has the published value."""
    data = under(
        "Data",
        student_option,
        dataset_option,
        root_option,
        train_split_option,
        val_split_option,
        classes_option,
    )
    training = under(
        "Training",
        choice_option(
            "--schedule",
            ["scalr", "scalr_plus", "slidr"],
            "Published training schedule to use. scalr, scalr_plus: AdamW; the head is a BatchNorm and a linear layer."
            " slidr: SGD whose learning rate changes between epochs; the head is a linear layer alone.",
        ),
        choice_option(
            "--augmentation",
            ["official", "joint"],
            "Augmentation of training scans. official: as published with the schedule; in ScaLR, coordinates and input"
            " features are transformed independently. joint: both are transformed alike, as in distillation.",
        ),
        click.option("--epochs", type=int, help="Training epochs.  [default: as published]"),
        click.option(
            "--warmup-epochs", type=float, help="Epochs in which the learning rate rises.  [default: as published]"
        ),
        click.option(
            "--batch-size",
            type=int,
            help="Scans per training step, over all processes.  [default: as published]",
        ),
        click.option("--learning-rate", type=float, help="Highest learning rate.  [default: as published]"),
        seed_option,
    )
    scoring = under("Scoring", absent_classes_option)
    run = under("Run", resume_option, checkpoint_option, workers_option, device_option)
    return data(training(scoring(run(json_option(command)))))


def show_file(written: Path) -> None:
    """Print a file that a run has written."""
    show_result(written.read_text().rstrip())


def show_scores(scores: Scores, out: Path, as_json: bool) -> None:
    """IoU by class and mIoU, or the result file as JSON; printed once for all processes."""
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
@under(
    "Training",
    click.option(
        "--fast", is_flag=True, help="Compute the features once, without augmentation, and train the head on them."
    ),
)
@under("Run", out_option("runs/probe"))
@going_on_later(*AFTER_A_CHECKPOINT)
def probe(out: Path, as_json: bool, **options: Any) -> None:
    """Linear probing: train a BatchNorm and a linear layer on the frozen student, and score them."""
    loading_torch()
    from .evaluate.probe import ProbeConfig
    from .evaluate.probe import probe as run

    show_scores(run(ProbeConfig(out=out, **options)).scores, out, as_json)


@evaluate.command(epilog="scalr evaluate finetune --student student.safetensors --root /data/nuscenes --labels 1%")
@options_of_training
@under(
    "Training",
    choice_option("--labels", ["100%", "10%", "1%"], "Fraction of the training labels, from the official subsets."),
    click.option(
        "--from-scratch", is_flag=True, help="Start from new weights in the student's architecture, as a baseline."
    ),
    click.option(
        "--layer-decay",
        type=float,
        help="Learning-rate factor per layer, from output to input.  [default: as published]",
    ),
    click.option(
        "--head-factor",
        type=float,
        help="Learning rate of the head, as a multiple of --learning-rate.  [default: as published]",
    ),
    precision_option("Precision of the forward pass."),
    click.option(
        "--activation-checkpointing",
        is_flag=True,
        help="Recompute activations in the backward pass: less memory, more time.",
    ),
)
@under("Run", out_option("runs/finetune"))
@going_on_later(*AFTER_A_CHECKPOINT)
def finetune(out: Path, as_json: bool, **options: Any) -> None:
    """Finetuning: train the whole student on all or few labels, and score it."""
    loading_torch()
    from .evaluate.finetune import FinetuneConfig
    from .evaluate.finetune import finetune as run

    show_scores(run(FinetuneConfig(out=out, **options)).scores, out, as_json)


@evaluate.command(epilog="scalr evaluate score --model runs/finetune/model.safetensors --root /data/nuscenes")
@under("Data", model_option, dataset_option, root_option, split_option("val", "Split to score."), classes_option)
@under("Scoring", absent_classes_option)
@under(
    "Run",
    out_option("runs/score"),
    click.option("--predictions", is_flag=True, help="Also write predictions in the benchmark's submission format."),
    workers_option,
    device_option,
)
@json_option
@going_on_later(*FROM_THE_BEGINNING)
def score(out: Path, as_json: bool, **options: Any) -> None:
    """Score a probed or finetuned model on a split: mIoU, IoU by class, accuracy, confusion matrix.

    Start the command with torchrun --no-python to score on several GPUs: each process scores a part of the frames.
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
    choice_option("--dataset", ["nuscenes_c", "semantic_kitti_c"], "Benchmark: nuScenes-C or SemanticKITTI-C."),
    click.option(
        "--root", type=path, required=True, help="Folder of the corrupted copies, which holds fog, snow and others."
    ),
    click.option("--clean-root", type=path, required=True, help="Folder of the clean dataset."),
)
@under("Run", out_option("runs/robustness"), workers_option, device_option)
@json_option
@going_on_later("scores of finished copies are kept")
def robustness(out: Path, as_json: bool, **options: Any) -> None:
    """Score a model on the 24 corrupted copies of a Robo3D benchmark: mCE and mRR.

    Copies that were scored before are not scored again. Exits with 3 if copies are missing.
    """
    loading_torch()
    from .evaluate.robustness import RobustnessConfig
    from .evaluate.robustness import robustness as run

    result = run(RobustnessConfig(out=out, **options))
    if is_first_process():
        if as_json:
            show_file(out / "result.json")
        else:
            click.echo(f"{result.as_text()}   ({out}/result.md)")
        if result.missing:
            click.echo(f"missing copies: {', '.join(result.missing)}", err=True)
    if result.missing:
        raise click.exceptions.Exit(3)


@evaluate.command(epilog="scalr evaluate transfer --model runs/source/model.safetensors --root /data/semantic_kitti")
@under(
    "Data",
    model_option,
    choice_option("--dataset", ["semantic_kitti", "semantic_poss"], "Dataset the model has never seen."),
    click.option("--root", type=path, required=True, help="Folder of the unseen dataset."),
    split_option("val", "Split of the unseen dataset."),
)
@under("Run", out_option("runs/transfer"), workers_option, device_option)
@json_option
@going_on_later(*FROM_THE_BEGINNING)
def transfer(out: Path, as_json: bool, **options: Any) -> None:
    """Domain generalisation: score a model trained on nuScenes on a dataset it has never seen.

    Train the model with 'scalr evaluate finetune' or 'scalr evaluate probe' and the option --classes.
    """
    loading_torch()
    from .evaluate.transfer import TransferConfig
    from .evaluate.transfer import transfer as run

    show_scores(run(TransferConfig(out=out, **options)), out, as_json)


@evaluate.command(epilog="scalr evaluate teacher --cache train.zarr --val-cache val.zarr --root /data/nuscenes")
@under(
    "Data",
    click.option("--cache", type=path, default="store.zarr", show_default=True, help="Store with the training split."),
    click.option("--val-cache", type=path, help="Store with the validation split.  [default: that of --cache]"),
    teacher_option,
    dataset_option,
    root_option,
    train_split_option,
    val_split_option,
    choice_option(
        "--standardise",
        ["none", "centre", "phi_s"],
        "Standardisation of the targets, with the statistics in --cache. centre: subtract the mean. phi_s: subtract"
        " the mean, rotate and scale.",
    ),
)
@under(
    "Training",
    click.option("--epochs", type=int, help="Training epochs.  [default: as in linear probing]"),
    click.option("--batch-size", type=int, help="Frames per training step.  [default: 8]"),
    click.option("--learning-rate", type=float, help="Highest learning rate.  [default: as in linear probing]"),
    seed_option,
)
@under("Run", out_option("runs/teacher"), workers_option, device_option)
@json_option
@going_on_later(*FROM_THE_BEGINNING)
def teacher(out: Path, as_json: bool, **options: Any) -> None:
    """Linear probing of the stored teacher features, before any student is trained."""
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
    click.option("--frame", help="Frame ID of the frame to show.  [default: the first frame of the split]"),
)
@under(
    "Query",
    click.option("--point", type=int, help="Row of the query point in the scan.  [default: a point on a car]"),
    click.option(
        "--class", "class_name", help="Query with the mean feature of a class instead, for example pedestrian."
    ),
    click.option(
        "--centre/--no-centre",
        default=True,
        show_default=True,
        help="Subtract the mean feature of the scan before the cosine is computed. --no-centre: plain cosines, as in"
        " Figure 1 of ScaLR.",
    ),
)
@under(
    "Teacher (optional)",
    click.option(
        "--cache",
        type=path,
        help="Store with the frame's targets, to show the teacher beside the student. Areas under ROC curves are then"
        " computed over frames that the store has.",
    ),
    teacher_option,
)
@under(
    "Classes",
    click.option(
        "--area-frames",
        default=8,
        show_default=True,
        help="Labelled frames, spread evenly over the split, from which the area under the ROC curve of each class is"
        " computed. 0 computes none.",
    ),
)
@under("Run", out_option("runs/similarity", "Folder for the pictures."), device_option)
@json_option
@going_on_later(*FROM_THE_BEGINNING)
def similarity(out: Path, as_json: bool, **options: Any) -> None:
    """Colour points by cosine similarity to a query point or class: pictures, and an interactive HTML page.

    If the split has labels, also compute how well features separate each class: the area under the ROC curve.
    """
    loading_torch()
    from .evaluate.similarity import SimilarityConfig, similarity_maps

    result = similarity_maps(SimilarityConfig(out=out, **options))
    if as_json:
        show_file(out / "similarity.json")
        return
    all_points, *most_similar = (f"{share} {cosine:.3f}" for share, cosine in result.cosines.items())
    click.echo(f"{result.num_points:,} points, cosine similarity to {result.query.text}, {result.compared}")
    click.echo(f"  lowest cosine: of {all_points}; of the most similar {', '.join(most_similar)}")
    for written in (result.top_view, result.perspective_view, result.page, result.pca):
        if written is not None:
            click.echo(f"  {written}")
    if result.areas is not None:
        show_areas(result.areas, options["split"])
    elif options["area_frames"]:
        click.echo("No area under the ROC curve was computed: the split has no labels.")


def show_areas(areas: SplitAreas, split: str) -> None:
    """A row for each class, two columns for each kind of features; "–" if a class has too few points."""
    from .evaluate.class_areas import FEWEST_POINTS

    frames = counted(len(areas.frames), "frame")
    click.echo(f"\nArea under the ROC curve, class against the rest, {frames} of split {split}:")
    names = {"student": "student", "student_on_pairs": "student, pairs", "teacher": "teacher, pairs"}
    columns = areas.columns
    click.echo(f"  {'':<22}{'':>11}" + "".join(f"{names[what]:>18}" for what in columns))
    click.echo(f"  {'':<22}{'points':>11}" + f"{'plain':>9}{'centred':>9}" * len(columns))
    values = [each.tolist() for of in columns.values() for each in (of.plain, of.centred)]
    for name, points, *row in zip(areas.class_names, areas.points.tolist(), *values, strict=True):
        click.echo(f"  {name:<22}{points:>11,}" + "".join(map(_area, row)))
    means = [mean for of in columns.values() for mean in (of.means["plain"], of.means["centred"])]
    click.echo(f"  {'mean':<22}{'':>11}" + "".join(map(_area, means)))
    click.echo(f"  –: no frame has {FEWEST_POINTS} points of the class, the least number for an area.")


def _area(value: float) -> str:
    return f"{value:9.3f}" if value == value else f"{'–':>9}"


@evaluate.command(epilog="scalr evaluate report runs/probe runs/finetune > results.md")
@click.argument("runs", type=path, nargs=-1, required=True, help="Folders of finished evaluations (their --out).")
def report(runs: tuple[Path, ...]) -> None:
    """Print a Markdown table of finished runs, beside the published results of the same setting."""
    from .evaluate.comparison import compare

    click.echo(compare(runs))
