"""Probing and finetuning by `--schedule slidr` beside plain loops, written a second time from what valeoai/SLidR's
downstream code and configurations do.
"""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scalr.distill.backbones.backbone import ScanInputs
from scalr.distill.backbones.minkunet.inputs import MinkUNetInputs
from scalr.distill.backbones.minkunet.network import MinkUNetConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.backbones.waffleiron.network import WaffleIronConfig
from scalr.distill.checkpoint import load_student, save_student
from scalr.distill.interruption import Checkpoints
from scalr.distill.run_record import RunRecord
from scalr.distill.sampling import EpochLoader
from scalr.distill.student import Student
from scalr.evaluate import supervision
from scalr.evaluate.comparison import compare
from scalr.evaluate.finetune import FinetuneConfig
from scalr.evaluate.labelled_scans import AugmentedScans, LabelledCollate, draw_motions
from scalr.evaluate.metrics import MEAN_WITH
from scalr.evaluate.probe import ProbeConfig, probe
from scalr.evaluate.result import read_result
from scalr.evaluate.score import ScoreConfig, score_model
from scalr.evaluate.scores import Scores
from scalr.evaluate.scoring import score
from scalr.evaluate.supervision import SupervisionConfig
from scalr.extract.datasets.labels import IGNORE_LABEL
from tiny import TinyDataset

CPU = torch.device("cpu")
EPOCHS, BATCH_SIZE, FRAMES = 3, 2, 5  # two steps an epoch: the fifth frame is left over


def small(backbone: str) -> Student:
    torch.manual_seed(0)
    if backbone == "minkunet":
        widths, blocks = (4, 4, 6, 6, 6, 6, 4, 4), (1,) * 8
        return Student(MinkUNetConfig(stem_width=4, widths=widths, blocks=blocks, out_channels=3))
    return Student(WaffleIronConfig(width=8, depth=2, out_channels=3, stochastic_depth=0.5))


@pytest.fixture(scope="module")
def student_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    files = {name: folder / f"{name}.safetensors" for name in ("waffleiron", "minkunet")}
    for name, path in files.items():
        save_student(small(name), path, {})
    return files


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> TinyDataset:
    dataset = TinyDataset(tmp_path_factory.mktemp("tiny"), FRAMES, 200)
    labels = dataset.read_labels
    dataset.read_labels = lambda frame: np.where(np.arange(200) % 5, labels(frame), IGNORE_LABEL).astype(np.uint8)
    return dataset


def fitted(config: SupervisionConfig, dataset: TinyDataset, folder: Path) -> tuple[Student, Student, list, list[float]]:
    """The model before and after the training, the batches of all steps, and the losses."""
    model = config.new_model(load_student(config.student), 2)
    before = copy.deepcopy(model)
    schedule, _ = config.chosen_schedule()
    training = supervision.training_config(schedule, workers=0, seed=config.seed)
    scans = config.training_scans(dataset, model.input_config)
    collate = LabelledCollate(model.input_config)
    with EpochLoader([scans], collate, batch_size=BATCH_SIZE, seed=config.seed, workers=0, device=CPU) as loader:
        batches = [list(loader(epoch)) for epoch in range(EPOCHS)]
    checkpoints = Checkpoints(folder / "checkpoint.pt", 10.0, RunRecord({"kind": config.kind}, {}))
    return before, model, batches, config.fit(model, dataset, training, CPU, checkpoints)


def sgd(groups: Iterable[dict]) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.CosineAnnealingLR]:
    optimiser = torch.optim.SGD(list(groups), lr=0.05, momentum=0.9, dampening=0.1, weight_decay=1e-4)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy + Lovász of the classes that are there, of voxels that have a label."""
    counted = labels != IGNORE_LABEL
    shares, truths = logits[counted].softmax(dim=1), labels[counted]
    of_classes = []
    for number in truths.unique().tolist():
        truth = (truths == number).float()
        errors, order = (truth - shares[:, number]).abs().sort(descending=True)
        truth = truth[order]
        jaccard = 1 - (truth.sum() - truth.cumsum(0)) / (truth.sum() + (1 - truth).cumsum(0))
        of_classes.append((errors * torch.diff(jaccard, prepend=torch.zeros(1))).sum())
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL) + torch.stack(of_classes).mean()


def plain_loop(batches: list, logits_of: Callable, groups: Iterable[dict]) -> list[float]:
    """A rate for each epoch, torch's own optimiser; the losses."""
    optimiser, scheduler = sgd(groups)
    losses = []
    for of_epoch in batches:
        for batch in of_epoch:
            loss = loss_of(logits_of(batch.inputs), batch.labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        scheduler.step()
    return losses


def config_of(kind: type, student: Path, folder: Path, **options) -> SupervisionConfig:
    common = {"schedule": "slidr", "epochs": EPOCHS, "batch_size": BATCH_SIZE}
    return kind(student=student, root=folder, out=folder / "run", **common, **options)


@pytest.mark.parametrize("backbone", ["waffleiron", "minkunet"])
def test_probing_equals_a_plain_loop(student_files, frames, tmp_path, backbone):
    """Of a linear layer on what the network says in eval mode."""
    config = config_of(ProbeConfig, student_files[backbone], tmp_path)
    before, after, batches, losses = fitted(config, frames, tmp_path)
    network, head = before.backbone.eval(), torch.nn.Linear(before.width, 2)
    head.load_state_dict(before.classif.state_dict())
    with torch.no_grad():
        features = {id(batch): network(batch.inputs) for of_epoch in batches for batch in of_epoch}
    by_inputs = {id(batch.inputs): features[id(batch)] for of_epoch in batches for batch in of_epoch}
    expected = plain_loop(batches, lambda inputs: head(by_inputs[id(inputs)]), [{"params": head.parameters()}])
    assert len(losses) == EPOCHS * (FRAMES // BATCH_SIZE)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    torch.testing.assert_close(after.classif.weight, head.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after.classif.bias, head.bias, rtol=1e-4, atol=1e-6)
    kept = after.backbone.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("backbone", ["waffleiron", "minkunet"])
@pytest.mark.parametrize(("scratch", "rates"), [(False, (0.02, 2.0)), (True, (0.05, 0.05))])
def test_finetuning_equals_a_plain_loop(student_files, frames, tmp_path, backbone, scratch, rates):
    """Of a group for the backbone and one for the head, in train mode."""
    config = config_of(FinetuneConfig, student_files[backbone], tmp_path, from_scratch=scratch)
    before, after, batches, losses = fitted(config, frames, tmp_path)
    network, head = before.backbone.train(), before.classif
    assert (type(head), getattr(before.config, "stochastic_depth", 0)) == (torch.nn.Linear, 0)
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip((network, head), rates, strict=True)]
    expected = plain_loop(batches, lambda inputs: head(network(inputs)), groups)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    found = after.state_dict()
    for name, value in before.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_batch_norms_of_minkunet_learn_as_slidr_s_do(student_files, tmp_path):
    """What the configuration sets does not reach norm1 and norm2 of residual blocks, in SLidR's code."""
    momenta = {}
    for kind in (ProbeConfig, FinetuneConfig):
        model = config_of(kind, student_files["minkunet"], tmp_path).new_model(small("minkunet"), 2)
        norms = {name: each for name, each in model.backbone.named_modules() if hasattr(each, "momentum")}
        inside = {name: re.search(r"blocks\.\d+\.norm[12]$", name) is not None for name in norms}
        for where in (True, False):
            momenta[kind, where] = {each.momentum for name, each in norms.items() if inside[name] is where}
    assert momenta[FinetuneConfig, True] == {0.1}
    assert momenta[FinetuneConfig, False] == {0.02}
    assert momenta[ProbeConfig, False] == {0.05}  # as it was: in eval mode it makes no difference


def test_the_head_is_drawn_by_the_seed(student_files, tmp_path):
    """As MinkowskiEngine draws a kernel of size 1: uniform to one over the root of the channels, the bias too."""
    config = config_of(ProbeConfig, student_files["waffleiron"], tmp_path)
    torch.manual_seed(7)
    first = config.new_model(small("waffleiron"), 500).classif
    torch.manual_seed(8)
    second = config.new_model(small("waffleiron"), 500).classif
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(replace(config, seed=1).new_model(small("waffleiron"), 500).classif.weight, first.weight)
    bound = 1 / math.sqrt(8)
    for values in (first.weight, first.bias):
        assert len(values) == 500  # an output for each class
        assert values.abs().max().item() == pytest.approx(bound, rel=0.05)
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_scans_are_turned_and_flipped_but_not_scaled():
    rng = np.random.default_rng(0)
    pairs = [draw_motions(rng, "official", "slidr") for _ in range(2000)]
    assert all(motion == of_features for motion, of_features in pairs)
    assert {motion.scale for motion, _ in pairs} == {1.0}
    angles, _ = np.histogram([motion.angle_rad for motion, _ in pairs], bins=4, range=(-np.pi, np.pi))
    assert angles.sum() == 2000
    assert angles.min() > 400
    flips = [motion.flipped_axes for motion, _ in pairs]
    assert all(abs(flips.count(axes) / 2000 - 1 / 4) < 0.04 for axes in ((), (0,), (1,), (0, 1)))
    assert draw_motions(np.random.default_rng(1), "joint", "slidr") == draw_motions(np.random.default_rng(1), "joint")


def cylindrical(points: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Voxels of 0.1 m, one degree and 0.1 m, in float32 as SLidR's code has them."""
    x, y, z = points[:, :3].astype(np.float32).T
    rho, phi = np.sqrt(x**2 + y**2), np.arctan2(y, x) * np.float32(180 / np.pi)
    return zip(
        *(np.floor(values).astype(int) for values in (rho / np.float32(0.1), phi, z / np.float32(0.1))), strict=True
    )


def cubes(points: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Of 0.1 m, from the least coordinates of the scan on."""
    xyz = points[:, :3]
    return map(tuple, ((xyz - xyz.min(axis=0)) / np.float32(0.1)).astype(int).tolist())


class Crowded(TinyDataset):
    """A scan of many points to a voxel."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, 1, 3000)
        rng = np.random.default_rng(2)
        self._points = {
            token: (points * [0.02, 0.02, 0.02, 1]).astype(np.float32) for token, points in self._points.items()
        }
        self.labels = rng.integers(0, 2, 3000).astype(np.uint8)
        self.labels[::7] = IGNORE_LABEL

    def read_labels(self, frame) -> np.ndarray:
        return self.labels


@pytest.mark.parametrize(
    ("inputs", "voxels_of"),
    [(MinkUNetInputs(), cylindrical), (WaffleIronInputs(), cubes)],
    ids=["minkunet", "waffleiron"],
)
def test_a_voxel_has_the_label_of_its_first_point(tmp_path, inputs: ScanInputs, voxels_of: Callable):
    """Also where that is an ignored one. MinkUNet's voxels are those of the moved scan, WaffleIron's of the raw one."""
    dataset = Crowded(tmp_path)
    (frame,) = dataset.frames
    points = dataset.read_points(frame).copy()
    moved, _ = draw_motions(np.random.default_rng([3, 1, 0]), "official", "slidr")
    in_voxels = np.column_stack([moved.move(points[:, :3]), points[:, 3]]) if voxels_of is cylindrical else points
    first: dict[tuple[int, ...], int] = {}
    for row, voxel in enumerate(voxels_of(in_voxels)):
        first.setdefault(voxel, row)
    scan, labels = AugmentedScans(dataset, inputs, 3, "official", "slidr")[1, 0]
    assert len(first) < 0.8 * len(points)
    expected = dataset.labels[list(first.values())]
    if voxels_of is cylindrical:
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(scan.input.features[:, 0], points[list(first.values()), 3])
    else:  # voxels in their own order
        np.testing.assert_array_equal(labels, dataset.labels[[first[voxel] for voxel in sorted(first)]])


def test_points_are_scored_by_their_voxel(student_files, frames, tmp_path):
    """All of them, one after the other, each by what the head says of the features that `extract` gives it."""
    model = config_of(ProbeConfig, student_files["minkunet"], tmp_path).new_model(small("minkunet"), 2).eval()
    expected = np.zeros((2, 2), dtype=np.int64)
    for frame in frames.frames:
        points = frames.read_points(frame)
        guesses = model.classif(model.extract(points)).argmax(dim=1).tolist()
        of_voxel: dict[tuple[int, ...], int] = {}
        for voxel, guess, label in zip(cylindrical(points), guesses, frames.read_labels(frame), strict=True):
            assert of_voxel.setdefault(voxel, guess) == guess
            if label != IGNORE_LABEL:
                expected[label, guess] += 1
    np.testing.assert_array_equal(score(model, frames, CPU).confusion, expected)


@pytest.mark.parametrize(
    ("schedule", "absent_classes", "trees", "departs"),
    [
        ("slidr", "left-out", 0, True),
        ("slidr", "as-1", 0, False),
        ("scalr", "left-out", 0, False),
        ("slidr", "left-out", 2, False),
    ],
)
def test_a_mean_that_slidr_would_have_otherwise_departs(schedule, absent_classes, trees, departs):
    confusions = np.array([[[5, 0], [0, trees]]])
    scores = Scores(("car", "tree"), ("a",), confusions, 1, "0", mean_over=MEAN_WITH[absent_classes])
    said = ["absent classes left out of the mIoU (tree), not counted as 1"]
    assert supervision.absent_left_out(schedule, scores) == said * departs


def test_the_result_file_says_how_absent_classes_count(student_files, synthetic_world, tmp_path):
    """In a world of cars and roads alone, where others are soon not predicted any more."""
    world = Path(shutil.copytree(synthetic_world, tmp_path / "world"))
    for path in (world / "lidarseg").rglob("*.bin"):
        path.write_bytes(np.where(np.fromfile(path, np.uint8) == 24, np.uint8(24), np.uint8(17)).tobytes())
    config = ProbeConfig(
        student=student_files["minkunet"], root=world, out=tmp_path / "run", schedule="slidr", epochs=3,
        batch_size=2, learning_rate=0.5, absent_classes="as-1",
    )  # fmt: skip
    scores = probe(config).scores
    absent = np.isnan(scores.iou)
    assert absent.any()
    assert scores.miou == pytest.approx((np.nansum(scores.iou) + absent.sum()) / 16)
    written = read_result(config.out)
    assert written["protocol"]["mean_over"] == "all, absent as 1"
    assert written["figures"]["mIoU"] == scores.miou
    assert (written["setting"], written["protocol"]["schedule_of"]) == ("probe nuscenes by slidr", "slidr")
    assert {"epochs 3, not 100", "learning_rate 0.5, not 0.05", "batch_size 2, not 16"} <= set(written["departures"])
    text = (config.out / "result.md").read_text()
    assert "| mean_over | all, absent as 1 |" in text
    assert f"| mIoU, absent classes as 1 | {100 * scores.miou:.2f} % |" in text
    assert "absent classes left out" not in text
    report = compare([config.out])
    assert report.startswith("## probe nuscenes by slidr")
    others = re.findall(r"(?m)^\| (\S+) \(ScaLR's Table.*\), published for another setting \| (\S+) \|", report)
    assert ("SLidR", "38.80") in others
    assert not re.search(r"(?m)^\|.*WI-48", report)  # figures by ScaLR's protocol do not compare
    of_model = {"model": config.out / "model.safetensors", "root": world}
    again = score_model(ScoreConfig(**of_model, out=tmp_path / "as-1", absent_classes="as-1"))
    left_out = score_model(ScoreConfig(**of_model, out=tmp_path / "left-out"))
    assert (again.miou, left_out.miou) == (scores.miou, np.nanmean(scores.iou))
    means = [read_result(tmp_path / name)["protocol"]["mean_over"] for name in ("as-1", "left-out")]
    assert means == ["all, absent as 1", "present or predicted"]
    deviations = [" ".join(read_result(tmp_path / name)["departures_of_protocol"]) for name in ("as-1", "left-out")]
    assert ["absent classes left out" in text for text in deviations] == [False, True]
    headlines = [(tmp_path / name / "result.md").read_text().splitlines()[4] for name in ("as-1", "left-out")]
    assert [line.split(" | ")[0] for line in headlines] == ["| mIoU, absent classes as 1", "| mIoU"]
