"""Targets from which nothing can be learnt stop a training, and no others do."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalr.distill.dataset import SampleId
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.distill.varying_targets import SAMPLES, VaryingTargets
from scalr.errors import StoreError
from scalr.extract.targets import EncodedTargets

SMALL = ("student.width=8", "student.depth=3", "training.batch_size=2", "training.warmup_steps=1", "training.epochs=5")


def distill_small(store, out, *overrides: str):
    recipe = load_recipe("scalr_wi256", [*SMALL, *overrides])
    return distill(DistillConfig(caches=(store.path,), out=out, recipe=recipe, device="cpu"))


def batch_of(*targets: torch.Tensor, samples: int = 2):
    ids = tuple(SampleId(0, (number,)) for number in range(samples))
    return SimpleNamespace(targets=tuple(map(EncodedTargets, targets)), samples=ids, segments=None)


def batch_of_superpixels(count: int):
    """One sample, whose superpixels' means are drawn anew each time."""
    return SimpleNamespace(targets=(), samples=(SampleId(0, (0,)),), segments=Superpixels(torch.randn(count, 3)))


class Superpixels(NamedTuple):
    mean: torch.Tensor

    def __len__(self) -> int:
        return len(self.mean)


def watched(batches, teachers=("a",)):
    return list(VaryingTargets(lambda epoch, first: batches, teachers, lambda sample: f"view {sample.rows[0]}")(0))


@pytest.mark.parametrize("encoding", [{}, {"dtype": "int8"}, {"encoding": "patch"}])
def test_a_teacher_that_says_the_same_of_everything_is_not_learnt_from(extract_tiny, tmp_path, monkeypatch, encoding):
    teacher = extract_tiny.teachers["coordinates"]
    constant = torch.tensor([0.3, -1.0, 2.0]).expand(1, 6, 8, 3)
    monkeypatch.setattr(teacher, "patch_maps", lambda images: constant.expand(len(images), -1, -1, -1))
    store = extract_tiny(frames_per_block=1, **encoding)
    place = r"s\.zarr block \d frame frame\d (LEFT|RIGHT) \(view \d\): 8 samples.* same target of coordinates"
    with pytest.raises(StoreError, match=place):
        distill_small(store, tmp_path / "run")
    assert not (tmp_path / "run/student.safetensors").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_frame_whose_targets_are_all_zero_is_named(extract_tiny, tmp_path, monkeypatch, workers):
    teacher, frames = extract_tiny.teachers["coordinates"], itertools.count()
    maps = teacher.patch_maps
    # The sample comes first: frames 0, 2 and 1, then the blocks.
    monkeypatch.setattr(teacher, "patch_maps", lambda images: maps(images) * (0 if next(frames) == 4 else 1))
    store = extract_tiny(frames_per_block=1, batch_size=2)
    message = (
        r"block 1 frame frame1: (LEFT|RIGHT) \(view [23]\): all targets of coordinates are zero\. Run 'scalr verify"
    )
    with pytest.raises(StoreError, match=message):
        distill_small(store, tmp_path / "run", f"training.workers={workers}")
    assert not (tmp_path / "run/student.safetensors").exists()


def test_vectors_of_zeros_among_others_are_no_reason_to_stop():
    """Nor is a view of one thing alone, such as a wall, in front of the camera."""
    zeros, ones = torch.zeros(5, 3), torch.ones(5, 3)
    varied = torch.eye(3)
    assert not EncodedTargets(torch.cat([zeros, ones])).all_zero
    assert not EncodedTargets(zeros[:0]).all_zero
    assert EncodedTargets(zeros).all_zero
    batches = [batch_of(ones), batch_of(ones), batch_of(ones), batch_of(torch.cat([ones, varied[:1]]))]
    batches += [batch_of(ones)] * 20
    assert watched(batches) == batches
    with pytest.raises(StoreError):
        watched([batch_of(ones)] * 4)
    watched([batch_of(ones)] * 3)  # 6 samples are not enough to tell


def test_a_superpixel_that_is_alone_in_each_batch_teaches_nothing():
    """Its loss is zero, whatever the student says."""
    alone, two = batch_of_superpixels(1), batch_of_superpixels(2)
    with pytest.raises(StoreError, match=r"^view 0: 8 samples, .* have one superpixel"):
        watched([batch_of_superpixels(1) for _ in range(8)])
    watched([alone] * 7 + [two] + [alone] * 20)


def test_each_teacher_has_to_vary():
    varied, ones = torch.eye(4), torch.ones(4, 4)
    watched([batch_of(varied, varied)] * 9, ("a", "b"))
    with pytest.raises(StoreError, match=r"^view 0: 8 samples, of which this is the first, have the same target of b"):
        watched([batch_of(varied, ones)] * 9, ("a", "b"))


def test_once_they_vary_nobody_looks_again(monkeypatch):
    looked = []
    decode = EncodedTargets.decode
    monkeypatch.setattr(EncodedTargets, "decode", lambda self: looked.append(1) or decode(self))
    batches = [batch_of(torch.eye(3))] * 9
    assert watched(batches) == batches
    assert len(looked) == 2  # the first target, and those of the first batch


@settings(max_examples=40, derandomize=True, deadline=None)
@given(pairs=st.integers(1, 2000), odd=st.integers(0, 10**6), size=st.floats(0.1, 1), seed=st.integers(0, 9))
def test_a_single_other_target_among_thousands_is_seen(pairs, odd, size, seed):
    """Lengths do not count, and neither does rounding."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
    lengths = torch.rand(pairs, 1, generator=generator) + 0.5
    same = (direction * lengths).half()
    with pytest.raises(StoreError):
        watched([batch_of(direction.expand(pairs, 8).half())] * (SAMPLES // 2))
    other = same.float()
    other[odd % pairs] = torch.roll(direction, 1) * size + direction * (1 - size)
    last = batch_of(other)
    assert watched([batch_of(direction.expand(pairs, 8))] * (SAMPLES // 2 - 1) + [last])[-1] is last
