"""Resize position embeddings to image sizes other than the pretraining's, as official code does.

timm resizes the embeddings of all models alike: bicubic to the size, antialiased. Official code: DINO and DINOv2,
`interpolate_pos_encoding`; MAE, `util/pos_embed.py`; MaskCLIP, `resize_pos_embed` of its ViT.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F

Grid = tuple[int, int]  # (h, w) in patches
OFFSET = 0.1  # patches; DINO adds it so that sizes do not round down; it shifts the sampling positions slightly


def resize_officially(
    pos_embed: torch.Tensor, old_grid: tuple[int, int], grid: tuple[int, int], way: Literal["scale_factor", "size"]
) -> torch.Tensor:
    """Resize position embeddings as the official code does.

    Args:
        pos_embed: (1, prefix + old_h * old_w, D); embeddings of prefix tokens are kept.
        old_grid: (h, w) of the pretraining, in patches.
        grid: (h, w) to resize to, in patches.
        way: see `OfficialPosEmbed`.

    Returns:
        (1, prefix + h * w, D) float32.
    """
    if old_grid == grid:
        return pos_embed
    prefix = pos_embed.shape[1] - old_grid[0] * old_grid[1]
    patches = pos_embed[:, prefix:].unflatten(1, old_grid).permute(0, 3, 1, 2).float()
    if way == "scale_factor":
        scale = tuple((new + OFFSET) / old for new, old in zip(grid, old_grid, strict=True))
        resized = F.interpolate(patches, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        resized = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    assert resized.shape[-2:] == grid
    return torch.cat([pos_embed[:, :prefix], resized.flatten(2).transpose(1, 2)], dim=1)


def grid_of_positions(
    count: int, others: Iterable[int], guesses: Sequence[Grid], *, last_guess: Grid | None = None
) -> Grid | None:
    """Infer the grid of patches from the number of position embeddings; like timm, try likely grids, then a square.

    Args:
        count: number of embeddings.
        others: possible numbers of embeddings that belong to no patch, the likeliest first.
        guesses: grids, the likeliest first.
        last_guess: a grid that is less likely than a square.

    >>> grid_of_positions(197, [1], [(14, 28)])
    (14, 14)
    >>> grid_of_positions(257, [1], [(8, 32)]), grid_of_positions(257, [1], [], last_guess=(8, 32))
    ((8, 32), (16, 16))
    """
    for patches in (count - each for each in others):
        side = math.isqrt(max(patches, 0))
        for grid in (*guesses, (side, side), *([last_guess] if last_guess else [])):
            if math.prod(grid) == patches > 0:
                return grid
    return None


def grid_of_offsets(count: int, others: int, guesses: Sequence[Grid]) -> Grid | None:
    """Infer the grid from the size of a table with an entry for each offset between two patches: (2h - 1)(2w - 1)."""
    spans = [(2 * height - 1, 2 * width - 1) for height, width in guesses]
    found = grid_of_positions(count, [others], spans)
    return found and ((found[0] + 1) // 2, (found[1] + 1) // 2)
