from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from scalr.distill.schedule import cosine_of_epochs, reciprocal_sqrt, warmup_cosine


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


def test_a_cosine_of_epochs_is_that_of_torch():
    """As SLidR's trainer steps it, once an epoch."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 7)
    for epoch in range(7):
        assert 0.5 * cosine_of_epochs(epoch, 7) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert cosine_of_epochs(0, 1) == 1


def test_a_training_without_warm_up_starts_at_its_peak():
    assert warmup_cosine(0, warmup_steps=0, total_steps=10, least=0.1) == 1
    values = {"warmup_steps": 0, "total_steps": 10, "timescale_steps": 4}
    assert reciprocal_sqrt(0, **values, cooldown_steps=2) == 1
    assert reciprocal_sqrt(3, **values, cooldown_steps=2) == pytest.approx(1 / math.sqrt(1 + 3 / 4))


@pytest.mark.parametrize("warmup", [0.5, 1])
def test_a_warm_up_of_a_step_starts_at_zero(warmup):
    assert warmup_cosine(0, warmup_steps=warmup, total_steps=10, least=0.1) == 0
    values = {"total_steps": 10, "timescale_steps": 4, "cooldown_steps": 2}
    assert reciprocal_sqrt(0, warmup_steps=warmup, **values) == 0


def test_steps_after_the_last_keep_the_least():
    assert warmup_cosine(15, warmup_steps=2, total_steps=10, least=0.1) == pytest.approx(0.1)
    assert reciprocal_sqrt(15, warmup_steps=2, total_steps=10, timescale_steps=4, cooldown_steps=5) == 0


def test_a_decay_of_one_step_ends_at_the_least():
    assert warmup_cosine(11, warmup_steps=10, total_steps=11, least=0.1) == pytest.approx(0.1)
    assert warmup_cosine(10.5, warmup_steps=10, total_steps=11, least=0.1) == pytest.approx(0.55)


def test_a_training_that_is_all_warm_up_ends_below_its_peak():
    """The official warm-up of 3,500 steps is longer than a short training."""
    factors = [warmup_cosine(step, warmup_steps=20, total_steps=10, least=0.1) for step in range(10)]
    assert factors == [step / 20 for step in range(10)]
    assert warmup_cosine(10, warmup_steps=10, total_steps=10, least=0.1) == 1


@pytest.mark.parametrize("cooldown", [0, 1])
def test_a_cool_down_of_no_more_than_a_step_is_none(cooldown):
    values = {"warmup_steps": 2, "total_steps": 10, "timescale_steps": 4, "cooldown_steps": cooldown}
    assert reciprocal_sqrt(9, **values) == pytest.approx(1 / math.sqrt(1 + 7 / 4))


def test_a_cool_down_of_part_of_a_step_more_is_a_line_too():
    """From 7.5 on: after the first of its steps, one of one and a half is left."""
    values = {"warmup_steps": 2, "total_steps": 10, "timescale_steps": 4, "cooldown_steps": 2.5}
    assert reciprocal_sqrt(8, **values) == pytest.approx(1 / 1.5 / math.sqrt(1 + 7.5 / 4))
    assert reciprocal_sqrt(9, **values) == 0
