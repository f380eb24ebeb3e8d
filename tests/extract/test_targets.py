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


def decoded(encoding: Encoding, patch_map, reads) -> EncodedTargets:
    stored = encode(patch_map, reads, encoding)
    return encoded_targets(stored.vectors, stored.scale, reads, encoding)


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
    stored = encode(patch_map, reads, Encoding("patch"))
    touched = sorted(set(reads.patches.flatten().tolist()))
    assert len(touched) < MAP[0] * MAP[1] / 4
    torch.testing.assert_close(stored.vectors, patch_map.reshape(-1, 64)[touched].half())


@by_name
@given(chosen=st.lists(st.integers(0, 29), min_size=1, max_size=20), seed=st.integers(0, 20))
def test_selecting_then_decoding_is_decoding_then_selecting(encoding, chosen, seed):
    """And batches decode to their views' targets one after the other."""
    views = [decoded(encoding, *a_view(30, 8, seed + view)) for view in range(3)]
    pairs = torch.tensor(chosen)
    batch = EncodedTargets.concatenate([view.select(pairs) for view in views])
    assert len(batch) == 3 * len(chosen)
    torch.testing.assert_close(
        batch.to(torch.device("cpu")).decode(), torch.cat([view.decode()[pairs] for view in views]), rtol=0, atol=0
    )


@by_name
def test_bytes_per_view_are_those_of_the_arrays(encoding):
    patch_map, reads = a_view()
    stored = encode(patch_map, reads, encoding)
    arrays = [part for part in (stored.vectors, stored.scale) if part is not None]
    num_bytes = sum(array.numel() * array.element_size() for array in arrays)
    assert num_bytes == encoding.bytes_per_view(len(reads.patches), len(reads.touched), 64)
    assert len(stored.vectors) == num_vectors(reads, encoding)


@given(peak=st.floats(1, 100), seed=st.integers(0, 50), magnitude=st.sampled_from([1e-6, 1.0, 1e6]))
def test_int8_error_stays_below_half_a_step(peak, seed, magnitude):
    """Even where one channel is far larger than the others; the recorded cosine says what it costs."""
    patch_map = magnitude * torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(seed))
    patch_map[..., 0] *= peak
    reads = footprint(torch.tensor([[0, 0], [9, 9], [5, 2]]), (10, 10), (2, 2), 14)
    stored = encode(patch_map, reads, Encoding("patch", "int8"))
    exact = patch_map.reshape(-1, 64)
    kept = stored.vectors.float() * stored.scale[:, None]
    assert ((kept - exact).abs() <= exact.abs().amax(dim=1, keepdim=True) / 254 * 1.001).all()
    torch.testing.assert_close(stored.cosine, F.cosine_similarity(kept, exact, dim=1))


@pytest.mark.parametrize("layout", ["point", "patch"])
def test_what_float16_cannot_hold_is_refused_and_int8_holds_it(layout):
    patch_map, reads = a_view()
    patch_map *= 7e4
    with pytest.raises(StoreError, match=r"float16 cannot store.*--dtype int8"):
        encode(patch_map, reads, Encoding(layout, "float16"))
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
            encode(patch_map, reads, Encoding(layout, "float16"))


@by_name
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_refused(encoding, value):
    patch_map, reads = a_view()
    patch_map[8] = value
    with pytest.raises(StoreError, match="not finite"):
        encode(patch_map, reads, encoding)


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
