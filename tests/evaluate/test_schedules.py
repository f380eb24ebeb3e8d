from __future__ import annotations

from dataclasses import asdict, astuple, replace

import pytest

from scalr.errors import ScalrError
from scalr.evaluate.schedules import Schedule, changed, finetuning, probing
from scalr.evaluate.supervision import training_config

# configs/downstream of valeoai/ScaLR: epochs, warm-up epochs, learning rate, smallest learning rate, weight decay,
# frames of a batch, layer decay, stochastic depth.
MAIN = {
    ("probing", "nuscenes"): (20, 2, 1e-3, 1e-5, 3e-3, 8, 1.0, 0.0),
    ("probing", "semantic_kitti"): (20, 2, 1e-3, 1e-5, 3e-3, 8, 1.0, 0.0),
    ("probing", "pandaset_64"): (50, 2, 1e-3, 1e-5, 3e-3, 8, 1.0, 0.0),
    ("probing", "pandaset_gt"): (50, 2, 1e-3, 1e-5, 3e-3, 8, 1.0, 0.0),
    ("1%", "nuscenes"): (45, 4, 2e-3, 0.0, 0.0, 8, 0.95, 0.2),
    ("10%", "nuscenes"): (45, 4, 2e-3, 0.0, 0.0, 8, 0.95, 0.2),
    ("100%", "nuscenes"): (25, 2, 2e-3, 0.0, 0.0, 8, 0.99, 0.2),
    ("1%", "semantic_kitti"): (45, 4, 2e-3, 0.0, 0.0, 8, 0.95, 0.2),
    ("100%", "semantic_kitti"): (10, 1, 2e-3, 0.0, 0.0, 8, 0.99, 0.2),
    ("100%", "pandaset_64"): (25, 2, 2e-3, 0.0, 0.0, 8, 0.99, 0.2),
    ("100%", "pandaset_gt"): (25, 2, 2e-3, 0.0, 0.0, 8, 0.99, 0.2),
}
SCALR_PLUS = {  # its branch scalr_plus
    ("probing", "nuscenes"): (20, 2, 1e-3, 0.0, 3e-3, 8, 1.0, 0.0),
    ("probing", "semantic_kitti"): (20, 2, 1e-3, 0.0, 3e-3, 8, 1.0, 0.0),
    ("probing", "pandaset_64"): (50, 2, 1e-3, 0.0, 3e-3, 8, 1.0, 0.0),
    ("probing", "pandaset_gt"): (50, 2, 1e-3, 0.0, 3e-3, 8, 1.0, 0.0),
    ("1%", "nuscenes"): (45, 4, 1e-4, 0.0, 0.0, 8, 0.99, 0.2),
    ("10%", "nuscenes"): (45, 4, 1e-4, 0.0, 0.0, 8, 0.99, 0.2),
    ("100%", "nuscenes"): (25, 2, 1e-4, 0.0, 0.0, 8, 0.99, 0.2),
    ("1%", "semantic_kitti"): (45, 4, 1e-4, 0.0, 0.0, 8, 0.99, 0.2),
    ("100%", "semantic_kitti"): (25, 2, 1e-4, 0.0, 0.0, 8, 0.99, 0.2),
    ("100%", "pandaset_64"): (25, 2, 1e-4, 0.0, 0.0, 8, 0.99, 0.2),
    ("100%", "pandaset_gt"): (25, 2, 1e-4, 0.0, 0.0, 8, 0.99, 0.2),
}


@pytest.mark.parametrize(("published", "table"), [("scalr", MAIN), ("scalr_plus", SCALR_PLUS)])
def test_schedules_are_those_of_the_official_configurations(published, table):
    found = {
        (what, dataset): probing(published, dataset) if what == "probing" else finetuning(published, dataset, what)
        for what, dataset in table
    }
    assert {key: astuple(schedule) for key, schedule in found.items()} == table


def test_training_takes_every_value_of_a_schedule():
    """But for the layer decay and the stochastic depth, which belong to the model."""
    schedule = Schedule(
        epochs=3, warmup_epochs=0.5, learning_rate=0.7, min_learning_rate=0.1, weight_decay=0.2, batch_size=5
    )
    training = training_config(schedule, workers=2, seed=11)
    values = {name: value for name, value in asdict(schedule).items() if not name.startswith(("layer", "stochastic"))}
    values |= {"workers": 2, "seed": 11, "schedule": "cosine"}
    assert {name: getattr(training, name) for name in values} == values


def test_a_learning_rate_below_the_last_one_is_refused():
    with pytest.raises(ScalrError, match=r"--learning-rate: 1e-09 is below .* Give at least 1e-05$"):
        changed(probing("scalr", "nuscenes"), {"learning_rate": 1e-9})
    assert changed(probing("scalr_plus", "nuscenes"), {"learning_rate": 1e-9})[0].learning_rate == 1e-9


def test_values_that_are_given_replace_the_official_ones_and_are_told():
    official = finetuning("scalr", "nuscenes", "100%")
    same, departures = changed(official, {"epochs": 25, "learning_rate": None, "layer_decay": 0.99})
    assert (same, departures) == (official, [])
    other, departures = changed(official, {"epochs": 3, "warmup_epochs": 0, "learning_rate": 1e-3, "batch_size": None})
    assert other == replace(official, epochs=3, warmup_epochs=0, learning_rate=1e-3)
    told = ["epochs 3, not 25", "warmup_epochs 0, not 2", "learning_rate 0.001, not 0.002"]
    assert departures == told
