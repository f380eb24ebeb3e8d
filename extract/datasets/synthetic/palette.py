"""A colour for each class, which every surface of it leans towards.

Cars come in all colours, and what a foundation model knows of a car is not its paint. A teacher with random weights
knows nothing but paint: only where colour tells something of the class does it have anything to teach.
"""

from __future__ import annotations

import numpy as np

TINT = np.float32(0.7)  # share of the class's colour in a surface's
GREY = 0.5

# By nuScenes lidarseg id: albedo, red green blue.
_COLOURS = {
    (2, 3, 4, 5, 6, 7, 8): (0.70, 0.20, 0.60),  # pedestrians
    (9,): (0.95, 0.30, 0.15),  # barriers
    (12,): (1.00, 0.50, 0.05),  # traffic cones
    (14,): (0.05, 0.55, 0.50),  # bicycles
    (15, 16): (0.95, 0.70, 0.10),  # buses
    (17,): (0.20, 0.35, 0.80),  # cars
    (18,): (0.95, 0.90, 0.30),  # construction vehicles
    (21,): (0.30, 0.05, 0.40),  # motorcycles
    (22,): (0.35, 0.75, 0.80),  # trailers
    (23,): (0.90, 0.85, 0.80),  # trucks
    (24,): (0.22, 0.22, 0.27),  # driveable surface
    (25,): (0.55, 0.30, 0.35),  # other flat
    (26,): (0.72, 0.70, 0.74),  # sidewalk
    (27,): (0.60, 0.55, 0.15),  # terrain
    (28,): (0.65, 0.38, 0.28),  # manmade
    (30,): (0.12, 0.40, 0.08),  # vegetation
}


def _table() -> np.ndarray:
    table = np.full((3, 256), GREY, dtype=np.float32)
    for categories, colour in _COLOURS.items():
        table[:, categories] = np.array(colour)[:, None]
    return table


_CLASS_COLOUR = _table()


def tinted(colour: np.ndarray, category: np.ndarray) -> np.ndarray:
    """Colours (3, N) float32 of surfaces of classes `category` (N,), moved towards their classes' colours."""
    return colour + TINT * (_CLASS_COLOUR[:, category] - colour)
