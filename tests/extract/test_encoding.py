from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from scalr.errors import StoreError
from scalr.extract.encoding import decode_point, encode_point, footprint, sample_targets

shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))


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
    torch.testing.assert_close(
        sample_targets(patch_map, pixel, image_shape, patch).double(), expected, atol=1e-5, rtol=1e-5
    )


@given(map_shape=shapes, row=st.integers(0, 99), col=st.integers(0, 99))
def test_footprint_stays_in_the_map_and_weights_sum_to_one(map_shape, row, col):
    patches, weights = footprint(torch.tensor([[row, col]]), (100, 100), map_shape, 14)
    assert ((patches >= 0) & (patches < map_shape[0] * map_shape[1])).all()
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)


def test_point_encoding_keeps_directions():
    targets = torch.randn(200, 64)
    decoded = torch.from_numpy(decode_point(encode_point(targets)))
    assert decoded.dtype == torch.float32
    assert F.cosine_similarity(targets, decoded, dim=1).min() > 0.999999


@pytest.mark.parametrize("value", [7e4, float("inf"), float("nan")])
def test_what_float16_cannot_hold_is_refused(value):
    with pytest.raises(StoreError, match="float16 cannot store"):
        encode_point(torch.tensor([[1.0, value]]))


def test_no_pairs_is_no_error():
    assert encode_point(torch.zeros(0, 5)).shape == (0, 5)
    empty = sample_targets(torch.randn(2, 3, 5), torch.zeros(0, 2, dtype=torch.int64), (10, 10), 14)
    assert empty.shape == (0, 5)
    assert np.isfinite(empty.numpy()).all()
