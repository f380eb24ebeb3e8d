"""The loss from the store is the loss with the teacher beside the student, as the official code has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scalr.distill.augmentation import AugmentConfig
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.dataset import DistillBatch, DistillCollate, DistillDataset, SamplingConfig
from scalr.distill.objective import DistillObjective, ObjectiveConfig
from scalr.distill.student import Student
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.run import ExtractConfig, extract
from scalr.extract.store import FeatureStore, open_store
from scalr.extract.teachers.teacher import Teacher, load_teacher
from small_store import KEPT_AS

TEACHER, IMAGE_SIZE = "dinov2_vits14", (56, 112)
STILL = AugmentConfig(max_rotation_rad=0, flip_probability=0, max_scale_change=0)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(TEACHER, image_size=IMAGE_SIZE, weights="random")


def online_targets(teacher: Teacher, image: np.ndarray, pixel: torch.Tensor) -> torch.Tensor:
    """The official read-out: the map upsampled whole, and indexed at the scaled pixel, floored twice."""
    patch_map = teacher.patch_maps(teacher.preprocessing.apply(image)[None])[0]
    upsampled = F.interpolate(
        patch_map.permute(2, 0, 1)[None].float(), scale_factor=14, mode="bilinear", align_corners=True
    )[0]
    scaled = pixel.double() * torch.tensor(IMAGE_SIZE) / torch.tensor(image.shape[:2])
    row, column = scaled.floor().long().T
    return upsampled[:, row, column].T


def pixels_of(store: FeatureStore, batch: DistillBatch) -> list[torch.Tensor]:
    """The pixels of each sample's points, found by their coordinates."""
    pixels = []
    xyz = batch.inputs.features[:, 1:4].split(batch.inputs.scan_offsets.diff().tolist())
    for sample, points in zip(batch.samples, xyz, strict=True):
        view = store.read_view(sample.rows[0])
        seen = view.points[view.point_index, :3].tolist()
        pixel_of = {tuple(point): tuple(pixel) for point, pixel in zip(seen, view.pixel.tolist(), strict=True)}
        pixels.append(torch.tensor([pixel_of[tuple(point)] for point in points.tolist()]))
    return pixels


@pytest.mark.parametrize(
    ("encoding", "dtype"), [pytest.param("point", "float16", marks=pytest.mark.slow), *KEPT_AS[1:]]
)
def test_cached_loss_equals_online_loss(synthetic_world, teacher, tmp_path: Path, encoding, dtype):
    path = tmp_path / "s.zarr"
    extract(
        ExtractConfig(teachers=(TEACHER,), root=synthetic_world, out=path, image_size=IMAGE_SIZE,
                      weights=("random",), encoding=encoding, dtype=dtype)
    )  # fmt: skip
    store, dataset = open_store(path), open_dataset("nuscenes", synthetic_world, "train")
    samples = DistillDataset(store, (TEACHER,), WaffleIronInputs(), SamplingConfig(), STILL, seed=0)
    batch = DistillCollate(WaffleIronInputs())([samples[0, 0], samples[0, 1]])
    views = store.views.take([sample.rows[0] for sample in batch.samples]).to_pylist()
    online = []
    for view, pixel in zip(views, pixels_of(store, batch), strict=True):
        (frame,) = [frame for frame in dataset.frames if frame.token == view["token"]]
        (record,) = [record for record in frame.views if record.camera == view["camera"]]
        online.append(online_targets(teacher, read_image(dataset.root, record), pixel))
    exact = torch.cat(online)

    torch.manual_seed(0)
    student = Student(WaffleIronConfig(width=16, depth=3, out_channels=384)).eval()
    objective = DistillObjective(student, ObjectiveConfig(), (1.0,), 384)
    with torch.no_grad():
        cached_loss = objective(batch)[0].item()
        features = F.normalize(student(batch.inputs), dim=1)
        online_loss = (features - F.normalize(exact, dim=1)).norm(dim=1).mean().item()
    difference = abs(cached_loss - online_loss)
    if dtype == "float16":
        assert difference < 1e-3 * online_loss
    else:  # docs/store_format.md: rounding turns a vector by about its peak over its rms / 440
        peak_over_rms = exact.abs().amax(dim=1) / exact.square().mean(dim=1).sqrt()
        assert difference < (peak_over_rms / 440).mean().item()
