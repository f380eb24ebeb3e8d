"""Kernel maps against dictionaries of voxels, written from the definition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scalr.distill.backbones.minkunet.kernel_maps import CENTRE, LEVELS, occupied_voxels, packed, scan_maps
from scalr.distill.backbones.minkunet.voxels import REACH, voxel_coordinates, voxel_keys

# Of each kernel offset, axis 0 fastest: where the input voxel lies.
EDGE3 = {x + 3 * y + 9 * z: (x - 1, y - 1, z - 1) for z, y, x in product(range(3), repeat=3)}
EDGE2 = {x + 2 * y + 4 * z: (x, y, z) for z, y, x in product(range(2), repeat=3)}

near = st.integers(-9, 9)
anywhere = st.sampled_from([-REACH, 1 - REACH, -17, -16, -1, 0, 15, 16, REACH - 1, REACH])
scans = hnp.arrays(np.int64, st.tuples(st.integers(1, 60), st.just(3)), elements=st.one_of(near, anywhere))


def grids_of(points: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Voxels of each level in units of its own, by first occurrence."""
    grids = [list(dict.fromkeys(map(tuple, points.tolist())))]
    for _ in range(1, LEVELS):
        grids.append(list(dict.fromkeys(tuple(c // 2 for c in voxel) for voxel in grids[-1])))
    return grids


def triples(counts, source, target) -> list[tuple[int, int, int]]:
    """(kernel offset, input row, output row) of each pair, in their order."""
    return list(zip(np.repeat(np.arange(len(counts)), counts).tolist(), source.tolist(), target.tolist(), strict=True))


def expected_neighbours(grid) -> list[tuple[int, int, int]]:
    row = {voxel: number for number, voxel in enumerate(grid)}
    return [
        (k, row[at], target)
        for k, offset in EDGE3.items()
        for target, voxel in enumerate(grid)
        if k != CENTRE and (at := tuple(np.add(voxel, offset))) in row
    ]


def expected_children(fine, coarse) -> list[tuple[int, int, int]]:
    row = {voxel: number for number, voxel in enumerate(fine)}
    return [
        (k, row[at], target)
        for k, offset in EDGE2.items()
        for target, voxel in enumerate(coarse)
        if (at := tuple(2 * c + o for c, o in zip(voxel, offset, strict=True))) in row
    ]


@given(scans)
def test_pairs_are_all_that_the_definition_has_in_order_of_offset_and_output(points):
    voxels, grids = occupied_voxels(voxel_keys(points)), grids_of(points)
    assert [grids[0][row] for row in voxels.of_row] == list(map(tuple, points.tolist()))
    assert voxels.first.tolist() == [points.tolist().index(list(voxel)) for voxel in grids[0]]
    maps = scan_maps(voxels.keys)
    assert maps.sizes == tuple(map(len, grids))
    for grid, pairs in zip(grids, maps.neighbours, strict=True):
        assert triples(pairs.counts, pairs.source, pairs.target) == expected_neighbours(grid)
    for fine, coarse, pairs in zip(grids[:-1], grids[1:], maps.children, strict=True):
        assert triples(pairs.counts, pairs.source, pairs.target) == expected_children(fine, coarse)


@given(st.lists(scans, min_size=1, max_size=4))
def test_maps_of_a_batch_are_those_of_its_scans_in_rows_of_the_batch(points):
    maps = [scan_maps(occupied_voxels(voxel_keys(each)).keys) for each in points]
    for level in range(LEVELS - 1):
        fine, coarse = ([scan.sizes[each] for scan in maps] for each in (level, level + 1))
        whole = packed([scan.children[level] for scan in maps], fine, coarse)
        expected = [
            (k, source + sum(fine[:number]), target + sum(coarse[:number]))
            for number, scan in enumerate(maps)
            for k, source, target in triples(*(scan.children[level][i] for i in (2, 0, 1)))
        ]
        expected.sort(key=lambda pair: (pair[0], pair[2]))
        assert triples(whole.counts, whole.source, whole.target) == expected
        assert (whole.num_sources, whole.num_targets, whole.has_centre) == (sum(fine), sum(coarse), False)
        back = whole.swapped()
        assert triples(back.counts, back.target, back.source) == triples(whole.counts, whole.source, whole.target)
        assert (back.num_sources, back.num_targets) == (sum(coarse), sum(fine))
    sizes = [scan.sizes[0] for scan in maps]
    assert packed([scan.neighbours[0] for scan in maps], sizes, sizes).has_centre


def test_voxels_on_the_two_sides_of_the_seam_are_no_neighbours():
    xyz = np.array([[-5, 0.01, 0], [-5, -0.01, 0], [-5, -0.1, 0], [-5, 0, 0]], np.float32)
    coordinates = voxel_coordinates(xyz, "cylindrical", 0.1)
    assert coordinates[:, 1].tolist() == [179, -180, -179, 180]
    pairs = scan_maps(voxel_keys(coordinates)).neighbours[0]
    # 179 and 180 meet, and -180 and -179.
    assert sorted(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True)) == [(0, 3), (1, 2), (2, 1), (3, 0)]


@pytest.mark.parametrize(
    ("voxels", "sizes", "pairs"),
    [
        ("cylindrical", (15_947, 10_155, 5_900, 3_122, 1_475), (53_723, 45_111, 33_626, 22_394, 14_623)),
        ("cartesian", (17_885, 12_641, 7_879, 4_495, 2_294), (50_537, 48_483, 37_775, 27_517, 17_948)),
    ],
)
def test_a_real_scan_has_as_many_voxels_and_pairs_as_counted_elsewhere(real_nuscenes, voxels, sizes, pairs):
    file = next((real_nuscenes / "samples" / "LIDAR_TOP").glob("*.bin"))
    xyz = np.fromfile(file, np.float32).reshape(-1, 5)[:, :3]
    maps = scan_maps(occupied_voxels(voxel_keys(voxel_coordinates(xyz, voxels, 0.1))).keys)
    assert maps.sizes == sizes
    assert tuple(len(each.source) + size for each, size in zip(maps.neighbours, sizes, strict=True)) == pairs
