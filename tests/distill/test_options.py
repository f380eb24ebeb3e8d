"""What a distillation is asked for gets to where it counts: how the machine is used, and what is drawn."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calls import SeenEnough, calls_of
from scalr.distill import run, sampling
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.interruption import leave_signals_to_the_trainer
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.distill.sampling import EpochLoader
from scalr.evaluate import labelled_scans
from scalr.evaluate.labelled_scans import EvaluationScans
from scalr.worker_processes import worker_context

OVERRIDES = (
    *("student.width=8", "student.depth=3", "training.batch_size=2", "training.workers=3", "training.accumulate=2"),
    *("training.seed=11", "training.activation_checkpointing=true", "training.compile=true"),
    *("sampling.store_weights=[2, 1]", "sampling.voxel_point=first", "augmentation.max_scale_change=0.05"),
)


def test_distill_hands_on_what_it_is_asked_for(extract_tiny, tmp_path, monkeypatch):
    first, second = extract_tiny(out="a.zarr"), extract_tiny(out="b.zarr")
    devices, loaders, compiled = [], [], []

    @contextmanager
    def joined_processes(device):
        devices.append(device)
        yield torch.device("cpu")

    class Loader(EpochLoader):
        def __init__(self, parts, collate, **options) -> None:
            loaders.append((parts, collate, options))
            super().__init__(parts, collate, **options)

    monkeypatch.setattr(run, "joined_processes", joined_processes)
    monkeypatch.setattr(run, "EpochLoader", Loader)
    monkeypatch.setattr(run.Student, "compile_layers", lambda student: compiled.append(student))
    trained = calls_of(monkeypatch, run, "train", SeenEnough())
    recipe = load_recipe("scalr_wi256", OVERRIDES)
    config = DistillConfig(
        caches=(first.path, second.path), out=tmp_path / "run", recipe=recipe, device="x", checkpoint_minutes=2.5
    )
    with pytest.raises(SeenEnough):
        distill(config)
    assert devices == ["x"]
    (parts, collate, options), (arguments, of_training) = loaders[0], trained[0]
    assert options == {
        "batch_size": 2, "seed": 11, "workers": 3, "device": torch.device("cpu"), "part_weights": (2, 1),
        "accumulate": 2,
    }  # fmt: skip
    assert collate.inputs == recipe.inputs
    assert [each.seed for each in parts] == [11, 11 + 1_000_003]  # of a number, no two frames draw alike
    assert [each.number for each in parts] == [0, 1]
    for each in parts:
        assert (each.inputs, each.sampling, each.augmentation) == (recipe.inputs, recipe.sampling, recipe.augmentation)
    objective, _, training = arguments
    assert training == recipe.training
    assert objective.student.backbone.activation_checkpointing
    assert compiled == [objective.student]
    checkpoints = of_training["checkpoints"]
    assert (checkpoints.minutes, checkpoints.path) == (2.5, config.out / "checkpoint.pt")
    assert (of_training["resume"], of_training["steps_per_epoch"]) == (False, 3)
    machine = checkpoints.record.machine
    assert {name: machine[name] for name in ("workers", "accumulate", "compile", "activation_checkpointing")} == {
        "workers": 3, "accumulate": 2, "compile": True, "activation_checkpointing": True
    }  # fmt: skip
    assert "workers" not in checkpoints.record.settings["recipe"]["training"]


def test_losses_of_stores_are_told_apart_by_name_or_number():
    def parts(*paths: str) -> list[str]:
        chosen = [SimpleNamespace(store=SimpleNamespace(path=Path(path))) for path in paths]
        config = DistillConfig(caches=("s",), out="o")
        return run._observer(config, chosen, [], None).parts

    assert parts("a/s.zarr") == []  # it is the loss
    assert parts("a/s.zarr", "a/t.zarr") == ["s.zarr", "t.zarr"]
    assert parts("a/s.zarr", "a/t.zarr", "b/s.zarr") == ["0_s.zarr", "t.zarr", "2_s.zarr"]


def test_a_probe_is_due_every_so_many_epochs():
    config = DistillConfig(caches=("s",), out="o", quick_probe=lambda student: 0.5, eval_every=3)
    observer = run._observer(config, [], [], None)
    assert [epoch for epoch in range(7) if observer.evaluate(epoch)] == [2, 5]
    assert (observer.evaluate(2), observer.columns) == ({"probe_miou": 0.5}, ("probe_miou",))
    assert run._observer(DistillConfig(caches=("s",), out="o"), [], [], None).columns == ()


@pytest.mark.parametrize(("workers", "device"), [(0, "cpu"), (3, "cpu"), (0, "cuda"), (3, "cuda")])
def test_a_loader_uses_the_machine_as_it_is_told(monkeypatch, workers, device):
    """Pinned memory is copied to a GPU while it computes; without one it is a copy for nothing."""
    made = calls_of(monkeypatch, sampling, "DataLoader")
    parts = [list(range(8))]
    EpochLoader(parts, list, batch_size=2, seed=0, workers=workers, device=torch.device(device))
    ((dataset,), options) = made[0]
    assert len(options["batch_sampler"].part_sizes) == 1
    assert (options["num_workers"], options["persistent_workers"]) == (workers, workers > 0)
    assert options["multiprocessing_context"] is (worker_context() if workers else None)
    assert options["pin_memory"] is (device == "cuda")
    assert options["worker_init_fn"] is sampling.leave_signals_to_the_trainer
    assert dataset is not None


class NotesWhatIsHeldBack:
    """In place of a DataLoader, which starts its workers when it is asked for the first batch."""

    def __init__(self, *_: object, **options: object) -> None:
        self.options = options

    def __iter__(self):
        held_back = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return Items([held_back] if self.options["worker_init_fn"] is leave_signals_to_the_trainer else [])


class Items:
    """In place of a DataLoader's iterator."""

    def __init__(self, items: list) -> None:
        self.items = iter(items)

    def __iter__(self):
        return self.items

    def __next__(self):
        return next(self.items)

    def _shutdown_workers(self) -> None:
        pass


def test_signals_are_held_back_while_workers_start_and_no_longer(monkeypatch):
    for module in (sampling, labelled_scans):
        monkeypatch.setattr(module, "DataLoader", NotesWhatIsHeldBack)
    calls_of(monkeypatch, labelled_scans, "intensity_of")
    loader = EpochLoader([range(2)], list, batch_size=2, seed=0, workers=1, device=torch.device("cpu"))
    scans = EvaluationScans(SimpleNamespace(), WaffleIronInputs())
    for read in (loader(0), scans.read([0], workers=1)):
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} <= next(read)
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
