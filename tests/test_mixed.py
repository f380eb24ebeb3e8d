"""Two lidars, two stores, one student."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from scalr.cli import main
from scalr.distill.augmentation import AugmentConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.dataset import DistillDataset, SamplingConfig
from scalr.distill.run import DistillConfig, distill
from scalr.distill.sampling import Draw, EpochBatches
from scalr.errors import StoreError

TEACHER = ("--teacher", "dinov2_vits14", "--weights", "random", "--image-size", "28x56", "--batch-size", 6)
SMALL = ("student.width=8", "student.depth=3", "training.epochs=2", "training.batch_size=2", "training.warmup_steps=1")


def scalr(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_distilled_from_two_stores_and_probed_on_each(simulated, tmp_path):
    stores = {"nuscenes": tmp_path / "n.zarr", "semantic_kitti": tmp_path / "k.zarr"}
    for name, store in stores.items():
        scalr("extract", *TEACHER, "--dataset", name, "--root", simulated(name), "--out", store, "--encoding", "patch")
    caches = [word for store in stores.values() for word in ("--cache", store)]
    overrides = [word for value in SMALL for word in ("--set", value)]
    output = scalr("distill", *caches, *overrides, "--out", tmp_path / "run")
    assert "4 steps" in output
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    sources = [[source["dataset"] for source in store["sources"]] for store in recorded["stores"]]
    assert sources == [[name] for name in stores]
    for name in stores:
        student = tmp_path / "run/student.safetensors"
        scalr("evaluate", "probe", "--student", student, "--dataset", name, "--root", simulated(name), "--fast",
              "--epochs", 1, "--out", tmp_path / name)  # fmt: skip
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert len(result["iou"]) == {"nuscenes": 16, "semantic_kitti": 19}[name]
        assert 0 < result["miou"] < 1


@pytest.fixture
def two_stores(extract_tiny, tiny_dataset):
    """Stores of three and of two frames, of lidars whose intensities differ."""
    first = extract_tiny()
    tiny_dataset.name, tiny_dataset.intensity = "other", type(tiny_dataset.intensity)(10.0, 5.0)
    tiny_dataset.frames = tiny_dataset.frames[:2]
    return first, extract_tiny(out="other.zarr")


def samples(store, seed: int = 0) -> DistillDataset:
    still = AugmentConfig(max_rotation_rad=0, flip_probability=0, max_scale_change=0)
    return DistillDataset(store, ("coordinates",), WaffleIronInputs(), SamplingConfig(), still, seed)


def test_each_frame_of_all_stores_is_drawn_once_an_epoch(two_stores):
    sizes = [len(samples(store)) for store in two_stores]
    draws = Counter(draw for batch in EpochBatches(sizes, 1, seed=0) for draw in batch)
    assert draws == {Draw(0, 0, 0): 1, Draw(0, 0, 1): 1, Draw(0, 0, 2): 1, Draw(1, 0, 0): 1, Draw(1, 0, 1): 1}


def test_each_lidar_keeps_its_own_intensities(two_stores):
    # Both stores hold the same two frames, and draw the same points of them with the same seed.
    first, second = (samples(store)[1, 0].scan.input.features[:, 0] for store in two_stores)
    np.testing.assert_allclose(first * 74.0 + 128.0, second * 5.0 + 10.0, rtol=1e-4)


def test_targets_that_differ_are_not_mixed(extract_tiny, tmp_path):
    one, other = extract_tiny(), extract_tiny(out="other.zarr", encoding="point")
    with pytest.raises(StoreError, match=r"cannot be mixed: encoding is 'patch' and 'point'"):
        distill(DistillConfig(caches=(one.path, other.path), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
