"""The ground: a street along a circular arc, with kerbs, sidewalks, traffic islands, one crossing street, and terrain.

Everything along the street is placed in street coordinates: s [m] along the centre line, d [m] to its left. The
ground has two levels, the carriageway at z = 0 and all else a kerb higher.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .texture import plane_noise

GROUND_RANGE_M = 300.0  # the world ends here; beyond is haze
KERB_STEPS = 14  # bisections of the stretch on which a ray passes through a kerb: far below a millimetre


class Region(IntEnum):
    ROAD = 0
    SIDEWALK = 1
    ISLAND = 2
    TERRAIN = 3


REGION_CATEGORY = np.array([24, 26, 25, 27], dtype=np.uint8)  # nuScenes lidarseg ids
REGION_COLOUR = np.array([[0.25, 0.25, 0.27], [0.60, 0.57, 0.53], [0.55, 0.33, 0.26], [0.36, 0.42, 0.16]], np.float32)
REGION_ACCENT = np.array([[0.86, 0.86, 0.82], [0.42, 0.40, 0.38], [0.72, 0.52, 0.42], [0.46, 0.38, 0.22]], np.float32)
REGION_GRAIN = np.array([0.07, 0.06, 0.10, 0.20], np.float32)
REGION_REFLECTIVITY = np.array([0.10, 0.20, 0.22, 0.28], np.float32)
ACCENT_REFLECTIVITY = np.array([0.55, 0.16, 0.28, 0.24], np.float32)


@dataclass(frozen=True, kw_only=True)
class Street:
    """The ground of one scene.

    Attributes:
        curvature: of the centre line [1/m], positive to the left; 0 is straight.
        lanes: per direction, each `lane_width` [m] wide; traffic keeps right.
        median: half width of the strip between the directions [m]; holds the islands, (start, end) in s [m].
        parking_width: of the strip on either side of the lanes [m].
        sidewalk_width: [m].
        kerb_height: [m].
        crossing_s: where a straight street crosses at a right angle, `crossing_half_width` [m].
    """

    curvature: float
    lanes: int
    lane_width: float
    median: float
    islands: tuple[tuple[float, float], ...]
    parking_width: float
    sidewalk_width: float
    kerb_height: float
    crossing_s: float
    crossing_half_width: float

    @property
    def half_width(self) -> float:
        """Distance from the centre line to the kerb [m]."""
        return self.lane_edge + self.parking_width

    @property
    def lane_edge(self) -> float:
        """Distance from the centre line to the outer edge of the outermost lane [m]."""
        return self.median + self.lanes * self.lane_width

    def lane_center(self, lane: int) -> float:
        """Distance of the middle of a lane from the centre line [m]; lane 0 is the innermost."""
        return self.median + (lane + 0.5) * self.lane_width

    def pose(self, s, d) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World x, y [m] and heading [rad] at street coordinates."""
        s, d = np.asarray(s, dtype=np.float64), np.asarray(d, dtype=np.float64)
        heading = self.curvature * s
        if self.curvature == 0:
            return s + 0 * d, d + 0 * s, heading + 0 * d
        radius = 1 / self.curvature
        return (radius - d) * np.sin(heading), radius - (radius - d) * np.cos(heading), heading + 0 * d

    def lateral(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """d at world x, y."""
        if self.curvature == 0:
            return y
        radius = 1 / self.curvature
        return radius - np.sign(radius) * np.hypot(x, y - radius)

    def along(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """s at world x, y."""
        if self.curvature == 0:
            return x
        radius, side = 1 / self.curvature, np.sign(self.curvature)
        return radius * np.arctan2(side * x, side * (radius - y))

    def across(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Signed distance from the middle of the crossing street [m]."""
        x0, y0, heading = (float(value) for value in self.pose(self.crossing_s, 0.0))
        return (x - x0) * np.cos(heading) + (y - y0) * np.sin(heading)

    def region(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """`Region` at world x, y; uint8 of the same shape."""
        distance, across = np.abs(self.lateral(x, y)), np.abs(self.across(x, y))
        sidewalk = (distance < self.half_width + self.sidewalk_width) | (
            across < self.crossing_half_width + self.sidewalk_width
        )
        region = np.where(sidewalk, Region.SIDEWALK, Region.TERRAIN).astype(np.uint8)
        road = ~self.is_raised(x, y, distance, across)
        region[road] = Region.ROAD
        region[(distance < self.median) & ~road] = Region.ISLAND
        return region

    def is_raised(self, x: np.ndarray, y: np.ndarray, distance=None, across=None) -> np.ndarray:
        """Whether the ground at world x, y is a kerb higher than the road; `region` passes intermediate values."""
        distance = np.abs(self.lateral(x, y)) if distance is None else distance
        raised = (distance > self.half_width) | (distance < self.median)
        maybe = np.flatnonzero(raised)
        x, y, distance = x[maybe], y[maybe], distance[maybe]
        across = np.abs(self.across(x, y)) if across is None else across[maybe]
        off_road = across > self.crossing_half_width
        middle = np.flatnonzero((distance < self.median) & off_road)
        s = self.along(x[middle], y[middle])
        off_road[middle] = np.any([(s > start) & (s < end) for start, end in self.islands], axis=0)
        raised[maybe] = off_road
        return raised

    def height(self, x, y) -> np.ndarray:
        """Height of the ground at world x, y [m]."""
        x, y = np.atleast_1d(x), np.atleast_1d(y)
        return np.where(self.is_raised(x, y), self.kerb_height, 0.0)

    def cast(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """t at which rays from above meet the ground, inf for rays that do not.

        A ray that is above raised ground when it reaches the height of the kerb's top ends there. Otherwise it
        continues to the carriageway, unless it leaves the carriageway before: then it meets a kerb's face in between.

        Args:
            origin: (3,) world [m].
            directions: (3, rows, columns).
        """
        dx, dy, dz = directions
        distance = np.full(dz.shape, np.inf, dtype=dz.dtype)
        down = dz < -1e-6
        ray = (float(origin[0]), float(origin[1]), dx[down], dy[down])
        level = np.hypot(*ray[2:])
        top, bottom = (self.kerb_height - float(origin[2])) / dz[down], -float(origin[2]) / dz[down]
        reached = np.where(self.is_raised(*_at(top, *ray)), top, bottom)
        on_road = np.flatnonzero((reached == bottom) & (top * level < GROUND_RANGE_M))
        ray = (*ray[:2], ray[2][on_road], ray[3][on_road])
        reached[on_road] = self._kerb_or_road(top[on_road], bottom[on_road], level[on_road], *ray)
        reached[reached * level > GROUND_RANGE_M] = np.inf
        distance[down] = reached
        return distance

    def _kerb_or_road(self, top, bottom, level, x, y, dx, dy) -> np.ndarray:
        """t of the first kerb that rays meet between `top` and `bottom`, else `bottom`.

        A flat ray could pass a complete island between the two, so long stretches are tested in steps. Corners that
        it cuts between two steps are missed, for about one ray in a thousand.
        """
        reached, met = bottom.copy(), self.is_raised(*_at(bottom, x, y, dx, dy))
        long = np.flatnonzero((bottom - top) * level > self.median)
        for share in (0.8, 0.6, 0.4, 0.2):
            t = top[long] + share * (bottom - top)[long]
            raised = self.is_raised(*_at(t, x, y, dx[long], dy[long]))
            reached[long[raised]], met[long[raised]] = t[raised], True
        met = np.flatnonzero(met)
        low, high = top[met], reached[met]
        for _ in range(KERB_STEPS):
            middle = (low + high) / 2
            raised = self.is_raised(*_at(middle, x, y, dx[met], dy[met]))
            low, high = np.where(raised, low, middle), np.where(raised, middle, high)
        reached[met] = high
        return reached

    def look(self, x: np.ndarray, y: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The appearance of the ground at world x, y (N,), `region` (N,).

        Returns:
            Albedo (3, N) float32 in [0, 1], and reflectivity for the lidar (N,) float32 in [0, 1].
        """
        fine, coarse = plane_noise(x, y), plane_noise(x, y, 1.1)
        accent = self._accent(x, y, region, coarse)
        grain = REGION_GRAIN[region]
        texture = 1 + grain * (fine + np.float32(0.6) * coarse)
        colour = np.stack(
            [
                (first[region] + accent * (second - first)[region]) * texture
                for first, second in zip(REGION_COLOUR.T, REGION_ACCENT.T, strict=True)
            ]
        )
        reflectivity = REGION_REFLECTIVITY[region] + accent * (ACCENT_REFLECTIVITY - REGION_REFLECTIVITY)[region]
        return colour, reflectivity * (1 + grain * fine)

    def _accent(self, x: np.ndarray, y: np.ndarray, region: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        """Fraction of the second colour, (N,) float32: paint on the road, joints, bare soil."""
        s, d, across = self.along(x, y), self.lateral(x, y), np.abs(self.across(x, y))
        joints = (np.mod(s, 1.5) < 0.06) | (np.mod(d, 1.5) < 0.06)
        bricks = (np.floor(s / 0.5).astype(np.int32) + np.floor(d / 0.25).astype(np.int32)) & 1
        accent = np.where(region == Region.SIDEWALK, joints, bricks).astype(np.float32)
        terrain, road = region == Region.TERRAIN, region == Region.ROAD
        accent[terrain] = np.clip(0.3 + 0.45 * coarse[terrain], 0, 1)
        accent[road] = self._paint(s[road], np.abs(d[road]), across[road])
        return accent

    def _paint(self, s: np.ndarray, distance: np.ndarray, across: np.ndarray) -> np.ndarray:
        """Lane markings and zebra crossings on the carriageway."""
        paint = np.abs(distance - self.median - 0.15) < 0.07
        paint |= np.abs(distance - self.lane_edge) < 0.06
        for lane in range(1, self.lanes):
            paint |= (np.abs(distance - self.median - lane * self.lane_width) < 0.07) & (np.mod(s, 8.0) < 3.5)
        beside = across - self.crossing_half_width
        zebra = (beside > 0.8) & (beside < 3.8) & (distance < self.half_width)
        paint = np.where(beside < 4.2, zebra & (np.mod(distance, 1.1) < 0.55), paint)
        stop_line = (beside > 4.6) & (beside < 5.0) & (distance > self.median) & (distance < self.lane_edge)
        return (paint | stop_line).astype(np.float32)


def _at(t: np.ndarray, x: float, y: float, dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x + t * dx, y + t * dy
