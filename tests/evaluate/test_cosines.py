from __future__ import annotations

import numpy as np
import pytest

from scalr.evaluate.cosines import centred, similarity, unit


def random_rotation(channels: int, seed: int) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, channels)))
    return rotation


@pytest.mark.parametrize("seed", range(3))
def test_similarity_is_the_cosine(seed):
    rng = np.random.default_rng(seed)
    features, query = rng.normal(size=(50, 7)).astype(np.float32), rng.normal(size=7)
    expected = [each @ query / np.linalg.norm(each) / np.linalg.norm(query) for each in features.astype(np.float64)]
    found = similarity(features, query)
    assert found.shape == (50,)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert similarity(features, features[3])[3] == pytest.approx(1, abs=1e-6)


def test_similarity_sees_directions_only():
    rng = np.random.default_rng(0)
    features, query = rng.normal(size=(50, 7)), rng.normal(size=7)
    expected = similarity(features, query)
    rotation, lengths = random_rotation(7, 1), rng.uniform(0.1, 10, (50, 1))
    np.testing.assert_allclose(similarity(lengths * features @ rotation, 3 * query @ rotation), expected, atol=1e-6)
    np.testing.assert_allclose(similarity(-features, query), -expected, atol=1e-6)


def test_nothing_is_like_a_vector_of_length_zero():
    features = np.vstack([np.zeros(4), np.ones(4)])
    np.testing.assert_array_equal(similarity(features, np.ones(4)), [0, 1])
    np.testing.assert_array_equal(similarity(features, np.zeros(4)), [0, 0])


def test_centred_vectors_have_what_their_mean_has_not():
    rng = np.random.default_rng(0)
    units = unit(rng.normal(size=(50, 7)) + 3)
    mean = units.mean(axis=0)
    np.testing.assert_allclose(centred(units, mean), units.astype(np.float64) - mean, atol=1e-7)
    np.testing.assert_allclose(centred(units[3], mean), units[3] - mean, atol=1e-7)


def test_rounding_is_no_direction():
    """What equals the mean, but for float32's last digits, is nothing after it is taken away."""
    units = np.tile(unit(np.random.default_rng(0).normal(size=256)), (1000, 1))
    units[:500] = np.nextafter(units[:500], 1)
    mean = units.mean(axis=0, dtype=np.float64)
    assert (units != mean).any()
    np.testing.assert_array_equal(centred(units, mean), 0)
    units[0, 0] += 1e-4
    assert (centred(units, mean)[0] != 0).any()
