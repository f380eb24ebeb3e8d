from __future__ import annotations

import csv
import math
import warnings
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn

from bars import Bars
from scalr.distill import training
from scalr.distill.recipe import load_recipe
from scalr.distill.training import Batch, Observer, TrainingConfig, train
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


def test_sgd_is_slidr_s(tmp_path):
    """Its buffer, weight decay and learning rates written once more: a gradient of 2p - 4 or 2p - 12, by turns."""
    config = TrainingConfig(
        epochs=3, learning_rate=0.05, weight_decay=0.25, optimiser="sgd", momentum=0.8, dampening=0.3,
        schedule="cosine_epochs", warmup_steps=100,
    )  # fmt: skip
    objective = Objective(lambda p, batch: (p - 4 * batch.values + 2).square().sum())
    fit(tmp_path, objective, config)
    weight, buffer = 0.0, None
    for step in range(6):
        gradient = 2 * (weight - (2, 10)[step % 2]) + 0.25 * weight
        buffer = gradient if buffer is None else 0.8 * buffer + 0.7 * gradient
        weight -= 0.05 * (1 + math.cos(math.pi * (step // 2) / 3)) / 2 * buffer
    assert objective.parameter.item() == pytest.approx(weight, rel=1e-5)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.05, 0.05, 0.0375, 0.0375, 0.0125, 0.0125])


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


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = TrainingConfig(epochs=1, learning_rate=0.1, warmup_steps=0)
    with pytest.raises(
        StudentError, match=r"loss of step 1 is inf\. Give a lower learning rate, or check the student and the scans"
    ):
        fit(tmp_path, Objective(lambda p, batch: (p + batch.values).sum() / 0), config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"epochs": 0},
            "training.epochs: 0 cannot be used. Give a whole number, at least 1 and at most 1,000,000,000$",
        ),
        ({"batch_size": -1}, "training.batch_size: -1"),
        ({"accumulate": 0}, "training.accumulate: 0"),
        ({"precision": "fp16"}, "precision: 'fp16' cannot be used. Give one of float32, bfloat16, float16$"),
        ({"schedule": "linear"}, "training.schedule: 'linear'"),
        ({"optimiser": "adam"}, "training.optimiser: 'adam' cannot be used. Give one of adamw, sgd$"),
        ({"momentum": 1}, "training.momentum: 1 cannot be used. Give a number, at least 0 and below 1$"),
        ({"dampening": -0.1}, "training.dampening: -0.1"),
        ({"dampening": 1.0}, "training.dampening: 1.0 cannot be used. Give a number, at least 0 and below 1$"),
        ({"seed": -1}, "training.seed: -1 cannot be used. Give a whole number, at least 0"),
        ({"workers": -1}, "training.workers: -1"),
        ({"warmup_steps": -1}, "training.warmup_steps: -1"),
        ({"timescale_epochs": 0}, "training.timescale_epochs: 0 cannot be used. Give a number, above 0"),
        ({"cooldown_epochs": -0.1}, "training.cooldown_epochs: -0.1"),
        ({"cooldown_epochs": math.nan}, "training.cooldown_epochs: nan"),
        (
            {"warmup_epochs": -0.5},
            "training.warmup_epochs: -0.5 cannot be used. Give a number, at least 0 and at most 1,000,000,000 or null$",
        ),
        ({"min_learning_rate": -1e-6}, "training.min_learning_rate: -1e-06"),
        ({"learning_rate": 1e-6}, "learning_rate 1e-06 is below min_learning_rate 1e-05"),
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


# config of valeoai/ScaLR's pretraining (main); what it does not have is off.
PUBLISHED = {
    "epochs": 25, "batch_size": 8, "optimiser": "adamw", "momentum": 0.9, "dampening": 0.1,
    "learning_rate": 2e-3, "min_learning_rate": 1e-5, "weight_decay": 0.03,
    "schedule": "cosine", "warmup_steps": 3500, "warmup_epochs": None,
    "timescale_epochs": 0.45, "cooldown_epochs": 2,  # of ScaLR+: 65 epochs, of which the last from 63 on
    "precision": "float32", "accumulate": 1, "compile": False, "workers": 0, "activation_checkpointing": False,
    "seed": 0,
}  # fmt: skip


def test_the_defaults_are_those_of_scalr():
    assert asdict(TrainingConfig()) == PUBLISHED


def test_values_on_the_border_of_sense_are_taken():
    least = {"epochs": 1, "batch_size": 1, "accumulate": 1, "warmup_steps": 0, "workers": 0, "seed": 0}
    TrainingConfig(**least, warmup_epochs=0, cooldown_epochs=0, min_learning_rate=0)
    TrainingConfig(learning_rate=1e-5, min_learning_rate=1e-5)
    frozen = TrainingConfig(learning_rate=0, min_learning_rate=0, warmup_steps=0, epochs=2)
    assert [frozen.learning_rate_factor(step, steps_per_epoch=5) for step in (0, 10)] == [1, 0]
    kept = TrainingConfig(learning_rate=0.5, min_learning_rate=0.125, warmup_steps=0, epochs=2)
    assert kept.learning_rate_factor(10, steps_per_epoch=5) == 0.25


class Samples(Numbers):
    """A batch whose samples are of part 0 or 1: their names' first letter."""

    def __init__(self, values, samples):
        super().__init__(values)
        self.samples = samples


def losses_of_samples(parameter, batch):
    """Their mean over pairs, and sum and number of each sample, whose number of pairs is one more than its number."""
    values = parameter + batch.values
    counts = torch.arange(1.0, len(values) + 1)
    return (values * counts).sum() / counts.sum(), torch.stack([values.detach() * counts, counts])


class OfSamples(Objective):
    def forward(self, batch):
        return self.loss(self.parameter, batch)


def run_batches(objective, batches, config, steps_per_epoch, **observing):
    observer = Observer(parts=("a", "b"), part_of=lambda sample: "ab".index(sample[0]), **observing)
    return train(
        objective, lambda epoch, first: batches, config, steps_per_epoch=steps_per_epoch, device=torch.device("cpu"),
        description="test", observer=observer,
    )  # fmt: skip


def test_the_log_has_the_mean_loss_of_each_part(tmp_path):
    """Over its pairs in all batches of a step; nothing where a step has none of it."""
    batches = [
        Samples(torch.tensor([1.0, 2.0, 3.0]), ("a1", "b1", "a2")),  # of 1, 2 and 3 pairs
        Samples(torch.tensor([5.0, 6.0]), ("b2", "a3")),
        Samples(torch.tensor([7.0]), ("b3",)),
        Samples(torch.tensor([9.0]), ("b4",)),
    ]
    config = TrainingConfig(epochs=1, accumulate=2, learning_rate=1e-9, min_learning_rate=0, warmup_steps=0)
    run_batches(OfSamples(losses_of_samples), batches, config, 2, folder=tmp_path)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert float(rows[0]["loss_a"]) == pytest.approx((1 * 1 + 3 * 3 + 2 * 6) / 6)
    assert float(rows[0]["loss_b"]) == pytest.approx((2 * 2 + 1 * 5) / 3)
    assert (rows[1]["loss_a"], float(rows[1]["loss_b"])) == ("", pytest.approx(8))


@pytest.mark.parametrize("names", [("a", "b"), ()])
def test_a_loss_without_parts_or_a_batch_without_samples_is_logged_as_a_whole(tmp_path, names):
    """A probe's objective tells no losses of samples, and a batch need not say whose it is."""
    objective = OfSamples(losses_of_samples) if not names else Objective(lambda p, batch: (p + batch.values).mean())
    run_batches(objective, [Samples(torch.tensor([2.0, 2.0]), names)], TrainingConfig(epochs=1), 1, folder=tmp_path)
    (row,) = csv.DictReader((tmp_path / "log.csv").open())
    assert (float(row["loss"]), row["loss_a"], row["loss_b"]) == (2, "", "")


@pytest.mark.parametrize("count", [1, 8, 9])
def test_samples_whose_loss_is_not_finite_are_named(count):
    """The first eight of them, and no others."""
    values = torch.tensor([1.0, *[math.inf] * count, 2.0])
    names = ("a_fine", *(f"b{number}" for number in range(count)), "a_too")
    with pytest.raises(StudentError) as caught:
        run_batches(
            OfSamples(losses_of_samples), [Samples(values, names)], TrainingConfig(epochs=1), 1, describe=str.upper
        )
    listed = "; ".join(f"B{number}" for number in range(min(count, 8))) + (" …" if count > 8 else "")
    assert f"the loss of step 1 is inf; samples: {listed}. Check the targets" in str(caught.value)


def test_what_is_evaluated_after_each_epoch_is_in_its_last_row(tmp_path):
    batches = [Samples(torch.tensor([1.0]), ("a",))] * 3
    run_batches(
        OfSamples(losses_of_samples), batches, TrainingConfig(epochs=2), 3, folder=tmp_path,
        evaluate=lambda epoch: {"miou": 10.0 + epoch}, columns=("miou",),
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [(row["step"], row["epoch"], row["miou"]) for row in rows] == [
        *(("1", "0", ""), ("2", "0", ""), ("3", "0", "10.0")),
        *(("4", "1", ""), ("5", "1", ""), ("6", "1", "11.0")),
    ]


def test_the_bar_shows_steps_loss_and_speed(monkeypatch):
    bars = Bars(monkeypatch, training)
    batches = [Samples(torch.tensor([2.0]), ("a",))] * 3
    run_batches(OfSamples(losses_of_samples), batches, TrainingConfig(epochs=2), 3)
    (bar,) = bars
    assert (bar.says, bar.options, sum(bar.moved)) == ((6, "test", "step"), {"done": 0}, 6)
    assert bar.postfix["loss"] == "2.000"
    assert float(bar.postfix["points_per_s"]) > 0


def test_without_a_folder_there_is_no_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_batches(OfSamples(losses_of_samples), [Samples(torch.tensor([2.0]), ("a",))], TrainingConfig(epochs=1), 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("due", "steps"), [(True, [(0, 1), (1, 0), (1, 1), (2, 0)]), (False, [(2, 0)])])
def test_a_checkpoint_is_written_whenever_one_is_due_and_after_the_last_step(due, steps):
    """And has all that the rest depends on."""
    saved = []
    checkpoints = SimpleNamespace(due=due, path=None, save=saved.append)
    train(
        Objective(lambda p, batch: p.sum()), lambda epoch, first: [Numbers(torch.zeros(1))] * 2,
        TrainingConfig(epochs=2, seed=5), steps_per_epoch=2, device=torch.device("cpu"), description="test",
        checkpoints=checkpoints,
    )  # fmt: skip
    assert [(state["epoch"], state["step_of_epoch"]) for state in saved] == steps
    assert set(saved[0]) == {"objective", "optimiser", "scaler", "epoch", "step_of_epoch", "seed"}
    assert saved[0]["seed"] == 5


def trainer_with(checkpoints: SimpleNamespace, **options) -> training._Trainer:
    config, cpu = TrainingConfig(**options), torch.device("cpu")
    return training._Trainer(Objective(None), config, 2, cpu, Observer(), checkpoints, lambda name: 1.0)


def test_a_signal_to_save_is_one_checkpoint():
    saved = []
    trainer = trainer_with(SimpleNamespace(due=False, save=saved.append))
    signals = training.Signals()
    for signals.save, expected in ((False, 0), (True, 1), (False, 1)):
        trainer._act_on(signals)
        assert (len(saved), signals.save) == (expected, False)


def test_the_scale_of_float16_losses_goes_on_where_it_was():
    """It is found by trial: from the first value on, steps would be lost."""
    trainer = trainer_with(None, precision="float16")
    state = trainer._state()
    state["scaler"]["scale"] = 8.0
    trainer.load(state)
    trainer.scaler.scale(torch.zeros(1))  # makes it known
    assert trainer.scaler.get_scale() == 8


def test_losses_of_samples_are_for_parts_where_there_are_any():
    batch = Numbers(torch.tensor([1.0]))
    batch.samples = ("a", "b")
    of_samples = torch.tensor([[1.0, math.nan], [2.0, 3.0]])
    for parts, sums in ((0, []), (2, [0.0, 0.0, pytest.approx(math.nan, nan_ok=True), 5.0])):
        local = training._LocalSums(parts)
        local.add(batch, 0.5, of_samples, lambda sample: 1)
        assert local.values == [0.5, 4, *sums]
        assert local.offenders == ["b"]


def test_processes_do_not_broadcast_statistics_and_torch_has_nothing_to_warn_of():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with warnings.catch_warnings(action="error"):
            parallel = training._in_parallel(nn.BatchNorm1d(2))
        assert not parallel.will_sync_module_buffers()
    finally:
        distributed.destroy_process_group()
