"""The command line: each verb parses, sets up logging and calls one function."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import click

from .errors import ScalrError

# Heavy imports (torch, timm, zarr) live inside the verbs, so that --help answers at once.


class ErrorsForPeople(click.Group):
    """Turns a ScalrError into one line on stderr and its exit code."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except ScalrError as error:
            shown = click.ClickException(str(error))
            shown.exit_code = error.exit_code
            raise shown from error


def is_first_process() -> bool:
    """Of those that torchrun started: what all do is told once."""
    return os.environ.get("RANK", "0") == "0"


class ImageSize(click.ParamType):
    """HEIGHTxWIDTH in pixels."""

    name = "HxW"

    def convert(self, value, param, ctx) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            height, width = (int(side) for side in value.lower().split("x"))
        except ValueError:
            self.fail(f"'{value}' is not HEIGHTxWIDTH, such as 224x448", param, ctx)
        return height, width


class PartOfN(click.ParamType):
    """K/N, a job of an array."""

    name = "K/N"

    def convert(self, value, param, ctx):
        from .extract.plan import Part

        return value if isinstance(value, Part) else Part.parse(value)


def choice_option(name: str, choices: list[str], text: str):
    """An option with a few values, the first of them the default."""
    return click.option(name, type=click.Choice(choices), default=choices[0], show_default=True, help=text)


def dataset_root(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path:
    """Where --root is left out, the environment names the nuScenes folder."""
    if value is not None:
        return value
    is_nuscenes = ctx.params["dataset"] == "nuscenes"
    if is_nuscenes and "NUSCENES" in os.environ:
        return Path(os.environ["NUSCENES"])
    or_set = ", or set $NUSCENES to nuScenes' folder" if is_nuscenes else ""
    raise ScalrError("no dataset folder", where="--root", fix=f"Pass --root DIR{or_set}.")


path = click.Path(path_type=Path)
root_option = click.option(
    "--root", type=path, callback=dataset_root, help="Dataset folder.  [default: $NUSCENES for nuscenes]"
)
dataset_option = click.option(
    "--dataset",
    default="nuscenes",
    show_default=True,
    is_eager=True,  # --root depends on it
    help="Reader: a name, or package.module:Class of your own.",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
json_option = click.option("--json", "as_json", is_flag=True, help="For scripts.")
workers_option = click.option("--workers", default=0, show_default=True, help="Processes that prepare scans.")
model_option = click.option("--model", type=path, required=True, help="model.safetensors of a probing or finetuning.")
seed_option = click.option("--seed", default=0, show_default=True, help="Of every random choice.")


def out_option(default: str):
    """Where a run's results and logs go."""
    return click.option("--out", type=path, default=default, show_default=True, help="Folder for the result and logs.")


@click.group(cls=ErrorsForPeople, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="scalr-distill", prog_name="scalr")
@click.option("-q", "--quiet", is_flag=True, help="Warnings and errors only.")
def main(quiet: bool) -> None:
    """Distil image foundation models into lidar backbones, from teacher features cached on disk.

    \b
    scalr extract --teacher dinov2_vitl14     teacher features of every lidar point -> store.zarr
    scalr distill --cache store.zarr          student trained on them
    scalr evaluate probe …                    what it is worth
    scalr demo                                all of it on a simulated world
    """
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


@main.command()
@click.option(
    "--list-teachers",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_teachers,
    help="Names, patch and feature sizes, licences of the weights.",
)
@click.option("--teacher", "teachers", multiple=True, required=True, help="Teacher, such as dinov2_vitl14; repeatable.")
@dataset_option
@root_option
@click.option("--split", default="train", show_default=True, help="Split of the dataset.")
@click.option("--out", type=path, default="store.zarr", show_default=True, help="Store to make or to continue.")
@click.option("--image-size", type=ImageSize(), help="The teacher's input.  [default: 224x448]")
@click.option("--feature", help="x_prenorm, x_norm, maskclip, or layers: x_prenorm:5,11.  [default: the teacher's own]")
@click.option(
    "--pos-embed",
    type=click.Choice(["timm", "official"]),
    help="Way to resize position embeddings.  [default: timm; official for MaskCLIP]",
)
@choice_option("--encoding", ["point", "patch"], "A vector a pair, or only the patches that pairs read.")
@choice_option("--dtype", ["float16", "int8"], "Of stored vectors; int8 has a scale for each.")
@choice_option("--points", ["all", "visible"], "Keep whole scans, or the points that some camera sees.")
@choice_option("--occlusion", ["keep", "drop"], "Pairs that a nearer surface hides from the camera.")
@choice_option("--on-error", ["stop", "skip"], "At a frame that cannot be used; skip lists it, exit code 3.")
@click.option(
    "--weights",
    multiple=True,
    default=["hub"],
    show_default=True,
    help="hub, random (for trials) or a checkpoint file; TEACHER=FILE for one of several.",
)
@choice_option("--precision", ["float32", "bfloat16", "float16"], "Of the teacher's forward pass.")
@click.option("--batch-size", type=int, help="Images the teacher sees at once.  [default: measured, once per store]")
@click.option("--frames-per-block", type=int, help="Frames written at once.  [default: 16; 64 with patch]")
@click.option("--part", type=PartOfN(), default="0/1", metavar="K/N", help="Job K (from 0) of N in an array of jobs.")
@click.option("--workers", default=0, show_default=True, help="Processes on this machine; 0 works in this one.")
@click.option("--scheduler", metavar="ADDRESS", help="Work on the dask cluster at this address.")
@device_option
@click.option("--dry-run", is_flag=True, help="Only say what it will take: sizes of every encoding, files, time.")
def extract(dry_run: bool, **options) -> None:
    """Run teachers on every image and store the features of the lidar points they see.

    \b
    scalr extract --teacher dinov2_vitl14 --root /data/nuscenes --out store.zarr

    Killed, it goes on where it stopped when the same command runs again.
    """
    from .extract.run import ExtractConfig, estimate_extraction
    from .extract.run import extract as run

    config = ExtractConfig(**options)
    if dry_run:
        click.echo(estimate_extraction(config).as_text())
        return
    summary = run(config)
    click.echo(summary.store.as_text())
    click.echo(f"{summary.blocks_written} blocks written now")
    if summary.skipped:
        for frame in summary.skipped:
            click.echo(f"skipped {frame.token}: {frame.reason}", err=True)
        click.echo(f"{len(summary.skipped)} frames were skipped; mend them and run the same command again", err=True)
        raise click.exceptions.Exit(3)


@main.command()
@dataset_option
@root_option
@click.option("--split", default="train", show_default=True, help="Split of the dataset.")
@json_option
def check(dataset: str, root: Path, split: str, as_json: bool) -> None:
    """Read every file of a dataset's split and list all that is wrong; exit code 1 where something is.

    \b
    scalr check --dataset frames --root /data/my_rig
    """
    from .extract.check import check as run

    report = run(dataset, root, split)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    if report.problems:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("store", type=path)
@json_option
def inspect(store: Path, as_json: bool) -> None:
    """Say what a store holds, what is missing, and how large it is.

    \b
    scalr inspect store.zarr
    """
    from .extract.store import open_store
    from .extract.store.inspect import inspect_store

    report = inspect_store(open_store(store))
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


@main.command()
@click.argument("store", type=path)
@click.option("--repair", is_flag=True, help="Take damaged blocks out; 'scalr extract' then makes them anew.")
@click.option("--sample", default=0, show_default=True, help="Views to recompute from their images.")
@click.option("--root", type=path, help="Dataset folder for --sample.  [default: as recorded]")
@click.option("--weights", multiple=True, help="Of the teacher for --sample, or TEACHER=FILE.  [default: as recorded]")
@device_option
@json_option
def verify(store: Path, as_json: bool, **options) -> None:
    """Check every file, chunk and count of a store; exit code 1 where something is wrong.

    \b
    scalr verify store.zarr --repair; scalr extract …
    """
    from .extract.verification import VerifyConfig
    from .extract.verification import verify as run

    result = run(VerifyConfig(store=store, **options))
    click.echo(json.dumps(result.as_json(), indent=2) if as_json else result.as_text())
    if not result.whole:
        raise click.exceptions.Exit(1)


@main.command()
@click.option(
    *("--cache", "caches"), type=path, multiple=True, default=["store.zarr"], show_default=True,
    help="Feature store to learn from; repeatable.",
)  # fmt: skip
@click.option(
    *("--teacher", "teachers"), multiple=True,
    help="Whose targets; repeatable.  [default: the recipe's, else the only one in each store]",
)  # fmt: skip
@click.option("--split", default=None, help="Whose frames.  [default: the only one in each store]")
@click.option("--recipe", default="scalr_wi256", show_default=True, help="Bundled recipe or YAML file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, such as training.epochs=10.")
@click.option("--out", type=path, default="runs/distill", show_default=True, help="Folder for student and logs.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or begin where there is none.")
@click.option("--checkpoint-minutes", default=10.0, show_default=True, help="Between two checkpoints.")
@click.option("--eval-every", type=int, help="Epochs between two quick probes; needs --eval-root.")
@click.option("--eval-root", type=path, help="Labelled dataset's folder for quick probes.")
@click.option("--eval-dataset", default="nuscenes", show_default=True, help="Its reader.")
@click.option("--eval-frames", default=100, show_default=True, help="Frames of each of its splits that are used.")
@device_option
def distill(
    recipe: str,
    overrides: tuple[str, ...],
    eval_every: int | None,
    eval_root: Path | None,
    eval_dataset: str,
    eval_frames: int,
    **options,
) -> None:
    """Train a student on the targets of one or several stores; images, teacher and dataset are not needed.

    \b
    scalr distill --cache store.zarr --recipe scalr_wi256 --out runs/wi256
    torchrun --nproc-per-node 8 --no-python scalr distill --cache store.zarr --resume

    SIGTERM and Ctrl-C write a checkpoint and stop (exit code 143), SIGUSR1 writes one; --resume goes on.
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
        click.echo(
            f"{summary.student}: loss {summary.losses[0]:.3f} -> {summary.losses[-1]:.3f}, {len(summary.losses)} steps"
        )
        if summary.data_wait is not None:
            click.echo(f"{summary.data_wait:.1%} of the time was spent waiting for data")


@main.command()
@click.argument("source", type=path)
@click.argument("target", type=path)
@click.option("--recipe", default="scalr_wi256", show_default=True, help="Whose inputs an official model reads.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Such as inputs.fov_min_m=[-50,-50,-3].")
@click.option(
    "--activation", type=click.Choice(["relu", "gelu"]),
    help="Of an official model.  [default: gelu with a 2-layer head, as in ScaLR+, else relu, where that is clear]",
)  # fmt: skip
def convert(source: Path, target: Path, recipe: str, overrides: tuple[str, ...], activation: str | None) -> None:
    """Turn an official checkpoint (.pth) into a student (.safetensors), or a student into that or an export (.pt2).

    \b
    scalr convert ckpt_last.pth student.safetensors
    scalr convert student.safetensors ckpt_last.pth
    scalr convert student.safetensors student.pt2
    """
    from .distill.convert import convert as run
    from .distill.recipes import load_recipe

    click.echo(run(source, target, load_recipe(recipe, overrides).inputs, activation))


@main.group()
def evaluate() -> None:
    """Measure a student: what it knows, what it learns from labels, what it stands."""


def options_of_training(command):
    """How probing and finetuning are trained; what is left out has the official value."""
    for option in reversed(
        [
            click.option("--student", type=path, required=True, help="student.safetensors of a distillation."),
            dataset_option,
            root_option,
            click.option("--train-split", default="train", show_default=True, help="Split that is trained on."),
            click.option("--val-split", default="val", show_default=True, help="Split that is scored."),
            click.option("--classes", help="Of domain generalisation: semantic_kitti_10, semantic_poss_6."),
            choice_option("--recipe", ["scalr", "scalr_plus"], "Whose official schedule."),
            click.option("--epochs", type=int, help="[default: the official number]"),
            click.option("--warmup-epochs", type=float, help="[default: the official number]"),
            click.option("--batch-size", type=int, help="Scans of a step.  [default: 8]"),
            click.option("--learning-rate", type=float, help="Peak of the schedule.  [default: the official one]"),
            click.option("--resume", is_flag=True, help="Go on with the run in --out, or begin where there is none."),
            click.option("--checkpoint-minutes", default=10.0, show_default=True, help="Between two checkpoints."),
            workers_option,
            seed_option,
            device_option,
        ]
    ):
        command = option(command)
    return command


def show_scores(scores, out: Path) -> None:
    """IoU by class and mIoU, once for all processes."""
    if not is_first_process():
        return
    for name, iou in zip(scores.class_names, scores.iou.tolist(), strict=True):
        click.echo(f"  {name:<22} {iou:6.1%}" if iou == iou else f"  {name:<22}      –")
    low_high = f" ({scores.interval[0]:.1%} to {scores.interval[1]:.1%})" if scores.interval else ""
    click.echo(f"mIoU {scores.miou:.1%}{low_high}, accuracy {scores.accuracy:.1%}   ({out}/result.md)")


@evaluate.command()
@options_of_training
@click.option("--fast", is_flag=True, help="Fit the head on features computed once, without augmentation.")
@out_option("runs/probe")
def probe(out: Path, **options) -> None:
    """Linear probing: BatchNorm + linear layer on the frozen student.

    \b
    scalr evaluate probe --student runs/distill/student.safetensors --root /data/nuscenes
    """
    from .evaluate.probe import ProbeConfig
    from .evaluate.probe import probe as run

    show_scores(run(ProbeConfig(out=out, **options)).scores, out)


@evaluate.command()
@options_of_training
@choice_option("--labels", ["100%", "10%", "1%"], "Share of the training labels, by the official subsets.")
@click.option("--from-scratch", is_flag=True, help="The student's architecture with new weights, as a baseline.")
@click.option("--layer-decay", type=float, help="Of the learning rate, layer by layer.  [default: the official one]")
@choice_option("--precision", ["float32", "bfloat16", "float16"], "Of the forward pass.")
@click.option("--activation-checkpointing", is_flag=True, help="Less memory for more time.")
@out_option("runs/finetune")
def finetune(out: Path, **options) -> None:
    """Train the whole student on labels, all of them or few.

    \b
    scalr evaluate finetune --student runs/distill/student.safetensors --root /data/nuscenes --labels 1%
    """
    from .evaluate.finetune import FinetuneConfig
    from .evaluate.finetune import finetune as run

    show_scores(run(FinetuneConfig(out=out, **options)).scores, out)


@evaluate.command()
@model_option
@dataset_option
@root_option
@click.option("--split", default="val", show_default=True, help="Split that is scored.")
@click.option("--classes", help="Of domain generalisation: semantic_kitti_10, semantic_poss_6.")
@click.option("--predictions", is_flag=True, help="Write them, too, as the dataset's benchmark takes them.")
@workers_option
@out_option("runs/score")
@device_option
def score(out: Path, **options) -> None:
    """Score a finished model on a split: mIoU, IoU by class, accuracy, confusion matrix.

    \b
    scalr evaluate score --model runs/finetune/model.safetensors --root /data/nuscenes
    torchrun --nproc-per-node 8 --no-python scalr evaluate score --model …
    """
    from .evaluate.score import ScoreConfig, score_model

    scores = score_model(ScoreConfig(out=out, **options))
    if scores is not None:
        show_scores(scores, out)
    if options["predictions"] and is_first_process():
        click.echo(f"predictions: {out}/submission")


@evaluate.command()
@model_option
@choice_option("--dataset", ["nuscenes_c", "semantic_kitti_c"], "Which corruptions.")
@click.option("--root", type=path, required=True, help="Folder of the corruptions.")
@click.option("--clean-root", type=path, required=True, help="Folder of the clean dataset.")
@workers_option
@out_option("runs/robustness")
@device_option
def robustness(out: Path, **options) -> None:
    """Score a model on Robo3D's 24 corrupted copies: mCE and mRR.

    \b
    scalr evaluate robustness --model model.safetensors --root /data/nuScenes-C --clean-root /data/nuscenes

    What was scored before is not scored again. Exit code 3 where copies are missing.
    """
    from .evaluate.robustness import RobustnessConfig
    from .evaluate.robustness import robustness as run

    result = run(RobustnessConfig(out=out, **options))
    if is_first_process():
        click.echo(f"mCE {result.mce:.2f}, mRR {result.mrr:.2f}, mIoU clean {result.clean:.2f}   ({out}/result.md)")
        if result.missing:
            click.echo(f"missing: {', '.join(result.missing)}", err=True)
    if result.missing:
        raise click.exceptions.Exit(3)


@evaluate.command()
@model_option
@choice_option("--dataset", ["semantic_kitti", "semantic_poss"], "Target.")
@click.option("--root", type=path, required=True, help="Folder of the target.")
@click.option("--split", default="val", show_default=True, help="Split of the target.")
@workers_option
@out_option("runs/transfer")
@device_option
def transfer(out: Path, **options) -> None:
    """Score a model of nuScenes on a lidar that it has never seen.

    \b
    scalr evaluate finetune --classes semantic_kitti_10 --student … --root /data/nuscenes --out runs/source
    scalr evaluate transfer --model runs/source/model.safetensors --root /data/kitti
    """
    from .evaluate.transfer import TransferConfig
    from .evaluate.transfer import transfer as run

    show_scores(run(TransferConfig(out=out, **options)), out)


@evaluate.command()
@click.option("--cache", type=path, default="store.zarr", show_default=True, help="Store with the training split.")
@click.option("--val-cache", type=path, help="Store with the validation split.  [default: the same]")
@click.option("--teacher", help="Whose targets.  [default: the only one in the store]")
@dataset_option
@root_option
@click.option("--train-split", default="train", show_default=True, help="Split that is trained on.")
@click.option("--val-split", default="val", show_default=True, help="Split that is scored.")
@click.option("--epochs", type=int, help="[default: as of linear probing]")
@click.option("--batch-size", type=int, help="Frames of a step.  [default: 8]")
@click.option("--learning-rate", type=float, help="Peak of the schedule.  [default: as of linear probing]")
@workers_option
@out_option("runs/teacher")
@seed_option
@device_option
def teacher(out: Path, **options) -> None:
    """Linear probing of the stored targets themselves: what the teacher knows, before any student is trained.

    \b
    scalr evaluate teacher --cache train.zarr --val-cache val.zarr --root /data/nuscenes
    """
    from .evaluate.teacher import TeacherProbeConfig, probe_teacher

    show_scores(probe_teacher(TeacherProbeConfig(out=out, **options)), out)


@evaluate.command()
@click.option("--student", type=path, required=True, help="student.safetensors of a distillation.")
@dataset_option
@root_option
@click.option("--split", default="val", show_default=True, help="Split of the frame.")
@click.option("--frame", help="Its token.  [default: the first]")
@click.option("--point", type=int, help="Row of the point in the scan.  [default: one on a car]")
@click.option("--class", "class_name", help="All points of a class instead, such as pedestrian.")
@click.option("--cache", type=path, help="Store with the frame's targets: the teacher's colours, too.")
@click.option("--teacher", help="Whose targets.  [default: the only one in the store]")
@out_option("runs/similarity")
@device_option
def similarity(out: Path, **options) -> None:
    """Colour a scan by the similarity of its points to one: pictures, and a page in which a click recolours all.

    \b
    scalr evaluate similarity --student runs/distill/student.safetensors --root /data/nuscenes --class car
    """
    from .evaluate.similarity import SimilarityConfig, similarity_maps

    result = similarity_maps(SimilarityConfig(out=out, **options))
    low, high = result.similarity_range
    click.echo(f"{result.num_points:,} points compared with {result.query.text}: {low:.2f} to {high:.2f}")
    for written in (result.top_view, result.perspective_view, result.page, result.pca):
        if written is not None:
            click.echo(f"  {written}")


@evaluate.command()
@click.argument("runs", type=path, nargs=-1, required=True)
def report(runs: tuple[Path, ...]) -> None:
    """Put finished runs side by side, with the papers' figures for the same setting, as Markdown.

    \b
    scalr evaluate report runs/probe runs/finetune > results.md
    """
    from .evaluate.comparison import compare

    click.echo(compare(runs))


@main.command()
@click.option("--out", type=path, default="synth", show_default=True, help="New folder, in the layout's own form.")
@choice_option(
    "--layout", ["nuscenes", "semantic_kitti", "pandaset", "semantic_poss"], "Whose lidar, cameras and files."
)
@click.option("--train-scenes", default=4, show_default=True, help="Scenes of split train.")
@click.option("--val-scenes", type=int, help="Scenes of split val.  [default: 2; 1 where the layout has room for one]")
@click.option("--keyframes", default=10, show_default=True, help="Per scene, half a second apart.")
@seed_option
def synth(out: Path, **options) -> None:
    """Write a simulated world: the same street scenes as each dataset's sensors would see them.

    \b
    scalr synth --out synth && scalr extract --teacher dinov2_vits14 --weights random --root synth
    scalr synth --out kitti --layout semantic_kitti
    """
    from .extract.datasets.synthetic import write_world

    write_world(out, **{name: value for name, value in options.items() if value is not None})
    click.echo(f"{out}: simulated, in the layout of {options['layout']}")


@main.command()
@dataset_option
@root_option
@click.option("--split", default="val", show_default=True, help="Split that is corrupted; Robo3D's sets are of val.")
@click.option("--out", type=path, required=True, help="Folder for the corruptions.")
@click.option("--corruption", "corruptions", multiple=True, help="Such as fog; repeatable.  [default: all eight]")
@click.option("--severity", "severities", multiple=True, help="light, moderate, heavy; repeatable.  [default: all]")
@click.option("--motion-blur-m", type=float, nargs=3, help="Light, moderate, heavy [m]; nuScenes' are not published.")
@click.option("--crosstalk-share", type=float, nargs=3, help="Likewise, of the points.")
@workers_option
@seed_option
def corrupt(corruptions: tuple[str, ...], severities: tuple[str, ...], **options) -> None:
    """Make corrupted copies of a validation set as Robo3D's, for 'scalr evaluate robustness'.

    \b
    scalr corrupt --root /data/nuscenes --out nuScenes-C

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


@main.command()
@click.option("--out", type=path, default="demo", show_default=True, help="Folder for everything the demo makes.")
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
