"""Placement of objects: keeps standing objects apart from each other, and out of lanes and walkways."""

from __future__ import annotations

import numpy as np

from .parts import Body
from .street import Street
from .world import Placed

LAYERS_M = ((-1.0, 2.1), (2.1, 3.9), (3.9, 99.0))  # people and cars; trucks and low branches; crowns and arms of lamps
TRAFFIC_LAYERS = 2  # layers that vehicles reach
CLEARANCE_M = 0.08


class Room:
    """The occupied footprints, as rectangles on the ground for each layer of height.

    Moving objects keep to their lane or walkway, so that only standing objects need a free place.

    Args:
        street: the ground; its lanes are kept free up to the height of vehicles.
        walkway: (from, to), the range of |d| that is kept free for pedestrians in the lowest layer [m].
    """

    def __init__(self, street: Street, walkway: tuple[float, float]) -> None:
        self._street, self._walkway = street, walkway
        self._taken: list[list[np.ndarray]] = [[] for _ in LAYERS_M]  # rectangles, and for speed their bounds
        self._bounds = [np.empty((0, 4)) for _ in LAYERS_M]
        x, y, heading = (float(value) for value in street.pose(street.crossing_s, 0.0))
        keep_clear = street.crossing_half_width + street.sidewalk_width
        corridor = _rectangle(np.array([x, y]), heading, np.array([-keep_clear, -200.0]), np.array([keep_clear, 200.0]))
        self._reserve([(layer, corridor) for layer in range(len(LAYERS_M))])

    def take(self, placed: Placed, *, on_median: bool = False) -> bool:
        """Reserve the place of a standing object; if it is not free, return False and reserve nothing."""
        footprints = self._footprints(placed)
        free = all(
            self._keeps_ways_free(corners, layer, on_median) and not self._is_taken(corners, layer)
            for layer, corners in footprints
        )
        if free:
            self._reserve(footprints)
        return free

    def _reserve(self, footprints: list[tuple[int, np.ndarray]]) -> None:
        for layer, corners in footprints:
            bounds = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
            self._taken[layer].append(corners)
            self._bounds[layer] = np.vstack([self._bounds[layer], bounds])

    def _is_taken(self, corners: np.ndarray, layer: int) -> bool:
        bounds = self._bounds[layer]
        near = (bounds[:, :2] < corners.max(axis=0)) & (bounds[:, 2:] > corners.min(axis=0))
        return any(overlap(corners, self._taken[layer][i]) for i in np.flatnonzero(near.all(axis=1)))

    def _footprints(self, placed: Placed) -> list[tuple[int, np.ndarray]]:
        x, y, heading = self._street.pose(placed.s, placed.d)
        footprints = []
        for layer, part_bounds in enumerate(_layers(placed.body)):
            if len(part_bounds):
                lower = part_bounds[:, 0, :2].min(axis=0) - CLEARANCE_M
                upper = part_bounds[:, 1, :2].max(axis=0) + CLEARANCE_M
                center = np.array([float(x), float(y)])
                footprints.append((layer, _rectangle(center, float(heading) + placed.turn, lower, upper)))
        return footprints

    def _keeps_ways_free(self, corners: np.ndarray, layer: int, on_median: bool) -> bool:
        if layer >= TRAFFIC_LAYERS:
            return True
        d = np.abs(self._street.lateral(corners[:, 0], corners[:, 1]))
        if on_median:
            return bool(d.max() < self._street.median)
        if d.min() < self._street.lane_edge:
            return False
        return layer == 1 or d.max() < self._walkway[0] or d.min() > self._walkway[1]


def _layers(body: Body) -> list[np.ndarray]:
    """For each layer the (n, 2, 3) bounds of the parts that reach into it."""
    bounds = body.part_bounds
    return [bounds[(bounds[:, 0, 2] < top) & (bounds[:, 1, 2] > bottom)] for bottom, top in LAYERS_M]


def _rectangle(center: np.ndarray, heading: float, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """(4, 2) corners, in order."""
    corners = np.array([lower, (upper[0], lower[1]), upper, (lower[0], upper[1])])
    cos, sin = np.cos(heading), np.sin(heading)
    return corners @ np.array([[cos, sin], [-sin, cos]]) + center


def overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two rectangles (4, 2) overlap: no edge direction of either separates them."""
    for corners in (first, second):
        for axis in (corners[1] - corners[0], corners[3] - corners[0]):
            a, b = first @ axis, second @ axis
            if a.max() <= b.min() or b.max() <= a.min():
                return False
    return True
