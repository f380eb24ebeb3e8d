"""The command `scalr predict`: it parses its options and calls one function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_options import (
    HeadedCommand,
    choice_option,
    completed,
    device_option,
    going_on_later,
    json_option,
    loading_torch,
    out_option,
    path,
    show_result,
    under,
)
from .json_text import json_text


def lidar_names() -> list[str]:
    """Names of datasets whose lidar is known, for completion."""
    from .evaluate.raw_scans import LIDARS

    return list(LIDARS)


@click.command(
    cls=HeadedCommand,
    epilog="scalr predict --model runs/finetune/model.safetensors --dataset nuscenes scans/ --out predictions",
)
@click.argument(
    "scans",
    type=path,
    nargs=-1,
    required=True,
    help="Scan files (.bin, .pcd.bin, .pcd, .ply, .npy, .npz; .pkl.gz of PandaSet), folders, which are searched, or"
    " patterns in quotes, for example 'scans/**/*.bin'.",
)
@under(
    "Network",
    click.option(
        "--model", type=path, help="File model.safetensors of linear probing or finetuning, to write classes."
    ),
    click.option("--student", type=path, help="File student.safetensors of a distillation, to write features."),
)
@under(
    "Scans",
    click.option(
        "--dataset",
        help="Dataset whose lidar recorded the scans: nuscenes, semantic_kitti, pandaset_64, pandaset_gt,"
        " semantic_poss; frames for any other lidar. It decides how intensities are normalised.  [default: the dataset"
        " that the model was trained on; required with --student]",
        **completed(lidar_names),
    ),
    click.option(
        "--columns",
        type=int,
        help="Number of float32 values per point in .bin files.  [default: 5 for nuscenes and for .pcd.bin, else 4]",
    ),
    click.option(
        "--intensity-range",
        type=float,
        nargs=2,
        metavar="LOW HIGH",
        help="Lowest and highest intensity that the files can hold, for example 0 1. Intensities are scaled to the"
        " range of the dataset's lidar.  [default: that range]",
    ),
    click.option(
        "--intensity",
        type=float,
        nargs=2,
        metavar="MEAN STD",
        help="Mean and standard deviation by which intensities are normalised.  [default: those of the dataset; if it"
        " has none, measured on 64 of the scans]",
    ),
    choice_option(
        "--non-finite",
        ["refuse", "unlabelled"],
        "How points at nan or infinity are treated. refuse: the scan is an error. unlabelled: such points get no class"
        " and no feature.",
    ),
    choice_option(
        "--on-error", ["stop", "skip"], "On a scan that cannot be used: stop, or skip it, list it and exit with 3."
    ),
)
@under(
    "Results",
    out_option("predictions", "Folder for the results. Files have the names of the scans."),
    click.option(
        "--format",
        type=click.Choice(["label", "npy", "parquet", "zarr"]),
        help="File format. label, npy or parquet for classes; npy or zarr for features.  [default: label for classes,"
        " npy for features]",
    ),
    click.option(
        "--dtype", type=click.Choice(["float16", "float32"]), help="Number type of features.  [default: float16]"
    ),
    click.option("--colours", is_flag=True, help="Also write each scan as .ply with the colours of its classes."),
    choice_option(
        "--picture",
        ["none", "png", "page"],
        "Also draw the first scan. png: from above. page: an HTML page to turn and to click.",
    ),
)
@under(
    "Run",
    click.option("--batch-points", type=int, help="Points per forward pass; a scan is never split.  [default: 100000]"),
    click.option("--workers", default=0, show_default=True, help="Processes that read and prepare scans."),
    device_option,
)
@json_option
@going_on_later("finished scans are kept")
def predict(scans: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Predict the class of every point of lidar scans, or write a student's features.

    To continue an interrupted run, run the same command again. Finished scans are kept.
    """
    loading_torch()
    from .evaluate.predict import PredictConfig
    from .evaluate.predict import predict as run

    given = {name: value for name, value in options.items() if value is not None}
    summary = run(PredictConfig(scans=scans, **given))
    show_result(json_text(summary.as_json(), indent=2) if as_json else summary.as_text())
    if summary.skipped:
        for reason in summary.skipped.values():
            click.echo(f"skipped {reason}", err=True)
        raise click.exceptions.Exit(3)
