"""What the simulator knows about a view's pairs: which are hidden, and where pixels say nothing clear."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from scalr.extract.datasets.synthetic import Image
from scalr.extract.projection import Pairs

EDGE_PX = 2


def near_an_edge(category: np.ndarray) -> np.ndarray:
    """(H, W) bool: within EDGE_PX pixels of another class."""
    size = 2 * EDGE_PX + 1
    return maximum_filter(category, size) != minimum_filter(category, size)


def truly_hidden(pairs: Pairs, truth: Image) -> np.ndarray:
    """(R,) bool: something else is nearer at the pair's pixel, by more than ranges err and a pixel of slope spans."""
    return pairs.depth_m > 1.02 * truth.depth[tuple(pairs.pixel.T)] + 0.3
