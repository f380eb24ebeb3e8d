"""What distillation does where nothing is asked for: ScaLR's pretraining."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, fields, replace

import pytest

from scalr.distill.augmentation import AugmentConfig
from scalr.distill.backbones.minkunet.config import MinkUNetConfig
from scalr.distill.backbones.minkunet.inputs import MinkUNetInputs
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.inputs import (
    CROP_EPS_M,
    EVALUATION_REACH_M,
    FINETUNING_REACH_M,
    WaffleIronInputs,
)
from scalr.distill.dataset import SamplingConfig
from scalr.distill.objective import ObjectiveConfig
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig
from scalr.errors import StudentError

# WI_768_pretrain.yaml of valeoai/ScaLR: voxels of 10 cm in +-64, +-64, +-8 m; planes of cells of half a metre.
PLANES = [((0, 1), (256, 256)), ((0, 2), (256, 32)), ((1, 2), (256, 32))]

DEFAULTS = {
    DistillConfig: {
        "teachers": (),
        "split": None,  # the stores' own
        "device": "auto",
        "resume": False,
        "checkpoint_minutes": 10,
        "quick_probe": None,
        "eval_every": 1,
    },
    SamplingConfig: {"views_per_sample": 1, "points": "seen", "voxel_point": "random", "store_weights": None},
    ObjectiveConfig: {
        "loss": "similarity",
        "standardise": "none",  # the paper's
        "temperature": 0.07,  # this and the number of pairs: PPKT, as SLidR's repository has it
        "contrastive_pairs": 4096,
        "target_head": "none",
        "target_head_channels": 64,
        "tolerance_quantile": 0.01,  # this and the next two: ST-SLidR's repository
        "balanced": True,
        "balance_threshold": 0.5,
    },
    WaffleIronConfig: {
        "backbone": "waffleiron",
        "width": 256,
        "depth": 48,
        "norm": "batch",
        "activation": "relu",
        "stochastic_depth": 0,
        "head": "linear",
        "out_channels": 1024,  # a ViT-L
    },
    # SLidR's slidr_minkunet.yaml and res16unet.py.
    MinkUNetConfig: {
        "backbone": "minkunet",
        "stem_width": 32,
        "widths": (32, 64, 128, 256, 256, 128, 96, 96),
        "blocks": (2, 3, 4, 6, 2, 2, 2, 2),
        "convolution": "gather",
        "bn_momentum": 0.05,
        "head": "linear",
        "out_channels": 1024,
    },
    MinkUNetInputs: {
        "voxels": "cylindrical",
        "voxel_size_m": 0.1,
        "features": "intensity",
        "intensity_offset": 0.0,
    },
}


@pytest.mark.parametrize("config", DEFAULTS, ids=lambda config: config.__name__)
def test_defaults_are_scalr_s_pretraining(config):
    assert {each.name: each.default for each in fields(config) if each.default is not MISSING} == DEFAULTS[config]


def test_inputs_are_those_of_scalr():
    config = WaffleIronInputs()
    assert (config.voxel_size_m, config.num_neighbours, config.max_points) == (0.1, 16, 20_000)
    assert (config.fov_min_m, config.fov_max_m) == ((-64, -64, -8), (64, 64, 8))
    assert [(plane.axes, plane.shape) for plane in config.planes] == PLANES
    assert CROP_EPS_M == 1e-4


def test_augmentations_are_those_of_scalr():
    """Any angle about z; a flip of x or y twice in three times; a tenth larger or smaller."""
    expected = {"max_rotation_rad": math.pi, "flip_probability": 2 / 3, "max_scale_change": 0.1}
    assert asdict(AugmentConfig()) == {**expected, "flips": "one", "drop_cuboid": 0}


@pytest.mark.parametrize(
    ("name", "highest"),
    [("max_rotation_rad", math.pi), ("flip_probability", 1.0), ("max_scale_change", 0.99), ("drop_cuboid", 1.0)],
)
def test_augmentations_have_bounds(name, highest):
    for value in (0, highest):
        assert getattr(AugmentConfig(**{name: value}), name) == value
    for value in (-1e-9, highest * (1 + 1e-9), "1", True, math.nan):
        with pytest.raises(
            StudentError, match=rf"augmentation\.{name}: .* Give a number, at least 0 and at most {highest:.6g}"
        ):
            AugmentConfig(**{name: value})


def test_pandaset_is_read_as_far_as_the_official_configurations_do():
    assert EVALUATION_REACH_M == {"pandaset_64": 128, "pandaset_gt": 128}
    assert FINETUNING_REACH_M == {"pandaset_64": 128, "pandaset_gt": 96}
    for dataset, finetuning, reach, cells in (
        ("pandaset_64", False, 128, 512), ("pandaset_64", True, 128, 512),
        ("pandaset_gt", False, 128, 512), ("pandaset_gt", True, 96, 384),
    ):  # fmt: skip
        wider = WaffleIronInputs().for_dataset(dataset, finetuning=finetuning)
        assert (wider.fov_min_m, wider.fov_max_m) == ((-reach, -reach, -8), (reach, reach, 8))
        assert [plane.shape for plane in wider.planes] == [(cells, cells), (cells, 32), (cells, 32)]
    for dataset in ("nuscenes", "semantic_kitti", "semantic_poss"):
        assert WaffleIronInputs().for_dataset(dataset) == WaffleIronInputs()
    far = replace(WaffleIronInputs(), fov_min_m=(-128, -1, -1))  # a student that reads as far already
    assert far.for_dataset("pandaset_64") is far


# Recipe -> student's width, depth, norm, activation, stochastic depth and head; its epochs and schedule.
RECIPES = {
    "scalr_wi96": (96, 48, "batch", "relu", 0.0, "linear", 25, "cosine"),
    "scalr_wi256": (256, 48, "batch", "relu", 0.0, "linear", 25, "cosine"),
    "scalr_wi384": (384, 48, "batch", "relu", 0.0, "linear", 25, "cosine"),
    "scalr_wi768": (768, 48, "layer", "relu", 0.0, "linear", 25, "cosine"),
    "scalr_plus": (768, 48, "layer", "gelu", 0.2, "mlp", 65, "reciprocal_sqrt"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_published_ones(name):
    recipe = load_recipe(name)
    student, training = recipe.student, recipe.training
    network = (student.width, student.depth, student.norm, student.activation, student.stochastic_depth, student.head)
    assert (*network, training.epochs, training.schedule) == RECIPES[name]
    assert (training.batch_size, training.learning_rate, training.weight_decay) == (8, 2e-3, 0.03)
    assert (recipe.inputs, recipe.augmentation) == (WaffleIronInputs(), AugmentConfig())
    if training.schedule == "cosine":
        assert (training.warmup_steps, training.warmup_epochs, training.min_learning_rate) == (3500, None, 1e-5)
    else:
        assert (training.warmup_epochs, training.timescale_epochs, training.cooldown_epochs) == (1, 0.45, 2)
