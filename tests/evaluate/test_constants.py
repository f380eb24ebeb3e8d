"""The numbers that modules of evaluation name; how pages and pictures look is looked at."""

from __future__ import annotations

import math

from constants import numbers_in

NUMBERS = {
    "scalr.evaluate.cloud_page": {
        "BYTES_PER_VOXEL": 32,
        "INT8_MAX": 127,
        "MEASURED_QUERIES": 256,
        "QUERIES_AT_ONCE": 32,
    },
    "scalr.evaluate.class_areas": {"FEWEST_POINTS": 10},
    "scalr.evaluate.cosines": {"ROUNDING": 1e-6},
    "scalr.evaluate.labelled_frames": {"WHOLE_FRAMES": 8, "THREADS": 16},
    "scalr.evaluate.metrics": {"RESAMPLES": 1000},
    "scalr.evaluate.prediction_files": {"ZARR_ROWS": 16_384},
    "scalr.evaluate.probe": {"FAST_BATCH_POINTS": 8192},
    "scalr.evaluate.published_result": {
        "TRAINING_FRAMES": {"nuscenes": 28_130, "semantic_kitti": 19_130, "pandaset_64": 3920, "pandaset_gt": 3920},
        "SCORED_FRAMES": {"nuscenes": 6019, "semantic_kitti": 4071, "pandaset_64": 2160, "pandaset_gt": 2160},
        "CLASSES": {"nuscenes": 16, "semantic_kitti": 19, "pandaset_64": 17, "pandaset_gt": 17},
    },
    "scalr.evaluate.published_minkunet": {"TABLE_8_OF_NEW_WEIGHTS": (8.1, 30.3, 56.2, 74.7, 39.5)},
    "scalr.evaluate.raw_scans": {
        "SAMPLED_SCANS": 8,
        "HIGHEST_INTENSITY": {"nuscenes": 255.0, "semantic_kitti": 1.0, "pandaset_64": 255.0, "pandaset_gt": 255.0},
    },
    "scalr.evaluate.scoring": {"SCENE_FRAMES": 100},
    "scalr.evaluate.similarity": {"AROUND_M": 1.0, "PCA_RANGE": (2, 98), "ROUNDING": 1e-5},
    "scalr.evaluate.teacher": {"PAIRS_OF_A_VIEW": 2048},
    "scalr.evaluate.corruptions.echoes": {"FEW_POINTS": 10},
    "scalr.evaluate.corruptions.fog": {
        "LIGHT_SPEED_M_S": 299_792_458.0,
        "ALPHAS": (0.0, 0.005, 0.01, 0.02, 0.03, 0.06),
        "HALF_PULSE_S": 20e-9,
        "BETA_0": 1e-6 / math.pi,
        "BLIND_M": 0.9,
        "SEEN_M": 1.0,
        "FARTHEST_M": 200.0,
        "STEP_M": 0.1,
        "PULSE_SAMPLES": 401,
        "NOISE_M": 10.0,
    },
    "scalr.evaluate.corruptions.ground": {"MIN_POINTS": 1000, "NUM_GROUPS": 50, "WEAKEST": 0.01},
    "scalr.evaluate.corruptions.motion": {"JITTER": (0.1, 0.1, 0.05), "FARTHEST_JITTER": 3.0, "CROSSTALK_STD": 3.0},
    "scalr.evaluate.corruptions.scan": {"HALF_TURN": math.pi},
    "scalr.evaluate.corruptions.snow": {
        "BEAM_DIVERGENCE_RAD": 0.003,
        "SNOW_DENSITY": 0.1,
        "SNOW_REFLECTIVITY": 0.9,
        "MM_H_PER_M_S": 3.6e6,
    },
    "scalr.evaluate.corruptions.wet_ground": {
        "PAVEMENT_DEPTH_M": 0.0012,
        "POWER_FACTOR": 15,
        "WATER": 1.33,
        "REFLECTED_INSIDE": 0.472,
        "GRAZING": 0.01,
    },
}


def test_every_number_that_a_module_names_is_here():
    found = numbers_in("evaluate") | numbers_in("evaluate/corruptions")
    found = {module: found[module] for module in found.keys() - {"scalr.evaluate.pictures", "scalr.evaluate.report"}}
    assert found == NUMBERS
