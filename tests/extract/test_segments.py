"""Vectors of superpixels against SLidR's own way, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from scalr.errors import StoreError
from scalr.extract.segments import segments_of


def pixel_by_pixel(patch_map: torch.Tensor, segment_map: np.ndarray, segment: int, patch: int) -> torch.Tensor:
    """SLidR's mean of a segment: the map upsampled, each pixel a unit vector, all pixels of the segment added up."""
    channels = patch_map.permute(2, 0, 1)[None].double()
    pixels = F.interpolate(channels, scale_factor=patch, mode="bilinear", align_corners=True)[0]
    total, count = torch.zeros(patch_map.shape[-1], dtype=torch.float64), 0
    for row in range(segment_map.shape[0]):
        for column in range(segment_map.shape[1]):
            if segment_map[row, column] == segment:
                total += F.normalize(pixels[:, row, column], dim=0)
                count += 1
    return total / count


def a_view(height: int, width: int, patch: int, seed: int, segments: int = 6) -> tuple[torch.Tensor, np.ndarray]:
    """Features far from isotropic, as a teacher's are, and blobs of ids that are not counted from 0."""
    generator = torch.Generator().manual_seed(seed)
    patch_map = torch.randn(height, width, 5, generator=generator) * torch.tensor([9, 1, 1, 1, 0.1]) + 2
    coarse = torch.randint(segments, (-(-height * patch // 3), -(-width * patch // 3)), generator=generator)
    segment_map = coarse.repeat_interleave(3, 0).repeat_interleave(3, 1)[: height * patch, : width * patch]
    return patch_map, (segment_map * 1000 + 7).numpy().astype(np.uint16)


@given(height=st.integers(1, 5), width=st.integers(1, 6), patch=st.sampled_from([2, 4, 7]), seed=st.integers(0, 99))
def test_a_mean_is_that_of_all_pixels_of_the_segment_as_unit_vectors(height, width, patch, seed):
    patch_map, segment_map = a_view(height, width, patch, seed)
    ids, counts = np.unique(segment_map, return_counts=True)
    found = segments_of(patch_map, segment_map, ids, patch)
    np.testing.assert_array_equal(found.id, ids)
    np.testing.assert_array_equal(found.pixels, counts)
    expected = torch.stack([pixel_by_pixel(patch_map, segment_map, each, patch) for each in ids.tolist()])
    np.testing.assert_allclose(found.mean, expected, atol=5e-4, rtol=0)  # of float16


def test_a_direction_is_that_of_the_patches_whose_first_pixel_is_of_the_segment():
    """The map at the size of the patch map, as ST-SLidR has it; features as the teacher gives them."""
    patch_map, segment_map = a_view(5, 6, 4, seed=1)
    nearest = F.interpolate(torch.from_numpy(segment_map.astype(np.float32))[None, None], (5, 6), mode="nearest")[0, 0]
    found = segments_of(patch_map, segment_map, np.unique(segment_map), 4)
    for segment, direction in zip(found.id.tolist(), found.direction, strict=True):
        expected = F.normalize(patch_map[nearest == segment].mean(0), dim=0)
        np.testing.assert_allclose(direction, expected, atol=5e-4)


def test_only_segments_that_hold_a_pair_are_kept_each_once():
    patch_map, segment_map = a_view(4, 4, 4, seed=2)
    everything = segments_of(patch_map, segment_map, np.unique(segment_map), 4)
    some = segments_of(patch_map, segment_map, np.array([3007, 1007, 3007], np.uint16), 4)
    assert some.id.tolist() == [1007, 3007]
    for ours, theirs in zip(some.arrays, everything[1:4:2].arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(segments_of(patch_map, segment_map, np.array([], np.uint16), 4)) == 0


def test_a_segment_that_no_pixel_of_the_smaller_map_has_is_zero():
    """A pair lies in it at the image's own resolution."""
    patch_map, segment_map = a_view(4, 4, 4, seed=3)
    found = segments_of(patch_map, segment_map, np.array([65_534], np.uint16), 4)
    assert (found.id.tolist(), found.pixels.tolist()) == ([65_534], [0])
    assert not found.mean.any()
    assert not found.direction.any()


def test_a_mean_is_blind_to_lengths_and_a_direction_is_not():
    patch_map, segment_map = a_view(3, 4, 4, seed=4)
    ids = np.unique(segment_map)
    plain, larger = (segments_of(each, segment_map, ids, 4) for each in (patch_map, 1e6 * patch_map))
    np.testing.assert_array_equal(plain.mean, larger.mean)
    patch_map[0, 0] *= 1e4
    first = ids.tolist().index(segment_map[0, 0])
    longer = segments_of(patch_map, segment_map, ids, 4).direction[first].astype(np.float32)
    assert longer @ F.normalize(patch_map[0, 0], dim=0).numpy() > 0.999


def test_features_without_a_length_count_as_zeros():
    """Of zeros, and of vectors that cancel each other half-way."""
    segment_map = np.zeros((2, 2), np.uint16)
    patch_map = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]]).expand(2, 3, 2)
    found = segments_of(torch.zeros(2, 3, 2), np.zeros((6, 9), np.uint16), np.zeros(1, np.uint16), 3)
    assert not found.mean.any()
    assert not found.direction.any()
    found = segments_of(patch_map, np.zeros((6, 9), np.uint16), np.zeros(1, np.uint16), 3)
    np.testing.assert_array_equal(found.mean, 0)  # three rows of +1, three of -1
    found = segments_of(patch_map[:1, :1], segment_map, np.zeros(1, np.uint16), 2)
    np.testing.assert_array_equal(found.mean, [[1, 0]])
    middle = segments_of(patch_map, np.repeat([0, 1, 0], 2)[:, None].repeat(9, 1).astype(np.uint16), np.ones(1, int), 3)
    assert (np.abs(middle.mean) <= 1).all()


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "a target is not finite"), (1e19, "more than 1e.18 cannot be stored")]
)
def test_features_that_cannot_be_stored_are_said(value, message):
    patch_map, segment_map = a_view(3, 4, 4, seed=5)
    patch_map[2, 3, 0] = value
    with pytest.raises(StoreError, match=message):
        segments_of(patch_map, segment_map, np.unique(segment_map), 4)
