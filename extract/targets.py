"""Patch maps to stored vectors and back to targets: which patches a pair reads, and how vectors are kept.

Everything works on torch tensors of any device; `encoding.py` says which encodings there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..errors import StoreError
from .encoding import Encoding

FLOAT16_MAX = torch.finfo(torch.float16).max
INT8_MAX = 127


class Footprint(NamedTuple):
    """What each of R pairs reads of a patch map."""

    patches: torch.Tensor  # (R, 4) int64, row-major index into the patch map
    weights: torch.Tensor  # (R, 4) float32, bilinear, summing to one
    map_patches: int  # patches of the map

    @property
    def touched(self) -> torch.Tensor:
        """The patches (T,) int64 that some pair reads, in ascending order."""
        touched = torch.zeros(self.map_patches, dtype=torch.bool, device=self.patches.device)
        touched[self.patches.reshape(-1)] = True
        return touched.nonzero().squeeze(1)


class StoredVectors(NamedTuple):
    """One view's targets as the store keeps them."""

    vectors: torch.Tensor  # (T, D) float16 or int8
    scale: torch.Tensor | None  # (T,) float32 with int8, else None
    cosine: torch.Tensor  # (T,) float32, of the stored and the exact vectors


@dataclass(frozen=True, eq=False)
class EncodedTargets:
    """Targets of R pairs, not yet decoded: small to move, decoded where they are used.

    Attributes:
        vectors: (T, D) float16 or int8.
        scale: (T,) float32 with int8, else None.
        rows: (R, 4) int64, the vectors that each pair reads; None where pair r reads vector r alone.
        weights: (R, 4) float32, None with `rows`.
    """

    vectors: torch.Tensor
    scale: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors if self.rows is None else self.rows)

    @property
    def all_zero(self) -> bool:
        """Whether there are vectors, and none has a direction."""
        # The first one answers as a rule, without a look at the others.
        return len(self.vectors) > 0 and not self.vectors[0].any() and not self.vectors.any()

    def decode(self) -> torch.Tensor:
        """(R, D) float32, on the device of `vectors`."""
        vectors = self.vectors.float()
        if self.scale is not None:
            vectors = vectors * self.scale[:, None]
        if self.rows is None:
            return vectors
        return F.embedding_bag(self.rows, vectors, per_sample_weights=self.weights, mode="sum")

    def select(self, pairs: torch.Tensor) -> EncodedTargets:
        """The targets of some pairs, by index, in that order."""
        if self.rows is None:
            return EncodedTargets(self.vectors[pairs], None if self.scale is None else self.scale[pairs])
        return EncodedTargets(self.vectors, self.scale, self.rows[pairs], self.weights[pairs])

    def to(self, device: torch.device, *, non_blocking: bool = False) -> EncodedTargets:
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> EncodedTargets:
        """In page-locked memory, from which a GPU copies while it computes."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> EncodedTargets:
        return EncodedTargets(*(None if part is None else function(part) for part in vars(self).values()))

    @staticmethod
    def concatenate(parts: Sequence[EncodedTargets]) -> EncodedTargets:
        """The pairs of several views, all of one encoding, one after the other."""
        vectors = torch.cat([part.vectors for part in parts])
        scale = None if parts[0].scale is None else torch.cat([part.scale for part in parts])
        if parts[0].rows is None:
            return EncodedTargets(vectors, scale)
        first = torch.tensor([0, *(len(part.vectors) for part in parts[:-1])]).cumsum(0).tolist()
        rows = torch.cat([part.rows + start for part, start in zip(parts, first, strict=True)])
        return EncodedTargets(vectors, scale, rows, torch.cat([part.weights for part in parts]))


def encode(patch_map: torch.Tensor, footprint: Footprint, encoding: Encoding) -> StoredVectors:
    """Keep what the pairs read of one view's patch map (h, w, D), on its device.

    Raises:
        StoreError: values that are not finite, or that float16 cannot hold.
    """
    if encoding.layout == "point":
        vectors = sample_targets(patch_map, footprint)
    else:
        vectors = patch_vectors(patch_map, footprint)
    stored, scale = _to_float16(vectors) if encoding.dtype == "float16" else _to_int8(vectors)
    return StoredVectors(stored, scale, F.cosine_similarity(stored.float(), vectors, dim=1))


def encoded_targets(
    vectors: torch.Tensor, scale: torch.Tensor | None, footprint: Footprint, encoding: Encoding
) -> EncodedTargets:
    """The targets of a view's pairs; `.decode()` gives them as (R, D) float32.

    Args:
        vectors, scale: what `encode` gave.
        footprint: of the same pairs, in the same order.
    """
    if encoding.layout == "point":
        return EncodedTargets(vectors, scale)
    touched = footprint.touched
    rank = torch.zeros(footprint.map_patches, dtype=torch.int64, device=touched.device)
    rank[touched] = torch.arange(len(touched), device=touched.device)
    return EncodedTargets(vectors, scale, rank[footprint.patches], footprint.weights)


def num_vectors(footprint: Footprint, encoding: Encoding) -> int:
    """Vectors that a view with this footprint is kept as."""
    return len(footprint.patches if encoding.layout == "point" else footprint.touched)


def footprint(
    pixel: torch.Tensor, image_shape: tuple[int, int], map_shape: tuple[int, int], patch_size: int
) -> Footprint:
    """The four patches that each pair reads, and their bilinear weights.

    The official code upsamples the patch map bilinearly by the patch size, with align_corners=True, and reads it at
    row floor(floor(v) h / H), column floor(floor(u) w / W), where (h, w) is the teacher's image size. That read
    touches four patches at most, so it is computed here without the upsampled map.

    Args:
        pixel: (R, 2) integers, row and column in the original image.
        image_shape: (H, W) of the original image [px].
        map_shape: (h, w) of the patch map [patches].
        patch_size: side of a patch [px of the teacher's image].
    """
    (row0, row1, row_weight), (col0, col1, col_weight) = (
        _taps(pixel[:, axis].long(), image_shape[axis], map_shape[axis], patch_size) for axis in (0, 1)
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
    """What the pairs read of a patch map (h, w, D): (T, D) float32, each patch once, in row-major order."""
    return patch_map.reshape(-1, patch_map.shape[-1]).float()[footprint.touched]


def sample_targets(patch_map: torch.Tensor, footprint: Footprint) -> torch.Tensor:
    """Read a patch map (h, w, D) at the pairs' footprint: the exact (R, D) float32 targets."""
    flat = patch_map.reshape(-1, patch_map.shape[-1]).float()
    return EncodedTargets(flat, rows=footprint.patches, weights=footprint.weights).decode()


def _taps(index: torch.Tensor, size: int, patches: int, patch_size: int):
    """First and second patch and the weight of the second, along one axis."""
    pixels = patches * patch_size
    resized = (index * pixels).div(size, rounding_mode="floor")  # in integers: exact
    position = resized.double() * ((patches - 1) / (pixels - 1))
    first = position.floor().long()
    return first, (first + 1).clamp(max=patches - 1), position - first


def _to_float16(vectors: torch.Tensor) -> tuple[torch.Tensor, None]:
    largest = _largest(vectors)
    if largest > FLOAT16_MAX:
        raise StoreError(
            f"a target holds {largest:g}, which float16 cannot store",
            where="teacher features",
            fix="Use --dtype int8, whose scale holds any magnitude, or check the teacher's weights.",
        )
    return vectors.to(torch.float16), None


def _to_int8(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _largest(vectors)
    scale = vectors.abs().amax(dim=1) / INT8_MAX if vectors.numel() else vectors.new_zeros(len(vectors))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a vector of zeros stays one
    return (vectors / scale[:, None]).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def _largest(vectors: torch.Tensor) -> float:
    largest = vectors.abs().max().item() if vectors.numel() else 0.0
    if not largest < float("inf"):  # also true for NaN
        raise StoreError(
            f"a target is not finite ({largest})",
            where="teacher features",
            fix="Check the teacher's weights, or run it with --precision float32.",
        )
    return largest
