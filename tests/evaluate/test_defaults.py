"""What the verbs of evaluation do where nothing is asked for: the published protocol, on nuScenes."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from scalr.errors import ScalrError
from scalr.evaluate.corrupt import CorruptConfig
from scalr.evaluate.finetune import FinetuneConfig
from scalr.evaluate.predict import PredictConfig
from scalr.evaluate.probe import ProbeConfig
from scalr.evaluate.robustness import RobustnessConfig
from scalr.evaluate.score import ScoreConfig
from scalr.evaluate.teacher import TeacherProbeConfig
from scalr.evaluate.transfer import TransferConfig

OF_THE_MACHINE = {"workers": 0, "device": "auto"}
ON_LABELS = {
    "dataset": "nuscenes",
    "train_split": "train",
    "val_split": "val",
    "classes": None,
    "schedule": "scalr",
    "augmentation": "official",
    "absent_classes": "left-out",
    "epochs": None,
    "warmup_epochs": None,
    "batch_size": None,
    "learning_rate": None,  # None: the schedule's own
    "resume": False,
    "checkpoint_minutes": 10,
    "seed": 0,
    **OF_THE_MACHINE,
}
CORRUPTIONS = (
    *("fog", "wet_ground", "snow", "motion_blur", "beam_missing", "crosstalk", "incomplete_echo", "cross_sensor"),
)
DEFAULTS = {
    ProbeConfig: ON_LABELS | {"fast": False},
    FinetuneConfig: ON_LABELS
    | {"labels": "100%", "from_scratch": False, "layer_decay": None, "head_factor": None, "precision": "float32"}
    | {"activation_checkpointing": False},
    ScoreConfig: {"dataset": "nuscenes", "split": "val", "classes": None, **OF_THE_MACHINE}
    | {"absent_classes": "left-out", "predictions": False},
    TransferConfig: {"dataset": "semantic_kitti", "split": "val", **OF_THE_MACHINE},
    RobustnessConfig: {"dataset": "nuscenes_c", **OF_THE_MACHINE},
    TeacherProbeConfig: {
        "val_cache": None,
        "teacher": None,
        "standardise": "none",
        "dataset": "nuscenes",
        "train_split": "train",
        "val_split": "val",
        "epochs": None,
        "batch_size": None,
        "learning_rate": None,
        "seed": 0,
        **OF_THE_MACHINE,
    },
    PredictConfig: {
        "model": None,
        "student": None,
        "dataset": None,  # None: what the model was trained on
        "columns": None,
        "intensity_range": None,
        "intensity": None,
        "non_finite": "refuse",
        "format": None,
        "dtype": None,
        "colours": False,
        "picture": "none",
        "on_error": "stop",
        "batch_points": 100_000,
        **OF_THE_MACHINE,
    },
    CorruptConfig: {
        "dataset": "nuscenes",
        "split": "val",
        "corruptions": CORRUPTIONS,
        "severities": ("light", "moderate", "heavy"),
        "motion_blur_m": None,
        "crosstalk_share": None,
        "seed": 0,
        "workers": 0,
    },
}


@pytest.mark.parametrize("config", DEFAULTS, ids=lambda config: config.__name__)
def test_defaults_are_the_published_protocol(config):
    assert {each.name: each.default for each in fields(config) if each.default is not MISSING} == DEFAULTS[config]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "--seed: -1 cannot be used"),
        ({"workers": -1}, "--workers: -1 cannot be used"),
        ({"crosstalk_share": (0.1, 0.2, 1.1)}, "--crosstalk-share"),
        (
            {"crosstalk_share": (0.1, 0.2)},
            r"--crosstalk-share: \(0.1, 0.2\) cannot be used. Give a list of 3, each item a",
        ),
        ({"motion_blur_m": (0.1, 0.0, 0.3)}, "--motion-blur-m: .*above 0 and at most 1,000,000,000, or leave it out$"),
        ({"motion_blur_m": (0.1, 0.2, math.inf)}, "--motion-blur-m"),
        ({"corruptions": ("frog",)}, "--corruption.*did you mean 'fog'"),
        ({"severities": ("hevy",)}, "--severity.*did you mean 'heavy'"),
    ],
)
def test_copies_that_cannot_be_made_are_said(values, message):
    base = {"root": Path("r"), "out": Path("o")}
    CorruptConfig(**base, seed=0, workers=0, crosstalk_share=(1e-9, 0.5, 1.0), motion_blur_m=(1e-9, 1.0, 9.0))
    with pytest.raises(ScalrError, match=message):
        CorruptConfig(**base, **values)


def test_copies_come_in_the_order_of_robo3d_s_tables():
    config = CorruptConfig(
        root=Path("r"),
        out=Path("o"),
        dataset="semantic_kitti",
        corruptions=("snow", "fog"),
        severities=("heavy", "light"),
    )
    copies = [(copy.corruption, copy.severity) for copy in config.copies()]
    assert copies == [("fog", "light"), ("fog", "heavy"), ("snow", "light"), ("snow", "heavy")]
