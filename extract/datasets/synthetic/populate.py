"""Generate a scene: a street, objects along it, traffic and light; all from one random generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from . import scenery, traffic
from .parts import Body
from .placement import Room
from .scenery import Quarter
from .street import Street
from .world import Light, Placed, World

START_S, END_S = -70.0, 215.0  # range of the scene along the street [m]; the ego vehicle starts at s = 0
NEAR_S = -14.0  # every class is placed from here on, so that the first keyframe sees it
QUIET_S = (-25.0, 45.0)  # no large vehicle is parked here: it would occlude half of the scene
GREENS = [(0.16, 0.38, 0.10), (0.24, 0.44, 0.12), (0.12, 0.32, 0.14), (0.32, 0.42, 0.10)]


def invent_world(rng: Generator) -> tuple[World, Placed]:
    """Generate a world, and the ego vehicle's track in it (an empty body, which no sensor sees)."""
    quarter = scenery.QUARTERS[rng.integers(len(scenery.QUARTERS))]
    street = _street(rng)
    ego = _ego(rng, street)
    return World(street, _light(rng), tuple(_Town(rng, street, quarter, ego).build())), ego


def _street(rng: Generator) -> Street:
    median = rng.uniform(0.9, 1.3)
    crossing_s = rng.uniform(48, 75) if rng.random() < 0.7 else rng.uniform(-50, -36)
    starts = np.arange(START_S, END_S, 34.0) + rng.uniform(0, 8)
    return Street(
        curvature=0.0 if rng.random() < 0.25 else float(rng.choice([-1, 1]) * rng.uniform(1 / 900, 1 / 170)),
        lanes=1 if rng.random() < 0.55 else 2,
        lane_width=rng.uniform(3.2, 3.6),
        median=median,
        islands=tuple((float(start), float(start + rng.uniform(14, 24))) for start in starts),
        parking_width=2.8,
        sidewalk_width=rng.uniform(3.4, 4.2),
        kerb_height=rng.uniform(0.12, 0.18),
        crossing_s=float(crossing_s),
        crossing_half_width=rng.uniform(3.4, 4.8),
    )


def _ego(rng: Generator, street: Street) -> Placed:
    lane = int(rng.integers(street.lanes))
    return Placed(body=Body(31, ()), s=0.0, d=-street.lane_center(lane), speed=rng.uniform(4.5, 7.5))


def _light(rng: Generator) -> Light:
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.1)
    warmth, cloud = rng.normal(0, 0.05), rng.random()
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    tint = np.array([1 + warmth, 1.0, 1 - warmth]) * rng.uniform(0.9, 1.1)
    sun_colour = tint * (1.15 - 0.5 * cloud)
    sky_light = tint * (0.62 + 0.25 * cloud) * np.array([0.96, 1.0, 1.06])
    exposure = 1 / (0.5 * sun_colour + 0.8 * sky_light)  # per colour channel: cameras white-balance for a typical wall
    return Light(
        sun=sun,
        sun_colour=exposure * sun_colour,
        sky_light=exposure * sky_light,
        zenith=tint * ((1 - cloud) * np.array([0.28, 0.46, 0.80]) + cloud * np.array([0.62, 0.66, 0.72])),
        horizon=tint * np.array([0.80, 0.84, 0.88]),
        haze_m=rng.uniform(180, 420),
    )


class _Town:
    """Places the objects of one scene."""

    def __init__(self, rng: Generator, street: Street, quarter: Quarter, ego: Placed) -> None:
        self.rng, self.street, self.quarter, self.ego = rng, street, quarter, ego
        kerb = street.half_width
        self.walkway = (kerb + 1.25, kerb + 2.85)
        self.room = Room(street, self.walkway)
        self.greens = [tuple(np.clip(np.array(green) * rng.uniform(0.85, 1.15, 3), 0, 1).tolist()) for green in GREENS]
        self.objects: list[Placed] = []

    def build(self) -> list[Placed]:
        """Place all objects; those that need a certain place come first."""
        must = [MUST_PARK[i] for i in self.rng.permutation(len(MUST_PARK))]
        for side in (-1, 1):
            self._buildings(side)
            self._park(side, must[side > 0 :: 2])
            self._furnish(side)
            self._yards(side)
            self._walk(side)
        self._islands()
        for direction, large in zip((-1, 1), self.rng.permutation(2), strict=True):
            must = [CAR, CYCLES[large], LARGE[large], CYCLES[1 - large]]
            for lane in range(self.street.lanes):
                if direction < 0:
                    self._drive(lane, direction, must[lane :: self.street.lanes])
                else:  # not beside the ego vehicle, where a bus would occlude everything
                    self._drive(lane, direction, must if self._is_ego_lane(lane, direction) else [])
        return self.objects

    def _put(self, body: Body, s: float, d: float, turn: float = 0.0, **kwargs) -> bool:
        """Place a standing object if there is room."""
        placed = Placed(body=body, s=float(s), d=float(d), turn=float(turn))
        if not self.room.take(placed, **kwargs):
            return False
        self.objects.append(placed)
        return True

    def _facing(self, side: int) -> float:
        """The turn of an object whose +y looks at the street, from that side of it."""
        return 0.0 if side < 0 else np.pi

    # --- standing objects ----------------------------------------------------------------------------------------

    def _buildings(self, side: int) -> None:
        edge = self.street.half_width + self.street.sidewalk_width
        s = START_S + self.rng.uniform(0, 10)
        while s < END_S:
            width, depth = self.rng.uniform(*self.quarter.widths), self.rng.uniform(8, 13)
            body = scenery.building(self.rng, self.quarter, width, depth)
            middle = edge + self.rng.uniform(*self.quarter.setback) + 0.6 + depth / 2
            fits = self._put(body, s + width / 2, side * middle, self._facing(side))
            s += width + self.rng.uniform(*self.quarter.gap) if fits else 3.0
            s += self.rng.uniform(12, 24) * (self.rng.random() < 0.35)  # an empty plot

    def _park(self, side: int, must: list[Callable]) -> None:
        """Fill the parking strip; `must` is parked near the start of the ego vehicle."""
        s, d = START_S, side * (self.street.half_width - 1.3)
        while s < END_S:
            if must and s > NEAR_S:
                taken = must[-1](self, s, d, side)
                if taken:
                    must.pop()
            elif self.rng.random() < 0.4:
                taken = self._park_one(traffic.car, s, d, side)
            elif self.rng.random() < 0.16 and not QUIET_S[0] < s < QUIET_S[1]:
                taken = (*LARGE_PARKED, *MUST_PARK)[self.rng.integers(6)](self, s, d, side)
            else:
                taken = self.rng.uniform(4, 12)
            s += taken or 2.5

    def _park_one(self, make: Callable, s: float, d: float, side: int, attribute: str = "vehicle.parked") -> float:
        """Park a vehicle behind s; return the length of kerb that it takes [m], 0 if it does not fit."""
        body = make(self.rng, attribute)
        lower, upper = body.bounds()
        turn = self._facing(side) + self.rng.normal(0, 0.012)
        rear = -lower[0] if side < 0 else upper[0]
        fits = self._put(body, s + rear, d, turn)
        return fits * (float(upper[0] - lower[0]) + self.rng.uniform(0.7, 1.6))

    def _park_motorcycles(self, s: float, d: float, side: int) -> float:
        for step in np.arange(0.5, 4.5, 1.3):
            body = traffic.motorcycle(self.rng, "cycle.without_rider")
            self._put(body, s + step, d, side * np.pi / 2 + self.rng.normal(0.25, 0.06))
        return 5.5

    def _park_bicycles(self, s: float, d: float, side: int) -> float:
        for step in np.arange(0.4, 4.0, 0.85):
            body = traffic.bicycle(self.rng, "cycle.without_rider")
            self._put(body, s + step, d, side * np.pi / 2 + self.rng.normal(0, 0.08))
        return 4.6

    def _construction(self, s: float, d: float, side: int) -> float:
        """A work site on the parking strip: an excavator behind barriers, cones at both ends, workers."""
        length, lane_side = 15.0, d - side * 1.0
        for step in (0.4, 1.3, 2.2, length - 1.6, length - 0.7):
            self._put(traffic.cone(self.rng), s + step, d + self.rng.uniform(-0.8, 0.8))
        for step in np.arange(3.9, length - 2.5, 2.5):
            self._put(traffic.barrier(self.rng), s + step, lane_side, self.rng.normal(0, 0.03))
        self._put(traffic.excavator(self.rng, "vehicle.stopped"), s + 5.6, d + side * 0.55)
        for step in (10.5, 11.6):
            self._put(self._worker(), s + step, d + side * self.rng.uniform(0.1, 0.5), self.rng.uniform(-3, 3))
        return length + 0.8

    def _worker(self) -> Body:
        return traffic.pedestrian(self.rng, "pedestrian.standing", category=4)

    def _furnish(self, side: int) -> None:
        """The strip between kerb and walkway: trees, lamps, signs, and small things between them."""
        street, kerb = self.street, self.street.half_width
        facing, d = self._facing(side), side * (self.street.half_width + 0.62)
        for ahead in (-1, 1):
            reach = street.crossing_half_width + street.sidewalk_width + 0.5
            self._put(scenery.traffic_light(self.rng), street.crossing_s + ahead * reach, d, facing)
        for s in np.arange(START_S, END_S, self.quarter.tree_spacing) + self.rng.uniform(0, 5):
            for size in (1.0, 0.75, 0.55):  # a smaller one if a truck or a house is close
                if self._put(scenery.tree(self.rng, self.greens, size), s, d, self.rng.uniform(0, 6)):
                    break
        for s in np.arange(START_S, END_S, 28.0) + self.rng.uniform(0, 12):
            self._put(scenery.street_lamp(self.rng), s, d, facing)
        for s in np.arange(NEAR_S, END_S, 30.0) + self.rng.uniform(0, 8):
            for step in (0.0, 2.1):
                turn = self.rng.choice([0, np.pi]) + self.rng.normal(0, 0.03)
                self._put(traffic.bicycle(self.rng, "cycle.without_rider"), s + step, side * (kerb + 0.7), turn)
        small = (scenery.sign, scenery.bin_or_hydrant, scenery.bench, scenery.sign, traffic.cone)
        for s in np.arange(START_S, END_S, 6.5) + self.rng.uniform(0, 5):
            self._put(small[self.rng.integers(len(small))](self.rng), s, d, facing)
        for s in np.arange(START_S, END_S, 70.0) + self.rng.uniform(0, 50):
            self._put(scenery.shelter(self.rng), s, side * (kerb + self.street.sidewalk_width + 0.1), facing)

    def _yards(self, side: int) -> None:
        """The terrain between the sidewalk and the houses, and behind them."""
        edge = self.street.half_width + self.street.sidewalk_width
        for s in np.arange(START_S, END_S, 7.0) + self.rng.uniform(0, 5):
            length, kind = self.rng.uniform(3.5, 6.5), self.rng.random()
            if kind < 0.22:
                self._put(scenery.hedge(self.rng, self.greens, length), s, side * (edge + 0.85))
            elif kind < 0.3:
                self._put(scenery.fence(self.rng, length), s, side * (edge + 0.5))
        for s in np.arange(START_S, END_S, 3.5) + self.rng.uniform(0, 3):
            kind, d = self.rng.random(), side * (edge + self.rng.uniform(1.2, 16))
            if kind < 0.35:
                self._put(scenery.bush(self.rng, self.greens), s, d)
            elif kind < 0.6:
                self._put(scenery.tree(self.rng, self.greens, self.rng.uniform(0.6, 1.0)), s, d)
            elif kind < 0.9:
                self._put(scenery.mound(self.rng), s, d, self.rng.uniform(0, 3))
        for s in np.arange(START_S - 40, END_S + 60, 20.0) + self.rng.uniform(0, 8):
            tall = scenery.tree(self.rng, self.greens, self.rng.uniform(1.3, 2.0))
            self._put(tall, s, side * (edge + self.rng.uniform(24, 40)))

    def _islands(self) -> None:
        for start, end in self.street.islands:
            for s in np.arange(start + 1.5, end - 1, 5.0):
                make = (scenery.sign, traffic.cone, scenery.bin_or_hydrant)[self.rng.integers(3)]
                self._put(make(self.rng), s, 0.0, self.rng.choice([0, np.pi]), on_median=True)

    # --- traffic -------------------------------------------------------------------------------------------------

    def _walk(self, side: int) -> None:
        """Pedestrians on two tracks of the walkway, one per direction, and a few who stand beyond it."""
        for d, direction in ((self.walkway[0] + 0.4, 1), (self.walkway[1] - 0.4, -1)):
            s, speed = START_S + self.rng.uniform(0, 10), direction * self.rng.uniform(0.9, 1.5)
            while s < END_S:
                category = 3 if self.rng.random() < 0.15 else 2
                body = traffic.pedestrian(self.rng, "pedestrian.moving", category)
                turn = 0.0 if direction > 0 else np.pi
                self.objects.append(Placed(body=body, s=s, d=side * d, turn=turn, speed=speed))
                s += self.rng.uniform(3, 16)
        for s in np.arange(START_S, END_S, 14.0) + self.rng.uniform(0, 10):
            body = traffic.pedestrian(self.rng, "pedestrian.standing")
            self._put(body, s, side * (self.walkway[1] + 0.45), self.rng.uniform(-3, 3))

    def _is_ego_lane(self, lane: int, direction: int) -> bool:
        return -direction * self.street.lane_center(lane) == self.ego.d

    def _drive(self, lane: int, direction: int, must: list[Driver]) -> None:
        """Fill a lane with vehicles of one speed, so that none collide; the last of `must` comes first."""
        d, turn = -direction * self.street.lane_center(lane), 0.0 if direction > 0 else np.pi
        is_ego_lane = self._is_ego_lane(lane, direction)
        speed = self.ego.speed if is_ego_lane else direction * self.rng.uniform(3.5, 8.0)
        s = START_S + self.rng.uniform(0, 12)
        while s < END_S:
            make, attribute = must.pop() if must and s > NEAR_S else _draw_driver(self.rng)
            body = make(self.rng, attribute)
            lower, upper = body.bounds()
            length = float(upper[0] - lower[0])
            if is_ego_lane and s < 13 and s + length > -7:
                s = 13.0  # room for the ego vehicle itself
            self.objects.append(Placed(body=body, s=s + length / 2, d=d, turn=turn, speed=speed))
            s += length + self.rng.uniform(7, 20)


Driver = tuple[Callable, str]
CAR: Driver = (traffic.car, "vehicle.moving")
LARGE: tuple[Driver, ...] = ((traffic.truck, "vehicle.moving"), (traffic.bus, "vehicle.moving"))
CYCLES: tuple[Driver, ...] = ((traffic.bicycle, "cycle.with_rider"), (traffic.motorcycle, "cycle.with_rider"))


def _draw_driver(rng: Generator) -> Driver:
    kind = rng.random()
    if kind < 0.7:
        return CAR
    return (LARGE if kind < 0.78 else CYCLES)[rng.integers(2)]


LARGE_PARKED: tuple[Callable, ...] = (  # each is called with the town, s, d, side and returns the kerb it took [m]
    lambda town, s, d, side: town._park_one(traffic.truck, s, d, side),
    lambda town, s, d, side: town._park_one(traffic.bus, s, d, side, "vehicle.stopped"),
)
MUST_PARK: tuple[Callable, ...] = (  # called in the same way
    lambda town, s, d, side: town._park_one(traffic.trailer, s, d, side),
    _Town._construction,
    _Town._park_motorcycles,
    _Town._park_bicycles,
)
