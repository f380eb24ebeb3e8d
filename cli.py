"""The command line: each verb parses, sets up logging and calls one function."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_options import (
    ImageSize,
    PartOfN,
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
    model_option,
    out_option,
    path,
    precision_option,
    recipe_option,
    resume_option,
    root_option,
    seed_option,
    set_option,
    split_option,
    student_option,
    teacher_names,
    under,
    workers_option,
)

if TYPE_CHECKING:
    from .evaluate.scoring import Scores

# Heavy imports (torch, timm, zarr) live inside the verbs, so that --help answers at once.

SHELLS = ("bash", "zsh", "fish")


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    stages={
        "Stage one, from images to a store": ("check", "extract", "inspect", "verify"),
        "Stage two, from stores to students": ("distill", "convert"),
        "Stage three, what students are worth": ("evaluate", "corrupt"),
        "Without any data": ("demo", "synth"),
        "Shell": ("completion",),
    },
    epilog="scalr extract --teacher dinov2_vitl14 && scalr distill --cache store.zarr",
)
@click.version_option(package_name="scalr-distill", prog_name="scalr")
@click.option("-q", "--quiet", is_flag=True, help="Warnings and errors only.")
def main(quiet: bool) -> None:
    """Distil image foundation models into lidar backbones, from teacher features cached on disk."""
    # Before torch loads: where other jobs share the cores, threads that spin while they wait can make a step ten times
    # as long as threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger(__package__)  # ours only: other libraries keep their own ways
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_first_process() and not quiet else logging.WARNING)


def show_teachers(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print all teachers and leave."""
    if value:
        from .extract.teachers import list_teachers

        click.echo(list_teachers())
        ctx.exit()


def show_json(values: dict) -> None:
    """What scripts read; paths and tuples as JSON has them."""
    click.echo(json.dumps(values, indent=2, default=str))


@main.command(epilog="scalr extract --teacher dinov2_vitl14 --root /data/nuscenes --out store.zarr")
@under(
    "Teachers",
    click.option(
        *("--teacher", "teachers"),
        multiple=True,
        required=True,
        help="Such as dinov2_vitl14; repeatable.",
        **completed(teacher_names),
    ),
    click.option(
        "--list-teachers",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show_teachers,
        help="Names, patch and feature sizes, licences of the weights.",
    ),
    click.option(
        "--weights",
        multiple=True,
        default=["hub"],
        show_default=True,
        help="hub, random (for trials) or a checkpoint file; TEACHER=FILE for one of several.",
    ),
    click.option("--image-size", type=ImageSize(), help="Of the teacher's input.  [default: 224x448]"),
    click.option(
        "--feature", help="x_prenorm, x_norm, maskclip, or layers: x_prenorm:5,11.  [default: the teacher's own]"
    ),
    click.option(
        "--pos-embed",
        type=click.Choice(["timm", "official"]),
        help="How position embeddings are resized.  [default: timm; official for MaskCLIP]",
    ),
    precision_option,
    click.option("--batch-size", type=int, help="Images at once.  [default: measured, once per store]"),
)
@under(
    "Dataset",
    dataset_option,
    root_option,
    split_option("train", "Split of the dataset."),
    choice_option("--on-error", ["stop", "skip"], "At a frame that cannot be used; skip lists it, exit code 3."),
)
@under(
    "Store",
    out_option("store.zarr", "Store to make or to continue."),
    choice_option("--encoding", ["point", "patch"], "A vector a pair, or only the patches that pairs read."),
    choice_option("--dtype", ["float16", "int8"], "Of stored vectors; int8 has a scale for each."),
    choice_option("--points", ["all", "visible"], "Keep whole scans, or the points that some camera sees."),
    choice_option("--occlusion", ["keep", "drop"], "Pairs that a nearer surface hides from the camera."),
    click.option("--frames-per-block", type=int, help="Frames written at once.  [default: 16; 64 with patch]"),
)
@under(
    "Machines",
    click.option(
        "--part",
        type=PartOfN(),
        default="0/1",
        metavar="K/N",
        show_default=True,
        help="Job K, from 0, of N in an array.",
    ),
    click.option("--workers", default=0, show_default=True, help="Processes on this machine; 0 works in this one."),
    click.option("--scheduler", metavar="ADDRESS", help="Work on the dask cluster at this address."),
    device_option,
)
@click.option("--dry-run", is_flag=True, help="Only say what it will take: sizes of every encoding, files, time.")
@json_option
def extract(dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run teachers on every image and store the features of the lidar points they see.

    Killed, it goes on where it stopped when the same command runs again.
    """
    from .extract.run import ExtractConfig, estimate_extraction
    from .extract.run import extract as run

    config = ExtractConfig(**options)
    if dry_run:
        estimate = estimate_extraction(config)
        show_json(estimate.as_json()) if as_json else click.echo(estimate.as_text())
        return
    with going_on_later("committed blocks stay"):
        summary = run(config)
    if as_json:
        show_json(summary.as_json())
    else:
        click.echo(summary.store.as_text())
        click.echo(f"{summary.blocks_written} blocks written now")
    if summary.skipped:
        for frame in summary.skipped:
            click.echo(f"skipped {frame.token}: {frame.reason}", err=True)
        click.echo(f"{len(summary.skipped)} frames were skipped; mend them and run the same command again", err=True)
        raise click.exceptions.Exit(3)


@main.command(epilog="scalr check --dataset semantic_kitti --root /data/semantic_kitti")
@under("Dataset", dataset_option, root_option, split_option("train", "Split of the dataset."))
@json_option
def check(dataset: str, root: Path, split: str, as_json: bool) -> None:
    """Read every file of a dataset's split and list all that is wrong.

    Exit code 1 where something is.
    """
    from .extract.check import check as run

    report = run(dataset, root, split)
    show_json(report.as_json()) if as_json else click.echo(report.as_text())
    if report.problems:
        raise click.exceptions.Exit(1)


@main.command(epilog="scalr inspect store.zarr")
@click.argument("store", type=path)
@json_option
def inspect(store: Path, as_json: bool) -> None:
    """Say what a store holds, what is missing, and how large it is."""
    from .extract.store import open_store
    from .extract.store.inspect import inspect_store

    report = inspect_store(open_store(store))
    show_json(report.as_json()) if as_json else click.echo(report.as_text())


@main.command(epilog="scalr verify store.zarr --repair")
@click.argument("store", type=path)
@click.option("--repair", is_flag=True, help="Take damaged blocks out; 'scalr extract' then makes them anew.")
@under(
    "Recomputing views from their images",
    click.option("--sample", default=0, show_default=True, help="How many views."),
    click.option("--root", type=path, help="Dataset folder.  [default: as recorded]"),
    click.option("--weights", multiple=True, help="Of the teacher, or TEACHER=FILE.  [default: as recorded]"),
    device_option,
)
@json_option
def verify(store: Path, as_json: bool, **options: Any) -> None:
    """Check every file, chunk and count of a store.

    Exit code 1 where something is wrong.
    """
    from .extract.verification import VerifyConfig
    from .extract.verification import verify as run

    result = run(VerifyConfig(store=store, **options))
    show_json(result.as_json()) if as_json else click.echo(result.as_text())
    if not result.whole:
        raise click.exceptions.Exit(1)


@main.command(epilog="scalr distill --cache store.zarr --recipe scalr_wi256 --out runs/wi256 --resume")
@under(
    "Targets",
    click.option(
        *("--cache", "caches"),
        type=path,
        multiple=True,
        default=["store.zarr"],
        show_default=True,
        help="Feature store to learn from; repeatable.",
    ),
    click.option(
        *("--teacher", "teachers"),
        multiple=True,
        help="Whose targets; repeatable.  [default: the recipe's, else the only one in each store]",
        **completed(teacher_names),
    ),
    split_option(None, "Whose frames.  [default: the only one in each store]"),
)
@under("Training", recipe_option, set_option)
@under(
    "Run",
    out_option("runs/distill", "Folder for student and logs."),
    resume_option,
    checkpoint_option,
    device_option,
)
@under(
    "Watching the features",
    click.option("--eval-every", type=int, help="Epochs between two quick probes; needs --eval-root."),
    click.option("--eval-root", type=path, help="Labelled dataset's folder."),
    click.option("--eval-dataset", default="nuscenes", show_default=True, help="Its reader."),
    click.option("--eval-frames", default=100, show_default=True, help="Frames of each of its splits that are used."),
)
@json_option
def distill(
    recipe: str,
    overrides: tuple[str, ...],
    eval_every: int | None,
    eval_root: Path | None,
    eval_dataset: str,
    eval_frames: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a student on the targets of one or several stores; images, teacher and dataset are not needed.

    SIGTERM and Ctrl-C write a checkpoint and stop (exit code 143), SIGUSR1 writes one; --resume goes on. Under
    torchrun --no-python it runs on several GPUs.
    """
    from .distill.recipes import load_recipe
    from .distill.run import DistillConfig
    from .distill.run import distill as run

    if (eval_every is None) != (eval_root is None):
        raise click.UsageError("--eval-every and --eval-root go together.")
    if eval_root is not None:
        from .evaluate.probe import QuickProbe

        options |= {"quick_probe": QuickProbe(eval_dataset, eval_root, eval_frames), "eval_every": eval_every}
    summary = run(DistillConfig(recipe=load_recipe(recipe, overrides), **options))
    if is_first_process():
        show_json(summary.as_json()) if as_json else click.echo(summary.as_text())


@main.command(epilog="scalr convert ckpt_last.pth student.safetensors")
@click.argument("source", type=path)
@click.argument("target", type=path)
@under(
    "Of official models",
    recipe_option,
    set_option,
    click.option(
        "--activation",
        type=click.Choice(["relu", "gelu"]),
        help="[default: gelu with a 2-layer head, as in ScaLR+, else relu, where that is clear]",
    ),
)
def convert(source: Path, target: Path, recipe: str, overrides: tuple[str, ...], activation: str | None) -> None:
    """Turn an official checkpoint (.pth) into a student (.safetensors), or a student into that or an export (.pt2).

    An official file does not say which inputs it reads: --recipe and --set do.
    """
    from .distill.convert import convert as run
    from .distill.recipes import load_recipe

    click.echo(run(source, target, load_recipe(recipe, overrides).inputs, activation))


@main.group(
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
        choice_option("--schedule", ["scalr", "scalr_plus"], "Whose published schedule."),
        click.option("--epochs", type=int, help="[default: the published number]"),
        click.option("--warmup-epochs", type=float, help="[default: the published number]"),
        click.option("--batch-size", type=int, help="Scans of a step.  [default: 8]"),
        click.option("--learning-rate", type=float, help="Peak of the schedule.  [default: the published one]"),
        seed_option,
    )
    run = under("Run", resume_option, checkpoint_option, workers_option, device_option)
    return data(training(run(json_option(command))))


def show_scores(scores: Scores, out: Path, as_json: bool) -> None:
    """IoU by class and mIoU, or the whole result card as JSON; once for all processes."""
    if not is_first_process():
        return
    if as_json:
        click.echo((out / "result.json").read_text().rstrip())
        return
    for name, iou in zip(scores.class_names, scores.iou.tolist(), strict=True):
        click.echo(f"  {name:<22} {iou:6.1%}" if iou == iou else f"  {name:<22}      –")
    low_high = f" ({scores.interval[0]:.1%} to {scores.interval[1]:.1%})" if scores.interval else ""
    click.echo(f"mIoU {scores.miou:.1%}{low_high}, accuracy {scores.accuracy:.1%}   ({out}/result.md)")


@evaluate.command(epilog="scalr evaluate probe --student runs/distill/student.safetensors --root /data/nuscenes")
@options_of_training
@under("Training", click.option("--fast", is_flag=True, help="Fit the head on features computed once, unaugmented."))
@under("Run", out_option("runs/probe"))
def probe(out: Path, as_json: bool, **options: Any) -> None:
    """Linear probing: BatchNorm + linear layer on the frozen student."""
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
    precision_option,
    click.option("--activation-checkpointing", is_flag=True, help="Less memory for more time."),
)
@under("Run", out_option("runs/finetune"))
def finetune(out: Path, as_json: bool, **options: Any) -> None:
    """Train the whole student on labels, all of them or few."""
    from .evaluate.finetune import FinetuneConfig
    from .evaluate.finetune import finetune as run

    show_scores(run(FinetuneConfig(out=out, **options)).scores, out, as_json)


@evaluate.command(epilog="scalr evaluate score --model runs/finetune/model.safetensors --root /data/nuscenes")
@under("Data", model_option, dataset_option, root_option, split_option("val", "Split that is scored."), classes_option)
@under(
    "Run",
    out_option("runs/score"),
    click.option("--predictions", is_flag=True, help="Write them, too, as the dataset's benchmark takes them."),
    workers_option,
    device_option,
)
@json_option
def score(out: Path, as_json: bool, **options: Any) -> None:
    """Score a finished model on a split: mIoU, IoU by class, accuracy, confusion matrix.

    Under torchrun --no-python, processes share the frames.
    """
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
def robustness(out: Path, as_json: bool, **options: Any) -> None:
    """Score a model on Robo3D's 24 corrupted copies: mCE and mRR.

    What was scored before is not scored again. Exit code 3 where copies are missing.
    """
    from .evaluate.robustness import RobustnessConfig
    from .evaluate.robustness import robustness as run

    with going_on_later("what is scored stays"):
        result = run(RobustnessConfig(out=out, **options))
    if is_first_process():
        if as_json:
            click.echo((out / "result.json").read_text().rstrip())
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
def transfer(out: Path, as_json: bool, **options: Any) -> None:
    """Score a model of nuScenes on a lidar that it has never seen.

    The model is made by 'scalr evaluate finetune --classes semantic_kitti_10' or 'probe'.
    """
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
def teacher(out: Path, as_json: bool, **options: Any) -> None:
    """Linear probing of the stored targets themselves: what the teacher knows, before any student is trained."""
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
)
@under(
    "The teacher beside it",
    click.option("--cache", type=path, help="Store with the frame's targets."),
    click.option("--teacher", help="Whose targets.  [default: the only one in the store]", **completed(teacher_names)),
)
@under("Run", out_option("runs/similarity", "Folder for the pictures."), device_option)
@json_option
def similarity(out: Path, as_json: bool, **options: Any) -> None:
    """Colour a scan by the similarity of its points to one: pictures, and a page in which a click recolours all."""
    from .evaluate.similarity import SimilarityConfig, similarity_maps

    result = similarity_maps(SimilarityConfig(out=out, **options))
    if as_json:
        click.echo((out / "similarity.json").read_text().rstrip())
        return
    low, high = result.similarity_range
    click.echo(f"{result.num_points:,} points compared with {result.query.text}: {low:.2f} to {high:.2f}")
    for written in (result.top_view, result.perspective_view, result.page, result.pca):
        if written is not None:
            click.echo(f"  {written}")


@evaluate.command(epilog="scalr evaluate report runs/probe runs/finetune > results.md")
@click.argument("runs", type=path, nargs=-1, required=True)
def report(runs: tuple[Path, ...]) -> None:
    """Put finished runs side by side, with the papers' figures for the same setting, as Markdown."""
    from .evaluate.comparison import compare

    click.echo(compare(runs))


@main.command(epilog="scalr corrupt --root /data/nuscenes --out nuScenes-C")
@under(
    "Data",
    dataset_option,
    root_option,
    split_option("val", "Split that is corrupted; Robo3D's sets are of val."),
)
@under(
    "Corruptions",
    click.option("--corruption", "corruptions", multiple=True, help="Such as fog; repeatable.  [default: all eight]"),
    click.option("--severity", "severities", multiple=True, help="light, moderate, heavy; repeatable.  [default: all]"),
    click.option(
        "--motion-blur-m", type=float, nargs=3, help="Light, moderate, heavy [m]; nuScenes' are not published."
    ),
    click.option("--crosstalk-share", type=float, nargs=3, help="Likewise, of the points."),
    seed_option,
)
@under("Run", out_option(None, "Folder for the copies."), workers_option)
def corrupt(corruptions: tuple[str, ...], severities: tuple[str, ...], **options: Any) -> None:
    """Make corrupted copies of a validation set as Robo3D's, for 'scalr evaluate robustness'.

    Scores on them are not comparable with published ones. Exit code 3 where a strength is not known.
    """
    from .evaluate.corrupt import CorruptConfig
    from .evaluate.corrupt import corrupt as run

    chosen = {"corruptions": corruptions, "severities": severities}
    with going_on_later("finished scans stay"):
        summary = run(CorruptConfig(**options, **{name: values for name, values in chosen.items() if values}))
    click.echo(f"{len(summary.written)} copies in {options['out']}, {summary.scans_made} scans made now")
    for copy, reason in summary.left_out.items():
        click.echo(f"left out {copy}: {reason}", err=True)
    if summary.left_out:
        raise click.exceptions.Exit(3)


@main.command(epilog="scalr synth --out world && scalr extract --teacher dinov2_vits14 --weights random --root world")
@out_option("synth", "New folder, in the layout's own form.")
@choice_option(
    "--layout", ["nuscenes", "semantic_kitti", "pandaset", "semantic_poss"], "Whose lidar, cameras and files."
)
@click.option("--train-scenes", default=4, show_default=True, help="Scenes of split train.")
@click.option("--val-scenes", type=int, help="Scenes of split val.  [default: 2; 1 where the layout has room for one]")
@click.option("--keyframes", default=10, show_default=True, help="Per scene, half a second apart.")
@seed_option
def synth(out: Path, **options: Any) -> None:
    """Write a simulated world: the same street scenes as each dataset's sensors would see them."""
    from .extract.datasets.synthetic import write_world

    write_world(out, **{name: value for name, value in options.items() if value is not None})
    click.echo(f"{out}: simulated, in the layout of {options['layout']}")


@main.command(epilog="scalr demo --out demo")
@out_option("demo", "New folder for everything the demo makes.")
@seed_option
def demo(out: Path, seed: int) -> None:
    """The whole path on a simulated world: synth, extract, distill, probe; ends in one HTML report."""
    from .demo import run_demo

    result = run_demo(out, seed)
    click.echo(
        f"mIoU distilled {result.distilled.scores.miou:.1%}, undistilled {result.undistilled.scores.miou:.1%}"
        f" (seed {seed})"
    )
    click.echo(f"report: {result.report}")


@main.command(epilog='eval "$(scalr completion bash)"      # in ~/.bashrc; likewise ~/.zshrc, config.fish')
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete verbs, options, teachers, datasets and recipes."""
    from click.shell_completion import get_completion_class

    click.echo(get_completion_class(shell)(main, {}, "scalr", "_SCALR_COMPLETE").source())
