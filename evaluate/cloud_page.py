"""One HTML file with a scan to rotate and click: points are coloured by their similarity to the point that is clicked.

The page is self-contained and loads nothing. The browser computes similarities from compressed features: the mean of
the scan is stored separately, and the direction of the remainder is one vector per voxel, in 32 bytes along the axes of
a principal component analysis without further centring, so that dot products approximate cosines. With two more numbers
per voxel, the page also has the cosines of the features with their mean. The errors of both are measured, and the page
states them.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np

from ..json_text import json_text
from .cosines import centred, unit
from .pictures import NO_CLASS, RAMP, SHARES, class_colours, reach_of, softened, viewpoint

BYTES_PER_VOXEL = 32
INT8_MAX = 127
MEASURED_QUERIES, QUERIES_AT_ONCE = 256, 32
TEMPLATE = "cloud_page.html"


@dataclass(frozen=True, eq=False)
class SmallFeatures:
    """V unit vectors (C,), stored as their mean m and a remainder each: length_v times a direction d_v.

    A direction is stored as its coordinates on A orthonormal axes, which are sums of K small numbers.

    Attributes:
        digits: (V, K) int8.
        scale: (K,) float32, the unit of each digit.
        axis: (K,) the axis of each digit; an axis may have several digits, each finer than the one before.
        basis: (C, A) float32, the axes as columns.
        mean: (C,) float32.
        length: (V,) float32.
        along: (V,) float32, the dot product of m and length_v d_v.
    """

    digits: np.ndarray
    scale: np.ndarray
    axis: np.ndarray
    basis: np.ndarray
    mean: np.ndarray
    length: np.ndarray
    along: np.ndarray

    def coordinates(self, rows: np.ndarray) -> np.ndarray:
        """Coordinates (R, A) float32 of the directions in `rows`."""
        found = np.zeros((len(rows), self.basis.shape[1]), np.float32)
        for digit, scale, axis in zip(self.digits[rows].T, self.scale, self.axis, strict=True):
            found[:, axis] += scale * digit
        return found

    def query(self, vectors: np.ndarray) -> SmallQuery:
        """The query of Q vectors (Q, C) among the unit vectors, such as means of some of them."""
        rest = centred(vectors, self.mean)
        return SmallQuery(rest @ self.basis, np.linalg.norm(rest, axis=1), rest @ self.mean)

    def query_of(self, rows: np.ndarray) -> SmallQuery:
        """The query of the vectors in `rows`, as the page stores them."""
        length = self.length[rows]
        return SmallQuery(length[:, None] * self.coordinates(rows), length, self.along[rows])

    def centred_cosines(self, query: SmallQuery) -> np.ndarray:
        """Cosines (Q, V) after subtraction of the mean."""
        return self._dots(query) / _or_one(query.length)[:, None]

    def plain_cosines(self, query: SmallQuery) -> np.ndarray:
        """Cosines (Q, V): (m + a) (m + b) = m m + m a + m b + a b; the first three terms are exact."""
        square = float(self.mean @ self.mean)
        dots = square + query.along[:, None] + self.along + self.length * self._dots(query)
        whole = np.sqrt(np.maximum(square + 2 * query.along + query.length**2, 0))
        return dots / _or_one(whole)[:, None]

    def _dots(self, query: SmallQuery) -> np.ndarray:
        return (query.rest[:, self.axis] * self.scale) @ self.digits.T.astype(np.float32)


@dataclass(frozen=True, eq=False)
class SmallQuery:
    """Q query vectors minus the mean m."""

    rest: np.ndarray  # (Q, A) float32, coordinates
    length: np.ndarray  # (Q,), before components on other axes were left out
    along: np.ndarray  # (Q,), dot products with m


@dataclass(frozen=True)
class PageError:
    """Absolute errors of the page's similarities, over `queries` queries and all voxels."""

    maximum: float
    mean: float
    queries: int


@dataclass(frozen=True)
class PageErrors:
    """The errors of cosines of the features, with and without their mean."""

    plain: PageError
    centred: PageError


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud:
    """The content of a page: N points that share the features of V voxels.

    Attributes:
        title, summary: plain text.
        points: (N, 3 or more), x y z first [m].
        voxels: (N,) row of each point's voxel.
        units: (V, C) float32 unit features.
        mean: (C,) float32, mean of the unit features of the scan's points.
        pca: (V, 3) colours in 0..1.
        query: (C,) among the unit features, the query when the page is opened; `query_text` describes it.
        centre: whether the page subtracts the mean when it is opened.
        selected: row of the query point; None if the query is not a point.
        focus: row of the point that the perspective view looks at.
        labels: (N,) uint8 train ids, an index into `class_names` or 255 for no class; None without labels.
        colour_by: what the colours show when the page is opened.
    """

    title: str
    summary: str
    points: np.ndarray
    voxels: np.ndarray
    units: np.ndarray
    mean: np.ndarray
    pca: np.ndarray
    query: np.ndarray
    query_text: str
    centre: bool
    selected: int | None
    focus: int
    labels: np.ndarray | None = None
    class_names: Sequence[str] = ()
    colour_by: Literal["similarity", "class", "pca"] = "similarity"


def cloud_page(cloud: Cloud) -> tuple[str, PageErrors]:
    """The page as HTML, and the errors of its similarities."""
    small = compress(cloud.units, cloud.mean)
    errors = page_errors(small, cloud.units)
    # `<` in a dataset's names must not end the script element that holds the data.
    data = json_text(_data(cloud, small, errors)).replace("<", "\\u003c")
    page = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    for name, text in (("title", html.escape(cloud.title)), ("summary", html.escape(cloud.summary)), ("data", data)):
        page = page.replace("{{" + name + "}}", text)
    return page, errors


def compress(units: np.ndarray, mean: np.ndarray, num_bytes: int = BYTES_PER_VOXEL) -> SmallFeatures:
    """Compress unit vectors (V, C) to their mean (C,) and directions of `num_bytes` bytes each.

    The axes are the leading right singular vectors, without centring: they preserve dot products best. Each byte goes
    to the axis that causes the largest error of dot products, because it is missing or rounded coarsely.
    """
    rest = centred(units, mean)
    directions = unit(rest)
    _, vectors = np.linalg.eigh((directions.T @ directions).astype(np.float64))
    basis = vectors[:, ::-1][:, :num_bytes].astype(np.float32)
    left = directions @ basis
    power = np.square(left).mean(axis=0)
    digits, scales, axes = [], [], []
    for _ in range(num_bytes):
        axis = int(np.argmax(np.square(left).mean(axis=0) * power))
        scale = max(float(np.abs(left[:, axis]).max()), np.finfo(np.float32).tiny * INT8_MAX) / INT8_MAX
        digit = np.rint(left[:, axis] / scale).astype(np.int8)
        left[:, axis] -= scale * digit
        digits.append(digit), scales.append(scale), axes.append(axis)
    return SmallFeatures(
        digits=np.stack(digits, axis=1),
        scale=np.array(scales, np.float32),
        axis=np.array(axes),
        basis=basis,
        mean=mean,
        length=np.linalg.norm(rest, axis=1),
        along=rest @ mean,
    )


def page_errors(small: SmallFeatures, units: np.ndarray, num_queries: int = MEASURED_QUERIES) -> PageErrors:
    """The errors over all voxels, for queries spread evenly over the voxels, or for all voxels if they are few."""
    rows = np.unique(np.linspace(0, len(units) - 1, num_queries).round().astype(int))
    directions = unit(centred(units, small.mean))
    plain, less_mean = [], []
    for some in np.array_split(rows, -(-len(rows) // QUERIES_AT_ONCE)):
        query = small.query_of(some)
        plain.append(_worst_and_sum(small.plain_cosines(query) - units[some] @ units.T))
        less_mean.append(_worst_and_sum(small.centred_cosines(query) - directions[some] @ directions.T))

    def over_all(parts: list[tuple[float, float]]) -> PageError:
        worst, sums = zip(*parts, strict=True)
        return PageError(max(worst), sum(sums) / (len(rows) * len(units)), len(rows))

    return PageErrors(over_all(plain), over_all(less_mean))


def _worst_and_sum(error: np.ndarray) -> tuple[float, float]:
    return float(np.abs(error).max()), float(np.abs(error).sum(dtype=np.float64))


def _or_one(lengths: np.ndarray) -> np.ndarray:
    return np.where(lengths > 0, lengths, 1)


def _data(cloud: Cloud, small: SmallFeatures, errors: PageErrors) -> dict[str, Any]:
    xyz = cloud.points[:, :3]
    eye, target = viewpoint(xyz[cloud.focus].astype(np.float64))
    query = small.query(cloud.query[None])
    colours = _bytes(class_colours(len(cloud.class_names))).tolist()
    named = [{"name": name, "colour": colour} for name, colour in zip(cloud.class_names, colours, strict=True)]
    return {
        "positions": _base64(xyz.astype("<f4")),
        "voxels": _base64(cloud.voxels.astype("<u4")),
        "digits": _base64(small.digits),
        "scale": small.scale.tolist(),
        "axis": small.axis.tolist(),
        "lengths": _base64(np.stack([small.length, small.along], axis=1).astype("<f4")),
        "mean_square": float(small.mean @ small.mean),
        "pca": _base64(_bytes(softened(cloud.pca))),
        "ramp": _base64(_bytes(RAMP(np.arange(256))[:, :3])),
        "shares": list(SHARES.values()),
        "share_names": list(SHARES),
        "labels": None if cloud.labels is None else _base64(cloud.labels.astype(np.uint8)),
        "classes": named,
        "no_class": {"name": "no class", "colour": _bytes(np.array(NO_CLASS)).tolist()},
        "query": {
            "rest": query.rest[0].tolist(),
            "length": float(query.length[0]),
            "along": float(query.along[0]),
            "text": cloud.query_text,
            "point": cloud.selected,
        },
        "centre": cloud.centre,
        "colour_by": cloud.colour_by,
        "errors": asdict(errors),
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
