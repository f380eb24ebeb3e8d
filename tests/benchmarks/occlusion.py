"""How well occluded pairs are found, on the simulated world, where the truth is known.

    python tests/benchmarks/occlusion.py

*ViT patches* is the alternative that is not used: a z-buffer with cells of 14 pixels of 224 x 448, and a tolerance of
30 % + 1 m.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from scalr.extract.datasets.synthetic import (
    KITTI_RIG,
    NUSCENES_RIG,
    PANDAR64_RIG,
    PANDARGT_RIG,
    Rig,
    simulate_scene,
)
from scalr.extract.occlusion import hidden_pairs
from scalr.extract.projection import Calibration, inverse_rigid, project
from simulated_truth import near_an_edge, truly_hidden

SCENES = ("scene-0001", "scene-0002", "scene-0004", "scene-0005")
RIGS = {
    "nuScenes": NUSCENES_RIG,
    "nuScenes, 448 x 800": NUSCENES_RIG.with_image_shape((448, 800)),
    "SemanticKITTI": KITTI_RIG,
    "Pandar64": PANDAR64_RIG,
    "PandarGT": PANDARGT_RIG,
}


def patch_scale(pixel: np.ndarray, depth_m: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    row, column = (pixel * [16, 32] / image_shape).astype(np.int64).T
    nearest = np.full((16, 32), np.inf)
    np.minimum.at(nearest, (row, column), depth_m)
    return depth_m > 1.3 * nearest[row, column] + 1.0


class Counts:
    """The counts of one rig and one z-buffer."""

    def __init__(self) -> None:
        self.pairs = self.hidden = self.found = self.wrong = self.views = 0
        self.agree = {"all": [0, 0], "kept": [0, 0]}
        self.seconds = 0.0

    def add(self, hidden: np.ndarray, found: np.ndarray, same: np.ndarray, clear: np.ndarray, seconds: float) -> None:
        self.pairs, self.hidden = self.pairs + len(hidden), self.hidden + hidden.sum()
        self.found, self.wrong = self.found + (found & hidden).sum(), self.wrong + (found & ~hidden).sum()
        for name, counted in (("all", clear), ("kept", clear & ~found)):
            self.agree[name][0] += (same & counted).sum()
            self.agree[name][1] += counted.sum()
        self.seconds, self.views = self.seconds + seconds, self.views + 1

    def row(self, rig: str, way: str) -> str:
        agree = {name: same / counted for name, (same, counted) in self.agree.items()}
        dropped = self.found + self.wrong
        return (
            f"| {rig} | {way} | {self.hidden / self.pairs:.1%} | {self.found / self.hidden:.0%} |"
            f" {self.found / dropped:.0%} | {self.wrong / (self.pairs - self.hidden):.1%} |"
            f" {agree['all']:.1%} | {agree['kept']:.1%} | {1e3 * self.seconds / self.views:.1f} |"
        )


def measure(rig: Rig, ways: dict[str, Callable]) -> dict[str, Counts]:
    counts = {way: Counts() for way in ways}
    for name in SCENES:
        scene = simulate_scene(name, seed=0, rig=rig)
        sweep = scene.sweep(0)
        world_from_lidar = scene.world_from_ego(scene.time_us(0)) @ rig.lidar.ego_from_lidar
        for camera in rig.cameras:
            truth = scene.render(camera.channel, 0)
            world_from_cam = scene.world_from_ego(scene.time_us(0, camera.channel)) @ camera.ego_from_cam
            calibration = Calibration(
                cam_from_lidar=inverse_rigid(world_from_cam) @ world_from_lidar, intrinsics=camera.intrinsics
            )
            pairs = project(sweep.points, calibration, truth.depth.shape)
            at = tuple(pairs.pixel.T)
            same = sweep.category[pairs.point_index] == truth.category[at]
            for way, find in ways.items():
                start = time.perf_counter()
                found = find(pairs.pixel, pairs.depth_m, truth.depth.shape)
                seconds = time.perf_counter() - start
                counts[way].add(truly_hidden(pairs, truth), found, same, ~near_an_edge(truth.category)[at], seconds)
    return counts


def main() -> None:
    print("| lidar | cells of the z-buffer | occluded | recall | precision | false-positive rate |", end="")
    print(" agreement, all pairs | agreement, kept pairs | ms per view |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, rig in RIGS.items():
        for way, counts in measure(rig, {"half the spacing": hidden_pairs, "ViT patches": patch_scale}).items():
            print(counts.row(name, way), flush=True)


if __name__ == "__main__":
    main()
