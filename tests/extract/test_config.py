from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from scalr.errors import ScalrError, TeacherError
from scalr.extract.config import ExtractConfig
from scalr.extract.encoding import Encoding
from scalr.extract.plan import Part
from scalr.extract.preparation import Selection

BASE = ExtractConfig(root=Path("r"), teachers=("a", "b"))


def test_the_defaults_keep_every_target_at_a_fraction_of_its_size():
    """All points, each patch that some pair reads in int8, the whole split by this process."""
    expected = {
        "dataset": "nuscenes",
        "split": "train",
        "out": Path("store.zarr"),
        "encoding": None,
        "dtype": "int8",
        "points": "all",
        "occlusion": "keep",
        "superpixels": None,
        "on_error": "stop",
        "weights": ("hub",),
        "image_size": None,
        "feature": None,
        "pos_embed": None,
        "precision": "float32",
        "device": "auto",
        "batch_size": None,
        "frames_per_block": None,
        "workers": 0,
        "scheduler": None,
        "root": Path("r"),
        "teachers": ("a", "b"),
        "part": {"index": 0, "count": 1},
    }
    assert asdict(BASE) == expected
    assert BASE.selection == Selection("all", "keep")
    assert replace(BASE, points="visible", occlusion="drop").selection == Selection("visible", "drop")
    assert BASE.kept_as == Encoding()
    assert replace(BASE, encoding="segments", superpixels="slic").kept_as == Encoding("segments", "float16")


def test_segments_are_the_default_where_nothing_else_is_kept_of_all_teachers():
    dense = "resnet50_moco_v2_stride4"
    alone = replace(BASE, teachers=(dense,), superpixels="slic")
    assert alone.kept_as == Encoding("segments", "float16")
    others = [replace(alone, superpixels=None), replace(alone, teachers=(dense, "resnet50_moco_v2"))]
    assert {each.kept_as for each in [*others, replace(alone, encoding="patch")]} == {Encoding()}
    assert replace(alone, encoding="point").kept_as == Encoding("point")


def test_values_on_the_border_of_sense_are_taken():
    replace(BASE, frames_per_block=1, batch_size=1, workers=1, part=Part(1, 2), pos_embed="official")
    replace(BASE, scheduler="tcp://here:8786")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"frames_per_block": 0}, ScalrError, "--frames-per-block: 0 cannot be used. Give a whole number, at least 1"),
        ({"batch_size": 0}, ScalrError, "--batch-size: 0 cannot be used"),
        ({"workers": -1}, ScalrError, "--workers: -1 cannot be used"),
        ({"points": "some"}, ScalrError, "--points: 'some' cannot be used. Give one of all, visible"),
        ({"occlusion": "hide"}, ScalrError, "--occlusion: 'hide'"),
        ({"on_error": "go on"}, ScalrError, "--on-error: 'go on'"),
        ({"precision": "fp16"}, ScalrError, "--precision: 'fp16'"),
        (
            {"pos_embed": "mine"},
            ScalrError,
            "--pos-embed: 'mine' cannot be used. Give one of timm, official, or leave it out",
        ),
        (
            {"workers": 1, "scheduler": "tcp://here:1"},
            ScalrError,
            "--workers: --workers and --scheduler are given, and a dask cluster has its own workers",
        ),
        ({"teachers": ("a", "b", "a")}, ScalrError, "--teacher: teacher a is given twice"),
        ({"weights": ("w.pth",)}, TeacherError, "--weights: w.pth cannot serve a and b alike"),
        ({"encoding": "pixel"}, ScalrError, "--encoding: 'pixel' cannot be used"),
        ({"dtype": "int4"}, ScalrError, "--dtype: 'int4'"),
        (
            {"encoding": "segments"},
            ScalrError,
            "--encoding segments: segments need superpixels, and no superpixels are given. Pass"
            " --superpixels slic, or --superpixels with a folder of maps",
        ),
    ],
)
def test_values_that_make_no_sense_are_said(values, error, message):
    with pytest.raises(error) as caught:
        replace(BASE, **values)
    assert message in str(caught.value)
