from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from scalr.distill.schedule import warmup_cosine
from scalr.distill.training import Observer, TrainingConfig, train
from scalr.errors import StudentError


@dataclass
class Numbers:
    """A batch of numbers."""

    values: torch.Tensor
    num_points: int = 4
    num_pairs: int = 4
    samples: tuple = ()

    def to(self, device):
        return self


class Objective(torch.nn.Module):
    """A loss of one parameter and a batch."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.parameter = loss, torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return self.loss(self.parameter, batch), None


def fit(tmp_path, objective, config):
    batches = [Numbers(torch.tensor([1.0])), Numbers(torch.tensor([3.0]))]
    return train(
        objective,
        lambda epoch, first: batches[first * config.accumulate :],
        config,
        steps_per_epoch=2 // config.accumulate,
        device=torch.device("cpu"),
        description="test",
        observer=Observer(folder=tmp_path),
    ).losses


def test_schedule_warms_up_and_decays():
    factors = [warmup_cosine(step, warmup_steps=10, total_steps=110, least=0.1) for step in range(111)]
    assert factors[0] == 0
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.55)
    assert factors[110] == pytest.approx(0.1)
    assert all(now <= before for before, now in pairwise(factors[10:]))


def test_training_minimises_and_logs_every_step(tmp_path):
    config = TrainingConfig(epochs=100, learning_rate=0.1, weight_decay=0.0, warmup_steps=2)
    objective = Objective(lambda p, batch: (p - batch.values).square().sum())
    losses = fit(tmp_path, objective, config)
    assert len(losses) == 200
    assert objective.parameter.item() == pytest.approx(2, abs=0.1)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses)
    assert float(rows[1]["learning_rate"]) == pytest.approx(0.05)
    assert rows[-1]["epoch"] == "99"
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = TrainingConfig(epochs=1, learning_rate=0.1, warmup_steps=0)
    with pytest.raises(StudentError, match="loss of step 1 is inf"):
        fit(tmp_path, Objective(lambda p, batch: (p + batch.values).sum() / 0), config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": 1e-6}, "learning_rate is 1e-06 and min_learning_rate 1e-05"),
    ],
)
def test_values_that_make_no_sense_are_said(values, message):
    with pytest.raises(StudentError, match=message):
        TrainingConfig(**values)


@pytest.mark.parametrize(("workers", "threads"), [(0, 4), (1, 3), (9, 1)])
def test_the_loaders_workers_keep_their_cores(tmp_path, workers, threads):
    def fail_after_counting(parameter, batch):
        seen.append(torch.get_num_threads())
        return parameter.sum() * float("nan")

    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:
        with pytest.raises(StudentError, match="the loss of step 1 is nan"):
            fit(tmp_path, Objective(fail_after_counting), TrainingConfig(epochs=1, workers=workers))
        assert seen == [threads]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
