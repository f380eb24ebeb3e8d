"""Pictures of a scan whose points have colours: from above, in perspective, and teacher beside student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import rankdata

from ..extract.projection import Calibration, Visibility, project, rigid_transform

# Blue low, red high; every step is visible on white and on black paper.
RAMP = LinearSegmentedColormap.from_list("similarity", ["#2b4fd6", "#1b9cc4", "#3fae54", "#dd9c1a", "#d3202a"])
PALETTE = (  # visible on white and on black paper, too
    *("#3b82f6", "#f97316", "#dc2f4b", "#16b0c4", "#a8703f", "#e667b7", "#d2691e", "#b5b02a", "#c94fd6", "#e0a820"),
    *("#9461d6", "#b05a7a", "#d98c78", "#8fae5d", "#22a559", "#6b8e23", "#7cc04a", "#5c74c8", "#4f9d8e", "#7a6fd0"),
)
NO_CLASS = (0.58, 0.60, 0.63)  # also for points without a colour
# Similarities are coloured by rank: a point takes a colour of RAMP by the fraction of points that are less similar.
# The five colours are at these fractions: the least similar half is blue, the most similar few percent are red.
SHARES = {"all": 0.0, "50 %": 0.5, "25 %": 0.75, "10 %": 0.9, "3 %": 0.97}  # keys: points at least as similar

VIEW_PX = (900, 1600)
FOCAL_PX = 1150.0
NEAREST_M = 0.5
POINT_M = 0.09  # width of a point in the perspective view, about a voxel
POINT_PX = (1.8, 12.0)
DPI = 160


def shares_below(similarity: np.ndarray) -> np.ndarray:
    """For each point (N,) the fraction of points with a lower similarity; half of the equal ones count as lower."""
    return (rankdata(similarity) - 0.5) / len(similarity)


def similarity_colours(similarity: np.ndarray) -> np.ndarray:
    """Colours (N, 3) in 0..1 of similarities (N,), by rank: the five colours of RAMP are at SHARES."""
    return RAMP(np.interp(shares_below(similarity), list(SHARES.values()), np.linspace(0, 1, len(SHARES))))[:, :3]


def cosines_at_shares(similarity: np.ndarray) -> dict[str, float]:
    """The similarity at each colour of RAMP: the lowest one among the most similar points, by their fraction of all.

    >>> cosines_at_shares(np.linspace(0, 1, 101))
    {'all': 0.0, '50 %': 0.5, '25 %': 0.75, '10 %': 0.9, '3 %': 0.97}
    """
    ordered = np.sort(similarity)
    return {name: float(ordered[math.ceil(share * (len(ordered) - 1))]) for name, share in SHARES.items()}


def class_colours(num_classes: int) -> np.ndarray:
    """Colours (num_classes, 3) in 0..1; they repeat after twenty."""
    return matplotlib.colors.to_rgba_array([PALETTE[n % len(PALETTE)] for n in range(num_classes)])[:, :3]


def softened(colours: np.ndarray) -> np.ndarray:
    """Colours in 0..1 moved away from black and white, so that they are visible on any paper."""
    return 0.1 + 0.8 * colours


def viewpoint(focus: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eye and target (3,) [m] of the perspective view: behind the sensor and above it, towards `focus` (3,)."""
    heading = np.array([*focus[:2], 0.0])
    length = np.linalg.norm(heading)
    heading = heading / length if length > 0 else np.array([1.0, 0.0, 0.0])
    return -18 * heading + [0, 0, 14], 14 * heading + [0, 0, -2]


def reach_of(points: np.ndarray) -> float:
    """The range that a picture shows [m], without the few farthest points: they would make all others small."""
    return 1.05 * float(np.quantile(np.abs(points[:, :2]).max(axis=1), 0.98))


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(4, 4) from the lidar frame to an upright camera (x right, y down, z forward) at `eye`, looking at `target`."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return rigid_transform(rotation, -rotation @ eye)


def top_view(points: np.ndarray, similarity: np.ndarray, marked: int | None, title: str) -> Figure:
    """The scan from above; higher points cover lower ones.

    Args:
        points: (N, 3 or more), x y z first [m].
        similarity: (N,).
        marked: row of the point that gets a ring; None for no ring.
        title: plain text.
    """
    figure = Figure(figsize=(8.6, 8), layout="constrained")
    axes = figure.add_subplot()
    _draw_from_above(axes, points, similarity_colours(similarity), reach_of(points))
    axes.set(xlabel="x [m]", ylabel="y [m]")
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    if marked is not None:
        _ring(axes, *points[marked, :2])
    _bar(figure, axes, similarity, shrink=0.7)
    return figure


def coloured_top_view(
    points: np.ndarray, colours: np.ndarray, legend: Mapping[str, tuple[float, ...]], title: str
) -> Figure:
    """The scan from above, higher points over lower ones, in given colours.

    Args:
        points: (N, 3 or more), x y z first [m].
        colours: (N, 3) in 0..1.
        legend: what each colour stands for; empty: nothing is said of colours.
        title: plain text.
    """
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.add_subplot()
    _draw_from_above(axes, points, colours, reach_of(points))
    axes.set_xlabel("x [m]"), axes.set_ylabel("y [m]")
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    if legend:
        marks = [Line2D([], [], marker="o", ls="", color=colour, label=name) for name, colour in legend.items()]
        figure.legend(handles=marks, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return figure


def perspective_view(points: np.ndarray, similarity: np.ndarray, focus: int, marked: int | None, title: str) -> Figure:
    """The scan from behind and above the sensor, towards the point in row `focus`; arguments as in `top_view`."""
    eye, target = viewpoint(points[focus, :3].astype(np.float64))
    height, width = VIEW_PX
    camera = Calibration(
        cam_from_lidar=look_at(eye, target),
        intrinsics=np.array([[FOCAL_PX, 0, width / 2], [0, FOCAL_PX, height / 2], [0, 0, 1]]),
    )
    seen = project(points, camera, VIEW_PX, Visibility(min_depth_m=NEAREST_M))
    order = np.argsort(-seen.depth_m)  # near points cover far ones
    rows, pixel = seen.point_index[order], seen.pixel[order]
    wide_px = np.clip(FOCAL_PX * POINT_M / seen.depth_m[order], *POINT_PX)
    figure = Figure(figsize=(width / DPI, height / DPI + 0.9), layout="constrained")
    axes = figure.add_subplot()
    colours = similarity_colours(similarity)[rows]
    axes.scatter(pixel[:, 1], pixel[:, 0], s=(wide_px * 72 / DPI) ** 2, c=colours, linewidths=0)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    for row, column in pixel[rows == marked]:
        _ring(axes, column, row)
    _bar(figure, axes, similarity, location="bottom", shrink=0.4, aspect=40)
    return figure


def side_by_side(
    image: np.ndarray, pixel: np.ndarray, rows: np.ndarray, points: np.ndarray, colours: Mapping[str, np.ndarray]
) -> Figure:
    """A column for each set of colours: the coloured points in the image, and below it the scan from above.

    Args:
        image: (H, W, 3) uint8.
        pixel: (R, 2) row and column in the image of the points that the camera sees.
        rows: (R,) rows of these points in the scan.
        points: (N, 3 or more), x y z first [m].
        colours: title -> (N, 3) in 0..1, NaN for points without a colour.
    """
    height, width = image.shape[:2]
    column_in = 6.4
    ratios = [height / width, 1.0]
    figure = Figure(figsize=(column_in * len(colours), column_in * sum(ratios) + 0.5), layout="constrained")
    axes = figure.subplots(2, len(colours), squeeze=False, height_ratios=ratios)
    faded = 255 - 0.45 * (255 - image.mean(axis=2, keepdims=True).repeat(3, axis=2))
    size = np.clip(5e4 / len(rows), 4, 25)
    for (above, below), (title, pure) in zip(axes.T, colours.items(), strict=True):
        of_points = softened(pure)
        above.imshow(faded.astype(np.uint8))
        above.scatter(pixel[:, 1] + 0.5, pixel[:, 0] + 0.5, s=size, c=of_points[rows], linewidths=0)
        above.set(xlim=(0, width), ylim=(height, 0))
        above.set_axis_off()
        above.set_title(title, fontsize=13, loc="left", parse_math=False)
        _draw_from_above(below, points, of_points, reach_of(points[rows]))
        below.set_axis_off()
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _draw_from_above(axes: Axes, points: np.ndarray, colours: np.ndarray, reach_m: float) -> None:
    has_colour = ~np.isnan(colours).any(axis=1)
    order = np.lexsort((points[:, 2], has_colour))
    drawn = np.where(has_colour[:, None], colours, NO_CLASS)[order]
    sizes = np.clip(1.3e5 / len(points), 1.1, 5) * np.where(has_colour[order], 1, 0.3)  # fewer points are drawn larger
    axes.scatter(*points[order, :2].T, s=sizes, c=drawn, linewidths=0)
    axes.set(xlim=(-reach_m, reach_m), ylim=(-reach_m, reach_m), aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)


def _ring(axes: Axes, x: float, y: float) -> None:
    for width, colour in ((4.0, "white"), (1.8, "black")):
        axes.add_line(Line2D([x], [y], marker="o", ms=13, mfc="none", mec=colour, mew=width, zorder=3))


def _bar(figure: Figure, axes: Axes, similarity: np.ndarray, **place: object) -> None:
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(cmap=RAMP), ax=axes, pad=0.01, **place)
    bar.set_ticks(
        np.linspace(0, 1, len(SHARES)),
        labels=[f"{share}\n{cosine:.3f}" for share, cosine in cosines_at_shares(similarity).items()],
    )
    bar.ax.tick_params(labelsize=9, length=0)
    bar.set_label("most similar points, and their lowest cosine", fontsize=9)
