"""The network against torch's dense convolutions, and against what is published of it."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from dense_unet import DenseUNet, volume_of
from scalr.distill.backbones.minkunet.config import MinkUNetConfig
from scalr.distill.backbones.minkunet.inputs import MinkUNetInputs
from scalr.distill.backbones.minkunet.network import MinkUNet
from scalr.distill.backbones.minkunet.slidr_files import SLidRFiles
from scalr.distill.backbones.minkunet.spconv_grids import SpconvGrids
from scalr.distill.backbones.minkunet.voxels import voxel_coordinates
from scalr.errors import StudentError
from scalr.extract.intensity import intensity_statistics

NARROW = MinkUNetConfig(stem_width=2, widths=(2, 3, 4, 5, 5, 4, 3, 4), blocks=(1, 2, 1, 1, 1, 1, 2, 1))
NUSCENES = intensity_statistics("nuscenes")


def points_within(low, high, count, seed=0) -> np.ndarray:
    """(N, 4): points in a box [m]."""
    rng = np.random.default_rng(seed)
    return rng.uniform((*low, 0), (*high, 255), size=(count, 4)).astype(np.float32)


def real_crop(real_nuscenes) -> np.ndarray:
    """What lies 16 to 48 degrees to the left, below the sensor and less than 12.8 m away."""
    file = next((real_nuscenes / "samples" / "LIDAR_TOP").glob("*.bin"))
    points = np.fromfile(file, np.float32).reshape(-1, 5)[:, :4]
    angle, radius = np.degrees(np.arctan2(points[:, 1], points[:, 0])), np.hypot(points[:, 0], points[:, 1])
    return points[(angle >= 16) & (angle < 48) & (radius < 12.8) & (points[:, 2] < 0)]


# Small boxes: the dense reference fills them, and in cylindrical voxels all angles between.
CASES = {
    "far from the axes": ("cylindrical", [points_within((6, 3, 0), (7.5, 4.5, 1.5), 300)]),
    "below zero": ("cartesian", [points_within((-3.1, -1.5, -1.6), (-0.1, -0.1, -0.1), 300)]),
    "around zero": ("cartesian", [points_within((-1.6, -1.6, -1.6), (1.5, 1.5, 1.5), 300)]),
    "at the seam": ("cylindrical", [points_within((-2.9, -0.3, 0), (-1.8, 0.3, 1.5), 200)]),
    "two scans": ("cartesian", [points_within((0, 0, 0), (1.5, 1.5, 1.5), 150, seed) for seed in (1, 2)]),
}


def network(config, inputs, dtype) -> MinkUNet:
    """With values in all its tensors that matter."""
    torch.manual_seed(0)
    net = MinkUNet(config, inputs).to(dtype)
    for name, value in net.named_buffers():
        if name.endswith("running_mean"):
            value.normal_()
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    for name, value in net.named_parameters():
        if value.ndim == 1:
            torch.nn.init.uniform_(value, *((0.5, 1.5) if name.endswith("weight") else (-0.5, 0.5)))
    return net


def official(tensors: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """By SLidR's names; it wants a head, too."""
    return SLidRFiles().official_tensors(
        {**tensors, "classif.weight": torch.zeros(1, width), "classif.bias": torch.zeros(1)}
    )


def compared(scans, inputs, config, *, training, dtype=torch.float32) -> tuple[float, float, float]:
    """Relative differences from the dense reference: of features, of gradients and of running statistics."""
    net = network(config, inputs, dtype).train(training)
    reference = {name: value.double().clone() for name, value in official(net.state_dict(), net.width).items()}
    for name, value in reference.items():
        value.requires_grad_(value.is_floating_point() and "running" not in name)
    prepared = [inputs.prepare(points, NUSCENES) for points in scans]
    batch = inputs.pack([each.input for each in prepared])
    voxels = []
    for scan, (points, each) in enumerate(zip(scans, prepared, strict=True)):
        coordinates = voxel_coordinates(points[each.kept, :3], inputs.voxels, inputs.voxel_size_m)
        voxels.append(np.insert(coordinates, 0, scan, axis=1))
    voxels = torch.from_numpy(np.concatenate(voxels))
    volume, at = volume_of(voxels, batch.features.double(), len(scans))
    mask, _ = volume_of(voxels, torch.ones(len(voxels), 1, dtype=torch.float64), len(scans))

    found = net(replace(batch, features=batch.features.to(dtype)))
    dense = DenseUNet(reference, config.bn_momentum, training=training)(volume, mask)
    expected = dense.movedim(1, -1)[tuple(at.T)]
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    found.backward(upstream.to(dtype))
    expected.backward(upstream)
    gradients = official({name: value.grad for name, value in net.named_parameters()}, net.width)
    gradients = {name: value for name, value in gradients.items() if not name.startswith("final.")}
    after = official(net.state_dict(), net.width)
    return (
        relative([found], [expected]),
        relative(gradients.values(), [reference[name].grad for name in gradients]),
        relative(*zip(*((after[name], reference[name]) for name in after if "running" in name), strict=True)),
    )


def relative(found, expected) -> float:
    """The norm of all differences together."""
    found, expected = (torch.cat([value.detach().double().flatten() for value in each]) for each in (found, expected))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_features_and_gradients_are_those_of_dense_convolutions(case, training):
    voxels, scans = CASES[case]
    inputs = MinkUNetInputs(voxels=voxels, features="scalr")
    assert max(compared(scans, inputs, NARROW, training=training)) < 1e-5
    if training and case != "at the seam":  # that volume is large
        assert max(compared(scans, inputs, NARROW, training=True, dtype=torch.float64)) < 1e-12


def test_a_real_scan_gives_what_dense_convolutions_give(real_nuscenes):
    scans = [real_crop(real_nuscenes)]
    assert max(compared(scans, MinkUNetInputs(), NARROW, training=True)) < 1e-5


@pytest.mark.parametrize(("channels", "parameters"), [("intensity", 37_842_976), ("scalr", 37_846_432)])
def test_the_default_network_has_as_many_parameters_as_published(channels, parameters):
    with torch.device("meta"):
        net = MinkUNet(MinkUNetConfig(), MinkUNetInputs(features=channels))
    assert sum(value.numel() for value in net.parameters()) == parameters
    assert (net.width, net.config.title) == (96, "MinkUNet34-96")
    of_stages = [0] * net.num_layers
    for name, value in net.named_parameters():
        of_stages[net.layer_of(name)] += value.numel()
    if channels == "intensity":
        assert of_stages[1:] == [119_104, 619_456, 3_361_152, 20_519_680, 8_588_288, 2_278_912, 1_190_016, 1_165_440]


def test_batch_norms_within_blocks_keep_their_own_momentum():
    net = MinkUNet(replace(NARROW, bn_momentum=0.02), MinkUNetInputs())
    momenta = {name: part.momentum for name, part in net.named_modules() if hasattr(part, "momentum")}
    assert {momentum for name, momentum in momenta.items() if name.endswith(("norm1", "norm2"))} == {0.1}
    assert {momentum for name, momentum in momenta.items() if not name.endswith(("norm1", "norm2"))} == {0.02}


def test_a_single_voxel_has_features_but_no_statistics_to_train_with():
    inputs = MinkUNetInputs()
    points = np.array([[1, 2, 3, 40]], np.float32)
    batch = inputs.pack([inputs.prepare(points, NUSCENES).input])
    net = network(NARROW, inputs, torch.float32).eval()
    assert net(batch).shape == (1, 4)
    with pytest.raises(StudentError, match="the batch has a single voxel on the coarsest grid"):
        net.train()(batch)


def test_autocast_stays_close():
    inputs = MinkUNetInputs(features="scalr")
    batch = inputs.pack([inputs.prepare(CASES["below zero"][1][0], NUSCENES).input])
    net = network(NARROW, inputs, torch.float32).eval()
    exact = net(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(batch)
    assert found.dtype == torch.bfloat16
    assert relative([found], [exact]) < 0.02


def test_spconv_gives_the_same_features_where_it_is_installed():
    """Its kernels for CPUs, which have no gradients there."""
    pytest.importorskip("spconv.pytorch")
    from spconv.core import ConvAlgo

    for voxels, scans in CASES.values():
        inputs = MinkUNetInputs(voxels=voxels, features="scalr")
        net = network(NARROW, inputs, torch.float32).eval()
        batch = inputs.pack([inputs.prepare(points, NUSCENES).input for points in scans])
        with torch.no_grad():
            found = net.through(SpconvGrids(batch, ConvAlgo.Native), batch)
            assert relative([found], [net(batch)]) < 1e-5


def test_spconv_gives_the_same_gradients_on_a_gpu():
    pytest.importorskip("spconv.pytorch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    inputs = MinkUNetInputs(features="scalr")
    batch = inputs.pack([inputs.prepare(points, NUSCENES).input for points in CASES["two scans"][1]]).to("cuda")
    gradients = []
    for convolution in ("gather", "spconv"):
        net = network(replace(NARROW, convolution=convolution), inputs, torch.float32).cuda().train()
        net(batch).square().sum().backward()
        gradients.append([value.grad for value in net.parameters()])
    assert relative(*gradients) < 1e-3


def test_without_spconv_a_run_that_asks_for_it_ends_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    inputs = MinkUNetInputs(features="scalr")
    batch = inputs.pack([inputs.prepare(CASES["around zero"][1][0], NUSCENES).input])
    with pytest.raises(StudentError, match=r"student\.convolution is spconv, and spconv is not installed"):
        SpconvGrids(batch)
    net = network(replace(NARROW, convolution="spconv"), inputs, torch.float32).eval()
    assert net(batch).shape == (batch.num_points, 4)  # on a CPU nothing of it is needed
