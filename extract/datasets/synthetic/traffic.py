"""Road users and movable things: vehicles, two-wheelers, people, cones, barriers. Each function builds one `Body`."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from .parts import Body, Colour, Paint, Part, Pattern, ball, box, post, rod, wheel

GLASS: Colour = (0.07, 0.10, 0.13)
TYRE = Paint((0.05, 0.05, 0.05), reflectivity=0.06, grain=0.15)
CHROME = Paint((0.55, 0.56, 0.58), reflectivity=0.5)
HEADLIGHT = Paint((0.95, 0.95, 0.88), reflectivity=0.8)
TAIL_LIGHT = Paint((0.75, 0.04, 0.04), reflectivity=0.8)
SKIN = Paint((0.72, 0.52, 0.42), reflectivity=0.35)

CAR_COLOURS = [(0.62, 0.10, 0.10), (0.12, 0.20, 0.52), (0.75, 0.76, 0.78), (0.10, 0.10, 0.12), (0.38, 0.40, 0.44)]
TRUCK_COLOURS = [(0.10, 0.36, 0.22), (0.16, 0.44, 0.34), (0.08, 0.30, 0.30)]
CARGO_COLOURS = [(0.80, 0.80, 0.70), (0.70, 0.75, 0.62), (0.62, 0.66, 0.55)]
BUS_COLOURS = [(0.90, 0.55, 0.08), (0.86, 0.42, 0.06), (0.88, 0.66, 0.12)]
TRAILER_COLOURS = [(0.42, 0.25, 0.20), (0.46, 0.30, 0.26), (0.36, 0.22, 0.22)]
CLOTHES_COLOURS = [(0.60, 0.12, 0.50), (0.45, 0.16, 0.62), (0.75, 0.30, 0.55), (0.35, 0.22, 0.60), (0.62, 0.40, 0.70)]
BICYCLE_COLOURS = [(0.05, 0.62, 0.66), (0.20, 0.75, 0.55), (0.10, 0.55, 0.78)]
MOTORCYCLE_COLOURS = [(0.42, 0.02, 0.06), (0.30, 0.02, 0.12), (0.50, 0.05, 0.02)]


def shade(rng: Generator, palette: list[Colour], spread: float = 0.06) -> Colour:
    """One colour of a palette, varied a little."""
    colour = np.array(palette[rng.integers(len(palette))]) * rng.uniform(0.85, 1.15) + rng.normal(0, spread / 2, 3)
    return tuple(np.clip(colour, 0.02, 0.98).tolist())


def _wheels(xs: list[float], half_width: float, radius: float, width: float = 0.22) -> list[Part]:
    return [wheel(x, side * (half_width - width / 2 + 0.02), radius, width, TYRE) for x in xs for side in (-1, 1)]


def _lights(front: float, rear: float, y: float, z: float) -> list[Part]:
    sides = (-y, y)
    lamps = [box(front - 0.04, side, z, (0.1, 0.3, 0.14), HEADLIGHT) for side in sides]
    return lamps + [box(rear + 0.04, side, z, (0.1, 0.25, 0.16), TAIL_LIGHT) for side in sides]


def car(rng: Generator, attribute: str) -> Body:
    length, width = rng.uniform(4.1, 4.8), rng.uniform(1.75, 1.92)
    tall = rng.random() < 0.4  # a van or an SUV
    height = rng.uniform(1.65, 1.9) if tall else rng.uniform(1.42, 1.52)
    belt, clearance = 0.55 * height, 0.24
    colour = shade(rng, CAR_COLOURS)
    cabin = Paint(colour, GLASS, Pattern.CABIN, reflectivity=0.4, accent_reflectivity=0.04)
    paint, lean = Paint(colour, reflectivity=0.4), (0.5, 0.15 if tall else 0.35, 0.18)
    cabin_size = (length * (0.68 if tall else 0.56), 0.94 * width, height - belt)
    parts = [
        box(0, 0, clearance, (length, width, belt - clearance), paint, taper=(0.05, 0.03, 0.04)),
        box(-0.04 * length - 0.12 * tall, 0, belt, cabin_size, cabin, taper=lean),
        *_wheels([-0.31 * length, 0.31 * length], width / 2, 0.33),
        *_lights(length / 2, -length / 2, 0.35 * width, 0.55),
    ]
    return Body(17, tuple(parts), attribute)


def bus(rng: Generator, attribute: str) -> Body:
    length, width, height = rng.uniform(9.0, 11.5), 2.5, rng.uniform(2.9, 3.2)
    colour = shade(rng, BUS_COLOURS)
    body = Paint(colour, GLASS, Pattern.COACH, (0.42, 0.80), reflectivity=0.45, accent_reflectivity=0.04)
    parts = [
        box(0, 0, 0.3, (length, width, height - 0.3), body),
        box(-0.1 * length, 0, height, (length * 0.4, width * 0.6, 0.25), Paint((0.8, 0.8, 0.8))),
        *_wheels([-0.28 * length, 0.33 * length], width / 2, 0.48, 0.28),
        *_lights(length / 2, -length / 2, 0.4 * width, 0.6),
    ]
    return Body(16, tuple(parts), attribute)


def truck(rng: Generator, attribute: str) -> Body:
    length, width, height = rng.uniform(6.2, 8.2), rng.uniform(2.3, 2.5), rng.uniform(2.8, 3.5)
    cab_length, front = 1.9, length / 2
    cab = Paint(shade(rng, TRUCK_COLOURS), GLASS, Pattern.COACH, (0.55, 0.88), 0.4, 0.04)
    cargo = Paint(shade(rng, CARGO_COLOURS), pattern=Pattern.PLANKS, scale=(0.5, 0), reflectivity=0.5,
                  accent=(0.45, 0.45, 0.4), accent_reflectivity=0.4)  # fmt: skip
    cargo_length = length - cab_length - 0.25
    parts = [
        box(front - cab_length / 2, 0, 0.45, (cab_length, width * 0.94, 2.1), cab, taper=(0.25, 0, 0.05)),
        box(-front + cargo_length / 2, 0, 0.95, (cargo_length, width, height - 0.95), cargo),
        box(0, 0, 0.55, (length * 0.94, 0.9, 0.4), TYRE),
        *_wheels([-0.3 * length, front - 1.1], width / 2, 0.46, 0.3),
        *_lights(front, -front, 0.36 * width, 0.7),
    ]
    return Body(23, tuple(parts), attribute)


def trailer(rng: Generator, attribute: str) -> Body:
    length, width, height = rng.uniform(5.0, 7.0), 2.35, rng.uniform(1.7, 2.4)
    side = Paint(shade(rng, TRAILER_COLOURS), (0.25, 0.18, 0.16), Pattern.PLANKS, (0.3, 0), 0.25, 0.15)
    parts = [
        box(0, 0, 0.85, (length, width, height - 0.85), side),
        rod((length / 2, 0, 0.75), (length / 2 + 1.1, 0, 0.55), 0.14, TYRE),
        *_wheels([-0.2 * length, -0.2 * length + 1.0], width / 2, 0.42, 0.28),
        post(length / 2 + 0.7, 0, 0, 0.12, 0.6, TYRE),
    ]
    return Body(22, tuple(parts), attribute)


def excavator(rng: Generator, attribute: str) -> Body:
    yellow = Paint(shade(rng, [(0.85, 0.68, 0.05)]), (0.08, 0.08, 0.07), Pattern.PLAIN, reflectivity=0.45)
    cabin = Paint(yellow.colour, GLASS, Pattern.CABIN, reflectivity=0.4, accent_reflectivity=0.04)
    elbow, tip = (2.1, 0.2, rng.uniform(3.0, 3.6)), (3.4, 0.2, 1.5)
    parts = [
        *(box(0, side * 0.8, 0, (3.0, 0.5, 0.75), TYRE, taper=(0.2, 0.2, 0)) for side in (-1, 1)),
        box(-0.4, 0, 0.85, (2.6, 2.1, 0.95), yellow),
        box(0.3, 0.55, 1.8, (1.3, 0.95, 1.1), cabin, taper=(0.2, 0.05, 0.1)),
        rod((0.6, 0.2 - 0.5, 1.5), (elbow[0], -0.3, elbow[2]), 0.38, yellow),
        rod((elbow[0], -0.3, elbow[2]), (tip[0], -0.3, tip[2]), 0.3, yellow),
        box(3.3, -0.3, 0.9, (0.8, 0.9, 0.7), TYRE, taper=(0.4, 0, 0)),
        box(0, 0, 0.4, (1.2, 1.2, 0.5), TYRE),
    ]
    return Body(18, tuple(parts), attribute)


def pedestrian(rng: Generator, attribute: str, category: int = 2) -> Body:
    """A person; `category` 2 adult, 3 child, 4 construction worker."""
    size = rng.uniform(0.62, 0.75) if category == 3 else rng.uniform(0.92, 1.07)
    coat = shade(rng, [(0.95, 0.45, 0.02)] if category == 4 else CLOTHES_COLOURS)
    accent = (0.9, 0.95, 0.3) if category == 4 else coat
    jacket = Paint(coat, accent, Pattern.BANDS, (0.16, 0), 0.45, 0.8)
    parts = _figure(rng, size, 0.86 * size, jacket)
    stride = (0.22 if attribute == "pedestrian.moving" else 0.04) * size
    trousers = Paint(shade(rng, [(0.20, 0.10, 0.24), (0.28, 0.16, 0.30)]), reflectivity=0.2)
    hip = 0.88 * size
    for side in (-1, 1):
        foot = (side * stride, side * 0.10 * size, 0.02)
        parts.append(rod(foot, (0, side * 0.09 * size, hip), 0.15 * size, trousers))
    return Body(category, tuple(parts), attribute)


def _figure(rng: Generator, size: float, hip: float, jacket: Paint, lean: float = 0.0) -> list[Part]:
    """Torso, arms and head above a hip height [m]."""
    shoulder, sleeve = hip + 0.54 * size, Paint(jacket.colour, reflectivity=jacket.reflectivity)
    hair = Paint(shade(rng, [(0.12, 0.08, 0.06), (0.35, 0.22, 0.10)]), reflectivity=0.2)
    parts = [
        box(lean / 2, 0, hip, (0.26 * size, 0.42 * size, 0.56 * size), jacket, taper=(0.1, 0.1, 0.1)),
        ball(lean, 0, shoulder + 0.04 * size, (0.21 * size, 0.19 * size, 0.27 * size), SKIN),
        ball(lean - 0.02, 0, shoulder + 0.16 * size, (0.23 * size, 0.22 * size, 0.17 * size), hair),
    ]
    for side in (-1, 1):
        hand = (lean + side * 0.08 + 0.9 * lean, side * 0.27 * size, hip - 0.02 + lean * 0.5)
        parts.append(rod((lean / 2, side * 0.24 * size, shoulder - 0.04), hand, 0.10 * size, sleeve))
    return parts


def bicycle(rng: Generator, attribute: str) -> Body:
    frame = Paint(shade(rng, BICYCLE_COLOURS), reflectivity=0.4)
    rim = Paint((0.08, 0.24, 0.26), reflectivity=0.2)
    saddle, head, pedals = (-0.22, 0, 0.9), (0.38, 0, 0.92), (-0.05, 0, 0.32)
    parts = [
        *(wheel(x, 0, 0.34, 0.06, rim) for x in (-0.52, 0.52)),
        *(
            rod(a, b, 0.07, frame)
            for a, b in ((pedals, saddle), (pedals, head), (saddle, head), (head, (0.52, 0, 0.34)))
        ),
        rod((-0.52, 0, 0.34), pedals, 0.06, frame),
        box(0.40, 0, 0.97, (0.08, 0.52, 0.06), TYRE),
        box(-0.24, 0, 0.90, (0.26, 0.16, 0.07), TYRE),
    ]
    if attribute == "cycle.with_rider":
        parts += _rider(rng, 0.93, Paint(shade(rng, BICYCLE_COLOURS), reflectivity=0.4), -0.22)
    return Body(14, tuple(parts), attribute)


def motorcycle(rng: Generator, attribute: str) -> Body:
    body = Paint(shade(rng, MOTORCYCLE_COLOURS), reflectivity=0.5)
    parts = [
        *(wheel(x, 0, 0.31, 0.16, TYRE) for x in (-0.68, 0.70)),
        box(-0.05, 0, 0.28, (0.75, 0.36, 0.32), CHROME),
        box(0.12, 0, 0.60, (0.62, 0.40, 0.28), body, taper=(0.3, 0.2, 0.2)),
        box(-0.50, 0, 0.66, (0.72, 0.34, 0.16), TYRE),
        box(-0.78, 0, 0.62, (0.30, 0.30, 0.20), body),
        box(0.66, 0, 0.80, (0.26, 0.38, 0.36), body, taper=(0.3, 0.5, 0.2)),
        rod((0.70, 0, 0.31), (0.45, 0, 0.95), 0.12, CHROME),
        box(0.44, 0, 0.98, (0.08, 0.74, 0.06), TYRE),
    ]
    if attribute == "cycle.with_rider":
        parts += _rider(rng, 0.80, Paint(shade(rng, MOTORCYCLE_COLOURS), reflectivity=0.3), -0.30)
    return Body(21, tuple(parts), attribute)


def _rider(rng: Generator, seat: float, jacket: Paint, x: float) -> list[Part]:
    """A rider on a two-wheeler; in nuScenes, riders are part of the vehicle."""
    parts = [part.moved(x=x) for part in _figure(rng, 0.98, seat, jacket, lean=0.22)]
    for side in (-1, 1):
        knee = (x + 0.40, side * 0.20, seat - 0.12)
        parts += [rod((x, side * 0.12, seat + 0.04), knee, 0.15, TYRE)]
        parts += [rod(knee, (x + 0.22, side * 0.20, 0.30), 0.12, TYRE)]
    return parts


def cone(rng: Generator) -> Body:
    height = rng.uniform(0.68, 0.95)
    orange = shade(rng, [(0.98, 0.32, 0.02)], 0.02)
    paint = Paint(orange, (0.95, 0.95, 0.95), Pattern.BANDS, (height / 5, 0), 0.35, 0.9)
    base = box(0, 0, 0, (0.44, 0.44, 0.06), Paint(orange, reflectivity=0.3))
    return Body(12, (base, post(0, 0, 0.04, 0.34, height, paint, taper=0.82)))


def barrier(rng: Generator) -> Body:
    length = rng.uniform(1.8, 2.2)
    if rng.random() < 0.5:
        paint = Paint((0.90, 0.88, 0.85), (0.85, 0.06, 0.06), Pattern.STRIPES, (0.28, 0), 0.5, 0.6)
        return Body(9, (box(0, 0, 0, (length, 0.55, 0.95), paint, taper=(0, 0, 0.6)),))
    board = Paint((0.92, 0.90, 0.88), (0.85, 0.05, 0.05), Pattern.STRIPES, (0.25, 0), 0.7, 0.6)
    parts = [box(0, 0, bottom, (length, 0.08, 0.30), board) for bottom in (0.22, 0.72)]
    parts += [box(x, 0, 0, (0.10, 0.50, 1.05), board, taper=(0, 0, 0.8)) for x in (-0.4 * length, 0.4 * length)]
    return Body(9, tuple(parts))
