"""A colour for each class, towards which all surfaces of the class are tinted.

Real cars have all colours, and a foundation model recognises more than paint. A teacher with random weights only sees
colours: a student can learn from it only if colours depend on the class.
"""

from __future__ import annotations

import numpy as np

from ..nuscenes import LABELS

TINT = np.float32(0.7)  # fraction of the class's colour in a surface's colour

CLASS_COLOUR = {  # albedo: red, green, blue
    "barrier": (0.95, 0.30, 0.15),
    "bicycle": (0.05, 0.55, 0.50),
    "bus": (0.95, 0.70, 0.10),
    "car": (0.20, 0.35, 0.80),
    "construction_vehicle": (0.95, 0.90, 0.30),
    "motorcycle": (0.30, 0.05, 0.40),
    "pedestrian": (0.70, 0.20, 0.60),
    "traffic_cone": (1.00, 0.50, 0.05),
    "trailer": (0.35, 0.75, 0.80),
    "truck": (0.90, 0.85, 0.80),
    "driveable_surface": (0.22, 0.22, 0.27),
    "other_flat": (0.55, 0.30, 0.35),
    "sidewalk": (0.72, 0.70, 0.74),
    "terrain": (0.60, 0.55, 0.15),
    "manmade": (0.65, 0.38, 0.28),
    "vegetation": (0.12, 0.40, 0.08),
}

_COLOUR_OF_CATEGORY = np.full((3, 256), 0.5, dtype=np.float32)  # by lidarseg id; grey for ids without a scored class
for _name, _colour in CLASS_COLOUR.items():
    _COLOUR_OF_CATEGORY[:, LABELS.raw_ids[_name]] = np.array(_colour)[:, None]


def tinted(colour: np.ndarray, category: np.ndarray) -> np.ndarray:
    """Albedos (3, N) float32 of surfaces of lidarseg ids `category` (N,), moved towards their classes' colours."""
    return colour + TINT * (_COLOUR_OF_CATEGORY[:, category] - colour)
