"""Kernel maps: for each kernel offset, the input voxels that it is applied to and the output voxels of the results.

A compiled loop makes them once per scan and grid, with a hash table of the voxels' keys (`voxels.voxel_keys`); `packed`
joins the maps of several scans. A voxel of level l has the edge of 2^l voxels of the finest level.

Kernel offsets are numbered as in MinkowskiEngine, axis 0 fastest. In a kernel of 3, offset 0 is (-1, -1, -1), 1 is
(0, -1, -1), 13 is (0, 0, 0). In a kernel of 2, which extends in the positive direction only, 0 is (0, 0, 0), 1 is
(1, 0, 0).

Letters in shapes: N rows of points, M voxels, P pairs of an input and an output voxel, K kernel offsets, B scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ...compiled import compiled
from ...voxels import HASH_FACTOR
from .voxels import BITS

NONE = -1  # no voxel: a free slot of a hash table, or a neighbour that does not exist
LEVELS = 5
CENTRE = 13  # the offset (0, 0, 0) of a kernel of 3


class OccupiedVoxels(NamedTuple):
    """The voxels of a scan, in the order of their first points."""

    keys: np.ndarray  # (M,) int64
    first: np.ndarray  # (M,) int64, the first row in each voxel
    of_row: np.ndarray  # (N,) int64, the voxel of each row


class Pairs(NamedTuple):
    """The pairs of one scan, grouped by kernel offset, without `CENTRE`; output voxels ascend within a group."""

    source: np.ndarray  # (P,) int32 input voxel
    target: np.ndarray  # (P,) int32 output voxel
    counts: np.ndarray  # (K,) int64 number of pairs per offset


class ScanMaps(NamedTuple):
    """All kernel maps of one scan."""

    sizes: tuple[int, ...]  # number of voxels per level
    neighbours: tuple[Pairs, ...]  # per level: kernel of 3, stride 1
    children: tuple[Pairs, ...]  # per level except the last, to the next: kernel of 2, stride 2


def occupied_voxels(keys: np.ndarray) -> OccupiedVoxels:
    """The distinct voxels among keys (N,)."""
    return OccupiedVoxels(*_distinct(keys)[:3])


def scan_maps(keys: np.ndarray) -> ScanMaps:
    """The kernel maps of distinct keys (M,), the voxels of level 0."""
    sizes, neighbours, children = [len(keys)], [Pairs(*_neighbours(keys))], []
    for _ in range(1, LEVELS):
        coarse, *pairs = _children(keys)
        children.append(Pairs(*pairs))
        neighbours.append(Pairs(*_neighbours(coarse)))
        sizes.append(len(coarse))
        keys = coarse
    return ScanMaps(tuple(sizes), tuple(neighbours), tuple(children))


@dataclass(frozen=True, eq=False)
class KernelMap:
    """The pairs of a batch, grouped by kernel offset; output rows ascend within a group.

    Attributes:
        source, target: (P,) int32, input and output row of each pair.
        counts: number of pairs of each of the K offsets.
        num_sources, num_targets: numbers of input and output rows.
        has_centre: whether each row is also paired with itself at offset `CENTRE`; these pairs are not listed.
    """

    source: torch.Tensor
    target: torch.Tensor
    counts: tuple[int, ...]
    num_sources: int
    num_targets: int
    has_centre: bool

    def swapped(self) -> KernelMap:
        """The map from outputs to inputs, for the transposed convolution."""
        return replace(
            self,
            source=self.target,
            target=self.source,
            num_sources=self.num_targets,
            num_targets=self.num_sources,
        )


def packed(scans: Sequence[Pairs], sources: Sequence[int], targets: Sequence[int]) -> KernelMap:
    """The map of B scans, whose voxels are concatenated.

    Args:
        scans: the pairs of each scan.
        sources, targets: (B,) numbers of input and output voxels of each scan.
    """
    counts = np.stack([pairs.counts for pairs in scans])
    source, target = _joined(
        np.concatenate([pairs.source for pairs in scans]),
        np.concatenate([pairs.target for pairs in scans]),
        counts,
        np.cumsum([0, *sources]),
        np.cumsum([0, *targets]),
    )
    return KernelMap(
        source=torch.from_numpy(source),
        target=torch.from_numpy(target),
        counts=tuple(counts.sum(axis=0).tolist()),
        num_sources=sum(sources),
        num_targets=sum(targets),
        has_centre=counts.shape[1] > CENTRE,
    )


@compiled
def _slot(key, table, shift, keys):
    """The slot of a key in a hash table of rows of `keys`, or the free slot for it."""
    slot = np.int64((np.uint64(key) * np.uint64(HASH_FACTOR)) >> shift)
    while table[slot] != NONE and keys[table[slot]] != key:
        slot = (slot + 1) & (len(table) - 1)
    return slot


@compiled
def _distinct(rows):
    """Distinct keys by first occurrence, first row of each, index of each row's key, hash table and its shift."""
    bits = 4
    while (1 << bits) < 2 * len(rows):
        bits += 1
    table, shift = np.full(1 << bits, NONE, np.int32), np.uint64(64 - bits)
    keys = np.empty(len(rows), np.int64)
    first = np.empty(len(rows), np.int64)
    number = np.empty(len(rows), np.int64)
    count = 0
    for row in range(len(rows)):
        slot = _slot(rows[row], table, shift, keys)
        if table[slot] == NONE:
            table[slot], keys[count], first[count] = count, rows[row], row
            count += 1
        number[row] = table[slot]
    return keys[:count].copy(), first[:count].copy(), number, table, shift


@compiled
def _neighbours(keys):
    """Pairs of a kernel of 3 with stride 1, without the centre: each voxel with its existing neighbours."""
    _, _, _, table, shift = _distinct(keys)
    count = len(keys)
    found = np.full((27, count), NONE, np.int32)
    for k in range(CENTRE):  # the other offsets are opposite to these
        step = (k % 3 - 1 << 2 * BITS) + (k // 3 % 3 - 1 << BITS) + (k // 9 - 1)
        for row in range(count):
            other = table[_slot(keys[row] + step, table, shift, keys)]
            if other != NONE:
                found[k, row] = other
                found[26 - k, other] = row
    counts = np.zeros(27, np.int64)
    for k in range(27):
        for row in range(count):
            counts[k] += found[k, row] != NONE
    source = np.empty(counts.sum(), np.int32)
    target = np.empty(counts.sum(), np.int32)
    pair = 0
    for k in range(27):
        for row in range(count):
            if found[k, row] != NONE:
                source[pair], target[pair] = found[k, row], row
                pair += 1
    return source, target, counts


@compiled
def _children(keys):
    """Keys of the next level, and pairs of a kernel of 2 with stride 2: each voxel with the larger voxel around it."""
    field = (1 << (BITS - 1)) - 1
    fields = (field << 2 * BITS) | (field << BITS) | field
    parents, _, parent, _, _ = _distinct((keys >> 1) & fields)
    offset = ((keys >> 2 * BITS) & 1) | ((keys >> (BITS - 1)) & 2) | ((keys & 1) << 2)
    counts = np.zeros(8, np.int64)
    for k in offset:
        counts[k] += 1
    by_parent = np.argsort(parent, kind="mergesort")
    place = np.cumsum(counts) - counts
    source = np.empty(len(keys), np.int32)
    target = np.empty(len(keys), np.int32)
    for row in by_parent:
        at = place[offset[row]]
        source[at], target[at] = row, parent[row]
        place[offset[row]] += 1
    return parents, source, target, counts


@compiled
def _joined(source, target, counts, source_offsets, target_offsets):
    """Concatenated pairs of scans, each grouped by offset -> pairs grouped by offset, with rows of the batch."""
    scans, offsets = counts.shape
    joined_source = np.empty(len(source), np.int32)
    joined_target = np.empty(len(target), np.int32)
    of_offsets = counts.sum(axis=0)
    place = np.cumsum(of_offsets) - of_offsets
    pair = 0
    for scan in range(scans):
        for k in range(offsets):
            for at in range(place[k], place[k] + counts[scan, k]):
                joined_source[at] = source[pair] + source_offsets[scan]
                joined_target[at] = target[pair] + target_offsets[scan]
                pair += 1
            place[k] += counts[scan, k]
    return joined_source, joined_target
