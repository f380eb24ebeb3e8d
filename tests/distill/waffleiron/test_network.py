"""The student against a plain, dense reference written from the equations, and the promises of its interface."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scalr.distill.backbones.backbone import PackedBatch
from scalr.distill.backbones.waffleiron import network
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.inputs import Plane, ScanInput, WaffleIronInputs
from scalr.distill.backbones.waffleiron.network import Layers, _KeepRows
from scalr.distill.heads import probe_head
from scalr.distill.inputs import evaluation_input
from scalr.distill.student import Student
from scalr.errors import ScalrError, StudentError
from scalr.extract.intensity import IntensityStatistics

SMALL = WaffleIronInputs(
    fov_min_m=(-16, -12, -4),
    fov_max_m=(16, 12, 4),
    planes=(Plane((0, 1), (32, 24)), Plane((0, 2), (32, 8)), Plane((1, 2), (24, 8))),
)
UNIT = IntensityStatistics(0.0, 1.0)
CONFIG = WaffleIronConfig(width=8, depth=4, out_channels=6)  # four layers: the first plane is used twice


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """On tensors this small, threads that wait for each other on a busy machine take six times the work's own time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scan(seed: int, count: int, low=(-16, -12, -4), high=(16, 12, 4)) -> ScanInput:
    return SMALL.prepare(points_between(seed, count, low, high), UNIT).input


def points_between(seed: int, count: int, low, high) -> np.ndarray:
    """(count, 4) float32, some of them in the outermost cells of the box."""
    rng = np.random.default_rng(seed)
    low, high = np.array(low) + 0.01, np.array(high) - 0.01
    xyz = np.clip(rng.uniform(low * 1.1, high * 1.1, (count, 3)), low, high)
    return np.hstack([xyz, rng.normal(size=(count, 1))]).astype(np.float32)


BATCHES = {
    "one scan up to every border": [scan(0, 120)],
    "one scan far from the borders": [scan(1, 90, (-6, -5, -2), (3, 4, 1))],
    "very different extents": [
        scan(2, 150),
        scan(3, 40, (13, 9, 2), (16, 12, 4)),
        scan(4, 60, (-16, -2, -1), (0, 2, 1)),
    ],
    "17 points": [scan(5, 17)],
    "5 points": [scan(6, 5)],
    "5 points among others": [scan(7, 5), scan(8, 50), scan(9, 1)],
}


def student(config: WaffleIronConfig = CONFIG, seed: int = 0, dtype: torch.dtype = torch.float64) -> Student:
    """A student whose norms are not the identity."""
    torch.manual_seed(seed)
    module = Student(config, SMALL)
    for name, value in module.state_dict().items():
        if "running_var" in name or (".norm." in name and "weight" in name):
            value.uniform_(0.5, 2)
        elif "running_mean" in name or (".norm." in name and "bias" in name):
            value.normal_()
    return module.to(dtype)


def batch_of(scans: list[ScanInput], dtype: torch.dtype = torch.float64) -> PackedBatch:
    batch = SMALL.pack(scans)
    return replace(batch, features=batch.features.to(dtype))


class Reference:
    """WaffleIron from DESIGN's equations: padded (B, N, C) tokens, a mask, whole planes."""

    def __init__(self, module: Student) -> None:
        values = dict(module.named_parameters()) | {k: v.clone() for k, v in module.named_buffers()}
        self.values = {name.removeprefix("backbone."): value for name, value in values.items()}
        self.config, self.training = module.config, module.training

    def __call__(self, scans: list[ScanInput]) -> torch.Tensor:
        dtype = self.values["classif.weight"].dtype
        count = max(len(s.features) for s in scans)
        features, neighbours = torch.zeros(len(scans), count, 5, dtype=dtype), torch.zeros(len(scans), count, 16).long()
        self.mask = torch.zeros(len(scans), count, dtype=torch.bool)
        for b, s in enumerate(scans):
            features[b, : len(s.features)] = torch.from_numpy(s.features)
            neighbours[b, : len(s.features)] = torch.from_numpy(s.neighbours)
            self.mask[b, : len(s.features)] = True
        tokens = self.embed(features, neighbours)
        for layer in range(self.config.depth):
            tokens = tokens + self.spatial_mix(f"waffleiron.spatial_mix.{layer}", tokens, scans, layer % 3)
            tokens = tokens + self.channel_mix(f"waffleiron.channel_mix.{layer}", tokens)
        return self.linear("classif", tokens)[self.mask]

    def embed(self, features, neighbours):
        x = self.batch_norm("embed.norm", features, self.mask)
        offsets = torch.stack([x[b, rows] for b, rows in enumerate(neighbours)]) - x.unsqueeze(2)
        mask = self.mask.unsqueeze(2).expand(neighbours.shape)
        around = self.linear("embed.conv2.1", self.batch_norm("embed.conv2.0", offsets, mask))
        around = self.linear("embed.conv2.4", torch.relu(self.batch_norm("embed.conv2.2", around, mask)))
        return self.linear("embed.final", torch.cat([self.linear("embed.conv1", x), around.max(dim=2).values], dim=-1))

    def spatial_mix(self, name, tokens, scans, plane):
        x = self.norm(f"{name}.norm", tokens)
        rows, columns = SMALL.planes[plane].shape
        mixed = torch.zeros_like(x)
        for b, s in enumerate(scans):
            index = torch.from_numpy(s.cells[plane] @ [columns, 1])
            member = F.one_hot(index, rows * columns).to(x)  # (points, cells)
            means = member.T @ x[b, : len(index)] / (member.sum(dim=0).unsqueeze(1) + 1e-6)
            hidden = self.depthwise(f"{name}.ffn.0", means.T.view(1, -1, rows, columns))
            out = self.depthwise(f"{name}.ffn.2", self.activation(hidden)) * self.scale(name).view(1, -1, 1, 1)
            mixed[b, : len(index)] = out.flatten(2)[0].T[index]
        return mixed

    def channel_mix(self, name, tokens):
        hidden = self.activation(self.linear(f"{name}.mlp.0", self.norm(f"{name}.norm", tokens)))
        return self.linear(f"{name}.mlp.2", hidden) * self.scale(name)

    def scale(self, name):
        return self.values[f"{name}.scale.weight"]

    def norm(self, name, x):
        return (self.batch_norm if self.config.norm == "batch" else self.layer_norm)(name, x, self.mask)

    def batch_norm(self, name, x, mask):
        if self.training:
            real = x[mask]
            mean, var = real.mean(dim=0), real.var(dim=0, unbiased=False)
            self._track(name, mean.detach(), var.detach() * len(real) / (len(real) - 1))
        else:
            mean, var = self.values[f"{name}.running_mean"], self.values[f"{name}.running_var"]
        return (x - mean) / (var + 1e-5).sqrt() * self.values[f"{name}.weight"] + self.values[f"{name}.bias"]

    def _track(self, name, mean, unbiased_var):
        for key, value in ((f"{name}.running_mean", mean), (f"{name}.running_var", unbiased_var)):
            self.values[key] = 0.9 * self.values[key] + 0.1 * value

    def layer_norm(self, name, x, mask):
        mean, var = x.mean(dim=-1, keepdim=True), x.var(dim=-1, unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * self.values[f"{name}.weight"] + self.values[f"{name}.bias"]

    def linear(self, name, x):
        bias = self.values.get(f"{name}.bias")
        y = x @ self.values[f"{name}.weight"].T
        return y if bias is None else y + bias

    def depthwise(self, name, x):
        weight = self.values[f"{name}.weight"]
        return F.conv2d(x, weight, self.values[f"{name}.bias"], padding=1, groups=len(weight))

    def activation(self, x):
        return torch.relu(x) if self.config.activation == "relu" else F.gelu(x)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("scans", BATCHES.values(), ids=BATCHES)
def test_output_and_gradients_equal_the_dense_reference(scans, norm, training):
    module = student(replace(CONFIG, norm=norm)).train(training)
    reference = Reference(module)
    expected = reference(scans)
    upstream = torch.randn_like(expected)
    names, parameters = zip(*module.named_parameters(), strict=True)
    expected_gradients = torch.autograd.grad(expected, parameters, upstream)
    found = module(batch_of(scans))
    found_gradients = torch.autograd.grad(found, parameters, upstream)
    assert relative_difference(found, expected) < 1e-10
    # Biases before a batch norm have no gradient but rounding.
    rounding = 1e-10 * max(gradient.norm() for gradient in expected_gradients)
    for name, a, b in zip(names, found_gradients, expected_gradients, strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm() + rounding, name
    for name, buffer in module.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, reference.values[name.removeprefix("backbone.")], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_single_precision_equals_the_dense_reference(activation, norm, training):
    scans = BATCHES["very different extents"]
    module = student(replace(CONFIG, norm=norm, activation=activation), dtype=torch.float32).train(training)
    expected = Reference(module)(scans)
    found = module(batch_of(scans, torch.float32))
    assert relative_difference(found, expected) < 1e-5
    upstream, parameters = torch.randn_like(expected), list(module.parameters())
    gradients = [torch.autograd.grad(y, parameters, upstream) for y in (found, expected)]
    flat = [torch.cat([gradient.flatten() for gradient in each]) for each in gradients]
    assert relative_difference(*flat) < 1e-5


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("scans", BATCHES.values(), ids=BATCHES)
def test_cropped_planes_of_other_devices_equal_the_cells_of_the_cpu(scans, training, monkeypatch):
    module, batch = student().train(training), batch_of(scans)
    outputs, gradients = [], []
    for cells in (network._OccupiedCells, network._CroppedPlane):
        monkeypatch.setattr(network, "_OccupiedCells", cells)
        outputs.append(module(batch))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), list(module.parameters())))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    rounding = 1e-10 * max(gradient.norm() for gradient in gradients[1])
    assert all((a - b).norm() <= 1e-9 * b.norm() + rounding for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_activation_checkpointing_changes_memory_alone(norm):
    """In every step: what the second forward pass leaves behind would show in the step after it."""
    start = student(replace(CONFIG, norm=norm, stochastic_depth=0.3)).train()
    batches = [batch_of(BATCHES[name]) for name in ("very different extents", "17 points", "very different extents")]
    results, momenta = [], []
    for checkpointing in (False, True):
        module, values = copy.deepcopy(start), []
        module.backbone.activation_checkpointing = checkpointing
        optimiser = torch.optim.SGD(module.parameters(), lr=1e-4)
        torch.manual_seed(3)
        for batch in batches:
            output = module(batch)
            optimiser.zero_grad()
            output.square().sum().backward()
            values += [output, *(each.grad for each in module.parameters()), *map(torch.clone, module.buffers())]
            optimiser.step()
        results.append(values)
        momenta.append([part.momentum for part in module.modules() if isinstance(part, torch.nn.BatchNorm1d)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert momenta[0] == momenta[1]


def test_bfloat16_by_autocast_is_near():
    module = student(dtype=torch.float32)
    batch = batch_of(BATCHES["very different extents"], torch.float32)
    expected = module(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(batch)
    found.float().square().sum().backward()
    assert relative_difference(found.float(), expected) < 0.05
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_no_grad_gives_the_same_tokens(norm):
    module, batch = student(replace(CONFIG, norm=norm)).eval(), batch_of(BATCHES["very different extents"])
    with torch.no_grad():
        without = module.tokens(batch)
    torch.testing.assert_close(without, module.tokens(batch), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_scans_of_a_batch_do_not_see_each_other(norm):
    module = student(replace(CONFIG, norm=norm)).eval()
    scans = BATCHES["very different extents"]
    alone = torch.cat([module(batch_of([s])) for s in scans])
    torch.testing.assert_close(module(batch_of(scans)), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_order_of_points_does_not_matter(training):
    points = points_between(0, 80, SMALL.fov_min_m, SMALL.fov_max_m)
    order = np.random.default_rng(0).permutation(80)
    module = student().train(training)
    tokens = module.tokens(batch_of([SMALL.prepare(points, UNIT).input]))
    shuffled = module.tokens(batch_of([SMALL.prepare(points[order], UNIT).input]))
    torch.testing.assert_close(shuffled, tokens[torch.from_numpy(order)], rtol=1e-9, atol=1e-9)


def test_embedding_in_chunks_equals_the_whole(monkeypatch):
    module, batch = student().eval(), batch_of(BATCHES["very different extents"])
    whole = module.tokens(batch)
    monkeypatch.setattr("scalr.distill.backbones.waffleiron.network.CPU_CHUNK", 7)
    torch.testing.assert_close(module.tokens(batch), whole, rtol=1e-12, atol=1e-12)


# Stochastic depth


def test_stochastic_depth_drops_whole_scans_and_keeps_the_mean():
    torch.manual_seed(0)
    batch = batch_of([scan(0, 20), scan(1, 30)])
    keep = _KeepRows(batch, 0.2)
    factors = torch.stack([keep(torch.ones(50, 3)) for _ in range(2000)])
    assert sorted(factors.unique().tolist()) == [0, 1.25]
    assert (factors[:, :20] == factors[:, :1, :1]).all()
    assert (factors[:, 20:] == factors[:, 20:21, :1]).all()
    assert abs(factors[:, 0, 0].mean() - 1) < 0.05
    assert abs(np.corrcoef(factors[:, 0, 0], factors[:, 20, 0])[0, 1]) < 0.1


def test_stochastic_depth_acts_in_training_alone():
    batch = batch_of([scan(0, 60)])
    module = student(replace(CONFIG, stochastic_depth=1 - 1e-12)).train()
    torch.testing.assert_close(module.tokens(batch), module.backbone.embed(batch.features, batch.neighbours))
    plain = student(CONFIG).eval()
    module.load_state_dict(plain.state_dict())
    torch.testing.assert_close(module.eval().tokens(batch), plain.tokens(batch), rtol=0, atol=0)


# The module as users meet it


def official_names(depth: int, norm: str) -> set[str]:
    """Keys of an official state dict with a linear head, from DESIGN."""
    affine, statistics = ("weight", "bias"), ("running_mean", "running_var", "num_batches_tracked")
    names = {f"{m}.{k}" for m in ("embed.norm", "embed.conv2.0", "embed.conv2.2") for k in affine + statistics}
    names |= {"embed.conv2.1.weight", "embed.conv2.4.weight"}
    names |= {f"{m}.{k}" for m in ("embed.conv1", "embed.final", "classif") for k in affine}
    for mix, inner in (("spatial_mix", "ffn"), ("channel_mix", "mlp")):
        for layer in range(depth):
            prefix = f"waffleiron.{mix}.{layer}"
            names |= {f"{prefix}.norm.{k}" for k in affine + (statistics if norm == "batch" else ())}
            names |= {f"{prefix}.{inner}.{i}.{k}" for i in (0, 2) for k in affine} | {f"{prefix}.scale.weight"}
    return names


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_parameters_have_the_official_names(norm):
    assert set(Student(replace(CONFIG, norm=norm)).state_dict()) == official_names(CONFIG.depth, norm)


def test_the_official_sizes():
    module = Student(WaffleIronConfig(width=16, depth=1, head="mlp", out_channels=32))
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes["embed.conv2.1.weight"] == (16, 5)
    assert shapes["embed.final.weight"] == (16, 32)
    assert shapes["waffleiron.spatial_mix.0.ffn.0.weight"] == (16, 1, 3, 3)
    assert shapes["waffleiron.spatial_mix.0.scale.weight"] == (16,)
    assert shapes["classif.0.weight"] == (2048, 16)
    assert shapes["classif.2.weight"] == (32, 2048)


def test_a_probe_starts_without_an_opinion():
    """Official linear probing: BatchNorm1d, then a convolution that is zero."""
    norm, linear = probe_head(16, 5)
    assert isinstance(norm, torch.nn.BatchNorm1d)
    assert not linear.weight.any()
    assert not linear.bias.any()


def test_layer_scale_starts_between_minus_one_and_one():
    scales = torch.cat([mix.scale.weight for mix in Layers(WaffleIronConfig(width=64, depth=4)).channel_mix])
    assert scales.min() < -0.9
    assert scales.max() > 0.9
    assert scales.abs().max() <= 1


def test_extract_gives_every_raw_point_the_token_of_its_nearest_kept_point():
    points = points_between(0, 300, SMALL.fov_min_m, SMALL.fov_max_m)
    points[:30, :3] *= 2
    module = student(dtype=torch.float32).eval()
    inputs, _, nearest = evaluation_input(points, UNIT, SMALL)
    expected = module.tokens(SMALL.pack([inputs]))[torch.from_numpy(nearest)]
    features = module.extract(points, UNIT)
    assert (features.shape, features.dtype, features.requires_grad) == ((300, 8), torch.float32, False)
    torch.testing.assert_close(features, expected)
    assert module.project(features).shape == (300, 6)


NUMBERS = [">f4", "float16", "<f8", ">f8", "int16", ">i4", "uint8"]


@pytest.mark.parametrize("dtype", [*NUMBERS, list, torch.tensor])
def test_points_are_numbers_of_any_kind(dtype):
    points = points_between(0, 60, SMALL.fov_min_m, SMALL.fov_max_m).round()
    if dtype == "uint8":
        points = np.abs(points)
    module = student(dtype=torch.float32)
    given = dtype(points.tolist()) if callable(dtype) else points.astype(dtype)
    features = module.extract(given, UNIT)
    assert torch.equal(features, module.extract(points.astype(np.float32), UNIT))
    assert features.dtype == torch.float32


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[1, 2, 3, 4], [1, 2]], r"points are not an array of numbers \(.*\)\. Pass a numpy array or a list of rows"),
        (torch.zeros(3, 4, device="meta"), "points are not an array of numbers"),
        ([["1", "2", "3", "4"]], "points are <U1, not numbers. Pass x, y, z in metres and raw intensity"),
        ([[None, 1, 2, 3]], "points are object, not numbers"),
        (np.ones((3, 4), complex), "points are complex128, not numbers"),
        (np.full((3, 4), 1e300), "3 of 3 points are not finite"),
        ([1.0, 2.0, 3.0, 4.0], r"points have shape \(4,\)"),
        ([], r"points have shape \(0,\)"),
        (np.ma.masked_greater(np.eye(4), 0.5), "points have 4 masked values. Remove these rows"),
    ],
)
def test_what_is_no_scan_is_said(points, message):
    with pytest.raises(StudentError, match=message):
        student(dtype=torch.float32).extract(points, UNIT)


def test_a_masked_array_without_masked_values_is_a_scan():
    points = points_between(0, 60, SMALL.fov_min_m, SMALL.fov_max_m)
    module = student(dtype=torch.float32)
    assert torch.equal(module.extract(np.ma.array(points, mask=False), UNIT), module.extract(points, UNIT))


@pytest.mark.parametrize("kind", ["numpy", "tolist", "double", "half", "bfloat16", "int"])
def test_numbers_of_any_kind_can_be_projected(kind):
    """Such as those that were kept as float16 to save space."""
    module = student(dtype=torch.float32)
    features = torch.arange(2.0 * module.width).reshape(2, module.width)
    projected = module.project(getattr(features, kind)())
    assert projected.dtype == torch.float32
    assert torch.equal(projected, module.project(features))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            torch.zeros(3, 7),
            r"features are torch.float32 of shape \(3, 7\), and the student's have \d+"
            r" columns\. Pass the result",
        ),
        (np.zeros(()), r"of shape \(\)"),
        (torch.zeros(3, 8, dtype=torch.complex64), "features are torch.complex64"),
        ([["a"] * 8], "features are <U1, not numbers"),
        ([[1, 2], [1]], "features are not an array of numbers"),
        (np.ma.masked_equal(np.zeros((1, 8)), 0), "features have 8 masked values"),
    ],
)
def test_what_are_no_features_is_said(features, message):
    with pytest.raises(StudentError, match=message):
        student(dtype=torch.float32).project(features)


@pytest.mark.parametrize("head", ["linear", "mlp", "probe"])
def test_what_a_student_gives_can_be_given_to_numpy(head):
    """Whatever mode it is in, and without a trace in its statistics; the head itself is what trains."""
    module = Student(WaffleIronConfig(width=8, depth=3, head=head, out_channels=6), SMALL).train()
    points = points_between(0, 60, SMALL.fov_min_m, SMALL.fov_max_m)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    features = module.extract(points, UNIT)
    projected = module.project(features)
    assert (features.numpy().shape, projected.numpy().shape) == ((60, 8), (60, 6))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.training
    assert torch.equal(projected, module.eval().classif(features).detach())
    assert module.classif(features).requires_grad
    assert module(SMALL.pack([evaluation_input(points, UNIT, SMALL)[0]])).requires_grad


def test_many_scans_are_extracted_together_and_in_order(monkeypatch):
    monkeypatch.setattr("scalr.distill.student.BATCH_POINTS", 500)
    module = student(dtype=torch.float32)
    scans = [points_between(seed, 200 + 40 * seed, SMALL.fov_min_m, SMALL.fov_max_m) for seed in range(5)]
    sizes = []
    module.backbone.embed.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found = list(module.extract_all(iter(scans), UNIT))
    together, sizes[:] = list(sizes), []
    alone = [module.extract(points, UNIT) for points in scans]
    assert together == [sizes[0] + sizes[1], *sizes[2:]]  # the third would not have fitted, nor two of the others
    for a, b in zip(found, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_pandaset_is_read_further():
    torch.manual_seed(0)
    module = Student(WaffleIronConfig(width=8, depth=2, out_channels=4))
    points = points_between(0, 200, (-120, -120, -8), (120, 120, 8))
    features = {name: module.extract(points, name) for name in ("pandaset_64", "nuscenes")}
    distant = np.abs(points[:, :2]).max(axis=1) > 70
    assert len(features["pandaset_64"][distant].unique(dim=0)) > 0.9 * distant.sum()
    assert len(features["nuscenes"][distant].unique(dim=0)) < 0.5 * distant.sum()  # they took their nearest neighbour's


def test_extract_leaves_every_part_in_its_own_mode():
    module = student(dtype=torch.float32).train()
    module.backbone.embed.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.extract(points_between(0, 50, SMALL.fov_min_m, SMALL.fov_max_m), "nuscenes")
    assert module.backbone.waffleiron.training
    assert not module.backbone.embed.norm.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_extract_of_an_unknown_dataset():
    with pytest.raises(ScalrError, match="no intensity statistics for dataset 'kitti'"):
        student().extract(points_between(0, 50, SMALL.fov_min_m, SMALL.fov_max_m), "kitti")


def test_one_point_trains_nothing_but_has_features():
    batch = batch_of([scan(0, 1)])
    assert student().eval()(batch).isfinite().all()
    with pytest.raises(StudentError, match="the batch has a single point"):
        student().train()(batch)


def test_config_comes_back_from_json():
    config = WaffleIronConfig(width=768, norm="layer", activation="gelu", stochastic_depth=0.2, head="mlp")
    assert WaffleIronConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    "values",
    [
        {"width": 0},
        {"depth": 1.5},
        {"out_channels": "1024"},
        {"norm": "group"},
        {"activation": None},
        {"head": "mlp2"},
        {"stochastic_depth": 1.0},
        {"stochastic_depth": "0.2"},
    ],
)
def test_config_refuses(values):
    with pytest.raises(StudentError) as error:
        WaffleIronConfig(**values)
    assert error.value.where == f"student.{next(iter(values))}"


def test_importing_the_student_needs_torch_numpy_and_scipy_alone():
    code = "import sys, scalr.distill.student; print(*{name.partition('.')[0] for name in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"timm", "nuscenes", "zarr", "dask", "distributed", "pyarrow", "matplotlib", "cv2"} & set(modules)


def test_the_defaults_are_those_of_waffleiron_and_scalr():
    """WI-48-256 as published; a head for 1,024 channels of a ViT-L; of ScaLR+ 2,048 hidden ones."""
    assert asdict(WaffleIronConfig()) == {
        "backbone": "waffleiron", "width": 256, "depth": 48, "norm": "batch", "activation": "relu",
        "stochastic_depth": 0.0, "head": "linear", "out_channels": 1024,
    }  # fmt: skip
    head = Student(WaffleIronConfig(width=4, depth=1, head="mlp", out_channels=3), SMALL).classif
    assert [tuple(layer.weight.shape) for layer in head if hasattr(layer, "weight")] == [(2048, 4), (3, 2048)]


def test_two_points_are_enough_to_train():
    module = student().train()
    two, one = (SMALL.pack([scan(0, count)]) for count in (2, 1))
    assert module.tokens(replace(two, features=two.features.double())).shape == (2, 8)
    with pytest.raises(StudentError, match="training: the batch has a single point"):
        module.tokens(replace(one, features=one.features.double()))
