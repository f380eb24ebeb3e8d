"""Objects along the street: buildings, trees, hedges, poles, street furniture. Each function builds one `Body`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from .parts import Body, Colour, Paint, Part, Pattern, ball, box, post, rod
from .traffic import GLASS, shade

MANMADE, VEGETATION, TERRAIN = 28, 30, 27  # nuScenes lidarseg ids

STEEL = Paint((0.42, 0.44, 0.46), reflectivity=0.45)
DARK_STEEL = Paint((0.22, 0.25, 0.26), reflectivity=0.35)
BARK = Paint((0.30, 0.20, 0.12), reflectivity=0.22, grain=0.2)
WINDOW: Colour = (0.20, 0.27, 0.34)


@dataclass(frozen=True)
class Quarter:
    """The style of a scene's buildings; heights and widths are (lowest, highest) [m]."""

    name: str
    walls: tuple[Colour, ...]
    roofs: tuple[Colour, ...]
    heights: tuple[float, float]
    widths: tuple[float, float]
    gap: tuple[float, float]
    setback: tuple[float, float]
    gable_share: float
    tree_spacing: float


QUARTERS = (
    Quarter(
        "downtown",
        ((0.62, 0.50, 0.40), (0.52, 0.30, 0.24), (0.68, 0.64, 0.58), (0.46, 0.44, 0.44)),
        ((0.36, 0.34, 0.34),),
        *((10.0, 24.0), (12.0, 22.0), (2.0, 8.0), (4.0, 8.0), 0.0, 11.0),
    ),
    Quarter(
        "residential",
        ((0.78, 0.70, 0.56), (0.74, 0.58, 0.50), (0.82, 0.80, 0.76), (0.56, 0.34, 0.28)),
        ((0.42, 0.20, 0.16), (0.30, 0.24, 0.24)),
        *((4.5, 7.5), (8.0, 13.0), (5.0, 12.0), (6.0, 11.0), 0.85, 8.0),
    ),
    Quarter(
        "industrial",
        ((0.62, 0.58, 0.52), (0.66, 0.54, 0.44), (0.54, 0.50, 0.46)),
        ((0.44, 0.42, 0.40),),
        *((5.5, 9.5), (18.0, 30.0), (5.0, 16.0), (7.0, 13.0), 0.15, 12.0),
    ),
)


def building(rng: Generator, quarter: Quarter, width: float, depth: float) -> Body:
    """A house whose front looks along +y; `width` along the street, `depth` away from it [m]."""
    height = rng.uniform(*quarter.heights)
    wall = shade(rng, list(quarter.walls), 0.02)
    bays = (width / max(2, round(width / rng.uniform(2.2, 3.2))), rng.uniform(2.8, 3.3))
    facade = Paint(wall, WINDOW, Pattern.FACADE, bays, rng.uniform(0.25, 0.5), 0.05, 0.07)
    roof = Paint(shade(rng, list(quarter.roofs)), (0.2, 0.16, 0.15), Pattern.PLANKS, (0.4, 0), 0.25, 0.2, 0.1)
    parts = [box(0, 0, 0, (width, depth, height), facade)]
    if rng.random() < quarter.gable_share:
        parts.append(box(0, 0, height, (width + 0.5, depth + 0.5, rng.uniform(2.0, 3.4)), roof, taper=(0, 0, 1.0)))
        parts.append(box(0.3 * width, -0.15 * depth, height, (0.8, 0.8, rng.uniform(2.6, 3.8)), roof))
    else:
        parts.append(box(0, 0, height, (width + 0.2, depth + 0.2, 0.5), Paint(roof.colour)))
    awning = Paint(shade(rng, [(0.62, 0.46, 0.38), (0.48, 0.40, 0.44)]), reflectivity=0.3)
    parts.append(box(rng.uniform(-0.25, 0.25) * width, depth / 2 + 0.6, 2.7, (rng.uniform(2, 4), 1.2, 0.18), awning))
    return Body(MANMADE, tuple(parts))


def tree(rng: Generator, greens: list[Colour], size: float = 1.0) -> Body:
    trunk = size * rng.uniform(1.9, 2.8)
    if rng.random() < 0.25:
        return Body(VEGETATION, (post(0, 0, 0, 0.3 * size, trunk, BARK), *_conifer(rng, greens, trunk * 0.5, size)))
    radius, leaves = size * rng.uniform(1.3, 2.0), _leaves(rng, greens)
    parts = [post(0, 0, 0, rng.uniform(0.26, 0.40) * size, trunk + radius, BARK, taper=0.35)]
    for angle in rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3:
        reach, extent = rng.uniform(0.4, 0.6) * radius, rng.uniform(1.2, 1.7, 3) * radius
        x, y = reach * float(np.cos(angle)), reach * float(np.sin(angle))
        parts.append(ball(x, y, trunk + rng.uniform(-0.2, 0.6) * radius, tuple(extent.tolist()), leaves, porosity=0.3))
    top = (1.2 * radius, 1.2 * radius, 1.4 * radius)
    return Body(VEGETATION, (*parts, ball(0, 0, trunk + 0.7 * radius, top, leaves, porosity=0.25)))


def _conifer(rng: Generator, greens: list[Colour], bottom: float, size: float) -> list[Part]:
    leaves, width = _leaves(rng, greens), rng.uniform(2.4, 3.2) * size
    steps = ((1.0, 0.0, 2.6), (0.78, 1.4, 2.4), (0.52, 2.7, 2.2))
    return [post(0, 0, bottom + up * size, share * width, tall * size, leaves, 0.9) for share, up, tall in steps]


def _leaves(rng: Generator, greens: list[Colour]) -> Paint:
    green = shade(rng, greens)
    dark = tuple((0.45 * np.array(green)).tolist())
    return Paint(green, dark, Pattern.LEAVES, reflectivity=rng.uniform(0.3, 0.45), accent_reflectivity=0.2, grain=0.22)


def hedge(rng: Generator, greens: list[Colour], length: float) -> Body:
    """A hedge along x: a clipped core in a row of bushes."""
    height, leaves = rng.uniform(0.8, 1.4), _leaves(rng, greens)
    parts = [box(0, 0, 0, (length - 0.4, 0.6, height * 0.85), leaves)]
    for x in np.arange(-length / 2 + 0.7, length / 2 - 0.5, 1.1):
        size = (1.4, rng.uniform(0.8, 1.0), height * rng.uniform(0.95, 1.15))
        parts.append(ball(float(x), 0, 0, size, leaves, porosity=0.2))
    return Body(VEGETATION, tuple(parts))


def bush(rng: Generator, greens: list[Colour]) -> Body:
    leaves, size = _leaves(rng, greens), rng.uniform(0.8, 1.6)
    parts = []
    for x, y in (rng.uniform(-0.35, 0.35, (2, 2)) * size).tolist():
        width, height = size * rng.uniform(0.8, 1.1), size * rng.uniform(0.8, 1.1)
        parts.append(ball(x, y, -0.15 * size, (size, width, height), leaves, porosity=0.2))
    return Body(VEGETATION, tuple(parts))


def mound(rng: Generator) -> Body:
    """A low rise of the terrain."""
    size, grass = (
        rng.uniform(3.0, 6.0),
        Paint((0.38, 0.41, 0.17), (0.46, 0.38, 0.22), Pattern.LEAVES, reflectivity=0.28),
    )
    height = rng.uniform(0.8, 2.0)
    return Body(TERRAIN, (ball(0, 0, -height / 2, (size, size * rng.uniform(0.7, 1.0), height), grass),))


def street_lamp(rng: Generator) -> Body:
    """A street lamp; the arm reaches along +y."""
    height = rng.uniform(5.5, 7.5)
    parts = (
        post(0, 0, 0, 0.32, 0.8, DARK_STEEL),
        post(0, 0, 0.8, 0.19, height - 0.8, STEEL, taper=0.3),
        rod((0, 0, height - 0.1), (0, 1.6, height + 0.2), 0.11, STEEL),
        box(0, 1.8, height + 0.1, (0.28, 0.7, 0.16), Paint((0.85, 0.84, 0.78))),
    )
    return Body(MANMADE, parts)


def traffic_light(rng: Generator) -> Body:
    """A traffic light; its lamps face -x, and the arm reaches along +y."""
    height, reach = rng.uniform(4.8, 5.6), rng.uniform(2.5, 4.0)
    yellow = Paint((0.75, 0.62, 0.14), reflectivity=0.3)
    parts = [post(0, 0, 0, 0.22, height, STEEL), rod((0, 0, height - 0.2), (0, reach, height - 0.1), 0.13, STEEL)]
    for y, bottom in ((reach - 0.3, height - 0.95), (0.28, 2.4)):
        parts.append(box(0, y, bottom, (0.26, 0.36, 1.0), yellow))
        lamps = [(0.9, 0.05, 0.05), (0.25, 0.2, 0.04), (0.03, 0.22, 0.08)]
        for level, colour in zip((0.68, 0.38, 0.08), lamps, strict=True):
            parts.append(box(-0.14, y, bottom + level, (0.06, 0.24, 0.24), Paint(colour, reflectivity=0.5)))
    return Body(MANMADE, tuple(parts))


def sign(rng: Generator) -> Body:
    """A road sign that faces -x."""
    height, board = rng.uniform(2.3, 2.8), shade(rng, [(0.10, 0.24, 0.66), (0.92, 0.90, 0.84), (0.80, 0.12, 0.10)])
    face = Paint(board, (0.95, 0.95, 0.95), Pattern.BANDS, (0.22, 0), 0.9, 0.95)
    return Body(MANMADE, (post(0, 0, 0, 0.09, height, STEEL), box(-0.06, 0, height - 0.7, (0.05, 0.7, 0.7), face)))


def bench(rng: Generator) -> Body:
    wood = Paint(shade(rng, [(0.45, 0.30, 0.18)]), (0.2, 0.14, 0.1), Pattern.PLANKS, (0.12, 0), 0.3, 0.2)
    parts = [box(0, 0, 0.40, (1.7, 0.45, 0.08), wood), box(0, -0.22, 0.50, (1.7, 0.07, 0.42), wood)]
    return Body(MANMADE, (*parts, *(box(x, 0, 0, (0.1, 0.42, 0.42), DARK_STEEL) for x in (-0.65, 0.65))))


def bin_or_hydrant(rng: Generator) -> Body:
    if rng.random() < 0.5:
        return Body(MANMADE, (post(0, 0, 0, 0.5, 0.95, Paint(shade(rng, [(0.20, 0.30, 0.26)]))),))
    red = Paint(shade(rng, [(0.66, 0.20, 0.14)]), reflectivity=0.4)
    return Body(MANMADE, (post(0, 0, 0, 0.26, 0.6, red), ball(0, 0, 0.5, (0.28, 0.28, 0.26), red)))


def shelter(rng: Generator) -> Body:
    """A bus stop, open along +y."""
    pane = Paint(shade(rng, [(0.45, 0.52, 0.55)]), GLASS, reflectivity=0.15)
    parts = [box(0, -0.55, 0.2, (3.4, 0.06, 1.9), pane), box(0, -0.1, 2.3, (3.8, 1.4, 0.12), DARK_STEEL)]
    parts += [box(x, -0.55, 0, (0.1, 0.1, 2.3), DARK_STEEL) for x in (-1.7, 1.7)]
    return Body(MANMADE, (*parts, box(0, -0.3, 0.4, (2.6, 0.35, 0.08), DARK_STEEL)))


def fence(rng: Generator, length: float) -> Body:
    """A wall or a fence along x."""
    height = rng.uniform(0.9, 1.6)
    paint = Paint(
        shade(rng, [(0.60, 0.52, 0.44), (0.50, 0.40, 0.32)]), (0.3, 0.24, 0.2), Pattern.PLANKS, (0.24, 0), 0.3, 0.25
    )
    pillars = [box(x, 0, 0, (0.3, 0.3, height + 0.15), paint) for x in (-length / 2 + 0.15, length / 2 - 0.15)]
    return Body(MANMADE, (box(0, 0, 0, (length, 0.16, height), paint), *pillars))
