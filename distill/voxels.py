"""The points that represent their voxels."""

from __future__ import annotations

import numpy as np

from .compiled import compiled

EMPTY = -1
HASH_FACTOR = 0x9E3779B97F4A7C15  # Fibonacci hashing: 2^64 / golden ratio


def voxel_keys(xyz: np.ndarray, voxel_size_m: float) -> np.ndarray:
    """(N,) int64 keys of the points' voxels, in the lexicographic order of the voxels.

    The grid starts at the lowest coordinates of `xyz` (N, 3) [m] and is computed in their dtype.
    """
    if len(xyz) == 0:
        return np.empty(0, np.int64)
    keys, fits = _voxel_keys(xyz, xyz.dtype.type(voxel_size_m))
    if fits:
        return keys
    # With points that are far away, keys would overflow: coordinates are replaced by their ranks, in the same order.
    voxels = np.floor((xyz - xyz.min(axis=0)) / voxel_size_m)
    x, y, z = (np.unique(column, return_inverse=True)[1] for column in voxels.T)
    return (x * (y.max() + 1) + y) * (z.max() + 1) + z


def one_of_each(keys: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """One row per distinct key, in the order of the keys.

    A hash table finds the distinct keys, so that only these are sorted.

    Args:
        keys: (N,) non-negative int64.
        rng: draws one row of each key uniformly. None takes the first row.

    Returns:
        (V,) int64 rows.
    """
    draws = rng.random(len(keys)) if rng else np.ones(len(keys))
    rows = _one_of_each(keys, draws)
    return rows[np.argsort(keys[rows])]


@compiled
def _voxel_keys(xyz, size):
    """The keys, and whether all fit into 62 bits."""
    lows, highs = xyz[0].copy(), xyz[0].copy()
    for point in range(len(xyz)):
        for axis in range(3):
            value = xyz[point, axis]
            lows[axis], highs[axis] = min(lows[axis], value), max(highs[axis], value)
    keys = np.empty(len(xyz), np.int64)
    counts = np.floor(((highs - lows) / size).astype(np.float64)) + 1
    if not counts[0] * counts[1] * counts[2] < 2.0**62:
        return keys, False
    count_y, count_z = np.int64(counts[1]), np.int64(counts[2])
    for point in range(len(xyz)):
        x = np.int64((xyz[point, 0] - lows[0]) / size)
        y = np.int64((xyz[point, 1] - lows[1]) / size)
        z = np.int64((xyz[point, 2] - lows[2]) / size)
        keys[point] = (x * count_y + y) * count_z + z
    return keys, True


@compiled
def _one_of_each(keys, draws):
    bits = 4
    while 1 << bits < 2 * len(keys):
        bits += 1
    mask, shift = (1 << bits) - 1, np.uint64(64 - bits)
    voxel_in_slot = np.full(1 << bits, EMPTY, np.int32)
    rows = np.empty(len(keys), np.int64)
    sizes = np.empty(len(keys), np.int64)
    voxels = 0
    for row, key in enumerate(keys):
        slot = np.int64((np.uint64(key) * np.uint64(HASH_FACTOR)) >> shift)
        while voxel_in_slot[slot] != EMPTY and keys[rows[voxel_in_slot[slot]]] != key:
            slot = (slot + 1) & mask
        voxel = voxel_in_slot[slot]
        if voxel == EMPTY:
            voxel_in_slot[slot] = voxels
            rows[voxels], sizes[voxels] = row, 1
            voxels += 1
            continue
        sizes[voxel] += 1
        if draws[row] * sizes[voxel] < 1:  # the n-th point of a voxel is kept with probability 1/n
            rows[voxel] = row
    return rows[:voxels].copy()
