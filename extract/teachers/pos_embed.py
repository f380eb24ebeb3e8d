"""Position embeddings of other image sizes than the pretraining's: timm's way, and those of the official codes.

timm resizes all of them alike: bicubic to the size, antialiased. Sources of the official ways: DINO and DINOv2,
`interpolate_pos_encoding`; MAE, `util/pos_embed.py`; MaskCLIP, `resize_pos_embed` of its ViT.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

OFFSET = 0.1  # patches; DINO's guard against a size that rounds down, which shifts where the embeddings are read


def resize_officially(
    pos_embed: torch.Tensor, old_grid: tuple[int, int], grid: tuple[int, int], way: Literal["scale_factor", "size"]
) -> torch.Tensor:
    """Resize position embeddings as the official code does.

    Args:
        pos_embed: (1, prefix + old_h * old_w, D); the prefix's are kept.
        old_grid: (h, w) in patches, of the pretraining.
        grid: (h, w) in patches, wanted.
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
