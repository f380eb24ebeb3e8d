from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from scalr.errors import StoreError
from scalr.extract.encoding import ENCODINGS, Encoding
from scalr.extract.targets import EncodedTargets, encode, encoded_targets, footprint, num_vectors, sample_targets
from scalr.extract.teacher_sample import VectorSums

shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))
IMAGE, MAP, PATCH = (90, 160), (16, 32), 14
by_name = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda each: f"{each.layout}-{each.dtype}")


def a_view(num_pairs: int = 300, dim: int = 64, seed: int = 0, rows=(30, 70)):
    """A patch map, and the footprint of pairs in the middle rows of the image."""
    generator = torch.Generator().manual_seed(seed)
    patch_map = torch.randn(*MAP, dim, generator=generator)
    pixel = torch.stack(
        [
            torch.randint(*rows, (num_pairs,), generator=generator),
            torch.randint(0, IMAGE[1], (num_pairs,), generator=generator),
        ],
        dim=1,
    )
    return patch_map, footprint(pixel, IMAGE, MAP, PATCH)


def plain(dim: int) -> torch.Tensor:
    """Channels that change nothing."""
    return torch.stack([torch.zeros(dim), torch.ones(dim)])


def own(patch_map: torch.Tensor) -> torch.Tensor:
    """Those of the map's own vectors."""
    sums = VectorSums(patch_map.shape[-1])
    sums.add(patch_map.reshape(-1, patch_map.shape[-1]))
    return torch.from_numpy(sums.statistics().channels())


def decoded(encoding: Encoding, patch_map, reads, channels: torch.Tensor | None = None) -> EncodedTargets:
    channels = plain(patch_map.shape[-1]) if channels is None else channels
    stored = encode(patch_map, reads, encoding, channels)
    is_int8 = encoding.dtype == "int8"
    return encoded_targets(stored.vectors, stored.scale, channels if is_int8 else None, reads, encoding)


@given(
    map_shape=shapes, patch=st.sampled_from([4, 7, 14]), image_shape=st.tuples(st.integers(5, 90), st.integers(5, 90)),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_sampling_is_upsampling_then_indexing(map_shape, patch, image_shape, seed):
    generator = torch.Generator().manual_seed(seed)
    patch_map = torch.randn(*map_shape, 3, generator=generator)
    height, width = map_shape[0] * patch, map_shape[1] * patch
    pixel = torch.stack([torch.randint(0, side, (40,), generator=generator) for side in image_shape], dim=1)
    upsampled = F.interpolate(
        patch_map.permute(2, 0, 1)[None].double(), (height, width), mode="bilinear", align_corners=True
    )[0]
    expected = torch.stack(
        [upsampled[:, int(row) * height // image_shape[0], int(col) * width // image_shape[1]] for row, col in pixel]
    )
    reads = footprint(pixel, image_shape, map_shape, patch)
    torch.testing.assert_close(sample_targets(patch_map, reads).double(), expected, atol=1e-5, rtol=1e-5)


@given(map_shape=shapes, row=st.integers(0, 99), col=st.integers(0, 99))
def test_footprint_stays_in_the_map_and_weights_sum_to_one(map_shape, row, col):
    reads = footprint(torch.tensor([[row, col]]), (100, 100), map_shape, 14)
    assert reads.map_patches == map_shape[0] * map_shape[1]
    assert ((reads.patches >= 0) & (reads.patches < reads.map_patches)).all()
    assert (reads.weights >= 0).all()
    assert reads.weights.sum().item() == pytest.approx(1, abs=1e-6)


@by_name
def test_decoding_gives_the_exact_targets_back(encoding):
    patch_map, reads = a_view()
    targets = decoded(encoding, patch_map, reads).decode()
    exact = sample_targets(patch_map, reads)
    assert targets.dtype == torch.float32
    worst = F.cosine_similarity(targets, exact, dim=1).min()
    assert worst > (0.999999 if encoding.dtype == "float16" else 0.9999)
    torch.testing.assert_close(targets, exact, rtol=0, atol=2e-3 if encoding.dtype == "float16" else 0.03)


def test_patch_keeps_what_pairs_read_and_nothing_else():
    patch_map, reads = a_view(rows=(40, 44))
    stored = encode(patch_map, reads, Encoding("patch", "float16"), plain(64))
    touched = sorted(set(reads.patches.flatten().tolist()))
    assert len(touched) < MAP[0] * MAP[1] / 4
    torch.testing.assert_close(stored.vectors, patch_map.reshape(-1, 64)[touched].half())


@by_name
@given(chosen=st.lists(st.integers(0, 29), min_size=1, max_size=20), seed=st.integers(0, 20))
def test_selecting_then_decoding_is_decoding_then_selecting(encoding, chosen, seed):
    """And batches decode to their views' targets one after the other."""
    shifted = own(3 + a_view(30, 8, seed)[0] * torch.arange(1.0, 9))
    channels = (shifted, shifted.clone(), plain(8)) if seed % 2 else (shifted, shifted.clone(), shifted.clone())
    views = [decoded(encoding, *a_view(30, 8, seed + view), channels[view]) for view in range(3)]
    pairs = torch.tensor(chosen)
    batch = EncodedTargets.concatenate([view.select(pairs) for view in views])
    batch = EncodedTargets.concatenate([batch.select(torch.arange(len(batch)))])
    assert len(batch) == 3 * len(chosen)
    if encoding.dtype == "int8":
        assert (len(batch.channels), batch.channels_of is None) == ((2, False) if seed % 2 else (1, True))
    torch.testing.assert_close(
        batch.to(torch.device("cpu")).decode(), torch.cat([view.decode()[pairs] for view in views]), rtol=0, atol=0
    )


@by_name
def test_bytes_per_view_are_those_of_the_arrays(encoding):
    patch_map, reads = a_view()
    stored = encode(patch_map, reads, encoding, plain(64))
    arrays = [part for part in (stored.vectors, stored.scale) if part is not None]
    num_bytes = sum(array.numel() * array.element_size() for array in arrays)
    assert num_bytes == encoding.bytes_per_view(len(reads.patches), len(reads.touched), 64)
    assert len(stored.vectors) == num_vectors(reads, encoding)


@given(peak=st.floats(1, 100), seed=st.integers(0, 50), magnitude=st.sampled_from([1e-6, 1.0, 1e6]))
def test_int8_error_stays_below_half_a_step(peak, seed, magnitude):
    """Of the step of each channel, whatever the channels are; the recorded cosines say what it costs."""
    patch_map = magnitude * torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(seed))
    patch_map[..., 0] *= peak
    reads = footprint(torch.tensor([[0, 0], [9, 9], [5, 2]]), (10, 10), (2, 2), 14)
    exact = patch_map.reshape(-1, 64)
    for channels in (plain(64), own(patch_map)):
        stored = encode(patch_map, reads, Encoding("patch", "int8"), channels)
        offset, scale = channels.double()
        kept = stored.vectors.double() * stored.scale.double()[:, None] * scale + offset
        largest = ((exact - offset) / scale).abs().amax(dim=1, keepdim=True)
        assert ((kept - exact).abs() <= largest * scale / 254 * 1.001).all()
        cosine = F.cosine_similarity(kept, exact.double(), dim=1)
        torch.testing.assert_close(stored.cosine.double(), cosine, rtol=0, atol=5e-7)
        centred = F.cosine_similarity(kept - offset, exact - offset, dim=1)
        torch.testing.assert_close(stored.cosine_centred.double(), centred, rtol=0, atol=5e-7)


def test_channels_keep_what_one_scale_a_vector_loses():
    """Most of each vector is one constant, and two channels are ten times as large as the others: as of a real ViT."""
    patch_map, reads = a_view(dim=384)
    patch_map[..., :2] *= 10
    patch_map += 4 * torch.randn(384, generator=torch.Generator().manual_seed(9))
    channels = own(patch_map)
    before, now = (encode(patch_map, reads, Encoding("patch", "int8"), each) for each in (plain(384), channels))
    exact = patch_map.reshape(-1, 384)[reads.touched] - channels[0]
    kept = before.vectors * before.scale[:, None] - channels[0]
    assert F.cosine_similarity(kept, exact, dim=1).mean() < 0.9998
    assert now.cosine.min() > 0.99998
    assert now.cosine_centred.mean() > 0.99997


def test_a_constant_vector_and_a_vector_of_zeros_are_kept_exactly():
    """The one has the scale 1, the other 0, and only that one has no direction."""
    patch_map, reads = torch.full((*MAP, 8), 0.1), a_view()[1]
    patch_map[:4] = 0
    reads = footprint(torch.tensor([[0, 0], [89, 159]]), IMAGE, MAP, PATCH)
    channels = own(patch_map[8:])
    stored = encode(patch_map, reads, Encoding("point", "int8"), channels)
    assert stored.scale.tolist() == [0, 1]
    targets = decoded(Encoding("point", "int8"), patch_map, reads, channels)
    assert targets.decode().tolist() == [[0] * 8, [pytest.approx(0.1)] * 8]
    assert targets.select(torch.tensor([0])).all_zero
    assert not targets.all_zero


@pytest.mark.parametrize("layout", ["point", "patch"])
def test_what_float16_cannot_hold_is_refused_and_int8_holds_it(layout):
    patch_map, reads = a_view()
    patch_map *= 7e4
    with pytest.raises(StoreError, match=r"float16 cannot store.*--dtype int8"):
        encode(patch_map, reads, Encoding(layout, "float16"), plain(patch_map.shape[-1]))
    targets = decoded(Encoding(layout, "int8"), patch_map, reads).decode()
    assert F.cosine_similarity(targets, sample_targets(patch_map, reads), dim=1).min() > 0.999


@pytest.mark.parametrize("layout", ["point", "patch"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_float16_is_kept_and_nothing_beyond_it(layout, sign):
    """65,504 (IEEE 754 binary16); a little more would be rounded to it, or to infinity."""
    patch_map, reads = torch.zeros(*MAP, 8), footprint(torch.tensor([[0, 0]]), IMAGE, MAP, PATCH)
    patch_map[0, 0, 3] = sign * 65504.0
    assert decoded(Encoding(layout, "float16"), patch_map, reads).decode()[0, 3] == sign * 65504.0
    for beyond in (65505.0, 70000.0):
        patch_map[0, 0, 3] = sign * beyond
        with pytest.raises(StoreError, match=f"a target holds {beyond:g}, which float16 cannot store"):
            encode(patch_map, reads, Encoding(layout, "float16"), plain(patch_map.shape[-1]))


@by_name
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_refused(encoding, value):
    patch_map, reads = a_view()
    patch_map[8] = value
    with pytest.raises(StoreError, match="not finite"):
        encode(patch_map, reads, encoding, plain(64))


@by_name
def test_what_no_statistics_could_hold_is_refused(encoding):
    """Squares of features are summed in float32's range; below that, int8 keeps any magnitude."""
    patch_map, reads = a_view()
    patch_map *= 1e17 / patch_map.abs().max()
    if encoding.dtype == "int8":
        assert encode(patch_map, reads, encoding, plain(64)).cosine.min() > 0.999
    patch_map[8] = 1.1e18
    with pytest.raises(StoreError, match=r"a target holds 1\.\d+e\+18, and features of more than"):
        encode(patch_map, reads, encoding, plain(64))


@by_name
def test_no_pairs_and_zero_vectors_are_no_error(encoding):
    patch_map, reads = a_view(num_pairs=0)
    targets = decoded(encoding, patch_map, reads)
    assert len(targets) == 0
    assert targets.decode().shape == (0, 64)
    zeros = decoded(encoding, torch.zeros(*MAP, 8), a_view()[1]).decode()
    assert np.isfinite(zeros.numpy()).all()
    assert not zeros.any()


def test_unknown_encodings_are_said():
    with pytest.raises(StoreError, match="unknown encoding plane float16"):
        Encoding("plane", "float16")
