"""The ResNet-50 of MoCo v2 against torchvision's, at both strides, from both layouts of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from scalr.errors import StoreError, TeacherError
from scalr.extract import recompute
from scalr.extract.teachers.checkpoint import model_in
from scalr.extract.teachers.teacher import Teacher, load_teacher
from scalr.extract.teachers.timm_import import import_timm
from small_teachers import targets_of
from tiny import TinyDataset, extract_with

State = dict[str, torch.Tensor]
STRIDE_32, STRIDE_4 = "resnet50_moco_v2", "resnet50_moco_v2_stride4"
DILATED = {STRIDE_32: None, STRIDE_4: [True, True, True]}  # `replace_stride_with_dilation` of torchvision
IMAGE_SIZE = (64, 96)


def published(encoder: State, **others: torch.Tensor) -> dict:
    """As moco_v2_800ep_pretrain.pth.tar: a training's file with both encoders, their head of two layers, a queue."""
    head = {f"fc.{layer}.{kind}": torch.zeros(2) for layer in (0, 2) for kind in ("weight", "bias")}
    of_keys = {name: 2 * tensor for name, tensor in encoder.items() if name.startswith("layer1.0.")}
    state = {f"module.encoder_q.{name}": tensor for name, tensor in (encoder | head | others).items()}
    state |= {f"module.encoder_k.{name}": tensor for name, tensor in of_keys.items()}
    state |= {"module.queue": torch.zeros(2, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


@pytest.fixture(scope="module")
def theirs() -> Callable[[str], nn.Module]:
    """Call with a teacher's name for torchvision's network of its stride; all have one set of random weights."""
    import_timm()  # which makes torchvision importable beside a CPU build of torch
    from torchvision.models import resnet50

    generator, state = torch.Generator().manual_seed(0), resnet50().state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var") or "bn" in name:
            tensor.copy_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))  # counters too: whole numbers
        elif tensor.ndim == 1:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))

    def call(name: str) -> nn.Module:
        with torch.device("meta"):
            network = resnet50(replace_stride_with_dilation=DILATED[name])
        network.load_state_dict(state, assign=True)
        return network.eval().requires_grad_(False)

    return call


@pytest.fixture(scope="module")
def encoder(theirs) -> State:
    """Its weights without the classifier."""
    return {name: tensor for name, tensor in theirs(STRIDE_32).state_dict().items() if not name.startswith("fc.")}


@pytest.fixture(scope="module")
def official(encoder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("moco") / "moco_v2_800ep_pretrain.pth.tar"
    torch.save(published(encoder), path)
    return path


def load(weights: Path | str, name: str = STRIDE_32, **options) -> Teacher:
    return load_teacher(name, image_size=IMAGE_SIZE, weights=str(weights), **options)


def last_map(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(B, 2048, h, w), of torchvision's network."""
    stages = [network.conv1, network.bn1, network.relu, network.maxpool]
    return nn.Sequential(*stages, network.layer1, network.layer2, network.layer3, network.layer4)(images)


@pytest.fixture(scope="module")
def teachers(official) -> dict[str, Teacher]:
    return {name: load(official, name) for name in DILATED}


@pytest.mark.parametrize("name", DILATED)
def test_the_map_is_torchvision_s(theirs, teachers, name):
    """After the last ReLU, of images that share a batch, with the batch norms' running statistics."""
    teacher = teachers[name]
    images = torch.randn(2, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    expected = last_map(theirs(name), images)
    found = teacher.patch_maps(images)
    assert found.shape == (2, *(side // teacher.patch_size for side in IMAGE_SIZE), 2048)
    assert 0.1 < (expected == 0).float().mean() < 0.9
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, atol=1e-5 * expected.max().item(), rtol=1e-5)
    largest = max(256 * 16 * 24, 2048 * found[0, ..., 0].numel())  # of the first stage, or the last
    assert teacher.live_tensors * found[0].numel() == 5 * largest
    assert {each: getattr(teacher.provenance, each) for each in ("feature", "dim", "activation", "norm_eps")} == {
        "feature": "layer4", "dim": 2048, "activation": "ReLU", "norm_eps": 1e-5
    }  # fmt: skip


def test_both_layouts_of_the_weights_are_one_teacher(teachers, encoder, tmp_path):
    """Counters of batches, which a file may lack, do not tell them apart."""
    save_file({name: each for name, each in encoder.items() if "num_batches" not in name}, tmp_path / "w.safetensors")
    other = load(tmp_path / "w.safetensors")
    assert other.provenance == teachers[STRIDE_32].provenance
    assert torch.equal(targets_of(other), targets_of(teachers[STRIDE_32]))


@pytest.fixture
def one_frame(tmp_path) -> TinyDataset:
    """Two views of 48 x 64 pixels."""
    (tmp_path / "tiny").mkdir()
    return TinyDataset(tmp_path / "tiny", num_frames=1)


def upsampled(network: nn.Module, teacher: Teacher, image: Path) -> torch.Tensor:
    """(2048, h, w) at the teacher's image size, as PPKT and SLidR read theirs."""
    pixels = teacher.preprocessing.apply(np.array(Image.open(image)))
    return F.interpolate(last_map(network, pixels[None]), IMAGE_SIZE, mode="bilinear", align_corners=True)[0]


def test_targets_in_a_store_are_those_of_torchvision_s_map(
    theirs, teachers, official, one_frame, tmp_path, monkeypatch
):
    """And are recomputed from what the store records of the teacher."""
    options = {"teachers": (STRIDE_32,), "dtype": "float16", "batch_size": 2}
    store = extract_with(one_frame, teachers, tmp_path / "s.zarr", **options)
    view, image = store.read_view(1, STRIDE_32), one_frame.root / store.views["image"][1].as_py()
    rows, columns = (view.pixel.astype(int) * IMAGE_SIZE // (48, 64)).T
    expected = upsampled(theirs(STRIDE_32), teachers[STRIDE_32], image)[:, rows, columns].T
    assert expected.std(dim=0).mean() > 0.01
    assert len(expected) > 20
    np.testing.assert_allclose(view.targets, expected, rtol=1e-3, atol=1e-4)  # of float16
    monkeypatch.setattr(recompute, "open_dataset", lambda *_, **__: one_frame)
    (found,) = recompute.recompute_targets(store, 1, root=None, weights=(str(official),), device=torch.device("cpu"))
    assert found.as_stored


def test_of_a_large_map_the_means_of_superpixels_are_stored(theirs, teachers, one_frame, tmp_path):
    """As SLidR has them: of all pixels of a segment at the teacher's image size, each a unit vector."""
    ids = np.arange(48)[:, None] // 20 * 10 + np.arange(64) // 17
    for view in one_frame.frames[0].views:
        Image.fromarray(ids.astype(np.uint8)).save(tmp_path / view.image)
    options = {"teachers": (STRIDE_4,), "superpixels": str(tmp_path), "batch_size": 2}
    store = extract_with(one_frame, teachers, tmp_path / "s.zarr", **options)
    assert store.encoding(STRIDE_4).layout == "segments"
    segments = store.read_segments(1, STRIDE_4)
    image = one_frame.root / store.views["image"][1].as_py()
    pixels = F.normalize(upsampled(theirs(STRIDE_4), teachers[STRIDE_4], image), dim=0)
    larger = F.interpolate(torch.from_numpy(ids[None, None]).float(), IMAGE_SIZE, mode="nearest")[0, 0]
    assert len(segments.id) > 6
    expected = torch.stack([pixels[:, larger == each].mean(1) for each in segments.id.tolist()])
    assert expected.std(dim=0).max() > 0.01
    np.testing.assert_allclose(segments.mean, expected, atol=2e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"superpixels": "slic", "encoding": "point", "dtype": "float16"},
        {"superpixels": "slic", "teachers": (STRIDE_32, STRIDE_4)},
    ],
)
def test_targets_of_pairs_are_too_large_at_stride_4(teachers, one_frame, tmp_path, options):
    """16 x 24 vectors of 2,048 channels and a scale an image, of two images; a segment has two in float16."""
    message = (
        "resnet50_moco_v2_stride4: the patch maps of 16x24 vectors are too large to store: up to 788 kB per image with"
        r" --encoding patch --dtype int8 \(1.58 MB for all 2 images\), or 2.05 kB per pair .* 8.2 kB per segment"
    )
    with pytest.raises(StoreError, match=message):
        extract_with(one_frame, teachers, tmp_path / "s.zarr", **{"teachers": (STRIDE_4,)} | options)
    assert not (tmp_path / "s.zarr").exists()


def hollow(state: State) -> State:
    """The same shapes, of one value each, which a file keeps once."""
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer3.5.bn1.weight": None}, r"1 missing: layer3\.5\.bn1\.weight\)"),
        ({"bn1.running_var": None}, r"1 missing: bn1\.running_var\)"),
        ({"layer3.6.conv1.weight": torch.zeros(2)}, r"1 unexpected: layer3\.6\.conv1\.weight\)"),
        (
            {"layer4.0.conv2.weight": torch.zeros(512, 32, 3, 3)},
            r"1 of another shape: layer4.* \(512, 32, 3, 3\), not",
        ),
        # A supervised training, as torchvision and timm publish it, or MoCo v1: all other names are the same.
        (
            {"fc.weight": torch.zeros(1000, 2), "fc.bias": torch.zeros(1000)},
            r"supervised or of MoCo v1, not of MoCo v2: 2 unexpected: fc\.weight, fc\.bias\)",
        ),
    ],
)
@pytest.mark.parametrize("layout", [published, dict])
def test_weights_of_another_network_are_said(encoder, tmp_path, layout, changes, message):
    state = {name: each for name, each in (hollow(encoder) | changes).items() if each is not None}
    torch.save(layout(state), tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=rf"w\.pth: the weights do not fit resnet50 \({message}"):
        load(tmp_path / "w.pth")


def test_a_momentum_encoder_alone_is_taken_and_said(caplog):
    name = "layer1.0.conv1.weight"
    of_keys = {f"module.encoder_k.{name}": torch.ones(1)}
    assert list(model_in({"state_dict": of_keys}, "w.pth").tensors) == [name]
    assert "w.pth: these weights are MoCo's momentum encoder; published features are those of encoder_q" in caplog.text
    caplog.clear()
    both = of_keys | {f"module.encoder_q.{name}": torch.zeros(1)}
    assert not model_in({"state_dict": both}, "w.pth").tensors[name].any()
    assert "momentum" not in caplog.text


def test_a_file_with_two_networks_is_refused(encoder, tmp_path):
    torch.save({"model": hollow(encoder), "model_ema": hollow(encoder)}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=r"several models \(model\.conv1\.weight, model_ema\.conv1\.weight\)"):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": "x_norm"}, "--feature: resnet50_moco_v2 is a ResNet and has no feature 'x_norm'. Leave out"),
        ({"feature": "layer4:1"}, "has no feature 'layer4:1'"),
        ({"pos_embed": "timm"}, "--pos-embed: resnet50_moco_v2 is a ResNet and has no position embeddings. Leave out"),
        ({"pos_embed": "official"}, "has no position embeddings"),
        ({"weights": "hub"}, "^resnet50_moco_v2: timm has no weights of this teacher. Download https://dl.*ep_pretrain.pth.tar"),
        ({"image_size": (64, 100)}, "no multiple of resnet50_moco_v2's patch size 32. Use .*: 64x96, 64x128"),
    ],
)  # fmt: skip
def test_what_a_resnet_does_not_have_is_said(options, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(STRIDE_32, **({"weights": "random"} | options))


def test_a_vit_has_no_last_map():
    with pytest.raises(TeacherError, match="unknown feature 'layer4'"):
        load_teacher("dinov2_vits14", weights="random", feature="layer4")
