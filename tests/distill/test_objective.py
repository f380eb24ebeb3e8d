from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scalr.distill.augmentation import AugmentConfig
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.dataset import DistillCollate, DistillDataset, SamplingConfig
from scalr.distill.objective import DistillObjective, ObjectiveConfig, joint_targets
from scalr.distill.segment_losses import balanced_weights, cosines, negatives, tolerant_loss
from scalr.distill.segments import SegmentTargets
from scalr.distill.student import Student
from scalr.errors import StudentError
from standardised import standardisation_of
from tiny import TinyDataset, extract_with, tiny_teachers

INPUTS = WaffleIronInputs(num_neighbours=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three frames with the targets of two teachers, of three dimensions each."""
    folder = tmp_path_factory.mktemp("objective")
    teachers = {"teachers": ("coordinates", "doubled")}
    return extract_with(TinyDataset(folder), tiny_teachers(), folder / "s.zarr", **teachers)


@pytest.fixture(scope="module")
def batch(store):
    dataset = DistillDataset(store, ("coordinates", "doubled"), INPUTS, SamplingConfig(), AugmentConfig(), 0)
    return DistillCollate(INPUTS)([dataset[0, frame] for frame in range(3)])


def objective_of(out_channels: int, **options) -> DistillObjective:
    torch.manual_seed(0)
    student = Student(WaffleIronConfig(width=8, depth=3, out_channels=out_channels), INPUTS).eval()
    return DistillObjective(student, ObjectiveConfig(**options), (1.0, 2.0), 6)


def test_each_teacher_counts_by_its_weight_whatever_its_length():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(20, 4, generator=generator), torch.randn(20, 7, generator=generator)
    joint = joint_targets([first, 100 * second], [1.0, 0.5])
    torch.testing.assert_close(joint[:, :4].norm(dim=1), torch.ones(20))
    torch.testing.assert_close(joint[:, 4:].norm(dim=1), torch.full((20,), 0.5))
    # The cosine to a joint target is the mean of the cosines to each, by the squares of the weights.
    both = torch.cat([F.normalize(first, dim=1), 0.5 * F.normalize(-second, dim=1)], dim=1)
    torch.testing.assert_close(F.cosine_similarity(joint, both), torch.full((20,), (1 - 0.25) / (1 + 0.25)))


@pytest.mark.parametrize("loss", ["similarity", "cosine", "smooth"])
def test_the_loss_is_the_mean_over_all_pairs(batch, loss):
    objective = objective_of(6, loss=loss)
    with torch.no_grad():
        mean, of_samples = objective(batch)
        features = F.normalize(objective.student(batch.inputs), dim=1)
    targets = F.normalize(joint_targets([each.decode() for each in batch.targets], (1.0, 2.0)), dim=1)
    distance = (features - targets).norm(dim=1)
    expected = {
        "similarity": distance,
        "cosine": distance.square() / 2,
        "smooth": torch.where(distance < 1, distance.square() / 2, distance - 0.5),
    }[loss]
    torch.testing.assert_close(mean, expected.mean())
    for number, (total, count) in enumerate(of_samples.T.tolist()):
        mine = expected[batch.sample == number]
        assert (total, count) == (pytest.approx(mine.sum().item(), rel=1e-4), len(mine))


def test_the_student_learns_targets_as_it_keeps_them(batch):
    """Those of the first teacher less their mean; the loss of each pair is not that of the vectors as they are."""
    objective, targets = objective_of(6), [each.decode() for each in batch.targets]
    as_they_are = objective(batch)[0]
    standardisation = objective.student.standardisation = standardisation_of("centre", *targets, weights=(1.0, 2.0))
    with torch.no_grad():
        mean = objective(batch)[0]
        features = F.normalize(objective.student(batch.inputs), dim=1)
    expected = (features - F.normalize(standardisation(targets), dim=1)).norm(dim=1).mean()
    torch.testing.assert_close(mean, expected)
    assert (mean - as_they_are).abs() > 0.01


def test_pairs_of_several_cameras_share_the_features_of_their_points(store):
    sampling = SamplingConfig(views_per_sample="all")
    dataset = DistillDataset(store, ("coordinates", "doubled"), INPUTS, sampling, AugmentConfig(), 0)
    batch = DistillCollate(INPUTS)([dataset[0, 0], dataset[0, 1]])
    objective = objective_of(6)
    with torch.no_grad():
        mean, of_samples = objective(batch)
        features = objective.student(batch.inputs)[batch.point]
    targets = joint_targets([each.decode() for each in batch.targets], (1.0, 2.0))
    distance = F.normalize(features, dim=1) - F.normalize(targets, dim=1)
    torch.testing.assert_close(mean, distance.norm(dim=1).mean())
    assert of_samples[1].sum() == batch.num_pairs > batch.num_points


def test_one_teacher_s_targets_stay_as_they_are():
    """A head for the targets sees their lengths, as the teacher gives them."""
    targets = torch.randn(5, 3)
    assert torch.equal(joint_targets([targets], [2.0]), targets)


def test_losses_are_computed_in_single_precision(batch):
    """Of a student that runs in half precision: rounding the loss to three digits would hide what it learns."""
    objective = objective_of(6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mean, of_samples = objective(batch)
        features = objective.student(batch.inputs)
    assert features.dtype == torch.bfloat16
    assert mean.dtype == of_samples.dtype == torch.float32
    targets = joint_targets([each.decode() for each in batch.targets], (1.0, 2.0)).double()
    distance = F.normalize(features.double(), dim=1) - F.normalize(targets, dim=1)
    assert mean.item() == pytest.approx(distance.norm(dim=1).mean().item(), rel=1e-6)


def test_the_contrastive_loss_compares_pairs_that_are_drawn(batch):
    objective = objective_of(6, loss="contrastive", contrastive_pairs=50, temperature=0.5)
    with torch.no_grad():
        torch.manual_seed(1)
        mean, of_samples = objective(batch)
        features = F.normalize(objective.student(batch.inputs), dim=1).double()
        targets = F.normalize(joint_targets([each.decode() for each in batch.targets], (1.0, 2.0)), dim=1).double()
        torch.manual_seed(1)
        drawn = torch.randperm(len(features))[:50].tolist()
    total = 0.0
    for mine in drawn:
        scores = torch.stack([features[mine] @ targets[other] / 0.5 for other in drawn]).exp()
        total -= (scores[drawn.index(mine)] / scores.sum()).log().item()
    assert mean.item() == pytest.approx(total / 50, rel=1e-4)
    assert of_samples[1].sum().item() == 50


def test_the_contrastive_loss_is_set_up_as_published():
    """PPKT (Liu et al., 2021), as the official SLidR code runs it: temperature, pairs of a batch, channels."""
    config = ObjectiveConfig(loss="contrastive")
    assert (config.temperature, config.contrastive_pairs, config.target_head_channels) == (0.07, 4096, 64)
    assert (config.loss, ObjectiveConfig().loss, ObjectiveConfig().target_head) == ("contrastive", "similarity", "none")


def test_targets_learn_their_own_projection(batch):
    objective = objective_of(2, loss="contrastive", target_head="linear", target_head_channels=2)
    objective(batch)[0].backward()
    assert objective.target_head.weight.grad.abs().max() > 0
    assert ObjectiveConfig(loss="contrastive", target_head="linear").output_channels(6) == 64
    assert ObjectiveConfig(loss="contrastive").output_channels(6) == 6


@pytest.fixture
def of_segments(batch):
    """The batch as one teacher's, with 4, 5 and 3 segments of its samples, and what the store has of them."""
    generator = torch.Generator().manual_seed(3)
    counts = torch.tensor([4, 5, 3])
    firsts = counts.cumsum(0) - counts
    rows = torch.cat(
        [
            first + torch.arange(int((batch.sample == number).sum())) % count
            for number, (first, count) in enumerate(zip(firsts.tolist(), counts.tolist(), strict=True))
        ]
    )
    mean, direction = torch.randn(2, 12, 3, generator=generator)
    segments = SegmentTargets(rows, torch.arange(3).repeat_interleave(counts), 0.3 * mean, direction)
    return replace(batch, targets=batch.targets[:1], segments=segments)


def objective_of_segments(**options) -> DistillObjective:
    torch.manual_seed(0)
    config = ObjectiveConfig(**options)
    student = Student(WaffleIronConfig(width=8, depth=3, out_channels=config.output_channels(3)), INPUTS).eval()
    return DistillObjective(student, config, (1.0,), 3)


def means_of(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.stack([F.normalize(vectors, dim=1)[rows == number].mean(dim=0) for number in range(12)])


def test_slidr_compares_means_of_segments_across_the_batch(of_segments):
    objective, segments = objective_of_segments(loss="slidr"), of_segments.segments
    with torch.no_grad():
        mean, of_samples = objective(replace(of_segments, targets=()))  # without a head, none are read
        student = means_of(objective.student(of_segments.inputs), segments.row)
    losses = F.cross_entropy(student @ segments.mean.T / 0.07, torch.arange(12), reduction="none")
    torch.testing.assert_close(mean, losses.mean(), rtol=1e-4, atol=1e-5)
    assert of_samples[1].tolist() == [4, 5, 3]
    torch.testing.assert_close(of_samples[0], torch.stack([each.sum() for each in losses.split([4, 5, 3])]))
    assert of_segments.num_pairs == 12  # what processes weigh their means by


def test_with_a_head_the_targets_mean_is_that_of_the_pairs(of_segments):
    objective = objective_of_segments(loss="slidr", target_head="linear", target_head_channels=7)
    batch = replace(of_segments, segments=replace(of_segments.segments, mean=None, direction=None))
    rows = batch.segments.row
    loss, _ = objective(batch)
    loss.backward()
    assert objective.target_head.weight.grad.abs().max() > 0
    with torch.no_grad():
        student = means_of(objective.student(batch.inputs), rows)
        teacher = means_of(objective.target_head(batch.targets[0].decode()), rows)
    torch.testing.assert_close(loss.detach(), F.cross_entropy(student @ teacher.T / 0.07, torch.arange(12)))


@pytest.mark.parametrize("balanced", [False, True])
def test_st_slidr_tolerates_and_balances_by_what_the_store_has(of_segments, balanced):
    objective = objective_of_segments(loss="st_slidr", tolerance_quantile=0.3, balance_threshold=0.2, balanced=balanced)
    segments = of_segments.segments
    with torch.no_grad():
        mean, of_samples = objective(of_segments)
        student = means_of(objective.student(of_segments.inputs), segments.row)
    similarity = cosines(segments.direction)
    losses = tolerant_loss(student, segments.mean, negatives(similarity, 0.3), 0.07)
    weights = balanced_weights(similarity, 0.2) if balanced else torch.ones(12)
    assert balanced == bool((weights < 1).any())
    torch.testing.assert_close(mean, (weights * losses).sum() / weights.sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_samples[0].sum() / of_samples[1].sum(), mean)  # as logs put stores together
    of_weights = torch.stack([each.sum() for each in weights.split([4, 5, 3])])
    torch.testing.assert_close(of_samples[1], of_weights)


def test_losses_of_segments_are_computed_in_single_precision(of_segments):
    """A quantile of cosines that are rounded to three digits would choose others."""
    objective = objective_of_segments(loss="st_slidr")
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            mean, _ = objective(of_segments)
            features = objective.student(of_segments.inputs)
        objective.student.forward = lambda _: features  # the same, so that only what comes after differs
        torch.testing.assert_close(mean, objective(of_segments)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "similarity"}, (True, False, False, False)),
        ({"loss": "contrastive", "target_head": "linear"}, (True, False, False, False)),
        ({"loss": "slidr"}, (False, True, True, False)),
        ({"loss": "slidr", "target_head": "linear"}, (True, True, False, False)),
        ({"loss": "st_slidr"}, (False, True, True, True)),
        ({"loss": "st_slidr", "target_head": "linear"}, (True, True, False, True)),
    ],
)
def test_no_more_is_read_than_a_loss_is_of(options, expected):
    """Of pairs, segments, their means and their directions."""
    assert tuple(ObjectiveConfig(**options).reads) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "l2"}, "objective.loss: 'l2' cannot be used. Give one of similarity"),
        (
            {"target_head": "linear"},
            "Use it with loss contrastive, slidr, st_slidr: others would make all targets equal",
        ),
        (
            {"loss": "slidr", "standardise": "phi_s"},
            "objective.standardise: 'phi_s' cannot be used. Use none with loss slidr: the store has the means",
        ),
        (
            {"loss": "st_slidr", "teachers": {"a": 1.0, "b": 1.0}},
            r"objective.teachers: \['a', 'b'\] cannot be used. Use one teacher with loss st_slidr",
        ),
        (
            {"tolerance_quantile": 1},
            "objective.tolerance_quantile: 1 cannot be used. Give a number, at least 0 and below 1",
        ),
        ({"balance_threshold": 1.1}, "objective.balance_threshold: 1.1 cannot be used"),
        ({"balanced": 1}, "objective.balanced: 1 cannot be used. Give true or false"),
        (
            {"loss": "contrastive", "target_head": "linear", "standardise": "centre"},
            "objective.standardise: 'centre' cannot be used. Use none with a target_head",
        ),
        ({"standardise": "mean"}, "objective.standardise: 'mean' cannot be used. Give one of none, centre, phi_s"),
        ({"teachers": {"a": 0}}, "each value a number, at least 1e-06 and at most 1,000,000$"),
        ({"teachers": {"a": 1.0, "b": -1.0}}, "objective.teachers: {'a': 1.0, 'b': -1.0} cannot be used"),
        ({"teachers": ["a"]}, r"objective.teachers: \['a'\] cannot be used"),
        ({"temperature": 1e-300}, "objective.temperature: 1e-300 cannot be used. Give a number, at least 0.0001 and"),
        ({"temperature": 0}, "objective.temperature: 0 cannot be used"),
        ({"contrastive_pairs": 1}, "objective.contrastive_pairs: 1 cannot be used. Give a whole number, at least 2"),
        ({"target_head_channels": -1}, "objective.target_head_channels: -1 cannot be used"),
    ],
)
def test_values_that_make_no_sense_are_said(values, message):
    with pytest.raises(StudentError, match=message):
        ObjectiveConfig(**values)
