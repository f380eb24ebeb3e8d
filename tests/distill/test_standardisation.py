"""Vectors less their mean, and PHI-S: what is learnt, and the way back to the teacher's space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.losses import contrastive_loss, cosine_loss, similarity_loss
from scalr.distill.standardisation import Standardisation, hadamard
from scalr.distill.student import Student
from scalr.errors import StudentError
from scalr.extract.teachers.registry import TEACHERS
from standardised import WEIGHTS, standardisation_of, statistics_of, vectors_of

KINDS = ["centre", "phi_s"]


def at_usual_length(vectors: torch.Tensor) -> torch.Tensor:
    """Each vector moved towards or away from the mean, to the root mean square length of the difference."""
    statistics = statistics_of(vectors)
    mean = torch.from_numpy(statistics.mean).float()
    return mean + F.normalize(vectors - mean, dim=1) * np.trace(statistics.covariance) ** 0.5


@pytest.mark.parametrize("order", sorted({spec.dim for spec in TEACHERS.values()} | {1, 2, 36, 192, 512, 1152, 2304}))
def test_hadamard_matrices_of_all_teachers_are_orthonormal(order):
    matrix = hadamard(order)
    assert (np.abs(matrix).min(), np.abs(matrix).max()) == pytest.approx((order**-0.5, order**-0.5))
    some = np.random.default_rng(0).normal(size=(order, 8))  # of 4096, the whole product takes seconds
    np.testing.assert_allclose(matrix @ (matrix.T @ some), some, atol=1e-9)


def test_orders_without_a_matrix_are_known():
    """By their definition: of the multiples of four up to 200, those that neither construction reaches."""
    found = {order: hadamard(order) for order in range(1, 201)}
    missing = {order for order, matrix in found.items() if matrix is None}
    assert {order for order in missing if order % 4 == 0} == {52, 92, 100, 116, 156, 172, 184, 188}
    assert missing > {3, 5, 6, 10}
    for order, matrix in found.items():
        assert matrix is None or np.abs(matrix @ matrix.T - np.eye(order)).max() < 1e-12


def test_phi_s_gives_every_channel_the_same_variance():
    """Its covariance is α² H Λ Hᵀ, whatever the signs of the eigenvectors."""
    vectors = vectors_of(24, 0)
    learnt = standardisation_of("phi_s", vectors)([vectors]).double().numpy()
    np.testing.assert_allclose(learnt.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(learnt.var(axis=0), 1, rtol=1e-4)
    variance = np.linalg.eigvalsh(np.cov(vectors.double().numpy().T, bias=True))
    expected = hadamard(24) * (variance / variance.mean()) @ hadamard(24).T
    np.testing.assert_allclose(np.cov(learnt.T, bias=True), expected, atol=1e-4)


def test_centre_takes_the_mean_away_and_nothing_else():
    first, second = vectors_of(5, 0), vectors_of(7, 1, scale=100)
    learnt = standardisation_of("centre", first, second)([first, second])
    for part, vectors, weight in zip(learnt.split([5, 7], dim=1), (first, second), WEIGHTS, strict=True):
        torch.testing.assert_close(part, weight * F.normalize(vectors - vectors.mean(dim=0), dim=1), atol=1e-5, rtol=0)


def test_phi_s_makes_teachers_of_all_scales_count_by_their_weights():
    """The mean square of each teacher's channels is the square of its weight; a vector twice as far out counts more."""
    first, second = vectors_of(8, 0, scale=0.01), vectors_of(12, 1, scale=100)
    learnt = standardisation_of("phi_s", first, second)([first, second])
    for part, weight in zip(learnt.split([8, 12], dim=1), WEIGHTS, strict=True):
        assert part.square().mean().item() == pytest.approx(weight**2, rel=1e-3)
    ratio = learnt[:, :8].norm(dim=1) / (first - first.mean(dim=0)).norm(dim=1)
    torch.testing.assert_close(ratio, ratio[:1].expand(len(ratio)), rtol=1e-3, atol=0)


def test_with_one_teacher_phi_s_is_centre():
    """The same losses, and the same answers in the teacher's space, of a head that is rotated as the targets are."""
    vectors = vectors_of(12, 0)
    centre, phi_s = (standardisation_of(kind, vectors) for kind in KINDS)
    heads = {kind: Student(WaffleIronConfig(width=8, depth=1, out_channels=12)) for kind in KINDS}
    with torch.no_grad():
        for name in ("weight", "bias"):
            of_centre = getattr(heads["centre"].classif, name)
            getattr(heads["phi_s"].classif, name).copy_(phi_s.rotation_0 @ of_centre)
    features = torch.randn(2000, 8, generator=torch.Generator().manual_seed(1))
    for loss in (similarity_loss, cosine_loss, lambda *pair: contrastive_loss(*pair, temperature=0.1)):
        of_centre, of_phi_s = (
            loss(heads[kind].project(features), each([vectors]))
            for kind, each in zip(KINDS, (centre, phi_s), strict=True)
        )
        torch.testing.assert_close(of_phi_s, of_centre, rtol=1e-4, atol=1e-5)
        assert of_centre.std() > 0.01
    for kind, each in zip(KINDS, (centre, phi_s), strict=True):
        heads[kind].standardisation = each
    torch.testing.assert_close(
        heads["phi_s"].project(features), heads["centre"].project(features), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2])
def test_the_way_back_gives_the_teacher_s_vectors(kind, count):
    """Of vectors at the root mean square length; losses do not see how long an answer is."""
    vectors = [vectors_of(12, 0, scale=0.1), vectors_of(8, 1, scale=30)][:count]
    usual = [at_usual_length(each) for each in vectors]
    standardisation = standardisation_of(kind, *vectors)
    answers = standardisation(usual)
    for scale in (1, 1e-3, 50):
        back = standardisation.in_space_of_teachers(scale * answers).split([each.shape[1] for each in vectors], dim=1)
        for mine, exact in zip(back, usual, strict=True):
            torch.testing.assert_close(mine, exact, rtol=0, atol=1e-4 * exact.abs().max().item())


def test_an_answer_of_length_zero_is_the_mean():
    vectors = vectors_of(12, 0)
    standardisation = standardisation_of("phi_s", vectors)
    torch.testing.assert_close(standardisation.in_space_of_teachers(torch.zeros(3, 12))[1], standardisation.mean)


def test_answers_of_any_shape_go_back():
    standardisation = standardisation_of("phi_s", vectors_of(8, 0), vectors_of(4, 1))
    answers = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0))
    expected = standardisation.in_space_of_teachers(answers.reshape(15, 12))
    torch.testing.assert_close(standardisation.in_space_of_teachers(answers), expected.reshape(3, 5, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_standardised_in_single_precision(kind):
    """Of a student that runs in half precision: the mean is most of a vector, and its rounding more than the rest."""
    vectors = vectors_of(12, 0)
    standardisation = standardisation_of(kind, vectors)
    with torch.autocast("cpu", torch.bfloat16):
        learnt = standardisation([vectors])
        back = standardisation.in_space_of_teachers(learnt.bfloat16())
    assert torch.equal(learnt, standardisation([vectors]))
    assert back.dtype == torch.bfloat16


def test_nothing_is_made_where_nothing_is_asked_for():
    assert Standardisation.of("none", {}, (), "objective.standardise") is None


def test_what_cannot_be_standardised_is_said():
    with pytest.raises(StudentError) as caught:
        standardisation_of("phi_s", vectors_of(12, 0), vectors_of(6, 1))
    assert str(caught.value) == (
        "objective.standardise: no Hadamard matrix is known here for the 6 channels of teacher 1, and phi_s needs one. "
        "Use centre"
    )
    with pytest.raises(StudentError, match=r"statistics of teacher 0 are of 0 vectors: .*Repeat the 'scalr"):
        standardisation_of("centre", torch.zeros(0, 4))
    same = torch.tensor([0.1, 30.0, -7.0, 1e-3]).expand(50, 4)
    for vectors in (same, 1e4 * same, torch.zeros(5, 4)):
        with pytest.raises(StudentError, match="vectors of teacher 0 in the store's statistics are all the same"):
            standardisation_of("centre", vectors)
    assert standardisation_of("centre", same + 1e-3 * torch.eye(50, 4)) is not None
