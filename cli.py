"""The command line: each command parses its options and calls one function. `cli_evaluate.py` has `scalr evaluate`."""

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
    StagedCommands,
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
    store_argument,
    teacher_names,
    under,
    workers_option,
)
from .cli_predict import predict
from .counted import counted
from .json_text import json_text

# Heavy imports (torch, timm, zarr) live inside the commands, so that --help answers at once.

SHELLS = ("bash", "zsh", "fish")


class _MessageFormatter(logging.Formatter):
    """Messages as they are; warnings begin with "Warning: ", as errors do with "Error: "."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return f"Warning: {message}" if record.levelno >= logging.WARNING else message


@click.group(
    cls=StagedCommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    stages={
        "Extraction, from images to a store": ("check", "extract", "inspect", "verify", "remove"),
        "Distillation, from stores to students": ("distill", "convert"),
        "Evaluation and use": ("evaluate", "corrupt", "predict"),
        "Without a dataset": ("demo", "synth"),
        "Shell": ("completion",),
    },
    epilog="scalr extract --teacher dinov2_vitl14 && scalr distill --cache store.zarr --teacher dinov2_vitl14",
)
@click.version_option(package_name="scalr-distill", prog_name="scalr")
@click.option("-q", "--quiet", is_flag=True, help="Print only results, warnings and errors.")
def main(quiet: bool) -> None:
    """Distil image foundation models into lidar backbones, from teacher features cached on disk."""
    # Before torch loads: where other jobs share the cores, threads that spin while they wait can make a step ten times
    # as long as threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    handler = logging.StreamHandler()
    handler.setFormatter(_MessageFormatter())
    logger = logging.getLogger(__package__)  # ours only: other libraries keep their own ways
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_first_process() and not quiet else logging.WARNING)


main.add_command(evaluate)
main.add_command(predict)


def show_teachers(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print all teachers and exit."""
    if value:
        from .extract.teachers.registry import list_teachers

        click.echo(list_teachers())
        ctx.exit()


def show_recipes(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print all bundled recipes and exit."""
    if value:
        from .distill.recipes import list_recipes

        click.echo(list_recipes())
        ctx.exit()


class Report(Protocol):
    """The result of a command, for scripts and for people."""

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
        help="Teacher model, for example dinov2_vitl14. Repeat the option for several teachers in one pass.",
        **completed(teacher_names),
    ),
    click.option(
        "--list-teachers",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show_teachers,
        help="List the teachers with their patch size, feature size and licence, and exit.",
    ),
    click.option(
        "--weights",
        multiple=True,
        default=["hub"],
        show_default=True,
        metavar="hub|random|FILE",
        help="Teacher weights. hub: downloaded from the Hugging Face Hub. random: random weights, for tests only. FILE:"
        " your own weights, from a checkpoint file. With several teachers, repeat it as TEACHER=FILE.",
    ),
    click.option(
        "--image-size",
        type=ImageSize(),
        help="Height and width to which images are resized before the teacher, in pixels.  [default: 224x448]",
    ),
    click.option(
        "--feature",
        help="Feature of a ViT: x_prenorm (patch tokens before the final norm), x_norm (after it) or maskclip. Layers"
        " follow a colon: x_prenorm:5,11.  [default: the teacher's published feature]",
    ),
    click.option(
        "--pos-embed",
        type=click.Choice(["timm", "official"]),
        help="Method that resizes a ViT's position embeddings to --image-size: that of timm, or that of the teacher's"
        " official code.  [default: timm; official for MaskCLIP]",
    ),
    precision_option("Precision of the teacher's forward pass. bfloat16 is for GPUs: on a CPU it is slow."),
    click.option(
        "--batch-size",
        type=int,
        help="Images per teacher forward pass.  [default: the fastest size, measured once per store]",
    ),
)
@under(
    "Dataset",
    dataset_option,
    root_option,
    split_option("train", "Split to extract."),
    choice_option(
        "--on-error",
        ["stop", "skip"],
        "What to do on an unusable frame. stop: end with an error. skip: omit and list it, and exit with 3.",
    ),
)
@under(
    "Store",
    out_option("store.zarr", "Store to create or to continue."),
    click.option(
        "--encoding",
        type=click.Choice(["patch", "point", "segments"]),
        help="How features are stored. point: one vector per point-pixel pair. patch: each patch token that is needed,"
        " once; values are interpolated when they are read. segments: only one vector per superpixel.  [default: patch;"
        " segments if a teacher's patch maps are too large]",
    ),
    choice_option(
        "--dtype",
        ["int8", "float16"],
        "Type of stored features. int8 adds one scale per vector. Vectors of superpixels are always float16.",
    ),
    choice_option("--points", ["all", "visible"], "Points to store: all of each scan, or those that a camera sees."),
    choice_option(
        "--occlusion",
        ["keep", "drop"],
        "Keep or drop pairs whose point is occluded: behind a nearer surface, as the camera sees it.",
    ),
    click.option(
        "--superpixels",
        metavar="slic|DIR",
        help="Also store superpixels of the images. slic: computed by SLIC. DIR: read from PNG files in this folder."
        "  [default: none]",
    ),
    click.option(
        "--frames-per-block",
        type=int,
        help="Frames that are written and committed together, as a block.  [default: 64; 16 with --encoding point]",
    ),
)
@under(
    "Parallel work",
    click.option(
        "--part",
        type=PartOfN(),
        default="0/1",
        metavar="K/N",
        show_default=True,
        help="Process part K of N, as one job of a job array. K starts at 0.",
    ),
    click.option(
        "--workers",
        default=0,
        show_default=True,
        help="Worker processes on this machine. 0 runs everything in the main process.",
    ),
    click.option("--scheduler", metavar="ADDRESS", help="Address of a dask scheduler whose workers do the extraction."),
    device_option,
)
@click.option(
    "--dry-run", is_flag=True, help="Only estimate the sizes of all encodings, the number of files, memory and time."
)
@json_option
@going_on_later("committed blocks are kept")
def extract(dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run teachers on every image and store their features for the lidar points that the images see.

    To continue an interrupted or killed extraction, run the same command again. Finished blocks are kept.
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
            click.echo(f"skipped frame {frame.token}: {frame.reason}", err=True)
        skipped = counted(len(summary.skipped), "frame")
        click.echo(f"{skipped} skipped. Fix the files and run the same command again to add them.", err=True)
        raise click.exceptions.Exit(3)


@main.command(epilog="scalr check --dataset semantic_kitti --root /data/semantic_kitti")
@under("Dataset", dataset_option, root_option, split_option("train", "Split to check."))
@json_option
def check(dataset: str, root: Path, split: str, as_json: bool) -> None:
    """Read every file of a dataset split and list all problems, before an extraction.

    Exits with 1 if problems are found.
    """
    from .extract.check import check as run

    report = run(dataset, root, split)
    show(report, as_json)
    if report.problems:
        raise click.exceptions.Exit(1)


@main.command(epilog="scalr inspect store.zarr")
@store_argument
@json_option
def inspect(store: Path, as_json: bool) -> None:
    """Show the content, the missing blocks and the size of a store."""
    from .extract.store import open_store
    from .extract.store.inspect import inspect_store

    show(inspect_store(open_store(store)), as_json)


@main.command(epilog="scalr verify store.zarr --repair")
@store_argument
@click.option(
    "--repair",
    is_flag=True,
    help="Move damaged blocks to the folder 'aside' of the store, and restore damaged metadata.",
)
@under(
    "Recomputation of a sample",
    click.option(
        "--sample",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Number of camera images whose targets are recomputed with the teacher and compared.",
    ),
    click.option("--root", type=path, help="Dataset folder for --sample.  [default: recorded in the store]"),
    click.option(
        "--superpixels",
        metavar="slic|DIR",
        help="Superpixels for --sample: slic, or a folder of maps.  [default: recorded in the store]",
    ),
    click.option(
        "--weights",
        multiple=True,
        metavar="FILE",
        help="Weights file of the teacher for --sample. With several teachers, repeat it as TEACHER=FILE."
        "  [default: recorded in the store]",
    ),
    device_option,
)
@json_option
def verify(store: Path, as_json: bool, **options: Any) -> None:
    """Check every file, chunk and count of a store.

    Exits with 1 if blocks are damaged or missing, or files cannot be read now. After --repair, run the 'scalr extract'
    command that wrote the store again: it extracts the removed blocks again.
    """
    loading_torch()
    from .extract.verification import VerifyConfig
    from .extract.verification import verify as run

    result = run(VerifyConfig(store=store, **options))
    show(result, as_json)
    if not result.whole:
        raise click.exceptions.Exit(1)


@main.command(epilog="scalr remove store.zarr --teacher dinov2_vits14")
@store_argument
@click.option(
    *("--teacher", "teachers"),
    multiple=True,
    help="Delete the targets of this teacher. Scans and the targets of other teachers are kept.",
)
@click.option(
    *("--split", "splits"),
    multiple=True,
    metavar="DATASET/SPLIT",
    help="Delete this split, for example nuscenes/val: its scans and all their targets.",
)
@click.option("--yes", is_flag=True, help="Delete without asking for confirmation.")
def remove(store: Path, teachers: tuple[str, ...], splits: tuple[str, ...], yes: bool) -> None:
    """Delete a teacher or a split from a store.

    To continue an interrupted deletion, run the same command again. Do not run this command while other jobs write to
    the store.
    """
    if len(teachers) + len(splits) != 1:
        raise click.UsageError("Pass one --teacher or one --split.")
    from .extract.store import open_store
    from .extract.store.inspect import readable_bytes
    from .extract.store.remove import removal_of_split, removal_of_teacher

    opened = open_store(store)
    removal = removal_of_split(opened, *splits) if splits else removal_of_teacher(opened, *teachers)
    size = readable_bytes(removal.num_bytes)
    if not yes:
        click.confirm(
            f"Delete {removal.what} ({counted(len(removal.groups), 'block')}, {size}) from {store}?", abort=True
        )
    removal.run()
    click.echo(f"{store}: deleted {removal.what}, {size}")


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
        metavar="STORE",
        help="Feature store to train on. Repeat the option to train on several datasets: for four, pass --cache four"
        " times, one store for each.",
    ),
    click.option(
        *("--teacher", "teachers"),
        multiple=True,
        help="Teacher whose targets are learnt. Repeat the option for several teachers.  [default: the recipe's, else"
        " the only one in each store; with --resume, those of the interrupted run]",
        **completed(teacher_names),
    ),
    split_option(None, "Split to train on.", "the only one in each store; with --resume, that of the interrupted run"),
)
@under(
    "Training",
    recipe_option,
    click.option(
        "--list-recipes",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show_recipes,
        help="List the bundled recipes with their settings, and exit.",
    ),
    set_option("training.epochs=10"),
)
@under(
    "Run",
    out_option("runs/distill", "Folder for the student and the logs."),
    resume_option,
    checkpoint_option,
    device_option,
)
@under(
    "Quick linear probes during training",
    click.option("--eval-every", type=int, help="Epochs between two quick probes. Needs --eval-root."),
    click.option("--eval-root", type=path, help="Folder of a labelled dataset for quick probes."),
    click.option("--eval-dataset", default="nuscenes", show_default=True, help="Dataset reader for --eval-root."),
    click.option(
        "--eval-frames",
        default=100,
        show_default=True,
        help="Frames used from each of the splits train and val of --eval-root.",
    ),
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
    """Train a student on the targets of one or several stores. Images, teacher and dataset are not needed.

    SIGTERM and Ctrl-C write a checkpoint and stop (exit code 143). SIGUSR1 writes a checkpoint and training continues.
    --resume continues an interrupted run. Start the command with torchrun --no-python to train on several GPUs.
    """
    if (eval_every is None) != (eval_root is None):
        raise click.UsageError("--eval-every and --eval-root need each other. Pass both or neither.")
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
@click.argument(
    "source",
    type=path,
    help="File to read: an official checkpoint (.pth or .pt) or a student (.safetensors).",
)
@click.argument(
    "target",
    type=path,
    help="File to write. Its suffix chooses the format: .safetensors (student), .pth or .pt (official checkpoint), .pt2"
    " (export that runs without scalr).",
)
@under(
    "Settings that official checkpoints omit",
    click.option(
        "--recipe",
        help="Recipe that gives the backbone and its inputs.  [default: the backbone and inputs that the file names]",
        **completed(recipe_names),
    ),
    set_option("inputs.voxel_size_m=0.05"),
    click.option(
        "--activation",
        type=click.Choice(["relu", "gelu"]),
        help="Activation function of the backbone.  [default: gelu with a 2-layer head, as in ScaLR+; else relu;"
        " required if the file fits both]",
    ),
)
def convert(source: Path, target: Path, recipe: str | None, overrides: tuple[str, ...], activation: str | None) -> None:
    """Convert an official checkpoint (.pth, .pt) to a student (.safetensors) or back, or export a student (.pt2).

    Official checkpoints omit planes and field of view. Pass them with --recipe or --set, else the defaults of the
    backbone are used. A recipe that contradicts the inputs recorded in the file is refused.
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
    split_option("val", "Split to corrupt. Robo3D's benchmarks use val."),
)
@under(
    "Corruptions",
    click.option(
        *("--corruption", "corruptions"),
        multiple=True,
        help="Corruption, for example fog. Repeat the option for several.  [default: all eight]",
    ),
    click.option(
        *("--severity", "severities"),
        multiple=True,
        help="light, moderate or heavy. Repeat the option for several.  [default: all three]",
    ),
    click.option(
        "--motion-blur-m",
        type=float,
        nargs=3,
        help="Motion blur in metres: light, moderate, heavy. For nuScenes, only light is published.",
    ),
    click.option(
        "--crosstalk-share",
        type=float,
        nargs=3,
        help="Fraction of points with crosstalk: light, moderate, heavy. For nuScenes, only light is published.",
    ),
    seed_option,
)
@under("Run", out_option(None, "Folder for the copies."), workers_option)
@going_on_later("finished scans are kept")
def corrupt(corruptions: tuple[str, ...], severities: tuple[str, ...], **options: Any) -> None:
    """Write corrupted copies of a validation set in Robo3D's layout, for 'scalr evaluate robustness'.

    Scores on these copies are not comparable with published ones. Exits with 3 if copies were omitted because no
    strength is published.
    """
    from .evaluate.corrupt import CorruptConfig
    from .evaluate.corrupt import corrupt as run

    chosen = {"corruptions": corruptions, "severities": severities}
    summary = run(CorruptConfig(**options, **{name: values for name, values in chosen.items() if values}))
    copies, scans = counted(len(summary.written), "copy", "copies"), counted(summary.scans_made, "scan")
    click.echo(f"{copies} in {options['out']}, {scans} written in this run")
    for copy, reason in summary.left_out.items():
        click.echo(f"omitted {copy}: {reason}", err=True)
    if summary.left_out:
        raise click.exceptions.Exit(3)


@main.command(epilog="scalr synth --out world && scalr extract --teacher dinov2_vits14 --weights random --root world")
@out_option("synth", "New folder for the simulated dataset.")
@choice_option(
    "--layout", ["nuscenes", "semantic_kitti", "pandaset", "semantic_poss"], "Dataset to imitate: sensors and files."
)
@click.option("--train-scenes", default=4, show_default=True, help="Number of scenes in split train.")
@click.option(
    "--val-scenes",
    type=int,
    help="Number of scenes in split val.  [default: 2; 1 for layouts with a single validation scene]",
)
@click.option("--keyframes", default=10, show_default=True, help="Keyframes per scene, half a second apart.")
@seed_option
def synth(out: Path, **options: Any) -> None:
    """Write simulated street scenes with images, scans and labels, in the layout of one dataset."""
    from .extract.datasets.synthetic import write_world

    write_world(out, **{name: value for name, value in options.items() if value is not None})
    click.echo(f"{out}: simulated dataset in the layout of {options['layout']}")


@main.command(epilog="scalr demo --out demo")
@out_option("demo", "New folder for all files of the demo.")
@click.option(
    "--weights",
    metavar="hub|FILE|random",
    help="Weights of the teacher dinov2_vits14: from the Hugging Face Hub, from a file, or random (tests only)."
    "  [default: hub if it can be reached, else random]",
)
@seed_option
def demo(out: Path, weights: str | None, seed: int) -> None:
    """Run synth, extract, distill and probe on a simulated dataset, and write one HTML report."""
    loading_torch()
    from .demo import run_demo

    result = run_demo(out, seed, weights)
    click.echo(
        f"mIoU of linear probing: {result.distilled.miou:.1%} distilled,"
        f" {result.undistilled.miou:.1%} with random weights (seed {seed})"
    )
    click.echo(f"report: {result.report}")


@main.command(epilog='eval "$(scalr completion bash)"      # in ~/.bashrc; likewise ~/.zshrc, config.fish')
@click.argument("shell", type=click.Choice(SHELLS), help="Shell for which the script is printed.")
def completion(shell: str) -> None:
    """Print the shell completion script, which completes commands, options, teachers, datasets and recipes."""
    from click.shell_completion import get_completion_class

    click.echo(get_completion_class(shell)(main, {}, "scalr", "_SCALR_COMPLETE").source())
