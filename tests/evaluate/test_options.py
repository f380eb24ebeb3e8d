"""What a command is asked for gets to where it counts: which frames are opened, and how the machine is used."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from calls import SeenEnough, calls_of
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.student import Student
from scalr.evaluate import (
    corrupt,
    finetune,
    predict,
    probe,
    robustness,
    score,
    similarity,
    supervision,
    teacher,
    transfer,
)
from scalr.evaluate.model import Model
from scalr.evaluate.scores import Scores
from scalr.extract.datasets.corruptions import CORRUPTIONS, SEVERITIES
from scalr.extract.intensity import IntensityStatistics
from scalr.worker_processes import worker_context

CLASSES = ("a", "b")
FRAME = SimpleNamespace(token="1", scene="s", labels="1.label", error=None)
SCORES = Scores(CLASSES, ("s",), np.ones((1, 2, 2), dtype=np.int64), num_frames=1, frames_sha256="0")


@pytest.fixture
def seen(monkeypatch) -> Callable:
    """Call with a module, the name of a function of it and its result (or an error), for a list of its calls."""
    return partial(calls_of, monkeypatch)


@pytest.fixture
def devices(monkeypatch) -> list[str]:
    """What verbs ask for; all get the CPU."""
    asked = []

    def resolved(device):
        asked.append(device)
        return torch.device("cpu")

    @contextmanager
    def joined(device):
        yield resolved(device)

    for module in (score, transfer, robustness, supervision):
        monkeypatch.setattr(module, "joined_processes", joined)
    for module in (teacher, similarity, predict):
        monkeypatch.setattr(module, "resolve_device", resolved)
    return asked


def a_dataset(name: str = "nuscenes") -> SimpleNamespace:
    return SimpleNamespace(
        name=name, split="val", root=Path("r"), class_names=CLASSES, frames=[FRAME],
        read_labels=lambda frame: np.zeros(3, np.uint8), intensity=IntensityStatistics(0.0, 1.0),
    )  # fmt: skip


def a_student(head: str = "probe") -> Student:
    return Student(WaffleIronConfig(width=8, depth=3, head=head, out_channels=2))


def a_model() -> Model:
    return Model(a_student().eval(), CLASSES, {"file": "m", "sha256": "0"})


def test_score_hands_on_what_it_is_asked_for(seen, devices, tmp_path):
    seen(score, "load_model", a_model())
    opened = seen(score, "open_dataset", a_dataset())
    chosen = seen(score, "with_classes", a_dataset())
    writers = seen(score, "writer_for", "a writer")
    scored = seen(score, "score", SeenEnough())
    config = score.ScoreConfig(
        model="m", root="r", out=tmp_path, dataset="d", split="s", classes="c", predictions=True, workers=3, device="x"
    )
    with pytest.raises(SeenEnough):
        score.score_model(config)
    assert devices == ["x"]
    assert opened == [(("d", Path("r"), "s"), {"need": "labels"})]
    assert chosen[0][0][1] == "c"
    assert writers[0][0][1] == tmp_path / "submission"
    assert scored[0][1] == {"labelled": True, "keep": "a writer", "workers": 3}


def test_predict_hands_on_what_it_is_asked_for(seen, devices, tmp_path):
    np.zeros((200, 4), np.float32).tofile(tmp_path / "a.bin")
    seen(predict, "load_model", a_model())
    seen(predict, "file_identity", {"file": "m", "sha256": "0"})
    read = seen(predict, "in_order", SeenEnough())
    config = predict.PredictConfig(
        model="m", scans=(tmp_path / "a.bin",), out=tmp_path / "p", dataset="semantic_kitti", columns=8,
        intensity_range=(0, 2), intensity=(0.1, 0.2), non_finite="unlabelled", workers=3, device="x",
    )  # fmt: skip
    with pytest.raises(SeenEnough):
        predict.predict(config)
    assert devices == ["x"]
    prepared, numbers, workers = read[0][0]
    assert (numbers, workers, prepared.intensity) == ([0], 3, IntensityStatistics(0.1, 0.2))
    reading = prepared.scans.reading
    assert (reading.dataset, reading.columns, reading.intensity_range) == ("semantic_kitti", 8, (0, 2))
    assert reading.non_finite == "unlabelled"


@pytest.mark.parametrize(("target", "classes", "reach"), [("semantic_kitti", 10, 50), ("semantic_poss", 6, None)])
def test_transfer_hands_on_what_it_is_asked_for(seen, devices, tmp_path, target, classes, reach):
    model = a_model()
    seen(transfer, "load_model", Model(model.student, None, {}))
    seen(transfer, "require_classes")
    opened = seen(transfer, "open_dataset", a_dataset())
    chosen = seen(transfer, "with_classes", a_dataset())
    scored = seen(transfer, "score", SeenEnough())
    config = transfer.TransferConfig(
        model="m", root="r", out=tmp_path, dataset=target, split="s", workers=3, device="x"
    )  # fmt: skip
    with pytest.raises(SeenEnough):
        transfer.transfer(config)
    assert devices == ["x"]
    assert opened == [((target, Path("r"), "s"), {"need": "labels"})]
    assert chosen[0][0][1] == f"{target}_{classes}"
    assert scored[0][1] == {"max_range_m": reach, "workers": 3}


def test_robustness_hands_on_what_it_is_asked_for(seen, devices, tmp_path):
    for copy in (f"{corruption}/{severity}" for corruption in CORRUPTIONS for severity in SEVERITIES):
        (tmp_path / "copies" / copy).mkdir(parents=True)
    seen(robustness, "load_model", a_model())
    seen(robustness, "labelled_frames", {})
    opened = seen(robustness, "open_dataset", a_dataset())
    scored = seen(robustness, "score", SCORES)
    written = seen(robustness, "write_result")
    config = robustness.RobustnessConfig(
        model=Path("m"), root=tmp_path / "copies", clean_root="clean", out=tmp_path / "out",
        dataset="semantic_kitti_c", workers=3, device="x",
    )  # fmt: skip
    robustness.robustness(config)
    assert devices == ["x"]
    assert opened[0] == (("semantic_kitti", Path("clean"), "val"), {"need": "labels"})
    assert opened[1] == (("semantic_kitti_c", tmp_path / "copies", "fog/light"), {"need": "labels"})
    assert len(opened) == len(scored) == 25
    assert all(options == {"workers": 3} for _, options in scored)
    assert written[0][0][0].record["machine"]["workers"] == 3


CHOSEN = {
    "dataset": "d", "train_split": "t", "val_split": "v", "classes": "c", "schedule": "scalr_plus",
    "augmentation": "joint", "epochs": 7, "warmup_epochs": 1.5, "batch_size": 5, "learning_rate": 0.5,
    "checkpoint_minutes": 2.5, "workers": 3, "seed": 11, "device": "x",
}  # fmt: skip


@pytest.fixture
def learnt(seen, devices, tmp_path):
    """Call with a command's module and config for what the training gets, and checkpoints, datasets and scoring."""

    def call(module: ModuleType, config: type, **options) -> SimpleNamespace:
        seen(supervision, "load_student", a_student("linear"))
        opened = seen(supervision, "open_dataset", a_dataset())
        chosen = seen(supervision, "with_classes", a_dataset())
        seen(supervision, "labelled_frames", {})
        seen(supervision, "file_identity", {})
        seen(supervision, "student_provenance", {})
        fitted = seen(module, "train_on_scans", [])
        scored = seen(supervision, "score", SeenEnough())
        with pytest.raises(SeenEnough):
            supervision.learn(config(student="s", root="r", out=tmp_path, **CHOSEN, **options))
        assert devices == ["x"]
        assert opened == [(("d", Path("r"), split), {"need": "labels"}) for split in ("t", "v")]
        assert [arguments[1] for arguments, _ in chosen] == ["c", "c"]
        assert scored[0][1] == {"workers": 3}
        (objective, scans, training, _, checkpoints, *rest), _ = fitted[0]
        assert (checkpoints.minutes, checkpoints.path) == (2.5, tmp_path / "checkpoint.pt")
        assert checkpoints.path == tmp_path / "checkpoint.pt"
        assert checkpoints.record.machine["workers"] == 3
        assert (scans.augmentation, scans.schedule, scans.seed) == ("joint", "scalr_plus", 11)
        assert scans.inputs == objective.model.input_config
        return SimpleNamespace(objective=objective, training=training, checkpoints=checkpoints, rest=rest)

    return call


OF_TRAINING = ("epochs", "warmup_epochs", "batch_size", "learning_rate", "workers", "seed")


def test_probe_hands_on_what_it_is_asked_for(learnt):
    found = learnt(probe, probe.ProbeConfig)
    assert {name: getattr(found.training, name) for name in OF_TRAINING} == {name: CHOSEN[name] for name in OF_TRAINING}
    assert found.training.min_learning_rate == 0  # of ScaLR+
    assert found.objective.frozen


def test_finetune_hands_on_what_it_is_asked_for(learnt):
    found = learnt(
        finetune, finetune.FinetuneConfig, layer_decay=0.5, precision="bfloat16", activation_checkpointing=True
    )
    assert {name: getattr(found.training, name) for name in OF_TRAINING} == {name: CHOSEN[name] for name in OF_TRAINING}
    assert found.training.precision == "bfloat16"
    assert not found.objective.frozen
    assert found.objective.model.backbone.activation_checkpointing
    assert found.objective.model.config.stochastic_depth == 0.2
    assert found.checkpoints.record.machine["activation_checkpointing"] is True
    (scale,) = found.rest
    assert scale("model.backbone.embed.norm.weight") == 0.5**4


def test_fast_probing_hands_on_workers_and_seed(seen, monkeypatch, tmp_path):
    config = probe.ProbeConfig(student="s", root="r", out=tmp_path, fast=True)
    trained = seen(probe, "train_on_features", [])
    arguments = (a_student(), a_dataset(), "a training", torch.device("cpu"))
    config.fit(*arguments, checkpoints=None)
    assert trained == [((*arguments, tmp_path), {})]
    monkeypatch.undo()
    computed = seen(probe, "frozen_features", (torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)))
    fitted = seen(probe, "train", SimpleNamespace(losses=[]))
    training = supervision.training_config(config.published_schedule, workers=3, seed=11)
    probe.train_on_features(a_student(), a_dataset(), training, torch.device("cpu"), tmp_path)
    assert computed[0][0][3] == 3
    (_, batches, given), options = fitted[0]
    assert (batches.seed, given) == (11, training)
    assert (options["steps_per_epoch"], options["observer"].folder) == (1, tmp_path)


def test_the_quick_probe_takes_so_many_frames_and_steps(seen):
    dataset = a_dataset()
    dataset.frames = [SimpleNamespace(token=str(number), labels="l") for number in range(10)]
    opened = seen(probe, "open_dataset", dataset)
    quick = probe.QuickProbe("nuscenes", Path("r"), 4)
    assert opened == [(("nuscenes", Path("r"), split), {"need": "labels"}) for split in ("train", "val")]
    assert [frame.token for frame in quick.training_set.frames] == ["0", "2", "5", "7"]
    training = quick.training
    assert (training.epochs, training.learning_rate, training.min_learning_rate) == (10, 0.1, 1e-5)
    assert (training.weight_decay, training.warmup_epochs, training.schedule) == (3e-3, 1, "cosine")
    dataset.frames = dataset.frames * 30
    assert len(probe.QuickProbe("nuscenes", Path("r")).training_set.frames) == 100


def test_teacher_hands_on_what_it_is_asked_for(seen, devices, tmp_path, monkeypatch):
    stores = {"a": SimpleNamespace(require_same_targets=lambda *_: None), "b": SimpleNamespace()}
    monkeypatch.setattr(teacher, "open_store", lambda path: stores[str(path)])
    opened = seen(teacher, "open_dataset", a_dataset())
    targets = []
    seen(teacher, "require_labelled")
    monkeypatch.setattr(teacher, "LabelledTargets", lambda *arguments: _Targets(arguments, targets))
    fitted = seen(teacher, "fit_head", SeenEnough())
    standardised = seen(teacher.Standardisation, "of", "a standardisation")
    config = teacher.TeacherProbeConfig(
        cache="a", val_cache="b", teacher="t", root="r", out=tmp_path, dataset="d", train_split="s", val_split="v",
        epochs=7, batch_size=5, learning_rate=0.5, workers=3, seed=11, device="x", standardise="centre",
    )  # fmt: skip
    with pytest.raises(SeenEnough):
        teacher.probe_teacher(config)
    assert devices == ["x"]
    assert opened == [(("d", Path("r"), split), {"need": "labels"}) for split in ("s", "v")]
    assert [(store, name, seed) for store, name, _, seed in targets] == [(stores[n], "t", 11) for n in "ab"]
    assert standardised == [(("centre", {"t": "statistics of the split s"}, (1.0,), "--standardise"), {})]
    training, folder = fitted[0][0][1], fitted[0][0][3]
    assert (training.epochs, training.batch_size, training.learning_rate) == (7, 5, 0.5)
    assert (training.workers, training.seed, folder) == (3, 11, tmp_path)


class _Targets:
    def __init__(self, arguments: tuple, noted: list) -> None:
        noted.append(arguments)
        self.dataset, self.statistics = arguments[2], "statistics of the split s" if len(noted) == 1 else "others"

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(("class_name", "need"), [(None, "points"), ("car", "labels")])
def test_similarity_hands_on_what_it_is_asked_for(seen, devices, tmp_path, class_name, need):
    student = a_student("linear")
    seen(similarity, "load_student", student)
    opened = seen(similarity, "open_dataset", a_dataset())
    chosen = seen(similarity, "chosen_frame", FRAME)
    computed = seen(similarity, "scan_features", "a scan")
    store = SimpleNamespace(require_targets_of_pairs=lambda name: None)
    stores = seen(similarity, "open_store", store)
    stored = seen(similarity, "stored_features")
    asked = seen(similarity, "chosen_query", (similarity.Query("point 7", 7, 7), "a vector"))
    areas = seen(similarity, "areas_under_curve", SeenEnough())
    config = similarity.SimilarityConfig(
        student="s", root="r", out=tmp_path, dataset="d", split="s", frame="f", class_name=class_name, cache="c",
        teacher="t", device="x", area_frames=5,
    )  # fmt: skip
    with pytest.raises(SeenEnough):
        similarity.similarity_maps(config)
    assert devices == ["x"]
    assert opened == [(("d", Path("r"), "s"), {"need": need})]
    assert chosen[0][0][1] == "f"
    assert computed[0][0][3] == "d"
    assert computed[0][1] == {"labelled": class_name is not None}
    assert stores == [((Path("c"),), {})]
    assert stored[0][0][:2] == (store, "t")
    assert areas[0][0][2] == "d"
    assert areas[0][1] == {"num_frames": 5, "store": store, "teacher": "t"}
    assert asked[0][0][2:] == (None, class_name)


def test_corrupt_starts_its_processes_anew_and_leaves_ctrl_c_to_the_first(seen, tmp_path):
    opened = seen(corrupt, "open_dataset", SeenEnough())
    config = corrupt.CorruptConfig(root="r", out=tmp_path, dataset="semantic_kitti", split="s", workers=3)
    with pytest.raises(SeenEnough):
        corrupt.corrupt(config)
    assert opened == [(("semantic_kitti", Path("r"), "s"), {"need": "labels"})]
    pools = seen(corrupt, "ProcessPoolExecutor", SeenEnough())
    with pytest.raises(SeenEnough):
        list(corrupt._results(config, []))
    ((count,), options) = pools[0]
    assert count == 3
    assert options["mp_context"] is worker_context()  # a fork of a process with threads may hang
    assert (options["initializer"], options["initargs"]) == (signal.signal, (signal.SIGINT, signal.SIG_IGN))
