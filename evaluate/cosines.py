"""Cosines of features, with or without their mean."""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-6  # length in float32 of the difference of two equal unit vectors


def similarity(features: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosines (N,) float32 of features (N, C) to a query (C,); 0 for vectors of length zero.

    >>> similarity(np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), np.array([3.0, 0.0]))
    array([1., 0., 0.], dtype=float32)
    """
    return unit(features) @ unit(query)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., C) float32 divided by their lengths; vectors of length zero stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def centred(units: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Unit vectors (..., C) minus a mean (C,); a vector equal to the mean becomes zero, not a rounding error."""
    rest = units - mean
    return np.where(np.linalg.norm(rest, axis=-1, keepdims=True) > ROUNDING, rest, 0).astype(np.float32)
