"""What can go wrong with a lidar, for `scalr corrupt`: Robo3D's motion blur, missing beams, crosstalk, incomplete
echoes and another sensor.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

CROSSTALK_SPREAD = 3.0  # standard deviation, of coordinates [m] and raw intensity alike
MIN_ECHO_POINTS = 10  # of a class; fewer are left alone


def motion_blur(xyz: np.ndarray, std_m: float, rng: np.random.Generator) -> np.ndarray:
    """(N, 3): the whole scan moved by one draw, and each point by a smaller one of its own, at most 3 `std_m`."""
    shift = rng.normal(0, std_m, 3)
    jitter = rng.normal(0, [0.1 * std_m, 0.1 * std_m, 0.05 * std_m], xyz.shape)
    return xyz + shift + np.clip(jitter, -3 * std_m, 3 * std_m)


def beam_missing(ring: np.ndarray, count: int, rings: range, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool, the points that stay: `count` rings are drawn from `rings`, with replacement, and lost."""
    return ~np.isin(ring, rng.choice(rings, count))


def crosstalk(num_points: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the points hit, `share` of all, and what is added to x, y, z [m] and raw intensity of each: (K, 4)."""
    rows = rng.choice(num_points, int(share * num_points), replace=False)
    return rows, rng.normal(0, CROSSTALK_SPREAD, (len(rows), 4))


def incomplete_echo(labels: np.ndarray, share: float, classes: Collection[int], rng: np.random.Generator) -> np.ndarray:
    """(N,) bool, the points that stay: each of `classes` loses `share` of its points, where it has over ten."""
    stays = np.ones(len(labels), dtype=bool)
    for train_id in classes:
        rows = np.flatnonzero(labels == train_id)
        if len(rows) > MIN_ECHO_POINTS:
            stays[rng.choice(rows, int(share * len(rows)), replace=False)] = False
    return stays


def cross_sensor(ring: np.ndarray, lost: Collection[int]) -> np.ndarray:
    """(N,) int64, the rows that stay: without the rings `lost`, every second point of the rest."""
    return np.flatnonzero(~np.isin(ring, list(lost)))[::2]


def rings_of_turns(xyz: np.ndarray, last: int = 63) -> np.ndarray:
    """(N,) int64 ring of each point of a scan that is stored ring by ring without saying so, as KITTI's.

    A turn begins ahead and goes left; a new ring begins where the azimuth jumps from its end to its start.
    """
    turn = np.arctan2(xyz[:, 1], xyz[:, 0]) / (2 * np.pi) % 1
    begins = (turn[1:] < 0.2) & (turn[:-1] > 0.8)
    return np.minimum(np.concatenate([[0], np.cumsum(begins)]), last)
