"""Inputs and steps of probing and finetuning beside the official downstream code's, written a second time from its
configurations (configs/downstream, datasets/pc_dataset.py, utils/transforms.py and finetune.py of valeoai/ScaLR).
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.inputs import ScanInput, WaffleIronInputs
from scalr.distill.student import Student
from scalr.distill.training import train
from scalr.evaluate import labelled_scans
from scalr.evaluate.finetune import layer_scale
from scalr.evaluate.labelled_scans import AugmentedScans, EvaluationScans, LabelledCollate, draw_motions
from scalr.evaluate.model import with_class_head
from scalr.evaluate.schedules import Schedule
from scalr.evaluate.supervision import SupervisedObjective, training_config
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.intensity import IntensityStatistics, intensity_statistics

AXES, VOXEL_M, NEIGHBOURS, MAX_POINTS, CROP_EPS_M = ((0, 1), (0, 2), (1, 2)), 0.1, 16, 20_000, 1e-4
XYZ, INTENSITY, FEATURE_XYZ, RADIUS = [0, 1, 2], 3, [4, 5, 6], 7  # columns of a scan on its way to the network
NEAR, FAR = (64, ((256, 256), (256, 32), (256, 32))), (128, ((512, 512), (512, 32), (512, 32)))
PANDAR_GT = (96, ((384, 384), (384, 32), (384, 32)))
# dataset, whether it is finetuned on -> mean and deviation of its intensity, reach in x and y [m] and cells of planes
CONFIGURATIONS = {
    ("nuscenes", False): ((18.742355, 22.04632), *NEAR),
    ("nuscenes", True): ((18.742355, 22.04632), *NEAR),
    ("semantic_kitti", False): ((0.28613698, 0.14090556), *NEAR),
    ("semantic_kitti", True): ((0.28613698, 0.14090556), *NEAR),
    ("pandaset_64", False): ((18.23640649, 25.86983417), *FAR),
    ("pandaset_64", True): ((18.23640649, 25.86983417), *FAR),
    ("pandaset_gt", False): ((23.06113565, 16.76273235), *FAR),
    ("pandaset_gt", True): ((23.06113565, 16.76273235), *PANDAR_GT),
    ("semantic_poss", False): ((90.0, 60.0), *NEAR),  # measured: it has no official configuration
    ("semantic_poss", True): ((90.0, 60.0), *NEAR),
}


class Draws(NamedTuple):
    """All that is random about a training scan."""

    order: np.ndarray  # of the raw points; each voxel keeps the first of its own
    centre: int  # of the kept points, that around which a scan of too many is cut
    angle_rad: float
    feature_angle_rad: float
    flipped_axis: int | None
    scale: float


DRAWS = [(2.1, -0.4, 0, 1.07), (-0.9, 3.0, 1, 0.91), (1.3, 1.9, None, 1.02)]  # the last four of them


@pytest.fixture(scope="module")
def raw() -> tuple[np.ndarray, np.ndarray]:
    """A scan of more points than may stay, some of them out of every field of view, and its labels."""
    rng, count = np.random.default_rng(0), 30_000
    distance, bearing = rng.gamma(1.5, 30, count), rng.uniform(-np.pi, np.pi, count)
    xy = np.stack([distance * np.cos(bearing), distance * np.sin(bearing)], axis=1)
    height, intensity = rng.normal(0, 3, (count, 1)), rng.uniform(0, 255, (count, 1))
    return np.hstack([xy, height, intensity]).astype(np.float32), rng.integers(0, 16, count).astype(np.uint8)


def dataset_of(name: str, raw: tuple[np.ndarray, np.ndarray]) -> SimpleNamespace:
    points, labels = raw
    measured = IntensityStatistics(*CONFIGURATIONS[name, False][0])
    return SimpleNamespace(
        name=name,
        root=Path("world"),
        frames=[SimpleNamespace(scan="scan.bin", labels="scan.label")],
        intensity=measured if name == "semantic_poss" else intensity_statistics(name),
        read_points=lambda frame: points.copy(),
        read_labels=lambda frame: labels.copy(),
    )


def columns_of(points: np.ndarray, mean_and_deviation: tuple[float, float]) -> np.ndarray:
    """Features are copies made before anything is moved."""
    mean, deviation = mean_and_deviation
    radius = np.linalg.norm(points[:, :3], axis=1, keepdims=True)
    return np.hstack([points[:, :3], (points[:, 3:] - mean) / deviation, points[:, :3], radius]).astype(np.float32)


def first_of_voxels(xyz: np.ndarray) -> np.ndarray:
    voxels = ((xyz - xyz.min(axis=0)) / np.float32(VOXEL_M)).astype(int)
    return np.unique(voxels, return_index=True, axis=0)[1]


def turned(columns: np.ndarray, x: int, y: int, angle_rad: float) -> None:
    before = columns[:, [x, y]].astype(np.float64)
    columns[:, x] = before[:, 0] * math.cos(angle_rad) - before[:, 1] * math.sin(angle_rad)
    columns[:, y] = before[:, 0] * math.sin(angle_rad) + before[:, 1] * math.cos(angle_rad)


def inside(columns: np.ndarray, reach: int) -> np.ndarray:
    return (np.abs(columns[:, XYZ]) < np.float32([reach, reach, 8]) - np.float32(CROP_EPS_M)).all(axis=1)


def network_input(columns: np.ndarray, reach: int, cells: tuple) -> ScanInput:
    neighbours = cKDTree(columns[:, XYZ]).query(columns[:, XYZ], k=NEIGHBOURS + 1)[1][:, 1:]
    low, size = np.array([-reach, -reach, -8]), np.array([2 * reach, 2 * reach, 16])
    planes = [
        ((columns[:, axes] - low[list(axes)]) / (size[list(axes)] / shape)).astype(int)
        for axes, shape in zip(AXES, cells, strict=True)
    ]
    return ScanInput(columns[:, 3:], neighbours, np.stack(planes))


def official_training_input(raw, draws: Draws, configuration) -> tuple[ScanInput, np.ndarray]:
    """Voxels, limit, rotation of columns 0 and 1, rotation of columns 4 and 5, flip, scale of 4 to 7, crop."""
    mean_and_deviation, reach, cells = configuration
    points, labels = (values[draws.order] for values in raw)
    columns = columns_of(points, mean_and_deviation)
    kept = first_of_voxels(columns[:, XYZ])
    distances = np.square(columns[kept][:, XYZ] - columns[kept[draws.centre], XYZ]).sum(axis=1)
    # By distance in the official code; which point is which row makes no difference to the network.
    kept = kept[np.sort(np.argsort(distances)[:MAX_POINTS])]
    columns, labels = columns[kept], labels[kept]
    turned(columns, 0, 1, draws.angle_rad)
    turned(columns, 4, 5, draws.feature_angle_rad)
    if draws.flipped_axis is not None:
        columns[:, draws.flipped_axis] *= -1
    columns[:, [*FEATURE_XYZ, RADIUS]] *= np.float32(draws.scale)
    visible = inside(columns, reach)
    assert len(visible) == MAX_POINTS
    assert 0 < visible.sum() < MAX_POINTS  # so limit and crop are seen at work
    return network_input(columns[visible], reach, cells), labels[visible]


class ScriptedGenerator:
    """Gives `AugmentedScans` the draws, in the order in which it asks."""

    def __init__(self, draws: Draws, xyz: np.ndarray) -> None:
        self.chosen = draws.order[first_of_voxels(xyz[draws.order])]
        self.flips = draws.flipped_axis is not None
        self.uniforms = [draws.angle_rad, draws.scale - 1, draws.feature_angle_rad]
        self.integer = [draws.centre, draws.flipped_axis or 0]

    def random(self, count: int | None = None):
        if count is None:
            return 0.0 if self.flips else 1.0
        of_points = np.ones(count)  # a point with zero takes the place of those of its voxel before it, one never
        of_points[self.chosen] = 0
        return of_points

    def uniform(self, low: float, high: float) -> float:
        return self.uniforms.pop(0)

    def integers(self, high: int) -> int:
        return self.integer.pop(0)


def our_training_input(name: str, finetuning: bool, raw, draws: Draws, monkeypatch, augmentation="official"):
    inputs = WaffleIronInputs().for_dataset(name, finetuning=finetuning)
    scans = AugmentedScans(dataset_of(name, raw), inputs, 0, augmentation)
    with monkeypatch.context() as patch:
        generator = ScriptedGenerator(draws, raw[0][:, :3])
        patch.setattr(labelled_scans, "np", SimpleNamespace(random=SimpleNamespace(default_rng=lambda _: generator)))
        scan, labels = scans[0, 0]
        return scan.input, labels


def draws_of(number: int, raw) -> Draws:
    order = np.random.default_rng(number).permutation(len(raw[0]))
    return Draws(order, 17 + number, *DRAWS[number])


def assert_same_input(ours: ScanInput, official: ScanInput) -> None:
    np.testing.assert_allclose(ours.features, official.features, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(ours.cells, official.cells)
    np.testing.assert_array_equal(ours.neighbours, official.neighbours)


@pytest.mark.parametrize(("name", "finetuning"), CONFIGURATIONS)
def test_training_inputs_equal_the_official_ones_of_the_same_draws(name, finetuning, raw, monkeypatch):
    draws = draws_of(list(CONFIGURATIONS).index((name, finetuning)) % len(DRAWS), raw)
    official, official_labels = official_training_input(raw, draws, CONFIGURATIONS[name, finetuning])
    ours, labels = our_training_input(name, finetuning, raw, draws, monkeypatch)
    assert_same_input(ours, official)
    np.testing.assert_array_equal(labels, official_labels)


def test_joint_augmentation_moves_coordinates_as_features(raw, monkeypatch):
    """As pretraining does: with the same draws, other inputs than the official ones of downstream."""
    scan, _ = our_training_input("nuscenes", False, raw, draws_of(0, raw), monkeypatch, "joint")
    np.testing.assert_array_equal(scan.cells[0], np.floor((scan.features[:, 1:3].astype(np.float64) + 64) / 0.5))
    official, _ = official_training_input(raw, draws_of(0, raw), CONFIGURATIONS["nuscenes", False])
    assert scan.features.shape != official.features.shape  # cut to the field of view after another scale


@pytest.mark.parametrize(("name", "finetuning"), CONFIGURATIONS)
def test_evaluation_inputs_equal_the_official_ones(name, finetuning, raw):
    mean_and_deviation, reach, cells = CONFIGURATIONS[name, finetuning]
    columns = columns_of(raw[0], mean_and_deviation)
    columns = columns[first_of_voxels(columns[:, XYZ])]
    columns = columns[inside(columns, reach)]
    scan = EvaluationScans(dataset_of(name, raw), WaffleIronInputs().for_dataset(name, finetuning=finetuning))[0]
    assert_same_input(scan.scan.input, network_input(columns, reach, cells))
    np.testing.assert_array_equal(scan.scan.row, cKDTree(columns[:, XYZ]).query(raw[0][:, :3])[1])


def test_features_turn_by_an_angle_of_their_own():
    rng = np.random.default_rng(0)
    pairs = [draw_motions(rng, "official") for _ in range(3000)]
    angles = np.array([(motion.angle_rad, of_features.angle_rad) for motion, of_features in pairs])
    assert abs(np.corrcoef(angles.T)[0, 1]) < 0.05
    for column in angles.T:
        counts, _ = np.histogram(column, bins=6, range=(-np.pi, np.pi))
        assert counts.sum() == 3000
        assert counts.min() > 400
    assert {motion.scale for motion, _ in pairs} == {1.0}
    assert {of_features.flipped_axes for _, of_features in pairs} == {()}
    scales = np.array([of_features.scale for _, of_features in pairs])
    assert 0.9 <= scales.min() < 0.91 < 1.09 < scales.max() <= 1.1
    flips = [motion.flipped_axes for motion, _ in pairs]
    assert all(abs(flips.count(axes) / 3000 - 1 / 3) < 0.04 for axes in ((0,), (1,), ()))


PROBING = Schedule(
    epochs=3, warmup_epochs=1, learning_rate=0.05, min_learning_rate=0.001, weight_decay=0.3, batch_size=1
)
FINETUNING = Schedule(
    epochs=3,
    warmup_epochs=1,
    learning_rate=0.01,
    min_learning_rate=0.0,
    weight_decay=0.0,
    batch_size=1,
    layer_decay=0.6,
)


@pytest.mark.parametrize(("schedule", "frozen"), [(PROBING, True), (FINETUNING, False)])
def test_steps_equal_those_of_the_official_optimiser(schedule, frozen, tiny_dataset):
    """Its parameter groups, learning rates, losses and modes; after six steps of three epochs, weights are equal."""
    inputs, depth = WaffleIronInputs(fov_min_m=(-20, -20, -3), fov_max_m=(20, 20, 3)), 2
    torch.manual_seed(0)
    model = with_class_head(Student(WaffleIronConfig(width=8, depth=depth), inputs), 2, inputs)
    official = copy.deepcopy(model)
    collate, scans = LabelledCollate(inputs), AugmentedScans(tiny_dataset, inputs, 0)
    batches = [collate([scans[0, frame]]) for frame in (0, 1)]
    batches[0].labels[:50] = IGNORE_LABEL
    training = training_config(schedule, workers=0, seed=0)
    scale = {} if frozen else {"learning_rate_scale": layer_scale(schedule.layer_decay, model.backbone)}
    losses = train(
        SupervisedObjective(model, frozen=frozen), lambda epoch, first: batches, training, steps_per_epoch=2,
        device=torch.device("cpu"), description="test", **scale,
    ).losses  # fmt: skip
    expected = official_steps(official, batches * 3, schedule, depth, frozen)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(losses) == 6
    before, after = official.state_dict(), model.state_dict()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-6, msg=name)


def official_steps(model: Student, batches: list, schedule: Schedule, depth: int, frozen: bool) -> list[float]:
    """One group a parameter: AdamW takes no notice. All parameters decay, those of batch norm and biases too, in
    probing; in finetuning, whose published decay is zero, none does.
    """
    model.train(not frozen)
    model.classif.train()
    groups = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith("classif"))
        part = name.removeprefix("backbone.").split(".")
        layer = {"embed": 0, "classif": depth + 1}.get(part[0])
        layer = int(part[2]) + 1 if layer is None else layer
        groups.append(
            {"params": [parameter], "lr": schedule.learning_rate * schedule.layer_decay ** (depth + 1 - layer)}
        )
    optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    warmup, total = schedule.warmup_epochs * 2, schedule.epochs * 2
    least = schedule.min_learning_rate / schedule.learning_rate

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return least + 0.5 * (1 - least) * (math.cos((step - warmup) / (total - warmup) * math.pi) + 1)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    losses = []
    for batch in batches:
        logits, labels = model(batch.inputs), batch.labels
        loss = F.cross_entropy(logits, labels, ignore_index=255) + lovasz(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def lovasz(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of the classes that are there, one after the other."""
    counted = labels != 255
    shares, labels = logits[counted].softmax(dim=1), labels[counted]
    of_classes = []
    for number in labels.unique().tolist():
        truth = (labels == number).float()
        errors, order = (truth - shares[:, number]).abs().sort(descending=True)
        truth = truth[order]
        jaccard = 1 - (truth.sum() - truth.cumsum(0)) / (truth.sum() + (1 - truth).cumsum(0))
        of_classes.append((errors * torch.diff(jaccard, prepend=torch.zeros(1))).sum())
    return torch.stack(of_classes).mean()
