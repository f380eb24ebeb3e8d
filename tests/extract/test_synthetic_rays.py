"""Rays of the simulated world: do they end where marching along them does, on solids and on the ground?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalr.extract.datasets.synthetic.parts import rotation_matrix
from scalr.extract.datasets.synthetic.raycast import Shape, Solids, Window, cast, intersect
from scalr.extract.datasets.synthetic.rays import PinholeRays, SpinningRays
from scalr.extract.datasets.synthetic.street import Region, Street

# --- rays and solids -------------------------------------------------------------------------------------------------

STEP = 0.004


def inside(shape: Shape, taper: np.ndarray, points: np.ndarray, size: float = 1.0) -> np.ndarray:
    """The definition of the unit shapes, point by point; `points` (3, ...)."""
    x, y, z = points / size
    if shape == Shape.ELLIPSOID:
        return x * x + y * y + z * z <= 1
    lost = (z + 1) / 2
    if shape == Shape.ROUND:
        return (np.hypot(x, y) <= 1 - taper[0] * lost) & (np.abs(z) <= 1)
    along = (x <= 1 - taper[0] * lost) & (x >= -1 + taper[1] * lost)
    return along & (np.abs(y) <= 1 - taper[2] * lost) & (np.abs(z) <= 1)


def one_solid(shape: Shape, taper=(0, 0, 0)) -> Solids:
    return Solids(np.array([shape]), np.zeros((1, 3)), np.eye(3)[None], np.array([taper], float), np.zeros(1))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(list(Shape)),
    taper=st.tuples(*[st.sampled_from([0.0, 0.3, 0.7, 1.0])] * 3).filter(lambda taper: taper[0] + taper[1] < 2),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rays_enter_a_solid_where_marching_along_them_does(shape, taper, dtype, seed):
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=3)
    origin *= rng.uniform(2, 6) / np.linalg.norm(origin)
    aim = rng.uniform(-1.3, 1.3, (3, 60))
    direction = (aim - origin[:, None]) / np.linalg.norm(aim - origin[:, None], axis=0)

    with np.errstate(all="ignore"):
        reached = intersect(one_solid(shape, taper), 0, origin.astype(dtype), direction.astype(dtype))

    t, taper = np.arange(STEP, 12, STEP), np.array(taper)
    core = inside(shape, taper, origin[:, None, None] + direction[:, :, None] * t, 0.999)
    assert (reached <= np.where(core.any(axis=1), t[core.argmax(axis=1)], np.inf) + 1e-3).all()  # none too late
    hit = np.isfinite(reached)
    ends = origin[:, None] + direction[:, hit] * reached[hit].astype(float)
    assert inside(shape, taper, ends, 1.001).all()  # and none too early
    assert not inside(shape, taper, ends - direction[:, hit] * 0.01, 0.999).any()


@pytest.mark.parametrize(
    ("shape", "origin", "direction", "expected"),
    [
        (Shape.BOX, (3, 0, 0), (-1, 0, 0), 2.0),
        (Shape.BOX, (3, 0.5, 0.5), (-1, 0, 0), 2.0),  # parallel to four planes, between them
        (Shape.BOX, (3, 1.5, 0), (-1, 0, 0), np.inf),  # parallel to four planes, beyond one
        (Shape.BOX, (0, 0, 0), (1, 0, 0), np.inf),  # from inside
        (Shape.BOX, (3, 0, 0), (1, 0, 0), np.inf),  # away
        (Shape.ROUND, (0, 0, 4), (0, 0, -1), 3.0),  # on the end face
        (Shape.ROUND, (2, 0, 0), (-1, 0, 0), 1.0),
        (Shape.ELLIPSOID, (0, 5, 0), (0, -2, 0), 2.0),  # t counts direction vectors, not metres
    ],
)
def test_rays_along_the_axes(shape, origin, direction, expected):
    with np.errstate(all="ignore"):
        reached = intersect(one_solid(shape), 0, np.array(origin, float), np.array(direction, float).reshape(3, 1))
    assert reached == pytest.approx(expected)


def random_solids(rng: np.random.Generator, count: int) -> Solids:
    rotations = np.array([rotation_matrix(*angles) for angles in rng.uniform(-3, 3, (count, 3))])
    return Solids(
        shape=rng.integers(0, 3, count).astype(np.uint8),
        center=rng.uniform(-12, 12, (count, 3)),
        axes=rotations * rng.uniform(0.1, 3.0, (count, 1, 3)),
        taper=rng.choice([0.0, 0.5], (count, 3)),
        porosity=rng.choice([0.0, 0.3], count),
    )


def random_grid(rng: np.random.Generator, kind: str):
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation_matrix(*rng.uniform(-3, 3, 3)), rng.uniform(-3, 3, 3)
    if kind == "pinhole":
        return PinholeRays(pose, np.array([[30.0, 0, 33], [0, 30, 17], [0, 0, 1]]), (36, 64))
    return SpinningRays(pose, np.linspace(-0.9, 0.7, 16), rng.uniform(-4, 4), 2 * np.pi / 90, 90, 100.0)


@pytest.mark.parametrize("kind", ["pinhole", "spinning"])
@pytest.mark.parametrize("seed", range(6))
def test_windows_lose_no_hit(kind, seed):
    """Casting within each solid's window gives what casting every ray at every solid gives."""
    rng = np.random.default_rng(seed)
    solids, rays = random_solids(rng, 60), random_grid(rng, kind)
    background = np.full(rays.shape, np.inf)
    hits = cast(solids, rays, background)

    everything = (slice(0, rays.shape[0]), slice(0, rays.shape[1]))
    rays.windows = lambda solids: [Window(solid, *everything, 0.0) for solid in range(60)]
    expected = cast(solids, rays, background)

    assert np.isfinite(expected.distance).mean() > 0.1
    np.testing.assert_array_equal(hits.distance, expected.distance)
    np.testing.assert_array_equal(hits.solid, expected.solid)


# --- the ground ------------------------------------------------------------------------------------------------------


def curved_street(curvature: float) -> Street:
    return Street(
        curvature=curvature,
        lanes=2,
        lane_width=3.4,
        median=1.0,
        islands=((5.0, 25.0),),
        parking_width=2.8,
        sidewalk_width=4.0,
        kerb_height=0.15,
        crossing_s=40.0,
        crossing_half_width=4.0,
    )


@pytest.mark.parametrize("curvature", [0.0, 1 / 200, -1 / 200])
def test_street_coordinates_there_and_back(curvature):
    street, rng = curved_street(curvature), np.random.default_rng(0)
    s, d = rng.uniform(-80, 200, 100), rng.uniform(-30, 30, 100)
    x, y, _ = street.pose(s, d)
    np.testing.assert_allclose(street.along(x, y), s, atol=1e-9)
    np.testing.assert_allclose(street.lateral(x, y), d, atol=1e-9)


@pytest.mark.parametrize("curvature", [0.0, 1 / 200, -1 / 200])
def test_rays_meet_the_ground_where_marching_along_them_does(curvature):
    street, rng = curved_street(curvature), np.random.default_rng(1)
    x, y, _ = street.pose(10.0, -3.0)
    origin = np.array([float(x), float(y), 1.7])
    aim = np.stack([*street.pose(rng.uniform(-10, 60, 500), rng.uniform(-20, 20, 500))[:2], np.zeros(500)])
    direction = (aim - origin[:, None]) / np.linalg.norm(aim - origin[:, None], axis=0)

    reached = street.cast(origin, direction)

    t = np.arange(1.5, 70, 0.01)
    path = origin[:, None, None] + direction[:, :, None] * t
    low = path[2] <= 0.15  # only there the height of the ground matters
    below = np.zeros(low.shape, dtype=bool)
    below[low] = path[2][low] <= street.height(path[0][low], path[1][low])
    wrong = np.abs(reached - t[below.argmax(axis=1)]) > 0.011
    assert wrong.mean() < 0.003  # cut corners of kerbs, see Street


def test_the_ground_has_all_its_regions():
    street = curved_street(0.0)
    s, d = np.array([10.0, 10, 10, 10, 30, 40]), np.array([0.0, 4, 12, 30, 0, 20])
    regions = [Region.ISLAND, Region.ROAD, Region.SIDEWALK, Region.TERRAIN, Region.ROAD, Region.ROAD]
    assert street.region(s, d).tolist() == regions
