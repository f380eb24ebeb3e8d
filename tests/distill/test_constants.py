"""The numbers that modules of distillation name: how far, how many, how long."""

from __future__ import annotations

import signal
from datetime import timedelta

from constants import numbers_in

NUMBERS = {
    "scalr.distill.backbones.minkunet.config": {"STAGES_DOWN": 4},
    "scalr.distill.backbones.minkunet.inputs": {
        "FEATURE_CHANNELS": {"intensity": 1, "scalr": 5},
        "COARSEST": 16,
        "REMISSION_OFFSET": 1.0,
    },
    "scalr.distill.backbones.minkunet.kernel_maps": {"NONE": -1, "LEVELS": 5, "CENTRE": 13},
    "scalr.distill.backbones.minkunet.network": {"BLOCK_MOMENTUM": 0.1},
    "scalr.distill.backbones.minkunet.sparse_convolution": {
        "CPU_PIECE": 2**23,
        "DEVICE_PIECE": 2**29,
        "THREAD_PRODUCTS": 2**23,
    },
    "scalr.distill.backbones.minkunet.voxels": {"BITS": 21, "HALF": 2**20, "REACH": 2**20 - 32},
    "scalr.distill.dataset": {"MAX_DRAWS": 10, "MIN_PAIRS": 1024},
    "scalr.distill.backbones.waffleiron.export": {"MOST_POINTS": 1_000_000},
    "scalr.distill.backbones.waffleiron.inputs": {
        "CROP_EPS_M": 1e-4,
        "EVALUATION_REACH_M": {"pandaset_64": 128.0, "pandaset_gt": 128.0},
        "FINETUNING_REACH_M": {"pandaset_64": 128.0, "pandaset_gt": 96.0},
        "MAX_CELLS": 8192**2,
        "POINT_FEATURES": 5,
    },
    "scalr.distill.interruption": {
        "SAVE": signal.SIGUSR1,
        "SIGNALS": (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1),
        "SAME_KEYPRESS_SECONDS": 1,
        "WORKER_GRACE_SECONDS": 30,
        "END_BYTES": 48,
        "CHUNK_BYTES": 2**20,
    },
    "scalr.distill.backbones.waffleiron.nearest": {"LEAF_POINTS": 12, "NO_CHILD": -1},
    "scalr.distill.backbones.waffleiron.network": {"CPU_CHUNK": 2048, "DEVICE_CHUNK": 2**17},
    "scalr.distill.backbones.waffleiron.occupied_cells": {"NO_CELL": -1},
    "scalr.distill.heads": {"HIDDEN": 2048},
    "scalr.distill.student": {"BATCH_POINTS": 100_000},
    "scalr.distill.processes": {
        "PATIENCE": timedelta(minutes=10),
        "PATIENCE_WITH_FIRST": timedelta(hours=4),  # a probe of the first process may take as long
    },
    "scalr.distill.run": {"SEEDS_APART": 1_000_003, "ROWS_AS_TEXT": 65_536, "MUCH_WAITING": 0.1},
    "scalr.distill.run_record": {"LISTED_DIFFERENCES": 3, "LONGEST_VALUE": 60, "LONGEST_DIGEST": 12},
    "scalr.distill.segment_losses": {"COUNT_EPS": 1e-6, "ROUNDING": 1e-6},
    "scalr.distill.standardisation": {"ROUNDING": 1e-6},
    "scalr.distill.training": {"LISTED_SAMPLES": 8},
    "scalr.distill.varying_targets": {"SAMPLES": 8, "PAIRS": 256, "SAME": 0.02},
    "scalr.distill.voxels": {"EMPTY": -1, "HASH_FACTOR": 0x9E3779B97F4A7C15},
}


def test_every_number_that_a_module_names_is_here():
    backbones = "distill/backbones"
    folders = ("distill", backbones, f"{backbones}/minkunet", f"{backbones}/waffleiron")
    assert {name: found for folder in folders for name, found in numbers_in(folder).items()} == NUMBERS
