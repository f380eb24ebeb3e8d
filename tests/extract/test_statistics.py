from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalr.errors import DatasetError, StoreError
from scalr.extract import run, teacher_sample
from scalr.extract.plan import Part, spread
from scalr.extract.statistics import TeacherStatistics
from scalr.extract.store import create_store, open_store
from scalr.extract.store.inspect import inspect_store
from scalr.extract.teacher_sample import VectorSums, sample_statistics
from scalr.extract.verification import VerifyConfig, verify
from small_store import PROVENANCE, SETTINGS, a_block, add_inputs, filled_store, some_statistics, write_block
from store_comparison import files

STORES = ("s.zarr", "whole.zarr")


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


def test_channels_are_the_mean_and_the_deviation_but_never_less_than_usual(vectors):
    """One that is constant, or nearly so, takes what the others have on average; where all are, the scale is 1."""
    vectors[:, 0] = 3
    found = statistics_of(vectors)
    offset, scale = found.channels()
    usual = np.sqrt(np.mean(found.deviation**2))
    np.testing.assert_allclose(offset, found.mean, rtol=1e-6)
    np.testing.assert_allclose(scale[:3], usual, rtol=1e-6)
    np.testing.assert_allclose(scale[4:], found.deviation[4:], rtol=1e-6)
    assert VectorSums(2).statistics().channels().tolist() == [[0, 0], [1, 1]]
    assert statistics_of(np.full((5, 2), 0.5, np.float32)).channels().tolist() == [[0.5, 0.5], [1, 1]]


def test_each_of_several_layers_has_its_own_usual_deviation(vectors):
    """As it would have alone, however much larger the values of the layer beside it are."""
    alone, beside = statistics_of(vectors), statistics_of(np.hstack([vectors, 1000 * vectors]))
    np.testing.assert_allclose(beside.channels(2), np.hstack([alone.channels(), 1000 * alone.channels()]), rtol=1e-5)
    assert (beside.channels(1)[1, : vectors.shape[1]] > 100 * alone.channels()[1]).all()


def test_the_number_of_threads_changes_no_bit(vectors):
    many = np.tile(vectors, (30, 20)) / np.float32(3)
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(statistics_of(many))
        assert torch.get_num_threads() == number
    torch.set_num_threads(threads)
    assert found[0].covariance.tobytes() == found[1].covariance.tobytes()


@given(num_frames=st.integers(0, 300), count=st.integers(1, 300))
def test_every_beginning_of_the_order_is_spread_over_the_split(num_frames, count):
    """All frames, each once; among the first n, no two neighbours are further apart than 4 / n of the split."""
    order = spread(num_frames)
    assert sorted(order) == list(range(num_frames))
    if order:
        chosen = sorted([0, *order[:count], num_frames])
        assert max(np.diff(chosen)) <= max(1, 4 * num_frames / count)


@pytest.fixture
def sampled(extract_tiny, monkeypatch):
    """Call with options of an extraction for its statistics, and how many images the teacher saw beforehand."""
    teacher, forward = extract_tiny.teachers["coordinates"], extract_tiny.teachers["coordinates"].patch_maps

    def call(out: str = "s.zarr", **options) -> tuple[TeacherStatistics, int]:
        seen: list[int] = []
        first = []

        def measured(*arguments):
            made = sample_statistics(*arguments)
            first.append(sum(seen))
            return made

        monkeypatch.setattr(teacher, "patch_maps", lambda images: (seen.append(len(images)), forward(images))[1])
        monkeypatch.setattr(run, "sample_statistics", measured)
        store = extract_tiny(out=out, batch_size=4, **options)
        return store.statistics("coordinates"), sum(first)

    return call


def test_the_sample_has_each_patch_once_that_pairs_read(sampled, extract_tiny, tmp_path):
    """Whatever the encoding: a patch store has exactly these vectors, where all views are in the sample."""
    found, seen = sampled(encoding="patch", dtype="float16")
    store = open_store(tmp_path / "s.zarr")
    exact = store.read_targets(0, "coordinates").vectors.astype(np.float64)
    assert (found.count, seen) == (len(exact), 6)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(exact.T, bias=True), atol=1e-5)
    other, _ = sampled(out="other.zarr", encoding="point", dtype="int8", frames_per_block=1)
    assert (other.count, other.mean.tolist()) == (found.count, found.mean.tolist())


def test_the_sample_ends_with_enough_views(sampled, monkeypatch):
    """Those of the first of three frames, and one of the last."""
    whole, _ = sampled(out="whole.zarr")
    monkeypatch.setattr(teacher_sample, "SAMPLED_VIEWS", 3)
    found, seen = sampled()
    assert seen == 3
    assert found.count < whole.count


def test_a_more_complete_sample_replaces_one_without_blocks(sampled, tiny_dataset, tmp_path, caplog):
    """An image that cannot be read stops the first run; mended, the store is that of a run that never saw it."""
    whole, _ = sampled(out="whole.zarr")
    image = tiny_dataset.root / "frame0_LEFT.png"
    content = image.read_bytes()
    image.write_bytes(b"")
    with pytest.raises(DatasetError):
        sampled()
    assert "the sample for the teacher's statistics omits 1 frame that cannot be used; the first: " in caplog.text
    image.write_bytes(content)
    found, seen = sampled()
    assert (found.count, found.frames_left_out, seen) == (whole.count, 0, 6)
    assert found.mean.tolist() == whole.mean.tolist()
    contents = [{name: content for name, (_, content) in files(tmp_path / each).items()} for each in STORES]
    assert contents[0] == contents[1]


def test_a_sample_that_is_no_better_replaces_nothing(sampled, tiny_dataset, tmp_path):
    (tiny_dataset.root / "frame0_LEFT.png").write_bytes(b"")
    with pytest.raises(DatasetError):
        sampled(frames_per_block=1, part=Part(0, 3))
    first = open_store(tmp_path / "s.zarr").statistics("coordinates")
    assert (first.frames_left_out, first.count > 0) == (1, True)
    later, seen = sampled(frames_per_block=1, part=Part(1, 3))
    assert seen == 4  # looked again: no block was made with the first ones
    assert later.mean.tolist() == first.mean.tolist()
    _, seen = sampled(frames_per_block=1, part=Part(2, 3))
    assert seen == 0


def test_vectors_that_were_found_later_count_though_blocks_stand(sampled, tiny_dataset, tmp_path):
    """A split whose sample could not be used at all is no worse for ever."""
    images = {path: path.read_bytes() for path in tiny_dataset.root.glob("frame*.png")}
    for path in images:
        path.write_bytes(b"")
    none, _ = sampled(on_error="skip")
    assert (none.count, none.frames_left_out) == (0, 3)
    for path, content in images.items():
        path.write_bytes(content)
    found, _ = sampled(on_error="skip")
    assert found.count > 0
    channels = open_store(tmp_path / "s.zarr").read_targets(0, "coordinates").channels
    np.testing.assert_array_equal(channels, found.channels())


def test_frames_that_cannot_be_used_are_passed_over(sampled, tiny_dataset, monkeypatch):
    """A job whose own part is fine goes on; after so many of them no more are tried."""
    (tiny_dataset.root / "frame0_LEFT.png").write_bytes(b"")
    found, seen = sampled(frames_per_block=1, part=Part(1, 3))
    assert seen == 4
    assert found.count > 0
    monkeypatch.setattr(teacher_sample, "TRIED_FRAMES", 1)
    none, seen = sampled(out="none.zarr", frames_per_block=1, part=Part(1, 3))
    assert (none.count, seen) == (0, 0)
    assert none.mean.tolist() == [0, 0, 0]


def test_vectors_that_are_not_finite_do_not_count(sampled, extract_tiny, monkeypatch, tmp_path):
    """Who extracts their view says so."""
    teacher, forward = extract_tiny.teachers["coordinates"], extract_tiny.teachers["coordinates"].patch_maps
    monkeypatch.setattr(teacher, "patch_maps", lambda images: forward(images) / 0)
    with pytest.raises(StoreError, match="a target is not finite"):
        extract_tiny()
    assert open_store(tmp_path / "s.zarr").statistics("coordinates").count == 0


def test_a_split_that_sees_no_point_has_statistics_of_nothing(sampled, tiny_dataset, monkeypatch):
    monkeypatch.setattr(run, "findings", lambda *_: [])  # which would refuse it
    for frame in tiny_dataset.frames:
        points = tiny_dataset.read_points(frame)
        points[:, 0] = -np.abs(points[:, 0]) - 2
    found, seen = sampled()
    assert (found.count, seen, found.effective_rank) == (0, 0, 0)


def test_each_split_has_its_own_and_both_are_pooled(extract_tiny, tiny_dataset):
    extract_tiny(frames_per_block=2)
    tiny_dataset.split = "val"
    tiny_dataset.frames = tiny_dataset.frames[:1]
    store = extract_tiny(frames_per_block=2, split="val")
    train, val = (store.statistics("coordinates", [source]) for source in store.sources)
    assert val.count < train.count
    pooled = TeacherStatistics.pooled([train, val])
    for asked in (None, store.sources):
        assert store.statistics("coordinates", asked).covariance.tolist() == pooled.covariance.tolist()


def test_an_inspection_shows_them(extract_tiny):
    store = extract_tiny(dtype="float16")
    found, report = store.statistics("coordinates"), inspect_store(store)
    (shown,) = report.teachers["coordinates"].statistics.values()
    assert shown.count == found.count
    assert shown.mean_unit_length == pytest.approx(found.mean_unit_length, rel=1e-5)
    assert shown.effective_rank == pytest.approx(found.effective_rank, rel=1e-5)
    assert (
        f"coordinates: in a sample of nuscenes train, {found.count} vectors, length of their mean unit vector"
        f" {found.mean_unit_length:.3f}, effective rank {found.effective_rank:.1f}"
    ) in report.as_text()


def test_no_block_is_made_for_statistics_that_were_lost_or_damaged(extract_tiny, tmp_path, caplog):
    """They are made anew, as they were; damaged ones are kept."""
    store = extract_tiny()
    group, before = store.path / "teachers/coordinates/statistics/000", files(store.path)
    for damage in (lambda: shutil.rmtree(group), lambda: (group / "covariance/c/0/0").write_bytes(b"")):
        damage()
        with pytest.raises(StoreError, match=r"no statistics of coordinates\. Repeat|the statistics of a teacher"):
            open_store(store.path).statistics("coordinates")
        extract_tiny()
        after = files(store.path)
        changed = {name for name in before if before[name] != after[name]}
        assert all(name.startswith("teachers/coordinates/statistics/000/") for name in changed)
        assert {name: after[name][1] for name in before} == {name: content for name, (_, content) in before.items()}
    assert "they are computed again" in caplog.text
    assert (store.path / "aside/teachers.coordinates.statistics.000.0/000/mean").is_dir()


@pytest.mark.parametrize("name", ["zarr.json", "mean/c/0", "mean/zarr.json", "covariance/c/0/0", "mean_unit/c/0"])
@pytest.mark.parametrize("damage", ["cut", "lost", "of another"])
def test_damaged_statistics_are_named_and_set_aside(tmp_path, name, damage):
    path = filled_store(tmp_path / "s.zarr").path
    group = path / "teachers/t/statistics/000"
    if damage == "of another":
        writer = create_store(tmp_path / "other.zarr", "p")
        source = writer.add_inputs({**SETTINGS, "split": "val"}, {}, {"t": PROVENANCE})
        ones = TeacherStatistics(9, np.ones(3), np.eye(3), np.ones(3))
        writer.statistics(["t"], source, lambda names: {"t": ones})
        other = writer.path
        shutil.copy(other / "teachers/t/statistics/000" / name, group / name)
    elif damage == "lost":
        (group / name).unlink()
    else:
        (group / name).write_bytes((group / name).read_bytes()[:-9])
    found = verify(VerifyConfig(store=path))
    if (name, damage) == ("mean/zarr.json", "of another"):  # equal in all stores
        assert found.whole
        return
    assert [each.kind for each in found.damage] == ["teachers/t/statistics/000"]
    repaired = verify(VerifyConfig(store=path, repair=True))
    assert repaired.kept == [path / "aside/teachers.t.statistics.000.0"]
    after = verify(VerifyConfig(store=path))
    assert (after.damage, after.whole) == ([], False)
    assert "incomplete: no statistics of t of nuscenes train" in after.as_text()
    assert "Repeat the 'scalr extract' command that wrote this store" in after.as_text()
    filled_store(path)
    assert verify(VerifyConfig(store=path)).whole


def test_statistics_of_replaced_settings_go_with_them(tmp_path):
    """Of a source or a teacher of which no block was committed."""
    writer = create_store(tmp_path / "s.zarr", "p")
    add_inputs(writer, t=PROVENANCE, u=PROVENANCE)
    add_inputs(writer, {**SETTINGS, "split": "val"}, t=PROVENANCE, u=PROVENANCE)
    scans, targets = a_block(2)
    write_block(writer, 2, scans, u=targets)
    writer.add_inputs({**SETTINGS, "num_blocks": 9}, {}, {"t": PROVENANCE, "u": PROVENANCE})
    assert not list(writer.path.glob("teachers/*/statistics/000"))
    writer.add_inputs(SETTINGS, {}, {"t": {**PROVENANCE, "dim": 4}})
    left = [path.relative_to(writer.path).parts[1::2] for path in writer.path.glob("teachers/*/statistics/*")]
    assert left == [("u", "001")]
    with pytest.raises(
        StoreError, match=r"teachers/t/statistics: the store has no statistics of t\. Repeat the 'scalr extract"
    ):
        open_store(writer.path).statistics("t")


def test_the_first_job_decides_and_the_others_take_its_statistics(tmp_path):
    """Two that measured at the same time, and might differ in a last bit."""
    first, second = (create_store(tmp_path / "s.zarr", name) for name in "ab")
    source = first.add_inputs(SETTINGS, {}, {"t": PROVENANCE})
    second.add_inputs(SETTINGS, {}, {"t": PROVENANCE})

    def after_another(names):
        first.statistics(names, source, some_statistics)
        return {name: TeacherStatistics(9, *[np.ones(3), np.eye(3), np.ones(3)]) for name in names}

    assert second.statistics(["t"], source, after_another)["t"].count == 7
