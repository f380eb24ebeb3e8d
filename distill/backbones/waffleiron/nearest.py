"""Nearest neighbours among the points of a scan, by a k-d tree that is searched leaf by leaf.

The trees of libraries start each search at the root. Here all points of a scan are searched for, and the points of a
leaf have nearly the same neighbours: one walk per leaf takes half the time of scipy's tree. Distances are float64, as
in scipy.

Letters in shapes: N points of the tree, Q queries, K neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...compiled import compiled

LEAF_POINTS = 12
NO_CHILD = -1


class Tree(NamedTuple):
    """Points in the order of their leaves, and the nodes above them. Node 0 is the root."""

    xyz: np.ndarray  # (N, 3) float64, in leaf order [m]
    row: np.ndarray  # (N,) int64, row of each point of `xyz` among the given points
    span: np.ndarray  # (nodes, 2) int64, start and stop of the node's points in `xyz`
    child: np.ndarray  # (nodes,) int64, the first of two consecutive children; NO_CHILD for a leaf
    box: np.ndarray  # (nodes, 6) float64, lowest x y z and highest x y z of the node's points [m]


def build_tree(xyz: np.ndarray) -> Tree:
    """A tree of finite points (N, 3), N > 0."""
    return Tree(*_build(np.ascontiguousarray(xyz, np.float64), LEAF_POINTS))


def nearest_others(tree: Tree, count: int) -> np.ndarray:
    """(N, K) int64: for each point, the rows of the `count` nearest other points, nearest first.

    K is `count`, or N - 1 if there are fewer. Points that coincide are neighbours of each other.
    """
    return _nearest_others(*tree, min(count, len(tree.xyz) - 1))


def nearest_of(tree: Tree, queries: np.ndarray) -> np.ndarray:
    """(Q,) int64: the row of the point nearest to each query (Q, 3) [m]."""
    return _nearest_of(*tree, np.ascontiguousarray(queries, np.float64))


@compiled
def _build(points, leaf_points):
    count = len(points)
    row = np.arange(count)
    span = np.empty((2 * count, 2), np.int64)
    child = np.full(2 * count, NO_CHILD, np.int64)
    box = np.empty((2 * count, 6), np.float64)
    span[0, 0], span[0, 1] = 0, count
    nodes, node = 1, 0
    while node < nodes:
        start, stop = span[node]
        for axis in range(3):
            low = high = points[row[start], axis]
            for i in range(start + 1, stop):
                value = points[row[i], axis]
                low, high = min(low, value), max(high, value)
            box[node, axis], box[node, 3 + axis] = low, high
        axis = np.argmax(box[node, 3:] - box[node, :3])
        middle = (box[node, axis] + box[node, 3 + axis]) / 2
        # Points that coincide are not split. If the middle rounds down to the lowest coordinate, points there go left.
        if stop - start > leaf_points and middle < box[node, 3 + axis]:
            left, right = start, stop - 1
            while left <= right:
                if points[row[left], axis] <= middle:
                    left += 1
                else:
                    row[left], row[right] = row[right], row[left]
                    right -= 1
            child[node] = nodes
            span[nodes, 0], span[nodes, 1] = start, left
            span[nodes + 1, 0], span[nodes + 1, 1] = left, stop
            nodes += 2
        node += 1
    return points[row], row, span[:nodes].copy(), child[:nodes].copy(), box[:nodes].copy()


@compiled
def _between_boxes(box, a, b):
    """Squared distance between the boxes of two nodes."""
    total = 0.0
    for axis in range(3):
        gap = max(box[a, axis] - box[b, 3 + axis], box[b, axis] - box[a, 3 + axis], 0.0)
        total += gap * gap
    return total


@compiled
def _to_box(x, y, z, box, node):
    """Squared distance between a point and the box of a node."""
    dx = max(box[node, 0] - x, x - box[node, 3], 0.0)
    dy = max(box[node, 1] - y, y - box[node, 4], 0.0)
    dz = max(box[node, 2] - z, z - box[node, 5], 0.0)
    return dx * dx + dy * dy + dz * dz


@compiled
def _visit(xyz, span, box, leaf, node, squared, found):
    """Offer the points of `node` as neighbours to those of `leaf`; returns the largest squared distance of use."""
    worst, last = 0.0, squared.shape[1] - 1
    for i in range(span[leaf, 0], span[leaf, 1]):
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        bound = squared[i, last]
        if _to_box(x, y, z, box, node) < bound:
            for j in range(span[node, 0], span[node, 1]):
                dx, dy, dz = xyz[j, 0] - x, xyz[j, 1] - y, xyz[j, 2] - z
                distance = dx * dx + dy * dy + dz * dz
                if distance < bound and i != j:
                    place = last
                    while place > 0 and squared[i, place - 1] > distance:
                        squared[i, place], found[i, place] = squared[i, place - 1], found[i, place - 1]
                        place -= 1
                    squared[i, place], found[i, place] = distance, j
                    bound = squared[i, last]
        worst = max(worst, bound)
    return worst


@compiled
def _nearest_others(xyz, row, span, child, box, k):
    squared = np.full((len(xyz), k), np.inf)
    found = np.empty((len(xyz), k), np.int32)
    waiting = np.empty(len(child), np.int64)
    for leaf in range(len(child)):
        if child[leaf] != NO_CHILD:
            continue
        worst = _visit(xyz, span, box, leaf, leaf, squared, found)
        waiting[0], count = 0, 1
        while count > 0:
            count -= 1
            node = waiting[count]
            if node == leaf or _between_boxes(box, node, leaf) >= worst:
                continue
            nearer = child[node]
            if nearer == NO_CHILD:
                worst = _visit(xyz, span, box, leaf, node, squared, found)
                continue
            farther = nearer + 1
            if _between_boxes(box, farther, leaf) < _between_boxes(box, nearer, leaf):
                nearer, farther = farther, nearer
            waiting[count], waiting[count + 1] = farther, nearer
            count += 2
    neighbours = np.empty((len(xyz), k), np.int64)
    for i in range(len(xyz)):
        for place in range(k):
            neighbours[row[i], place] = row[found[i, place]]
    return neighbours


@compiled
def _nearest_of(xyz, row, span, child, box, queries):
    out = np.empty(len(queries), np.int64)
    waiting = np.empty(len(child), np.int64)
    found = 0
    for q in range(len(queries)):
        x, y, z = queries[q]
        # Consecutive points of a scan are close to each other: the last one's nearest point gives a bound for this one.
        best = (xyz[found, 0] - x) ** 2 + (xyz[found, 1] - y) ** 2 + (xyz[found, 2] - z) ** 2
        waiting[0], count = 0, 1
        while count > 0:
            count -= 1
            node = waiting[count]
            if _to_box(x, y, z, box, node) >= best:
                continue
            nearer = child[node]
            if nearer == NO_CHILD:
                for j in range(span[node, 0], span[node, 1]):
                    dx, dy, dz = xyz[j, 0] - x, xyz[j, 1] - y, xyz[j, 2] - z
                    distance = dx * dx + dy * dy + dz * dz
                    if distance < best:
                        best, found = distance, j
                continue
            farther = nearer + 1
            if _to_box(x, y, z, box, farther) < _to_box(x, y, z, box, nearer):
                nearer, farther = farther, nearer
            waiting[count], waiting[count + 1] = farther, nearer
            count += 2
        out[q] = row[found]
    return out
