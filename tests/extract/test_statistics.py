import numpy as np
import pytest
import torch

from scalr.extract.statistics import TeacherStatistics
from scalr.extract.teacher_sample import VectorSums


def statistics_of(*batches: np.ndarray) -> TeacherStatistics:
    sums = VectorSums(batches[0].shape[1])
    for batch in batches:
        sums.add(torch.from_numpy(batch))
    return sums.statistics()


@pytest.fixture
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (5 + rng.normal(size=(200, 6)) * [1, 2, 3, 4, 5, 6]).astype(np.float32)


def test_batches_give_the_statistics_of_all_vectors(vectors):
    found = statistics_of(vectors[:30], vectors[30:31], vectors[31:])
    exact = vectors.astype(np.float64)
    assert found.count == 200
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(exact.T, bias=True), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.deviation, exact.std(axis=0), rtol=1e-9)
    units = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    assert found.mean_unit_length == pytest.approx(np.linalg.norm(units.mean(axis=0)))


def test_pooled_samples_give_the_statistics_of_all_vectors(vectors):
    pooled = TeacherStatistics.pooled([statistics_of(vectors[:50]), statistics_of(vectors[50:] + 9)])
    together = statistics_of(np.concatenate([vectors[:50], vectors[50:] + 9]))
    assert pooled.count == 200
    for name in ("mean", "covariance", "mean_unit"):
        np.testing.assert_allclose(getattr(pooled, name), getattr(together, name), rtol=1e-9, atol=1e-9)


def test_the_effective_rank_counts_the_directions_that_vary():
    rng = np.random.default_rng(1)
    plane = rng.normal(size=(5000, 2)).astype(np.float32) @ np.linalg.qr(rng.normal(size=(6, 2)))[0].T.astype("f4")
    assert statistics_of(plane).effective_rank == pytest.approx(2, abs=0.01)
    assert statistics_of(np.ones((3, 6), np.float32)).effective_rank == 0
    assert VectorSums(6).statistics().effective_rank == 0
