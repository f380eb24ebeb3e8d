"""Bytes and errors of every encoding on real frames of four lidars, and what the full training sets would take.

    python tests/benchmarks/store_size.py ../shared/data

The folder has nuScenes, SemanticKITTI and PandaSet frames in their own layouts. Weights are random and seeded, so
values are those of an untrained ViT-L/14; counts of pairs and patches do not depend on them. PandaSet needs pandas.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.frame import Frame, View
from scalr.extract.encoding import ENCODINGS, sample_targets
from scalr.extract.estimate import patch_maps_of, write_sample
from scalr.extract.pipeline import PreparedFrame, PreparedView, prepare_frame, teacher_footprint
from scalr.extract.projection import Calibration, Visibility, inverse_rigid, project, rigid_transform
from scalr.extract.store import open_store
from scalr.extract.store.inspect import readable_bytes
from scalr.extract.teachers import Teacher, load_teacher

TRAINING_FRAMES = {"nuScenes": 28130, "SemanticKITTI": 19130, "Pandar64": 3920, "PandarGT": 3920}
PANDAR64_CAMERAS = ("front", "front_right", "right", "back", "left", "front_left")


def nuscenes(root: Path, teacher: Teacher) -> list[PreparedFrame]:
    dataset = open_dataset("nuscenes", root / "nuscenes", "mini_train")
    return [prepare_frame(dataset, frame, [teacher], "all") for frame in dataset.frames]


def semantic_kitti(root: Path, teacher: Teacher) -> list[PreparedFrame]:
    frames = []
    # 01/000008 is left out: its scan is cut to the camera's view already.
    for name in ("01/000001", "01/000002", "08/000000"):
        sequence, number = name.split("/")
        folder = root / "semantickitti/sequences" / sequence
        rows = dict(line.split(":", 1) for line in (folder / "calib.txt").read_text().splitlines() if ":" in line)
        matrix = {key: np.array(rows[key].split(), dtype=np.float64).reshape(3, 4) for key in ("P2", "Tr")}
        points = np.fromfile(folder / f"velodyne/{number}.bin", dtype=np.float32).reshape(-1, 4)
        # P2 = K [1 | t]: the translation belongs to the camera's pose.
        intrinsics = matrix["P2"][:, :3]
        offset = rigid_transform(np.eye(3), np.linalg.solve(intrinsics, matrix["P2"][:, 3]))
        calibration = Calibration(
            cam_from_lidar=offset @ np.vstack([matrix["Tr"], [0, 0, 0, 1]]), intrinsics=intrinsics
        )
        ahead = points[:, 0] > 1
        image = folder / f"image_2/{number}.png"
        frames.append(_frame(teacher, name, points, [(image, points, ahead, calibration, Visibility(min_depth_m=0))]))
    return frames


def pandaset(root: Path, teacher: Teacher, sensor: int, cameras: tuple[str, ...]) -> list[PreparedFrame]:
    import pandas

    scene, frames = root / "pandaset/002", []
    for number in range(2):
        table = pandas.read_pickle(scene / f"lidar/{number:02d}.pkl.gz")
        world = table[table.d == sensor][["x", "y", "z", "i"]].to_numpy()
        lidar_pose = inverse_rigid(_pose(json.loads((scene / "lidar/poses.json").read_text())[number]))
        points = world.astype(np.float32)
        points[:, :3] = world[:, :3] @ lidar_pose[:3, :3].T + lidar_pose[:3, 3] - [0, 0, 1.6]
        views = []
        for camera in cameras:
            folder = scene / f"camera/{camera}_camera"
            intrinsics = json.loads((folder / "intrinsics.json").read_text())
            matrix = np.array(
                [[intrinsics["fx"], 0, intrinsics["cx"]], [0, intrinsics["fy"], intrinsics["cy"]], [0, 0, 1]]
            )
            pose = inverse_rigid(_pose(json.loads((folder / "poses.json").read_text())[number]))
            calibration = Calibration(cam_from_lidar=pose, intrinsics=matrix)
            everything = np.ones(len(world), dtype=bool)
            visibility = Visibility(min_depth_m=0, border_px=0)
            views.append((folder / f"{number:02d}.jpg", world, everything, calibration, visibility))
        frames.append(_frame(teacher, f"{sensor}-{number}", points, views))
    return frames


def _pose(record: dict) -> np.ndarray:
    from pyquaternion import Quaternion

    heading, position = record["heading"], record["position"]
    rotation = Quaternion(*(heading[axis] for axis in "wxyz")).rotation_matrix
    return rigid_transform(rotation, np.array([position[axis] for axis in "xyz"]))


def _frame(teacher: Teacher, token: str, points: np.ndarray, views: list) -> PreparedFrame:
    prepared, records = [], []
    for image_path, to_project, allowed, calibration, visibility in views:
        image = np.array(Image.open(image_path).convert("RGB"))
        pairs = project(to_project, calibration, image.shape[:2], visibility)
        kept = allowed[pairs.point_index]
        prepared.append(
            PreparedView(image.shape[:2], pairs.point_index[kept], pairs.pixel[kept], [teacher.prepare(image)])
        )
        records.append(
            View(camera=image_path.parent.name, image="", image_shape=image.shape[:2], calibration=calibration)
        )
    frame = Frame(dataset="nuscenes", scene="", token=token, timestamp=0, scan="", labels=None, views=tuple(records))
    return PreparedFrame(frame, points, prepared)


def visible_only(prepared: PreparedFrame) -> PreparedFrame:
    seen = np.unique(np.concatenate([view.point_index for view in prepared.views]))
    views = [
        PreparedView(view.image_shape, np.searchsorted(seen, view.point_index).astype(np.uint32), view.pixel, [])
        for view in prepared.views
    ]
    return PreparedFrame(prepared.frame, prepared.points[seen], views)


def errors(path: Path, teacher: Teacher, frames: list[PreparedFrame], patch_maps: list[torch.Tensor]) -> dict:
    """Of decoded against exact float32 targets, at the pairs."""
    store, generator = open_store(path), torch.Generator().manual_seed(0)
    cosines, bounds, changes = [], [], []
    views = [view for frame in frames for view in frame.views]
    for row, (view, patch_map) in enumerate(zip(views, patch_maps, strict=True)):
        exact = sample_targets(patch_map, teacher_footprint(teacher, view.pixel, view.image_shape))
        exact = F.normalize(exact, dim=1)
        kept = F.normalize(torch.from_numpy(store.read_view(row, teacher.name).targets), dim=1)
        cosines.append((exact.double() * kept.double()).sum(1))
        bounds.append(torch.linalg.vector_norm(exact - kept, dim=1))
        # A student whose loss is about 0.7, as in the middle of a training.
        noise = F.normalize(torch.randn(exact.shape, generator=generator), dim=1)
        student = F.normalize(exact + 0.75 * noise, dim=1)
        changes.append(
            torch.linalg.vector_norm(student - kept, dim=1) - torch.linalg.vector_norm(student - exact, dim=1)
        )
    cosines, bounds, changes = torch.cat(cosines), torch.cat(bounds), torch.cat(changes)
    return {
        "mean": cosines.mean().item(),
        "worst": cosines.min().item(),
        "bound": bounds.mean().item(),
        "change": changes.double().mean().item(),
    }


def main(root: Path) -> None:
    teacher = load_teacher("dinov2_vitl14", weights="random")
    lidars = {"nuScenes": nuscenes(root, teacher), "SemanticKITTI": semantic_kitti(root, teacher)}
    if importlib.util.find_spec("pandas"):
        lidars["Pandar64"] = pandaset(root, teacher, 0, PANDAR64_CAMERAS)
        lidars["PandarGT"] = pandaset(root, teacher, 1, ("front",))
    else:
        print("PandaSet is left out: its files need pandas (pip install 'pandas<3').")
    print("| lidar | encoding | bytes/pair | MB/frame | full set | mean cosine | worst | loss change | loss bound |")
    print("|---|---|---|---|---|---|---|---|---|")
    totals: dict[str, float] = {}
    scans: dict[str, dict[str, float]] = {}
    for lidar, frames in lidars.items():
        patch_maps = patch_maps_of(teacher, 0, frames, 8)
        raw = sum(len(view.pixel) for frame in frames for view in frame.views) * 2 * teacher.dim
        totals["raw float16"] = totals.get("raw float16", 0) + raw / len(frames) * TRAINING_FRAMES[lidar]
        for encoding in ENCODINGS:
            name = f"{encoding.layout} {encoding.dtype}"
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "s.zarr"
                report = write_sample(path, "nuscenes", "train", frames, [teacher], [patch_maps], encoding)
                found = errors(path, teacher, frames, patch_maps)
            targets = report.teachers[teacher.name]
            full = targets.bytes / len(frames) * TRAINING_FRAMES[lidar]
            totals[name] = totals.get(name, 0) + full
            print(
                f"| {lidar} | {name} | {targets.bytes_per_pair:.1f} | {targets.bytes / len(frames) / 1e6:.2f} |"
                f" {readable_bytes(full)} | {found['mean']:.6f} | {found['worst']:.6f} | {found['change']:+.1e} |"
                f" {found['bound']:.1e} |",
                flush=True,
            )
        for points, kept in {"all": frames, "visible": [visible_only(frame) for frame in frames]}.items():
            with tempfile.TemporaryDirectory() as folder:
                report = write_sample(Path(folder) / "s.zarr", "nuscenes", "train", kept, [], [], ENCODINGS[0])
            scans.setdefault(points, {})[lidar] = report.scans.bytes / len(frames) * TRAINING_FRAMES[lidar]
            pairs = sum(report.pairs.values())
            print(
                f"| {lidar} | scans and pairs, --points {points} | {report.scans.bytes / pairs:.1f} |"
                f" {report.scans.bytes / len(frames) / 1e6:.2f} | {readable_bytes(scans[points][lidar])} | | | | |"
                f" <!-- {pairs} pairs in {len(frames)} frames -->",
                flush=True,
            )
    print("\nThe training sets together:")
    for name, total in totals.items():
        print(f"  {name:<16} targets {readable_bytes(total):>8}", end="")
        for points, sizes in scans.items():
            print(f", with scans ({points}) {readable_bytes(total + sum(sizes.values())):>8}", end="")
        print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
