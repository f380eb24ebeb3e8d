"""The whole chain of transforms, from the simulated world's files to the store, against the simulator's own truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scalr.extract import run
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_bytes
from scalr.extract.datasets.synthetic import simulate_scene, write_world
from scalr.extract.projection import project
from scalr.extract.store import open_store
from simulated_truth import near_an_edge, truly_hidden


def pairs_of_a_world(folder: Path, **size: int) -> np.ndarray:
    """Every pair of the store of a world, as rows: class of its point, class shown at its pixel, whether it is hidden
    from the camera, whether the pixel is near an edge, whether point or pixel belong to something that moves.
    """
    write_world(folder / "world", val_scenes=0, seed=0, **size)
    run.extract(
        run.ExtractConfig(
            root=folder / "world",
            out=folder / "s.zarr",
            teachers=("dinov2_vits14",),
            weights=("random",),
            image_size=(28, 56),
            batch_size=6,
        )
    )
    store, dataset = open_store(folder / "s.zarr"), open_dataset("nuscenes", folder / "world", "train")
    scenes = {}
    for frame in dataset.frames:
        scenes.setdefault(frame.scene, []).append(frame.token)
    frames = {frame.token: frame for frame in dataset.frames}
    return np.concatenate(
        [
            describe_pairs(
                store.read_view(row), view, dataset, frames[view["token"]], scenes[view["scene"]].index(view["token"])
            )
            for row, view in enumerate(store.views.to_pylist())
        ],
        axis=1,
    )


@pytest.fixture(scope="module")
def stored_pairs(tmp_path_factory):
    return pairs_of_a_world(tmp_path_factory.mktemp("chain"), train_scenes=3, keyframes=1)


def describe_pairs(stored, view: dict, dataset, frame, keyframe: int) -> np.ndarray:
    scene = simulate_scene(view["scene"], seed=0)
    sweep, truth = scene.sweep(keyframe), scene.render(view["camera"], keyframe)
    np.testing.assert_allclose(sweep.points, stored.points)
    raw_labels = np.frombuffer(read_bytes(dataset.root / frame.labels), dtype=np.uint8)
    calibration = next(each.calibration for each in frame.views if each.camera == view["camera"])
    hidden = truly_hidden(project(stored.points, calibration, truth.depth.shape), truth)
    at = tuple(stored.pixel.T)
    is_moving = np.concatenate([[False], scene.world.is_moving])
    moving = is_moving[sweep.instance[stored.point_index]] | is_moving[truth.instance[at]]
    edge = near_an_edge(truth.category)[at]
    return np.stack([raw_labels[stored.point_index], truth.category[at], hidden, edge, moving])


def agreement(pairs: np.ndarray) -> tuple[float, float]:
    """Share of pairs, neither hidden nor near an edge, whose pixel shows the class of their point: all, and static."""
    point_class, pixel_class, hidden, edge, moving = pairs
    counted = (hidden == 0) & (edge == 0)
    agree = point_class == pixel_class
    return agree[counted].mean(), agree[counted & (moving == 0)].mean()


def test_targets_are_read_where_their_points_are_seen(stored_pairs):
    every, static = agreement(stored_pairs)
    assert stored_pairs.shape[1] > 30_000
    assert static >= 0.999
    assert every >= 0.985  # what moves is elsewhere by the time the camera fires, and scenes differ in how much does


def test_few_pairs_are_hidden_from_their_camera(stored_pairs):
    """The lidar sits above the cameras and sees over things: some pairs are hidden, most are not."""
    assert 0.02 < stored_pairs[2].mean() < 0.15


@pytest.mark.slow
def test_targets_of_a_whole_world(tmp_path):
    """The default world's training scenes, moving objects counted: its size evens out what single frames hold."""
    pairs = pairs_of_a_world(tmp_path, train_scenes=4, keyframes=10)
    every, static = agreement(pairs)
    print(f"agreement {every:.4%}, of what stands still {static:.4%}; hidden {pairs[2].mean():.2%}")
    assert static >= 0.999
    assert every >= 0.995
