"""A tiny dataset built in code, and teachers whose features are pixel coordinates."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from moments import Meeting
from scalr.extract import run
from scalr.extract.datasets.frame import Frame, View
from scalr.extract.intensity import IntensityStatistics
from scalr.extract.projection import Calibration, Visibility
from scalr.extract.run import ExtractConfig
from scalr.extract.store import FeatureStore, open_store
from scalr.extract.teachers.teacher import Preprocessing, TeacherProvenance

# Camera axes (right, down, forward) seen from a lidar with x forward, y left, z up.
CAM_FROM_LIDAR_ROTATION = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


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
    intensity = IntensityStatistics(128.0, 74.0)

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
    model, live_tensors = torch.nn.Identity(), 16
    preprocessing = Preprocessing((24, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), device)
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
        activation="none",
        norm_eps=0.0,
        pos_embed="timm",
        precision="float32",
    )

    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
        return torch.stack([rows, columns, torch.ones(6, 8)], dim=-1).expand(len(images), -1, -1, -1)


class OtherTeacher(CoordinateTeacher):
    """A second teacher: the same features, doubled."""

    name = "doubled"
    provenance = replace(CoordinateTeacher.provenance, teacher="doubled")

    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * super().patch_maps(images)


def tiny_teachers() -> dict[str, CoordinateTeacher]:
    return {"coordinates": CoordinateTeacher(), "doubled": OtherTeacher()}


def extract_with(dataset: TinyDataset, available: dict, out: Path, **options) -> FeatureStore:
    """`extract` as users call it, with this dataset and these teachers in place of real ones."""
    with (
        mock.patch.object(run, "open_dataset", return_value=dataset),
        mock.patch.object(run, "load_teacher", lambda name, **_: available[name]),
    ):
        run.extract(ExtractConfig(root=dataset.root, out=out, **options))
    return open_store(out)


def extract_in_child(root: Path, out: Path, num_frames: int, options: dict, meeting: Meeting) -> None:
    """The same from a process of its own; a tiny dataset is always the same. Each change of the store is a moment."""
    meeting.at_changes_below(out)
    extract_with(TinyDataset(root, num_frames), tiny_teachers(), out, **options)
    out.with_suffix(".moments").write_text(str(meeting.passed))


def killing_extractor(config):
    """An extractor whose worker dies with every block."""
    return lambda blocks: os._exit(1)
