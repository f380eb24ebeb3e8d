from __future__ import annotations

import multiprocessing
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from in_children import Numbered
from scalr.distill import sampling
from scalr.distill.sampling import Draw, EpochBatches, EpochLoader
from scalr.errors import StoreError, StudentError

CPU = torch.device("cpu")


def epoch_of(batches: EpochBatches, epoch: int, first_step: int = 0) -> list[list[Draw]]:
    batches.epoch, batches.first_step = epoch, first_step
    return list(batches)


def test_an_epoch_has_every_frame_once():
    batches = EpochBatches([10], batch_size=3, seed=0)
    epochs = [epoch_of(batches, epoch) for epoch in range(2)]
    for epoch, drawn in enumerate(epochs):
        frames = [draw.frame for batch in drawn for draw in batch]
        assert len(drawn) == batches.num_steps == 3
        assert len(frames) == len(set(frames)) == 9
        assert {draw[:2] for batch in drawn for draw in batch} == {(0, epoch)}
    assert [[d.frame for d in batch] for batch in epochs[0]] != [[d.frame for d in batch] for batch in epochs[1]]
    assert EpochBatches([2], batch_size=8, seed=0).num_steps == 1


def test_parts_and_epochs_are_shuffled_each_in_its_own_way():
    """Two stores of a size do not give the same frames, nor do two epochs mix the stores alike."""
    batches = EpochBatches([40, 40, 40], batch_size=4, seed=0, part_weights=[1, 1, 4])
    epochs = [[draw for batch in epoch_of(batches, epoch) for draw in batch] for epoch in range(2)]
    first, second = ({draw.frame for draw in epochs[0] if draw.part == part} for part in (0, 1))
    assert len(first) == len(second) == 20
    assert first != second
    assert [draw.part for draw in epochs[0]] != [draw.part for draw in epochs[1]]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    epochs=st.integers(1, 6),
)
def test_weights_are_shares_of_the_draws_and_no_frame_is_left_behind(sizes, weights, epochs):
    """Each part's draws follow its weight, and at any time its frames have been drawn as often, or once more."""
    weights = weights[: len(sizes)]
    batches = EpochBatches(sizes, 1, seed=0, part_weights=weights)
    draws = [draw for epoch in range(epochs) for (draw,) in epoch_of(batches, epoch)]
    assert len(draws) == epochs * sum(sizes)
    assert len(set(draws)) == len(draws)
    for part, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        of_part = [draw for draw in draws if draw.part == part]
        assert abs(len(of_part) / epochs - sum(sizes) * weight / sum(weights)) < 1
        times = Counter(dict.fromkeys(range(size), 0) | Counter(draw.frame for draw in of_part))
        assert max(times.values()) - min(times.values()) <= 1
        assert all(draw.visit < times[draw.frame] for draw in of_part)


@given(
    size=st.integers(1, 40), batch_size=st.integers(1, 12), processes=st.integers(1, 4), accumulate=st.integers(1, 3)
)
def test_processes_share_the_same_batches(size, batch_size, processes, accumulate):
    """However many they are, a step learns from the same frames, each of them once."""
    with pytest.MonkeyPatch.context() as patch:
        whole = list(EpochBatches([size], batch_size, seed=3).whole_batches())
        patch.setattr(sampling, "num_processes", lambda: processes)
        if min(size, batch_size) < processes * accumulate:
            with pytest.raises(StudentError, match="cannot be shared"):
                EpochBatches([size], batch_size, seed=3, accumulate=accumulate)
            return
        shared = [[] for _ in whole]
        for process in range(processes):
            patch.setattr(sampling, "process_index", lambda process=process: process)
            mine = EpochBatches([size], batch_size, seed=3, accumulate=accumulate)
            batches = list(mine)
            assert len(batches) == len(mine) == accumulate * len(whole)
            assert all(batches)
            for step in range(len(whole)):
                shared[step] += [draw for batch in batches[step * accumulate :][:accumulate] for draw in batch]
    assert shared == whole


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0, 2.0], [1.0, float("nan")]])
def test_weights_that_do_not_fit_are_said(weights):
    with pytest.raises(StudentError, match=r"store_weights: .* do not fit 2 stores"):
        EpochBatches([3, 3], 1, seed=0, part_weights=weights)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_can_be_entered_anywhere(workers):
    with EpochLoader([Numbered(7)], list, batch_size=2, seed=0, workers=workers, device=CPU) as loader:
        whole = list(loader(1))
        assert len(whole) == loader.num_steps == 3
        assert list(loader(1, first_step=2)) == whole[2:]
        assert list(loader(1)) == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_cannot_read_is_said_in_one_line(workers):
    with (
        EpochLoader([Numbered(8)], list, batch_size=2, seed=0, workers=workers, device=CPU) as loader,
        pytest.raises(StoreError, match=r"^frame 7: s.zarr: block 7 is gone. Extract it again$"),
    ):
        list(loader(0))
    assert not multiprocessing.active_children()
