"""The whole chain of transforms, from the simulated world's files to the store, against the simulator's own truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, minimum_filter

from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.frame import read_bytes
from scalr.extract.datasets.synthetic import simulate_scene
from scalr.extract.projection import project

EDGE_PX = 2


def near_an_edge(category: np.ndarray) -> np.ndarray:
    """(H, W) bool: within EDGE_PX pixels of another class."""
    size = 2 * EDGE_PX + 1
    return maximum_filter(category, size) != minimum_filter(category, size)


@pytest.fixture(scope="module")
def stored_pairs(synthetic_world, tmp_path_factory):
    """Every pair of the store: class of its point, class shown at its pixel, hidden or not, near an edge or not."""
    from scalr.extract import run
    from scalr.extract.store import open_store

    path = tmp_path_factory.mktemp("chain") / "s.zarr"
    run.extract(
        run.ExtractConfig(
            root=synthetic_world, out=path, teachers=("dinov2_vits14",), weights="random", image_size=(28, 56)
        )
    )
    store, dataset = open_store(path), open_dataset("nuscenes", synthetic_world, "train")
    frames = {frame.token: (frame, number) for number, frame in enumerate(dataset.frames)}
    columns = []
    for row, record in enumerate(store.views.to_pylist()):
        frame, keyframe = frames[record["token"]]
        truth = simulate_scene(record["scene"], seed=0).render(record["camera"], keyframe)
        stored = store.read_view(row)
        raw_labels = np.frombuffer(read_bytes(synthetic_world / frame.labels), dtype=np.uint8)
        calibration = next(view.calibration for view in frame.views if view.camera == record["camera"])
        depth = project(stored.points, calibration, truth.depth.shape).depth_m
        at = tuple(stored.pixel.T)
        hidden = depth > 1.02 * truth.depth[at] + 0.3  # range noise, and the depth that one pixel spans
        columns.append(
            np.stack([raw_labels[stored.point_index], truth.category[at], hidden, near_an_edge(truth.category)[at]])
        )
    return np.concatenate(columns, axis=1)


def test_targets_are_read_where_their_points_are_seen(stored_pairs, record_property):
    point_class, pixel_class, hidden, edge = stored_pairs
    counted = (hidden == 0) & (edge == 0)
    share = (point_class == pixel_class)[counted].mean()
    record_property("agreement", float(share))
    record_property("hidden", float(hidden.mean()))
    assert counted.sum() > 5000
    assert share >= 0.995


def test_few_pairs_are_hidden_from_their_camera(stored_pairs):
    """The lidar sits above the cameras and sees over things: some pairs are hidden, most are not."""
    hidden = stored_pairs[2].mean()
    assert 0.001 < hidden < 0.15
