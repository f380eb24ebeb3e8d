"""One HTML file with a scan to turn and to click: every point takes the colour of its similarity to the one clicked.

The page has all it needs inside and asks for nothing. A click is answered in the browser from features that are small:
one for each voxel, in 32 bytes along the axes of an uncentred principal component analysis, so that dot products stay
near cosines. How far they are from the exact ones is measured, and said on the page.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from ..json_text import json_text
from .pictures import NO_CLASS, RAMP, class_colours, reach_of, softened, viewpoint

BYTES_PER_VOXEL = 32
INT8_MAX = 127
MEASURED_QUERIES, QUERIES_AT_ONCE = 256, 32
TEMPLATE = "cloud_page.html"


@dataclass(frozen=True, eq=False)
class SmallFeatures:
    """Unit vectors (V, C) by their coordinates on A orthonormal axes, which are sums of K small numbers.

    Attributes:
        digits: (V, K) int8.
        scale: (K,) float32, the unit of each digit.
        axis: (K,) the axis that each digit is of; some have several digits, each finer than the one before.
        basis: (C, A) float32, the axes as columns.
    """

    digits: np.ndarray
    scale: np.ndarray
    axis: np.ndarray
    basis: np.ndarray

    def coordinates(self, rows: np.ndarray) -> np.ndarray:
        """(R, A) float32, of some of the vectors."""
        found = np.zeros((len(rows), self.basis.shape[1]), np.float32)
        for digit, scale, axis in zip(self.digits[rows].T, self.scale, self.axis, strict=True):
            found[:, axis] += scale * digit
        return found

    def similarity(self, queries: np.ndarray) -> np.ndarray:
        """(Q, A) coordinates -> (Q, V), as the page computes it."""
        return (queries[:, self.axis] * self.scale) @ self.digits.T.astype(np.float32)


@dataclass(frozen=True)
class PageError:
    """How far similarities in the page are from the exact ones, in absolute value, over `queries` and all voxels."""

    maximum: float
    mean: float
    queries: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud:
    """What a page shows: N points that share the features of V voxels.

    Attributes:
        title, summary: plain text.
        points: (N, 3 or more), x y z first [m].
        voxels: (N,) row of each point's voxel.
        units: (V, C) float32 unit features.
        pca: (V, 3) colours in 0..1.
        query: (C,) unit vector that points are compared with at first; `query_text` says what it is.
        selected: the point whose feature it is, if it is one point's.
        focus: the point that the perspective view turns to.
        labels: (N,) uint8 train ids, an index into `class_names` or 255 for none; None where there are none.
    """

    title: str
    summary: str
    points: np.ndarray
    voxels: np.ndarray
    units: np.ndarray
    pca: np.ndarray
    query: np.ndarray
    query_text: str
    selected: int | None
    focus: int
    labels: np.ndarray | None = None
    class_names: Sequence[str] = ()


def cloud_page(cloud: Cloud) -> tuple[str, PageError]:
    """The page as HTML, and the error of its similarities."""
    small = compress(cloud.units)
    error = page_error(small, cloud.units)
    # `<` in a name from a dataset must not end the script that the data are in.
    data = json_text(_data(cloud, small, error)).replace("<", "\\u003c")
    page = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    for name, text in (("title", html.escape(cloud.title)), ("summary", html.escape(cloud.summary)), ("data", data)):
        page = page.replace("{{" + name + "}}", text)
    return page, error


def compress(units: np.ndarray, num_bytes: int = BYTES_PER_VOXEL) -> SmallFeatures:
    """Unit vectors (V, C) in `num_bytes` bytes each.

    The axes are the leading right singular vectors, without centring: they keep dot products best. Each byte goes to
    the axis that spoils dot products most, be it that nothing of it is kept yet, or that it is rounded coarsely.
    """
    _, vectors = np.linalg.eigh((units.T @ units).astype(np.float64))
    basis = vectors[:, ::-1][:, :num_bytes].astype(np.float32)
    left = units @ basis
    power = np.square(left).mean(axis=0)
    digits, scales, axes = [], [], []
    for _ in range(num_bytes):
        axis = int(np.argmax(np.square(left).mean(axis=0) * power))
        scale = max(float(np.abs(left[:, axis]).max()), np.finfo(np.float32).tiny * INT8_MAX) / INT8_MAX
        digit = np.rint(left[:, axis] / scale).astype(np.int8)
        left[:, axis] -= scale * digit
        digits.append(digit), scales.append(scale), axes.append(axis)
    return SmallFeatures(np.stack(digits, axis=1), np.array(scales, np.float32), np.array(axes), basis)


def page_error(small: SmallFeatures, units: np.ndarray, num_queries: int = MEASURED_QUERIES) -> PageError:
    """The error over all voxels, for queries spread evenly over them (all voxels, where they are few)."""
    rows = np.unique(np.linspace(0, len(units) - 1, num_queries).round().astype(int))
    maximum, total = 0.0, 0.0
    for some in np.array_split(rows, -(-len(rows) // QUERIES_AT_ONCE)):
        error = np.abs(small.similarity(small.coordinates(some)) - units[some] @ units.T)
        maximum, total = max(maximum, float(error.max())), total + float(error.sum(dtype=np.float64))
    return PageError(maximum, total / (len(rows) * len(units)), len(rows))


def _data(cloud: Cloud, small: SmallFeatures, error: PageError) -> dict[str, Any]:
    xyz = cloud.points[:, :3]
    eye, target = viewpoint(xyz[cloud.focus].astype(np.float64))
    colours = _bytes(class_colours(len(cloud.class_names))).tolist()
    named = [{"name": name, "colour": colour} for name, colour in zip(cloud.class_names, colours, strict=True)]
    return {
        "positions": _base64(xyz.astype("<f4")),
        "voxels": _base64(cloud.voxels.astype("<u4")),
        "digits": _base64(small.digits),
        "scale": small.scale.tolist(),
        "axis": small.axis.tolist(),
        "pca": _base64(_bytes(softened(cloud.pca))),
        "ramp": _base64(_bytes(RAMP(np.arange(256))[:, :3])),
        "labels": None if cloud.labels is None else _base64(cloud.labels.astype(np.uint8)),
        "classes": named,
        "no_class": {"name": "no class", "colour": _bytes(np.array(NO_CLASS)).tolist()},
        "query": {"vector": (cloud.query @ small.basis).tolist(), "text": cloud.query_text, "point": cloud.selected},
        "error": {"maximum": error.maximum, "mean": error.mean, "queries": error.queries},
        "eye": eye.tolist(),
        "target": target.tolist(),
        "reach_m": reach_of(xyz),
        "extent_m": float(np.linalg.norm(xyz.max(axis=0) - xyz.min(axis=0))),
    }


def _bytes(colours: np.ndarray) -> np.ndarray:
    """Colours in 0..1 as uint8."""
    return np.rint(255 * colours).astype(np.uint8)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
