from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from distributed import system

from scalr.extract.teachers import batch_size
from scalr.extract.teachers.batch_size import fitting_batch_size, free_memory, kind_of_device

IMAGE_BYTES = 16 * 512 * 384 * 4  # a 224 x 448 image is 512 tokens of 384 float32, held sixteen times


class Timed:
    """A teacher that takes as long for a batch as it is told, by the batch's size and its number among all."""

    name, patch_size, dim, image_size, device = "timed", 14, 384, (224, 448), torch.device("meta")
    live_tensors = 16

    def __init__(self, seconds, monkeypatch) -> None:
        self.clock, self.seconds, self.seen, self.images = 0.0, seconds, [], []
        monkeypatch.setattr(batch_size, "time", SimpleNamespace(perf_counter=lambda: self.clock))

    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        self.images.append(images)
        self.seen.append(len(images))
        self.clock += self.seconds(len(images), len(self.seen))
        return torch.zeros(1, 1, 1, 1)


@pytest.fixture
def timed(monkeypatch):
    """Call with seconds, by size and number, and free memory for a teacher that has seen what the probe shows it."""

    def call(seconds, free: float = 1 << 40) -> tuple[Timed, int]:
        monkeypatch.setattr(batch_size, "free_memory", lambda device: free)
        teacher = Timed(seconds, monkeypatch)
        return teacher, fitting_batch_size(teacher)

    return call


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda images: 0.01 * images, 1),  # twice the batch, twice the time
        (lambda images: 0.01, 64),
        (lambda images: 0.01 * max(images, 8), 8),  # saturated by eight
        (lambda images: 3.0 * images, 1),
        (lambda images: 0.1 + 0.01 * images, 16),
        (lambda images: 2.0, 1),  # long enough, whatever more would gain
        (lambda images: 0.01 * images**0.87, 1),  # twice the batch gains less than a tenth
        (lambda images: 0.001 * images**0.86, 64),  # a tenth, always
    ],
)
def test_the_batch_grows_while_it_pays(timed, seconds, expected):
    assert timed(lambda images, number: seconds(images))[1] == expected


def test_the_best_of_three_counts_where_batches_are_short(timed):
    """The first pass of all is not counted, nor is what other work slows."""
    teacher, chosen = timed(lambda images, number: 5.0 if number == 1 else 0.01 if number % 3 == 1 else 0.24)
    assert teacher.seen == [1, *(size for size in (1, 2, 4, 8, 16, 32, 64) for _ in range(3))]
    assert chosen == 64


def test_a_quarter_of_a_second_is_long(timed):
    """It is not measured again; what takes longer still is the last that is tried."""
    teacher, chosen = timed(lambda images, number: 0.25)
    assert (teacher.seen, chosen) == ([1, 1, 2, 4, 8, 16, 32, 64], 64)
    teacher, chosen = timed(lambda images, number: 0.25 + 0.001 * (images > 3))
    assert (teacher.seen, chosen) == ([1, 1, 2, 4], 4)


def test_no_batch_is_tried_that_would_take_more_than_a_quarter_of_the_memory(timed):
    for free, limit in ((16 * IMAGE_BYTES, 4), (16 * IMAGE_BYTES - 4, 2), (0, 1)):
        teacher, chosen = timed(lambda images, number: 0.01, free)
        assert (max(teacher.seen), chosen) == (limit, limit)


def test_images_are_empty_ones_where_the_teacher_is(timed, caplog):
    caplog.set_level("INFO")
    teacher, _ = timed(lambda images, number: 3.0)
    assert {(image.shape, image.device.type) for image in teacher.images} == {((1, 3, 224, 448), "meta")}
    assert "timed: batch size 1 chosen (0.333 images/s on meta)" in caplog.text


@pytest.mark.parametrize(
    ("name", "kind"),
    [("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"), ("Tesla T4 (rev. 2)", "tesla-t4-rev-2"), ("(x)", "x")],
)
def test_gpus_of_a_model_are_of_one_kind(monkeypatch, name, kind):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert kind_of_device(torch.device("cuda:1")) == kind
    assert kind_of_device(torch.device("cpu")) == "cpu"


def test_free_memory_is_what_is_left_of_the_machine_s_or_of_what_is_granted(monkeypatch):
    rss = psutil.Process().memory_info().rss
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 40))
    monkeypatch.setattr(system, "MEMORY_LIMIT", 1 << 38)
    assert free_memory(torch.device("cpu")) == pytest.approx((1 << 38) - rss, abs=1 << 28)
    monkeypatch.setattr(system, "MEMORY_LIMIT", 1 << 42)
    assert free_memory(torch.device("cpu")) == 1 << 40
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 80))
    assert free_memory(torch.device("cuda")) == 5
