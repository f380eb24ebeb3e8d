"""The command line: each verb parses and calls one function; those of `scalr evaluate` are in `cli_evaluate.py`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Protocol

import click

from .cli_evaluate import evaluate
from .cli_options import (
    AFTER_A_CHECKPOINT,
    DEFAULT_RECIPE,
    ImageSize,
    PartOfN,
    Verbs,
    checkpoint_option,
    choice_option,
    completed,
    dataset_option,
    device_option,
    going_on_later,
    is_first_process,
    json_option,
    loading_torch,
    out_option,
    path,
    precision_option,
    recipe_names,
    recipe_option,
    resume_option,
    root_option,
    seed_option,
    set_option,
    show_result,
    split_option,
    teacher_names,
    under,
    workers_option,
)
from .cli_predict import predict
from .json_text import json_text

# Heavy imports (torch, timm, zarr) live inside the verbs, so that --help answers at once.

SHELLS = ("bash", "zsh", "fish")


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    stages={
        "Stage one, from images to a store": ("check", "extract", "inspect", "verify", "remove"),
        "Stage two, from stores to students": ("distill", "convert"),
        "Stage three, what students are worth": ("evaluate", "corrupt", "predict"),
        "Without any data": ("demo", "synth"),
        "Shell": ("completion",),
    },
    epilog="scalr extract --teacher dinov2_vitl14 && scalr distill --cache store.zarr --teacher dinov2_vitl14",
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


main.add_command(evaluate)
main.add_command(predict)


def show_teachers(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print all teachers and leave."""
    if value:
        from .extract.teachers.registry import list_teachers

        click.echo(list_teachers())
        ctx.exit()


class Report(Protocol):
    """What a verb found, for scripts and for people."""

    def as_json(self) -> dict: ...

    def as_text(self) -> str: ...


def show(report: Report, as_json: bool) -> None:
    """Print a report; paths in it are strings in JSON."""
    show_result(json_text(report.as_json(), indent=2) if as_json else report.as_text())


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
        "--feature", help="Of a ViT: x_prenorm, x_norm, maskclip, layers: x_prenorm:5,11.  [default: the teacher's own]"
    ),
    click.option(
        "--pos-embed",
        type=click.Choice(["timm", "official"]),
        help="How a ViT's position embeddings are resized.  [default: timm; official for MaskCLIP]",
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
    click.option(
        "--encoding",
        type=click.Choice(["patch", "point", "segments"]),
        help="Each patch that some pair reads, once; a vector a pair; or nothing of pairs, and only vectors of"
        " superpixels.  [default: patch; segments where a teacher's maps are too large]",
    ),
    choice_option("--dtype", ["int8", "float16"], "Of vectors of patches or pairs; those of superpixels are float16."),
    choice_option("--points", ["all", "visible"], "Keep whole scans, or the points that some camera sees."),
    choice_option("--occlusion", ["keep", "drop"], "Pairs that a nearer surface hides from the camera."),
    click.option(
        "--superpixels",
        metavar="slic|DIR",
        help="Store the segments of images, too: made by SLIC, or read from a folder of PNG files.  [default: none]",
    ),
    click.option("--frames-per-block", type=int, help="Frames written at once.  [default: 64; 16 with point]"),
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
@going_on_later("committed blocks stay")
def extract(dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run teachers on every image and store the features of the lidar points they see.

    Killed, it goes on where it stopped when the same command runs again.
    """
    from .extract.config import ExtractConfig

    config = ExtractConfig(**options)
    loading_torch()
    from .extract.run import estimate_extraction
    from .extract.run import extract as run

    if dry_run:
        show(estimate_extraction(config), as_json)
        return
    summary = run(config)
    show(summary, as_json)
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
    show(report, as_json)
    if report.problems:
        raise click.exceptions.Exit(1)


@main.command(epilog="scalr inspect store.zarr")
@click.argument("store", type=path)
@json_option
def inspect(store: Path, as_json: bool) -> None:
    """Say what a store holds, what is missing, and how large it is."""
    from .extract.store import open_store
    from .extract.store.inspect import inspect_store

    show(inspect_store(open_store(store)), as_json)


@main.command(epilog="scalr verify store.zarr --repair")
@click.argument("store", type=path)
@click.option("--repair", is_flag=True, help="Move damaged blocks to the store's folder 'aside'.")
@under(
    "Recomputing views from their images",
    click.option("--sample", type=click.IntRange(min=0), default=0, show_default=True, help="How many views."),
    click.option("--root", type=path, help="Dataset folder.  [default: as recorded]"),
    click.option("--superpixels", metavar="DIR", help="Folder of superpixel maps, or slic.  [default: as recorded]"),
    click.option("--weights", multiple=True, help="Of the teacher, or TEACHER=FILE.  [default: as recorded]"),
    device_option,
)
@json_option
def verify(store: Path, as_json: bool, **options: Any) -> None:
    """Check every file, chunk and count of a store.

    Exit code 1 where something is damaged, missing, or cannot be read now. After --repair, the same 'scalr extract'
    makes what was damaged anew.
    """
    loading_torch()
    from .extract.verification import VerifyConfig
    from .extract.verification import verify as run

    result = run(VerifyConfig(store=store, **options))
    show(result, as_json)
    if not result.whole:
        raise click.exceptions.Exit(1)


@main.command(epilog="scalr remove store.zarr --teacher dinov2_vits14")
@click.argument("store", type=path)
@click.option(
    *("--teacher", "teachers"),
    multiple=True,
    help="Delete this teacher's targets; scans and other teachers' targets stay.",
)
@click.option(
    *("--split", "splits"),
    multiple=True,
    metavar="DATASET/SPLIT",
    help="Delete this split, such as nuscenes/val: its scans and all targets of them.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(store: Path, teachers: tuple[str, ...], splits: tuple[str, ...], yes: bool) -> None:
    """Delete a teacher or a split from a store.

    Interrupted, the deletion continues when the same command runs again. Do not run it while jobs write to the store.
    """
    if len(teachers) + len(splits) != 1:
        raise click.UsageError("Pass either --teacher or --split, and one at a time.")
    from .extract.store import open_store
    from .extract.store.inspect import readable_bytes
    from .extract.store.remove import removal_of_split, removal_of_teacher

    opened = open_store(store)
    removal = removal_of_split(opened, *splits) if splits else removal_of_teacher(opened, *teachers)
    size = readable_bytes(removal.num_bytes)
    if not yes:
        click.confirm(f"Delete {removal.what} ({len(removal.groups)} blocks, {size}) from {store}?", abort=True)
    removal.run()
    click.echo(f"{store}: {removal.what} is deleted, {size}")


@main.command(
    epilog="scalr distill --cache store.zarr --teacher dinov2_vitl14 --recipe scalr_wi256 --out runs/wi256 --resume"
)
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
        help="Teacher whose targets are learnt; repeatable.  [default: the recipe's, else the only one in each store; "
        "with --resume, those that the run was started with]",
        **completed(teacher_names),
    ),
    split_option(
        None, "Split to train on.", "the only one in each store; with --resume, what the run was started with"
    ),
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
@going_on_later(*AFTER_A_CHECKPOINT)
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
    if (eval_every is None) != (eval_root is None):
        raise click.UsageError("--eval-every and --eval-root go together.")
    loading_torch()
    from .distill.recipe import load_recipe
    from .distill.run import DistillConfig
    from .distill.run import distill as run

    if eval_root is not None:
        from .evaluate.probe import QuickProbe

        options |= {"quick_probe": QuickProbe(eval_dataset, eval_root, eval_frames), "eval_every": eval_every}
    summary = run(DistillConfig(recipe=load_recipe(recipe, overrides), **options))
    if is_first_process():
        show(summary, as_json)


@main.command(epilog="scalr convert ckpt_last.pth student.safetensors")
@click.argument("source", type=path)
@click.argument("target", type=path)
@under(
    "Of official models",
    click.option(
        "--recipe",
        help="Recipe for backbone and inputs.  [default: the file's backbone and its own inputs]",
        **completed(recipe_names),
    ),
    set_option,
    click.option(
        "--activation",
        type=click.Choice(["relu", "gelu"]),
        help="[default: gelu with a 2-layer head, as in ScaLR+, else relu, where that is clear]",
    ),
)
def convert(source: Path, target: Path, recipe: str | None, overrides: tuple[str, ...], activation: str | None) -> None:
    """Turn an official checkpoint (.pth or .pt) into a student (.safetensors), or a student into that or an export
    (.pt2).

    The inputs that a model reads are those of --recipe and --set; without these options those that the file names, or
    else its backbone's defaults. A recipe with other inputs than the file names is refused.
    """
    loading_torch()
    from .distill.convert import convert as run
    from .distill.convert import require_of_inputs
    from .distill.recipe import load_recipe

    given = load_recipe(recipe or DEFAULT_RECIPE, overrides) if recipe or overrides else None
    require_of_inputs(overrides)
    click.echo(run(source, target, given, activation))


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
@going_on_later("finished scans stay")
def corrupt(corruptions: tuple[str, ...], severities: tuple[str, ...], **options: Any) -> None:
    """Make corrupted copies of a validation set as Robo3D's, for 'scalr evaluate robustness'.

    Scores on them are not comparable with published ones. Exit code 3 where a strength is not known.
    """
    from .evaluate.corrupt import CorruptConfig
    from .evaluate.corrupt import corrupt as run

    chosen = {"corruptions": corruptions, "severities": severities}
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
@click.option(
    "--weights",
    metavar="hub|FILE|random",
    help="Weights of the teacher, dinov2_vits14.  [default: hub where it answers, else random]",
)
@seed_option
def demo(out: Path, weights: str | None, seed: int) -> None:
    """The whole path on a simulated world: synth, extract, distill, probe; ends in one HTML report."""
    loading_torch()
    from .demo import run_demo

    result = run_demo(out, seed, weights)
    click.echo(f"mIoU distilled {result.distilled.miou:.1%}, undistilled {result.undistilled.miou:.1%} (seed {seed})")
    click.echo(f"report: {result.report}")


@main.command(epilog='eval "$(scalr completion bash)"      # in ~/.bashrc; likewise ~/.zshrc, config.fish')
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete verbs, options, teachers, datasets and recipes."""
    from click.shell_completion import get_completion_class

    click.echo(get_completion_class(shell)(main, {}, "scalr", "_SCALR_COMPLETE").source())
