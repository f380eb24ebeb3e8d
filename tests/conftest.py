"""A tiny dataset built in code, a teacher whose features are pixel coordinates, and the real frames where they are."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from scalr.extract import run
from scalr.extract.datasets.frame import Frame, View
from scalr.extract.datasets.synthetic import write_nuscenes
from scalr.extract.projection import Calibration, Visibility
from scalr.extract.run import ExtractConfig
from scalr.extract.store import FeatureStore, open_store
from scalr.extract.teachers import TeacherProvenance

settings.register_profile("scalr", deadline=None)  # machines are noisy
settings.load_profile("scalr")

REAL_DATA = Path(os.environ.get("SCALR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

# Camera axes (right, down, forward) seen from a lidar with x forward, y left, z up.
CAM_FROM_LIDAR_ROTATION = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


@pytest.fixture(scope="session")
def real_nuscenes() -> Path:
    """The folder of one real nuScenes keyframe; tests that use it are skipped where it is not."""
    root = REAL_DATA / "nuscenes"
    if not root.is_dir():
        pytest.skip(f"real nuScenes keyframe not found at {root} (set SCALR_TEST_DATA)")
    return root


def look_along_x(width: int = 64, height: int = 48, focal_px: float = 40.0) -> Calibration:
    """A camera at the lidar's place, looking along the lidar's x axis."""
    matrix = np.eye(4)
    matrix[:3, :3] = CAM_FROM_LIDAR_ROTATION
    intrinsics = np.array([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1.0]])
    return Calibration(cam_from_lidar=matrix, intrinsics=intrinsics)


class TinyDataset:
    """Frames of random points around the sensor, each seen by two cameras with random images."""

    name = "nuscenes"
    split = "train"
    class_names = ("left", "right")
    visibility = Visibility()

    def __init__(self, root: Path, num_frames: int = 3, num_points: int = 400) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        self._points = {}
        self.frames = [self._make_frame(number, rng, num_points) for number in range(num_frames)]

    def read_points(self, frame: Frame) -> np.ndarray:
        return self._points[frame.token]

    def read_labels(self, frame: Frame) -> np.ndarray:
        return (self._points[frame.token][:, 1] < 0).astype(np.uint8)

    def _make_frame(self, number: int, rng: np.random.Generator, num_points: int) -> Frame:
        token = f"frame{number}"
        xyz = rng.uniform([-30, -30, -3], [30, 30, 5], (num_points, 3))
        self._points[token] = np.hstack([xyz, rng.uniform(0, 255, (num_points, 1))]).astype(np.float32)
        views = []
        for camera in ("LEFT", "RIGHT"):
            image = f"{token}_{camera}.png"
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(self.root / image)
            calibration = look_along_x(focal_px=40.0 if camera == "LEFT" else 30.0)
            views.append(View(camera=camera, image=image, image_shape=(48, 64), calibration=calibration))
        return Frame(
            dataset=self.name,
            scene=f"scene{number // 2}",
            token=token,
            timestamp=number,
            scan=f"{token}.bin",
            labels=None,
            views=tuple(views),
        )


class CoordinateTeacher:
    """Its feature of patch (i, j) is (i, j, 1): a target then says which pixel was read."""

    name, patch_size, dim, image_size, device = "coordinates", 4, 3, (24, 32), torch.device("cpu")
    provenance = TeacherProvenance(
        teacher="coordinates",
        model="none",
        weights="random",
        weights_sha256="0" * 64,
        feature="x_prenorm",
        image_size=(24, 32),
        patch_size=4,
        dim=3,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        pos_embed="timm",
        precision="float32",
    )

    def prepare(self, image: np.ndarray) -> torch.Tensor:
        return torch.zeros(3, *self.image_size)

    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
        return torch.stack([rows, columns, torch.ones(6, 8)], dim=-1).expand(len(images), -1, -1, -1)


class OtherTeacher(CoordinateTeacher):
    """A second teacher: the same features, doubled."""

    name = "doubled"
    provenance = replace(CoordinateTeacher.provenance, teacher="doubled")

    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * super().patch_maps(images)


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> TinyDataset:
    folder = tmp_path / "tiny"
    folder.mkdir()
    return TinyDataset(folder)


@pytest.fixture
def extract_tiny(tiny_dataset, tmp_path, monkeypatch):
    """Call with teacher names to extract the tiny dataset; gives the store."""
    teachers = {"coordinates": CoordinateTeacher(), "doubled": OtherTeacher()}
    monkeypatch.setattr(run, "open_dataset", lambda *_: tiny_dataset)
    monkeypatch.setattr(run, "load_teacher", lambda name, **_: teachers[name])

    def call(*names: str, out: str = "s.zarr", **options) -> FeatureStore:
        config = ExtractConfig(
            root=tiny_dataset.root, out=tmp_path / out, teachers=names or ("coordinates",), **options
        )
        run.extract(config)
        return open_store(tmp_path / out)

    call.teachers = teachers
    return call


@pytest.fixture(scope="session")
def synthetic_world(tmp_path_factory) -> Path:
    """A simulated world of one training and one validation scene, two keyframes each; not to be written to."""
    root = tmp_path_factory.mktemp("synthetic") / "world"
    write_nuscenes(root, train_scenes=1, val_scenes=1, keyframes=2, seed=0)
    return root
