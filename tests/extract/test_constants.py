"""The numbers that modules of extraction name: how many, how large, how exact."""

from __future__ import annotations

from constants import numbers_in

NUMBERS = {
    "scalr.extract.estimate": {
        "SAMPLED_FRAMES": 4,
        "MUCH_SMALLER": 3,
        "LIBRARIES_BYTES": 600_000_000,
        "SHARDS_HELD": 6,
        "FRAMES_AHEAD": 8,
        "SLIC_BYTES": 125,
    },
    "scalr.extract.executors": {"CONNECT_TIMEOUT_S": 30},
    "scalr.extract.frame_identity": {"TOLERANCE": {"rtol": 1e-9, "atol": 1e-9}},
    "scalr.extract.intensity": {"LARGEST_INTENSITY": 1e10, "SMALLEST_DEVIATION": 1e-6},
    "scalr.extract.occlusion": {"CELLS_PER_SPACING": 2, "TOLERANCE": 0.1, "TOLERANCE_M": 0.5},
    "scalr.extract.pipeline": {"MAX_READERS": 8, "MAX_WAITING": 8},
    "scalr.extract.plan": {"BLOCK_BYTES": 2**30, "FRAMES_PER_BLOCK": {"point": 16, "patch": 64, "segments": 64}},
    "scalr.extract.projection": {"LENGTH_TOLERANCE": 0.01, "WORST_CONDITION": 1e9},
    "scalr.extract.recompute": {
        "SEED": 0,
        "APART": {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2},
        "ALLOWANCE": 4,
    },
    "scalr.extract.run": {"TRIED_FRAMES": 8, "COMPARED_VIEWS": 12, "COMPARED_MAPS": 16},
    "scalr.extract.sampled_frames": {"AS_STORED": (0, 1), "SHALLOW": 8},
    "scalr.extract.alignment": {
        "WINDOW": 9,
        "FILLED": 0.5,
        "PAIRS_OF_A_CELL": 1.5,
        "MOST_COLUMNS": 160,
        "FEWEST_ROWS": 6,
        "THUMBNAIL": 320,
        "FEWEST_PAIRS": 200,
    },
    "scalr.extract.misalignment": {
        "CLEAR_GAIN": 0.2,
        "FEWEST_VIEWS": 2,
        "BEYOND_CHANCE": 4.0,
        "MOVED": (0.2, 0.4, 0.6, 0.8),
    },
    "scalr.extract.plausibility": {
        "SAMPLED_FRAMES": 8,
        "COMPARED_VIEWS": 24,
        "LONGEST_RANGE_M": 1000.0,
        "SHORTEST_RANGE_M": 1.0,
        "FEWEST_POINTS": 100,
        "FLATNESS": 0.7,
        "AT_ORIGIN": 0.1,
        "SPREADS": 8.0,
        "MEANS": 4.0,
        "NARROWEST": 0.05,
        "WIDEST": 20.0,
        "OFF_CENTRE": 1.5,
        "TILTED_DEG": 60.0,
        "LEVEL": 0.87,
        "FARTHEST_CAMERA_M": 20.0,
        "FEWEST_SEEN": 0.05,
        "NEIGHBOUR_M": 0.5,
        "SAME_LABEL": 0.75,
        "FEWEST_NEIGHBOURS": 200,
    },
    "scalr.extract.datasets.files": {"ORIENTATION": 0x0112},
    "scalr.extract.datasets.frames": {"LARGEST_OFF": 1e-4},
    "scalr.extract.datasets.scan_files": {"MOST_COLUMNS": 64, "VALUES_PER_POINT": {".pcd.bin": 5, ".bin": 4}},
    "scalr.extract.datasets.scan_layout": {
        "LOOKED_AT": 2000,
        "FEWEST": 100,
        "ALIKE": 0.1,
        "APART": 0.2,
        "ALTERNATING": 0.4,
        "A_COLUMN": 0.02,
        "FARTHEST_M": 1e4,
    },
    "scalr.extract.segments": {"NO_LENGTH": 1e-6},
    "scalr.extract.superpixels": {
        "SLIC_PARAMETERS": {"n_segments": 150, "compactness": 6, "sigma": 3, "start_label": 0},
        "LARGEST_ID": 65_534,
        "SAMPLED_FRAMES": 64,
    },
    "scalr.extract.teacher_sample": {"SAMPLED_VIEWS": 64, "TRIED_FRAMES": 128},
    "scalr.extract.targets": {"FLOAT16_MAX": 65504.0, "INT8_MAX": 127, "LARGEST": 1e18},
    "scalr.extract.verification": {"MOST_STRAYS": 8},
    "scalr.extract.datasets.labels": {"IGNORE_LABEL": 255, "_UNKNOWN": 254},
    "scalr.extract.datasets.nuscenes_c": {"ADDED": (41, 42, 43)},
    "scalr.extract.datasets.nuscenes_tables": {"CACHE_VERSION": 2},
    "scalr.extract.datasets.pandaset": {"TRAIN_LATITUDE": 37.6},
    "scalr.extract.datasets.scans": {"MEASURED_SCANS": 64},
    "scalr.extract.datasets.semantic_kitti": {"FRAME_US": 100_000},
    "scalr.extract.datasets.semantic_kitti_c": {"ADDED": (21, 22, 23)},
    "scalr.extract.datasets.splits": {"EVERY_NTH": {"1": 100, "5": 20, "10": 10, "25": 4, "50": 2}},
    "scalr.extract.store.arrays": {
        "CHUNK_BYTES": 2**20,
        "SHARD_BYTES": 2**27,
        "COMPRESSION_LEVEL": 3,
        "READ_BACK_CHUNKS": 8,
    },
    "scalr.extract.store.commit": {"ATTEMPTS": 5},
    "scalr.extract.store.format": {"FORMAT_VERSION": 3, "SUPERPIXELS_VERSION": 4},
    "scalr.extract.store.reader": {"OPEN_ARRAYS": 512, "LOOKING_THREADS": 4},
    "scalr.extract.store.verify": {"LONGEST": 1.001},
    "scalr.extract.teachers.batch_size": {
        "LARGEST": 64,
        "WORTHWHILE": 1.1,
        "LONG_S": 0.25,
        "REPEATS": 3,
        "MEMORY_SHARE": 0.25,
    },
    "scalr.extract.store.gathering": {"FEW_BLOCKS": 16, "PART_BLOCKS": 256},
    "scalr.extract.store.shared_arrays": {"TOKEN_BYTES": 16, "ALIGNMENT": 8},
    "scalr.extract.teachers.checkpoint": {"DEPTH": 4},
    "scalr.extract.teachers.features": {"LIVE_TENSORS": 16},
    "scalr.extract.teachers.pos_embed": {"OFFSET": 0.1},
    "scalr.extract.teachers.registry": {
        "USUAL_IMAGE_SIZE": (224, 448),
        "IMAGENET_MEAN": (0.485, 0.456, 0.406),
        "IMAGENET_STD": (0.229, 0.224, 0.225),
    },
    "scalr.extract.teachers.resnet": {"FULL_STRIDE": 32, "LIVE_TENSORS": {32: 40, 4: 5}},
    "scalr.extract.teachers.weights": {"RANDOM_SEED": 0, "HUB_TIMEOUT_S": 5},
    "scalr.extract.teachers.weights_file": {"LONGEST_HEADER": 100_000_000},
}


def test_every_number_that_a_module_names_is_here():
    assert (
        numbers_in("extract")
        | numbers_in("extract/datasets")
        | numbers_in("extract/store")
        | numbers_in("extract/teachers")
        == NUMBERS
    )
