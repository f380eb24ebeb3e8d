"""Compute a teacher's vectors of superpixels, which SLidR and ST-SLidR compare with the points of a segment.

SLidR averages the upsampled, normalised features over all pixels of a superpixel. Each upsampled feature is a weighted
sum of four patch tokens, so its length follows from the products of neighbouring tokens, and the mean over any number
of pixels is a weighted sum of patch tokens. So no array with D channels needs the size of the image.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .store import Segments
from .targets import largest, taps

NO_LENGTH = 1e-6  # relative to the blended vectors: vectors that cancel each other leave a remainder without direction


def segments_of(patch_map: torch.Tensor, segment_map: np.ndarray, superpixel: np.ndarray, patch_size: int) -> Segments:
    """Compute the vectors of those segments of a view that hold a pair, in float16 as the store keeps them.

    Args:
        patch_map: (h, w, D), on any device.
        segment_map: (h * patch_size, w * patch_size) uint16, the view's map at the teacher's image size.
        superpixel: (R,) uint16, the segment of each pair.
        patch_size: side of a patch [px].

    Raises:
        StoreError: values that are not finite, or too large to be stored.
    """
    largest(patch_map)
    ids, device = np.unique(superpixel), patch_map.device
    row_of_id = np.full(np.iinfo(np.uint16).max + 1, len(ids))  # segments without a pair go to a row that is dropped
    row_of_id[ids] = np.arange(len(ids))
    rows = torch.from_numpy(row_of_id[segment_map]).to(device)
    vectors = patch_map.reshape(-1, patch_map.shape[-1]).double()
    pixels = rows.reshape(-1).bincount(minlength=len(ids) + 1)[:-1]
    sums = _sums_of_unit_vectors(patch_map, rows, len(ids), patch_size)
    of_patch = rows[::patch_size, ::patch_size].reshape(-1)
    directions = vectors.new_zeros(len(ids) + 1, vectors.shape[1]).index_add_(0, of_patch, vectors)[:-1]
    mean, direction = sums / pixels.clamp(min=1)[:, None], F.normalize(directions, dim=1)
    return Segments(
        ids.astype(np.uint16),
        pixels.cpu().numpy().astype(np.uint32),
        *(each.to(torch.float16).cpu().numpy() for each in (mean, direction)),
    )


def _sums_of_unit_vectors(patch_map: torch.Tensor, rows: torch.Tensor, num_rows: int, patch_size: int) -> torch.Tensor:
    """Sum the upsampled, normalised features over the pixels of each row: (num_rows, D) float64.

    Args:
        patch_map: (h, w, D).
        rows: (h * patch_size, w * patch_size) int64, the row of each pixel; num_rows drops the pixel.
    """
    height, width, dim = patch_map.shape
    (up, down, v), (left, right, u) = (
        taps(torch.arange(pixels, device=rows.device), pixels, patches, patch_size)
        for pixels, patches in zip(rows.shape, (height, width), strict=True)
    )
    share = _inverse_lengths(patch_map, (up, down, v[:, None]), (left, right, u))
    y, x = (rows < num_rows).nonzero(as_tuple=True)
    share, first = share[y, x], rows[y, x] * (height * width)
    of_patches = share.new_zeros(num_rows * height * width)
    for row, row_weight in ((up, 1 - v), (down, v)):
        for column, column_weight in ((left, 1 - u), (right, u)):
            of_patches.index_add_(0, first + row[y] * width + column[x], row_weight[y] * column_weight[x] * share)
    # Sparse: a segment covers few of the patches.
    return of_patches.view(num_rows, height * width).to_sparse() @ patch_map.reshape(height * width, dim).double()


def _inverse_lengths(patch_map: torch.Tensor, vertical: tuple, horizontal: tuple) -> torch.Tensor:
    """The inverse length of the upsampled feature at each pixel, (hp, wp) float64; 0 for features without direction.

    Args:
        patch_map: (h, w, D).
        vertical, horizontal: the result of `taps` for the rows and columns of pixels.
    """
    (up, down, v), (left, right, u) = vertical, horizontal
    squared, beside, below, across = _products(patch_map)
    # For blends of the patches above and below: squared lengths, and products with the blend to the right.
    lengths = (1 - v) ** 2 * squared[up] + 2 * v * (1 - v) * below[up] + v**2 * squared[down]
    products = (1 - v) ** 2 * beside[up] + v * (1 - v) * across[up] + v**2 * beside[down]
    whole = (1 - u) ** 2 * lengths[:, left] + 2 * u * (1 - u) * products[:, left] + u**2 * lengths[:, right]
    longest = torch.maximum(*(torch.maximum(squared[up], squared[down])[:, each] for each in (left, right)))
    return torch.where(whole > NO_LENGTH**2 * longest, whole.rsqrt(), 0)


def _products(patch_map: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Products of each patch token with itself, with those to the right and below, and across: (h, w) float64 each.

    `across` is the sum of the two diagonals of the four patches. At the edges a patch is its own neighbour.
    """
    products = []
    for row in range(len(patch_map)):  # a row of patches at a time: a large map in float64 would take gigabytes
        here, there = (patch_map[min(each, len(patch_map) - 1)].double() for each in (row, row + 1))
        here_right, there_right = (torch.cat([each[1:], each[-1:]]) for each in (here, there))
        diagonals = (here * there_right).sum(1) + (here_right * there).sum(1)
        products.append(((here**2).sum(1), (here * here_right).sum(1), (here * there).sum(1), diagonals))
    return tuple(torch.stack(each) for each in zip(*products, strict=True))
