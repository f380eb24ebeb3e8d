"""The numbers that modules outside the stages name: how many, how long."""

from __future__ import annotations

import signal

from constants import numbers_in

NUMBERS = {
    "scalr.checkpoint_files": {"LISTED_KEYS": 12},
    "scalr.cli_options": {"INTERRUPTED": 130, "TERMINATED": 143},
    "scalr.deferred_signals": {"STOP": (signal.SIGTERM, signal.SIGINT)},
    "scalr.demo": {"WORLD": {"train_scenes": 8, "val_scenes": 4, "keyframes": 3}, "IMAGE_SIZE": (224, 448)},
    "scalr.folder_lock": {"BEAT_SECONDS": 10.0, "GONE_AFTER_SECONDS": 60.0, "ATTEMPTS": 8},
    "scalr.progress": {"SECONDS_BETWEEN_LINES": 60},
    "scalr.standard_output": {"OUT": 1, "ERROR": 2},
    "scalr.settings": {"MANY": 1_000_000_000},
}


def test_every_number_that_a_module_names_is_here():
    assert numbers_in(".") == NUMBERS
