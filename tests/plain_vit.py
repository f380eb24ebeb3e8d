"""Vision transformers written out once more in plain operations, from the papers, to compare targets with.

Shapes: N tokens, D dimensions, P patch size, (h, w) patches. No batches, no classes: a dictionary of tensors in, an
array of targets out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Plain:
    """What the tensors do not tell."""

    heads: int
    eps: float = 1e-6
    activation: str = "gelu"  # gelu, quick_gelu, or swiglu: the first half of the hidden layer gates the second
    rope: bool = False
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


def targets(state: State, plain: Plain, image: np.ndarray, pixel: np.ndarray, size, layers, feature="x_prenorm"):
    """(R, D) at the pixels (R, 2) of an (H, W, 3) image: resized, through the ViT, upsampled, then indexed."""
    tokens = patch_tokens(state, plain, resized(image, size), size, layers, feature)
    patch = state["patch_embed.proj.weight"].shape[-1]
    grid = (size[0] // patch, size[1] // patch)
    patch_map = tokens.T.reshape(1, -1, *grid)
    upsampled = F.interpolate(patch_map, size, mode="bilinear", align_corners=True)[0]
    rows, columns = (pixel[:, axis].astype(int) * size[axis] // image.shape[axis] for axis in (0, 1))
    return upsampled[:, rows, columns].T


def resized(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """(3, h, w) in [0, 1]: every output pixel a triangle over the input, as wide as one output pixel or more."""
    pixels = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1) / 255
    rows, columns = (_triangles(image.shape[axis], size[axis]) for axis in (0, 1))
    return (rows @ pixels @ columns.T).float()


def _triangles(length: int, new: int) -> torch.Tensor:
    scale = length / new
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(length, dtype=torch.float64) + 0.5 - centres[:, None]).abs() / max(scale, 1)
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def patch_tokens(state: State, plain: Plain, image: torch.Tensor, size, layers, feature: str) -> torch.Tensor:
    """(h * w, D) of an image (3, h * P, w * P) in [0, 1]; several layers one beside the other."""
    image = (image - torch.tensor(plain.mean).view(3, 1, 1)) / torch.tensor(plain.std).view(3, 1, 1)
    kernel = state["patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    grid = (size[0] // patch, size[1] // patch)
    patches = image.reshape(3, grid[0], patch, grid[1], patch).permute(1, 3, 0, 2, 4).reshape(grid[0] * grid[1], -1)
    x = patches @ kernel.flatten(1).T + state.get("patch_embed.proj.bias", 0)
    prefix = [state[name][0] for name in ("cls_token", "reg_token") if name in state]
    position = state.get("pos_embed")
    if position is not None and position.shape[1] == len(x) + 1:
        x = torch.cat([prefix[0], x]) + position[0]
        x = torch.cat([x[:1], *prefix[1:], x[1:]])
    else:
        x = torch.cat([*prefix, x if position is None else x + position[0]])
    count = len(x) - grid[0] * grid[1]
    if "norm_pre.weight" in state:
        x = _norm(state, "norm_pre", x, plain.eps)
    angles = _rope_angles(grid, kernel.shape[0] // plain.heads) if plain.rope else None
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    seen = []
    for number in range(depth):
        block = {name.removeprefix(f"blocks.{number}."): value for name, value in state.items()
                 if name.startswith(f"blocks.{number}.")}  # fmt: skip
        identity = feature == "maskclip" and number == depth - 1
        x = x + _scale(block, 1) * _attention(block, plain, _norm(block, "norm1", x, plain.eps), angles, identity)
        x = x + _scale(block, 2) * _mlp(block, plain, _norm(block, "norm2", x, plain.eps))
        if number in layers:
            seen.append(x if feature == "x_prenorm" else _norm(state, "norm", x, plain.eps))
    tokens = torch.cat([each[count:] for each in seen], dim=1)
    if feature != "maskclip":
        return tokens
    tokens = tokens @ state["head.weight"].T + state["head.bias"]
    return tokens / tokens.norm(dim=1, keepdim=True)


def _norm(state: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    return (
        centred / (centred.square().mean(dim=1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def _scale(block: State, number: int) -> torch.Tensor | float:
    return block.get(f"ls{number}.gamma", block.get(f"gamma_{number}", 1.0))


def _attention(block: State, plain: Plain, x: torch.Tensor, angles, identity: bool) -> torch.Tensor:
    """softmax(q k' / sqrt(d)) v; with `identity`, v alone."""
    qkv = x @ block["attn.qkv.weight"].T + block.get("attn.qkv.bias", 0)
    query, key, value = (part.reshape(len(x), plain.heads, -1).transpose(0, 1) for part in qkv.chunk(3, dim=1))
    if angles is not None:
        query, key = _rotated(query, angles), _rotated(key, angles)
    weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(query.shape[-1]), dim=-1)
    mixed = value if identity else weights @ value
    return mixed.transpose(0, 1).reshape(len(x), -1) @ block["attn.proj.weight"].T + block["attn.proj.bias"]


def _mlp(block: State, plain: Plain, x: torch.Tensor) -> torch.Tensor:
    if "mlp.fc1_g.weight" in block:
        gate, hidden = (x @ block[f"mlp.fc1_{name}.weight"].T + block[f"mlp.fc1_{name}.bias"] for name in "gx")
        hidden = gate * torch.sigmoid(gate) * hidden
    else:
        hidden = x @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
        if plain.activation == "swiglu":
            gate, hidden = hidden.chunk(2, dim=1)
            hidden = gate * torch.sigmoid(gate) * hidden
        elif plain.activation == "quick_gelu":
            hidden = hidden * torch.sigmoid(1.702 * hidden)
        else:
            hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]


def _rope_angles(grid: tuple[int, int], head_dim: int) -> torch.Tensor:
    """DINOv3: (h * w, head_dim); patch centres in [-1, 1] of either axis, periods from 1 to 100."""
    rows, columns = (2 * (torch.arange(side) + 0.5) / side - 1 for side in grid)
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    periods = 100 ** (torch.arange(head_dim // 4) / (head_dim // 4))
    return (2 * math.pi * centres[:, :, None] / periods).flatten(1).tile(2)


def _rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Patch tokens turned by their angles; class and register tokens as they are."""
    prefix, patches = x[:, : -len(angles)], x[:, -len(angles) :]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
    return torch.cat([prefix, turned], dim=1)


def cubic(length: int, new: int, scale: float) -> torch.Tensor:
    """(new, length), bicubic: output i is around (i + 0.5) / scale - 0.5 with Keys' kernel, edges repeated."""
    matrix = torch.zeros(new, length, dtype=torch.float64)
    for row in range(new):
        centre = (row + 0.5) / scale - 0.5
        for column in range(int(centre // 1) - 1, int(centre // 1) + 3):
            x, a = abs(centre - column), -0.75
            weight = (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(column, 0), length - 1)] += weight
    return matrix
