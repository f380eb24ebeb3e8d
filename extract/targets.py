"""Encode patch maps as stored vectors, and decode them to targets: the patches that a pair needs, and the rounding.

Everything works on torch tensors on any device; `encoding.py` lists the encodings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..errors import StoreError
from .encoding import Encoding

FLOAT16_MAX = torch.finfo(torch.float16).max
INT8_MAX = 127
LARGEST = 1e18  # bound on feature values, so that sums of their squares are finite in float32


class Footprint(NamedTuple):
    """The patches of a map that each of R pairs needs, and their weights."""

    patches: torch.Tensor  # (R, 4) int64, row-major index into the patch map
    weights: torch.Tensor  # (R, 4) float32, bilinear, summing to one
    map_patches: int  # number of patches of the map

    @property
    def touched(self) -> torch.Tensor:
        """The patches (T,) int64 that some pair needs, each once, in ascending order."""
        touched = torch.zeros(self.map_patches, dtype=torch.bool, device=self.patches.device)
        touched[self.patches.reshape(-1)] = True
        return touched.nonzero().squeeze(1)


class StoredVectors(NamedTuple):
    """One view's targets as the store keeps them."""

    vectors: torch.Tensor  # (T, D) float16 or int8
    scale: torch.Tensor | None  # (T,) float32 with int8, else None
    cosine: torch.Tensor  # (T,) float32, between stored and exact vectors
    cosine_centred: torch.Tensor  # (T,) float32, the same after subtracting the teacher's mean from both


@dataclass(frozen=True, eq=False)
class EncodedTargets:
    """Targets of R pairs, not yet decoded, so that little data is copied to the device.

    Attributes:
        vectors: (T, D) float16 or int8.
        scale: (T,) float32 with int8, else None; 0 for a vector of zeros.
        channels: (C, 2, D) float32 with int8, else None: offset and scale of each channel.
        channels_of: (T,) int64, the index in `channels` for each vector; None if C is 1.
        rows: (R, 4) int64, the vectors that each pair needs; None if pair r has vector r alone.
        weights: (R, 4) float32, None if `rows` is None.
    """

    vectors: torch.Tensor
    scale: torch.Tensor | None = None
    channels: torch.Tensor | None = None
    channels_of: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors if self.rows is None else self.rows)

    @property
    def all_zero(self) -> bool:
        """Whether there are vectors, and all of them are zero."""
        lengths = self.vectors if self.scale is None else self.scale
        # The first vector usually decides, without a look at the others.
        return len(lengths) > 0 and not lengths[0].any() and not lengths.any()

    def decode(self) -> torch.Tensor:
        """Decode to (R, D) float32, on the device of `vectors`."""
        vectors = self.vectors.float()
        if self.scale is not None:
            offset, channel_scale = (
                self.channels if self.channels_of is None else self.channels[self.channels_of]
            ).unbind(1)
            vectors = _from_int8(vectors, self.scale, offset, channel_scale)
        if self.rows is None:
            return vectors
        return F.embedding_bag(self.rows, vectors, per_sample_weights=self.weights, mode="sum")

    def select(self, pairs: torch.Tensor) -> EncodedTargets:
        """Select the targets of some pairs by index, in the order of the indices."""
        if self.rows is not None:
            return replace(self, rows=self.rows[pairs], weights=self.weights[pairs])
        of_vectors = {name: getattr(self, name) for name in ("vectors", "scale", "channels_of")}
        return replace(self, **{name: None if part is None else part[pairs] for name, part in of_vectors.items()})

    def to(self, device: torch.device, *, non_blocking: bool = False) -> EncodedTargets:
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> EncodedTargets:
        """Copy to page-locked memory, from which a GPU can copy while it computes."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> EncodedTargets:
        return EncodedTargets(*(None if part is None else function(part) for part in vars(self).values()))

    @staticmethod
    def concatenate(parts: Sequence[EncodedTargets]) -> EncodedTargets:
        """Concatenate the pairs of several views of one encoding."""
        vectors = torch.cat([part.vectors for part in parts])
        scale = None if parts[0].scale is None else torch.cat([part.scale for part in parts])
        channels = (None, None) if parts[0].channels is None else _shared_channels(parts)
        if parts[0].rows is None:
            return EncodedTargets(vectors, scale, *channels)
        first = torch.tensor([0, *(len(part.vectors) for part in parts[:-1])]).cumsum(0).tolist()
        rows = torch.cat([part.rows + start for part, start in zip(parts, first, strict=True)])
        return EncodedTargets(vectors, scale, *channels, rows, torch.cat([part.weights for part in parts]))


def _shared_channels(parts: Sequence[EncodedTargets]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Collect the distinct `channels` of some parts, and the index of each vector's channels among them.

    Blocks of one split usually have equal channels: then no index is needed, and None is returned for it.
    """
    different: list[torch.Tensor] = []
    of_vectors = []
    for part in parts:
        number_of = torch.tensor([_number_among(different, each) for each in part.channels])
        of_part = torch.zeros(len(part.vectors), dtype=torch.int64) if part.channels_of is None else part.channels_of
        of_vectors.append(number_of[of_part])
    return torch.stack(different), None if len(different) == 1 else torch.cat(of_vectors)


def _number_among(different: list[torch.Tensor], channels: torch.Tensor) -> int:
    for number, each in enumerate(different):
        if torch.equal(each, channels):
            return number
    different.append(channels)
    return len(different) - 1


def encode(patch_map: torch.Tensor, footprint: Footprint, encoding: Encoding, channels: torch.Tensor) -> StoredVectors:
    """Encode what the pairs need of one view's patch map (h, w, D), on its device.

    Args:
        patch_map, footprint: the view's map, and the patches that its pairs need.
        encoding: how the targets are stored.
        channels: (2, D) float32, see `TeacherStatistics.channels`.

    Raises:
        StoreError: values that are not finite, larger than LARGEST, or that float16 cannot hold.
    """
    vectors = (sample_targets if encoding.layout == "point" else patch_vectors)(patch_map, footprint)
    offset, channel_scale = channels
    if encoding.dtype == "float16":
        stored, scale = _to_float16(vectors), None
        kept = stored.float()
    else:
        stored, scale = _to_int8(vectors, offset, channel_scale)
        kept = _from_int8(stored.float(), scale, offset, channel_scale)
    centred = F.cosine_similarity(kept - offset, vectors - offset, dim=1)
    return StoredVectors(stored, scale, F.cosine_similarity(kept, vectors, dim=1), centred)


def encoded_targets(
    vectors: torch.Tensor,
    scale: torch.Tensor | None,
    channels: torch.Tensor | None,
    footprint: Footprint,
    encoding: Encoding,
) -> EncodedTargets:
    """Combine the stored arrays of a view to its encoded targets; `.decode()` returns them as (R, D) float32.

    Args:
        vectors, scale: the result of `encode`.
        channels: (2, D), as passed to `encode`; None without int8.
        footprint: the footprint of the same pairs, in the same order.
    """
    stored = EncodedTargets(vectors, scale, None if channels is None else channels[None])
    if encoding.layout == "point":
        return stored
    touched = footprint.touched
    rank = torch.zeros(footprint.map_patches, dtype=torch.int64, device=touched.device)
    rank[touched] = torch.arange(len(touched), device=touched.device)
    return replace(stored, rows=rank[footprint.patches], weights=footprint.weights)


def num_vectors(footprint: Footprint, encoding: Encoding) -> int:
    """The number of vectors that are stored for a view with this footprint."""
    return len(footprint.patches if encoding.layout == "point" else footprint.touched)


def footprint(
    pixel: torch.Tensor, image_shape: tuple[int, int], map_shape: tuple[int, int], patch_size: int
) -> Footprint:
    """Compute the four patches that each pair needs, and their bilinear weights.

    The official code upsamples the patch map bilinearly by the patch size, with align_corners=True, and indexes it at
    row floor(floor(v) h / H), column floor(floor(u) w / W), where (h, w) is the teacher's image size. The value there
    depends on four patches at most, so it is computed here without the upsampled map.

    Args:
        pixel: (R, 2) integers, row and column in the original image.
        image_shape: (H, W) of the original image [px].
        map_shape: (h, w) of the patch map [patches].
        patch_size: side of a patch [px of the teacher's image].
    """
    (row0, row1, row_weight), (col0, col1, col_weight) = (
        taps(pixel[:, axis].long(), image_shape[axis], map_shape[axis], patch_size) for axis in (0, 1)
    )
    width = map_shape[1]
    patches = torch.stack([row0 * width + col0, row0 * width + col1, row1 * width + col0, row1 * width + col1], dim=1)
    weights = torch.stack(
        [
            (1 - row_weight) * (1 - col_weight),
            (1 - row_weight) * col_weight,
            row_weight * (1 - col_weight),
            row_weight * col_weight,
        ],
        dim=1,
    )
    return Footprint(patches, weights.float(), map_shape[0] * map_shape[1])


def patch_vectors(patch_map: torch.Tensor, footprint: Footprint) -> torch.Tensor:
    """The patch tokens of a map (h, w, D) that the pairs need: (T, D) float32, each once, in row-major order."""
    return patch_map.reshape(-1, patch_map.shape[-1]).float()[footprint.touched]


def sample_targets(patch_map: torch.Tensor, footprint: Footprint) -> torch.Tensor:
    """Interpolate a patch map (h, w, D) at the pairs: the exact targets, (R, D) float32."""
    flat = patch_map.reshape(-1, patch_map.shape[-1]).float()
    return EncodedTargets(flat, rows=footprint.patches, weights=footprint.weights).decode()


def taps(
    index: torch.Tensor, size: int, patches: int, patch_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first and second patch that pixels `index` of `size` need along one axis, and the second's weight (float64).

    See `footprint`.
    """
    pixels = patches * patch_size
    resized = (index * pixels).div(size, rounding_mode="floor")  # in integers: exact
    position = resized.double() * ((patches - 1) / (pixels - 1))
    first = position.floor().long()
    return first, (first + 1).clamp(max=patches - 1), position - first


def _to_float16(vectors: torch.Tensor) -> torch.Tensor:
    most = largest(vectors)
    if most > FLOAT16_MAX:
        raise StoreError(
            f"a target holds {most:g}, which float16 cannot store",
            where="teacher features",
            fix="Use --dtype int8, which can hold larger values, or check the teacher's weights.",
        )
    return vectors.to(torch.float16)


def _to_int8(
    vectors: torch.Tensor, offset: torch.Tensor, channel_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round vectors (T, D) to int8 with scales (T,); a scale of 0 marks a vector of zeros, which stays exact."""
    largest(vectors)
    even = (vectors - offset) / channel_scale
    largest(even)
    scale = even.abs().amax(dim=1) / INT8_MAX if even.numel() else even.new_zeros(len(even))
    scale = torch.where(scale > 0, scale, 1)  # a vector that equals the offset
    is_zero = ~vectors.any(dim=1)
    stored = (even / scale[:, None]).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8)
    return stored.masked_fill(is_zero[:, None], 0), scale.masked_fill(is_zero, 0)


def _from_int8(
    vectors: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, channel_scale: torch.Tensor
) -> torch.Tensor:
    even = vectors * scale[:, None]
    return torch.addcmul(offset, even, channel_scale).masked_fill_((scale == 0)[:, None], 0)


def can_be_stored(vectors: torch.Tensor) -> bool:
    """Whether all values are finite, and none exceeds LARGEST in magnitude."""
    return _magnitude(vectors) <= LARGEST


def largest(vectors: torch.Tensor) -> float:
    """The largest magnitude of the values.

    Raises:
        StoreError: a value is not finite, or exceeds LARGEST.
    """
    most = _magnitude(vectors)
    if not most < float("inf"):  # also true for NaN
        raise StoreError(
            f"a target is not finite ({most})",
            where="teacher features",
            fix="Check the teacher's weights, or pass --precision float32.",
        )
    if most > LARGEST:
        raise StoreError(
            f"a target holds {most:g}, and features of more than {LARGEST:g} cannot be stored",
            where="teacher features",
            fix="Check the teacher's weights.",
        )
    return most


def _magnitude(vectors: torch.Tensor) -> float:
    return vectors.abs().max().item() if vectors.numel() else 0.0
