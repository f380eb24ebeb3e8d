from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from scalr.errors import ScalrError
from scalr.evaluate.schedules import Schedule, changed, finetuning, probing
from scalr.evaluate.supervision import training_config

# configs/downstream of valeoai/ScaLR.
COLUMNS = (
    *("epochs", "warmup_epochs", "learning_rate", "min_learning_rate", "weight_decay", "batch_size"),
    *("layer_decay", "stochastic_depth"),
)
ELSE = {"optimiser": "adamw", "decay": "cosine", "head": "probe", "head_factor": 1, "bn_momentum": None}
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
    for key, schedule in found.items():
        assert asdict(schedule) == dict(zip(COLUMNS, table[key], strict=True)) | ELSE, key


# config/semseg_nuscenes.yaml and semseg_kitti.yaml of valeoai/SLidR; of new weights, its issue 11: learning rate,
# that of the head, frames of a batch.
SLIDR = {
    ("probing", "nuscenes"): (0.05, 0.05, 16),
    ("probing", "semantic_kitti"): (0.05, 0.05, 16),
    ("finetuning", "nuscenes"): (0.02, 2.0, 16),
    ("finetuning", "semantic_kitti"): (0.05, 2.0, 10),
    ("scratch", "nuscenes"): (0.05, 0.05, 16),
    ("scratch", "semantic_kitti"): (0.05, 0.05, 10),
}
SLIDR_ELSE = {
    "epochs": 100, "warmup_epochs": 0, "min_learning_rate": 0, "weight_decay": 1e-4, "optimiser": "sgd",
    "decay": "cosine_epochs", "head": "probe_linear", "layer_decay": 1, "stochastic_depth": 0,
}  # fmt: skip


@pytest.mark.parametrize(("what", "dataset"), SLIDR)
def test_schedules_of_slidr_are_those_of_its_code(what, dataset):
    """The same for any share of the labels. The momentum of batch norm is that of the trunk, where it learns."""
    if what == "probing":
        found, bn_momentum = [probing("slidr", dataset)], None
    else:
        shares, bn_momentum = ("100%", "10%", "1%"), 0.02
        found = [finetuning("slidr", dataset, labels, from_scratch=what == "scratch") for labels in shares]
    for schedule in found:
        values = asdict(schedule)
        learning_rate, factor, batch_size = (values.pop(n) for n in ("learning_rate", "head_factor", "batch_size"))
        assert (learning_rate, learning_rate * factor, batch_size) == SLIDR[what, dataset]
        assert values == SLIDR_ELSE | {"bn_momentum": bn_momentum}


@pytest.mark.parametrize("published", ["scalr", "scalr_plus"])
def test_new_weights_have_no_layer_decay(published):
    official = finetuning(published, "nuscenes", "1%")
    assert finetuning(published, "nuscenes", "1%", from_scratch=True) == replace(official, layer_decay=1)


OF_THE_MODEL = {"head", "head_factor", "layer_decay", "stochastic_depth", "bn_momentum"}


def test_training_takes_every_value_of_a_schedule():
    """But for those that belong to the model and its parameters."""
    schedule = Schedule(
        epochs=3, warmup_epochs=0.5, learning_rate=0.7, min_learning_rate=0.1, weight_decay=0.2, batch_size=5,
        optimiser="sgd", decay="cosine_epochs",
    )  # fmt: skip
    training = training_config(schedule, workers=2, seed=11)
    values = {name: value for name, value in asdict(schedule).items() if name not in OF_THE_MODEL}
    values |= {"schedule": values.pop("decay"), "workers": 2, "seed": 11}
    assert {name: getattr(training, name) for name in values} == values
    assert (training.momentum, training.dampening) == (0.9, 0.1)  # of SLidR


def test_a_learning_rate_below_the_last_one_is_refused():
    with pytest.raises(ScalrError, match=r"--learning-rate: 1e-09 is below .* Give at least 1e-05$"):
        changed(probing("scalr", "nuscenes"), {"learning_rate": 1e-9})
    assert changed(probing("scalr_plus", "nuscenes"), {"learning_rate": 1e-9})[0].learning_rate == 1e-9


def test_a_warm_up_that_the_schedule_does_not_have_is_refused():
    official = probing("slidr", "nuscenes")
    with pytest.raises(
        ScalrError,
        match=r"--warmup-epochs: 0\.5 warm-up epochs are given, and the schedule"
        " slidr has no warm-up",
    ):
        changed(official, {"warmup_epochs": 0.5})
    assert changed(official, {"warmup_epochs": 0}) == (official, [])


def test_values_that_are_given_replace_the_official_ones_and_are_told():
    official = finetuning("scalr", "nuscenes", "100%")
    same, departures = changed(official, {"epochs": 25, "learning_rate": None, "layer_decay": 0.99})
    assert (same, departures) == (official, [])
    other, departures = changed(official, {"epochs": 3, "warmup_epochs": 0, "learning_rate": 1e-3, "batch_size": None})
    assert other == replace(official, epochs=3, warmup_epochs=0, learning_rate=1e-3)
    told = ["epochs 3, not 25", "warmup_epochs 0, not 2", "learning_rate 0.001, not 0.002"]
    assert departures == told
