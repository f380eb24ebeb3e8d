"""Patch maps to targets: which patches a pair reads, with what weights, and how its vector is stored."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import StoreError

FLOAT16_MAX = torch.finfo(torch.float16).max


def footprint(
    pixel: torch.Tensor, image_shape: tuple[int, int], map_shape: tuple[int, int], patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The four patches that each pair reads, and their bilinear weights.

    The official code upsamples the patch map bilinearly by the patch size, with align_corners=True, and reads it at
    row floor(floor(v) h / H), column floor(floor(u) w / W), where (h, w) is the teacher's image size. That read
    touches four patches at most, so it is computed here without the upsampled map.

    Args:
        pixel: (R, 2) integers, row and column in the original image.
        image_shape: (H, W) of the original image [px].
        map_shape: (h, w) of the patch map [patches].
        patch_size: side of a patch [px of the teacher's image].

    Returns:
        patches: (R, 4) int64, row-major index into the patch map.
        weights: (R, 4) float32, summing to one.
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
    return patches, weights.float()


def sample_targets(
    patch_map: torch.Tensor, pixel: torch.Tensor, image_shape: tuple[int, int], patch_size: int
) -> torch.Tensor:
    """Read a patch map (h, w, D) at the pixels (R, 2) of an (H, W) image: (R, D) float32 targets."""
    height, width, dim = patch_map.shape
    patches, weights = footprint(pixel, image_shape, (height, width), patch_size)
    corners = patch_map.reshape(-1, dim).float()[patches.reshape(-1)].reshape(*patches.shape, dim)
    return torch.einsum("rk,rkd->rd", weights, corners)


def encode_point(targets: torch.Tensor) -> np.ndarray:
    """Encoding `point`, float16: one vector per pair, as it is.

    Raises:
        StoreError: a value that float16 cannot hold, or that is not finite.
    """
    largest = targets.abs().max().item() if targets.numel() else 0.0
    if not largest <= FLOAT16_MAX:  # also true for NaN
        raise StoreError(
            f"a target holds {largest}, which float16 cannot store",
            where="teacher features",
            fix="Check the teacher's weights.",
        )
    return targets.to(torch.float16).cpu().numpy()


def decode_point(vectors: np.ndarray) -> np.ndarray:
    """Encoding `point` back to (R, D) float32."""
    return vectors.astype(np.float32)


def _taps(index: torch.Tensor, size: int, patches: int, patch_size: int):
    """First and second patch and the weight of the second, along one axis."""
    pixels = patches * patch_size
    resized = (index * pixels).div(size, rounding_mode="floor")  # in integers: exact
    position = resized.double() * ((patches - 1) / (pixels - 1))
    first = position.floor().long()
    return first, (first + 1).clamp(max=patches - 1), position - first
