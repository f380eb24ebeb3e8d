from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from scalr.distill import training
from scalr.distill.recipe import load_recipe
from scalr.distill.schedule import reciprocal_sqrt, warmup_cosine
from scalr.distill.training import Batch, Observer, TrainingConfig, train
from scalr.distill.training_log import TrainingLog, read_log
from scalr.errors import StudentError


@dataclass
class Numbers(Batch):
    """A batch of numbers."""

    values: torch.Tensor
    num_points: int = 4
    num_pairs: int = 4

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


def test_the_second_schedule_decays_slowly_and_cools_down():
    """ScaLR+: warm-up, 1 / sqrt(1 + steps since / timescale), and a line to zero."""
    values = {"warmup_steps": 10, "total_steps": 650, "timescale_steps": 4.5, "cooldown_steps": 20}
    factors = [reciprocal_sqrt(step, **values) for step in range(650)]
    assert factors[0] == 0
    assert factors[5] == 0.5
    assert factors[10] == 1
    assert factors[10 + 45] == pytest.approx(1 / math.sqrt(11))
    assert factors[630] == pytest.approx(1 / math.sqrt(1 + 620 / 4.5))
    assert factors[649] == 0
    assert all(now < before for before, now in pairwise(factors[10:]))
    down = [before - now for before, now in pairwise(factors[631:])]
    assert down == pytest.approx([down[0]] * len(down))
    assert factors[631] == pytest.approx(18 / 19 / math.sqrt(1 + 630 / 4.5))


def test_schedules_count_in_steps_or_epochs():
    cosine = TrainingConfig(epochs=4, warmup_steps=8, min_learning_rate=0.0)
    assert cosine.learning_rate_factor(8, steps_per_epoch=10) == 1
    epochs = TrainingConfig(epochs=4, warmup_epochs=0.5, min_learning_rate=0.0)
    assert epochs.learning_rate_factor(5, steps_per_epoch=10) == 1
    assert epochs.learning_rate_factor(40, steps_per_epoch=10) == pytest.approx(0)
    plus = load_recipe("scalr_plus").training
    assert plus.learning_rate_factor(100, steps_per_epoch=100) == 1
    assert plus.learning_rate_factor(145, steps_per_epoch=100) == pytest.approx(1 / math.sqrt(2))
    assert plus.learning_rate_factor(6499, steps_per_epoch=100) == 0


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


def test_accumulated_batches_are_one_batch(tmp_path):
    """The mean is over all pairs of the step, not of the means of its batches."""
    big, small = Numbers(torch.tensor([1.0]), num_pairs=9), Numbers(torch.tensor([11.0]), num_pairs=1)
    objective = Objective(lambda p, batch: (p - batch.values).square().sum())
    config = TrainingConfig(epochs=1, learning_rate=1e-3, warmup_steps=0, accumulate=2)
    result = train(
        objective, lambda epoch, first: [big, small], config, steps_per_epoch=1, device=torch.device("cpu"),
        description="test", observer=Observer(folder=tmp_path),
    )  # fmt: skip
    assert result.losses == pytest.approx([0.9 * 1 + 0.1 * 121])
    (row,) = csv.DictReader((tmp_path / "log.csv").open())
    assert float(row["gradient_norm"]) == pytest.approx(2 * 2)  # of the distance to the mean, 2
    assert 0 <= float(row["data_wait"]) <= 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains(tmp_path, precision):
    layer = torch.nn.Linear(1, 1)
    dtypes = []

    def loss(p, batch):
        output = layer(batch.values[:, None] * p)
        dtypes.append(output.dtype)
        return (output.float() - 3).square().sum()

    objective = Objective(loss)
    objective.layer = layer
    config = TrainingConfig(epochs=60, learning_rate=0.05, weight_decay=0.0, warmup_steps=0, precision=precision)
    losses = fit(tmp_path, objective, config)
    assert set(dtypes) == {getattr(torch, precision)}
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_loss_and_gradient_norm_are_logged_as_they_are(tmp_path, precision):
    """Not as float16 scales them up."""
    objective = Objective(lambda p, batch: (3 * p + 5).sum())
    fit(tmp_path, objective, TrainingConfig(epochs=1, warmup_steps=0, precision=precision))
    row = next(csv.DictReader((tmp_path / "log.csv").open()))
    assert (float(row["loss"]), float(row["gradient_norm"])) == (5, 3)
    assert objective.parameter.item() < 0


def test_weights_decay_by_the_learning_rate_apart_from_the_gradient(tmp_path):
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2): without a gradient, a weight shrinks by 1 - lr * decay."""
    objective = Objective(lambda p, batch: 0 * p.sum() + 0 * objective.slow.sum())
    objective.slow = torch.nn.Parameter(torch.tensor([2.0]))
    objective.parameter.data.fill_(2.0)
    config = TrainingConfig(epochs=3, learning_rate=0.1, min_learning_rate=0.1, weight_decay=0.5, warmup_steps=0)
    train(
        objective, lambda epoch, first: [Numbers(torch.tensor([1.0]))], config, steps_per_epoch=1,
        device=torch.device("cpu"), description="test", learning_rate_scale=lambda name: 0.1 if name == "slow" else 1,
    )  # fmt: skip
    assert objective.parameter.item() == pytest.approx(2 * (1 - 0.1 * 0.5) ** 3)
    assert objective.slow.item() == pytest.approx(2 * (1 - 0.01 * 0.5) ** 3)


def test_steps_draw_random_numbers_of_their_own(tmp_path, monkeypatch):
    """What a step draws does not depend on what was drawn before it, and differs from process to process."""
    drawn = []

    def loss(p, batch):
        drawn.append(torch.rand(()).item())
        torch.rand(len(drawn))
        return p.square().sum()

    for _ in range(2):
        fit(tmp_path, Objective(loss), TrainingConfig(epochs=2, warmup_steps=0))
    assert drawn[:4] == drawn[4:]
    assert len(set(drawn[:4])) == 4
    fit(tmp_path, Objective(loss), TrainingConfig(epochs=1, warmup_steps=0, seed=1))
    assert drawn[8] != drawn[0]
    monkeypatch.setattr(training, "process_index", lambda: 1)
    fit(tmp_path, Objective(loss), TrainingConfig(epochs=2, warmup_steps=0))
    assert not {*drawn[:10]} & {*drawn[10:]}


def test_speed_and_waiting_are_shares_of_the_clock(tmp_path, monkeypatch):
    """A batch that is 3 s late and a step of 1 s: 4 points in 4 s, three quarters of them without data."""
    now = [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def pass_time(seconds, value):
        now[0] += seconds
        return value

    result = train(
        Objective(lambda p, batch: pass_time(1, p.sum())),
        lambda epoch, first: (pass_time(3, Numbers(torch.zeros(1))) for _ in range(2)),
        TrainingConfig(epochs=2),
        steps_per_epoch=2,
        device=torch.device("cpu"),
        description="test",
        observer=Observer(folder=tmp_path),
    )
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [(float(row["points_per_second"]), float(row["data_wait"])) for row in rows] == [(1, 0.75)] * 4
    assert result.data_wait == pytest.approx(0.75)


def test_gradients_of_a_step_are_those_of_its_batches_alone(tmp_path):
    objective = Objective(lambda p, batch: (batch.values * p).sum())
    fit(tmp_path, objective, TrainingConfig(epochs=2, warmup_steps=0))
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["gradient_norm"]) for row in rows] == [1, 3, 1, 3]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    objective = Objective(lambda p, batch: p.abs().sqrt().sum())
    with pytest.raises(StudentError, match=r"gradient of step 1 is (inf|nan)"):
        fit(tmp_path, objective, TrainingConfig(epochs=1, warmup_steps=0))
    assert objective.parameter.item() == 0


def test_a_log_goes_on_where_the_checkpoint_was(tmp_path):
    for steps in (0, 2):
        log = TrainingLog(tmp_path, ["loss_a"], steps)
        for step in range(steps + 1, steps + 4):
            log.write({"step": step, "epoch": 0, "loss": step + steps / 10, "loss_a": 1.0})
        log.close()
    with (tmp_path / "log.csv").open("a") as file:
        file.write("6,0,1")  # killed while it wrote
    assert [float(row["loss"]) for row in read_log(tmp_path / "log.csv")] == [1, 2, 3.2, 4.2, 5.2]


def test_a_log_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "run").write_text("a file in its place")
    with pytest.raises(StudentError, match=r"run: the log cannot be written \(File exists\)\. Choose another --out"):
        TrainingLog(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = TrainingConfig(epochs=1, learning_rate=0.1, warmup_steps=0)
    with pytest.raises(StudentError, match="loss of step 1 is inf"):
        fit(tmp_path, Objective(lambda p, batch: (p + batch.values).sum() / 0), config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"precision": "fp16"}, "precision is 'fp16'. Use one of float32, bfloat16, float16"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"seed": -1}, "seed is -1. Use 0 or more"),
        ({"workers": -1}, "workers is -1. Use 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps is -1. Use 0 or more"),
        ({"timescale_epochs": 0}, "timescale above zero"),
        ({"cooldown_epochs": -0.1}, "cooldown_epochs -0.1"),
        ({"cooldown_epochs": math.nan}, "cooldown_epochs nan"),
        ({"warmup_epochs": -0.5}, "warmup_epochs -0.5"),
        ({"min_learning_rate": -1e-6}, "learning_rate is 0.002 and min_learning_rate -1e-06"),
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
