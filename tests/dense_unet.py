"""MinkUNet once more, plainly: torch's dense convolutions on volumes in which empty voxels are zero.

Reads tensors by the names and in the shapes of SLidR's files. Of a kernel's first dimension, axis 0 of space is the
fastest, as MinkowskiEngine has it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

DOWN = ["conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2"]
UP = ["convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2"]


def volume_of(voxels: torch.Tensor, features: torch.Tensor, scans: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, 4) voxels (scan, and three coordinates) and (M, F) features -> (B, F, X, Y, Z), and voxels of the volume.

    The volume begins at a multiple of 16 on each axis, so that coarser voxels are those of the whole space.
    """
    low = torch.div(voxels[:, 1:].amin(dim=0), 16, rounding_mode="floor") * 16
    size = torch.div(voxels[:, 1:].amax(dim=0) - low, 16, rounding_mode="floor") * 16 + 16
    at = torch.cat([voxels[:, :1], voxels[:, 1:] - low], dim=1)
    volume = features.new_zeros(scans, *size.tolist(), features.shape[1])
    volume[tuple(at.T)] = features
    return volume.movedim(-1, 1), at


class DenseUNet:
    """Call with a volume and the mask (B, 1, X, Y, Z) of occupied voxels; running statistics change in `tensors`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], momentum: float, *, training: bool) -> None:
        self.tensors, self.momentum, self.training = tensors, momentum, training

    def __call__(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        masks = [mask]
        x = self.norm(self.kernel3(x, "conv0p1s1", mask), "bn0", mask).relu()
        beside = [x]
        for level, name in enumerate(DOWN, 1):
            mask = F.max_pool3d(masks[-1], 2)
            masks.append(mask)
            weight = self.permuted(name, 2).permute(4, 3, 2, 1, 0)
            x = self.norm(F.conv3d(x, weight, stride=2), f"bn{level}", mask).relu()
            x = self.blocks(x, f"block{level}", mask)
            beside.append(x)
        masks.pop()
        beside.pop()
        for level, name in enumerate(UP, 4):
            mask = masks.pop()
            weight = self.permuted(name, 2).permute(3, 4, 2, 1, 0)
            x = self.norm(F.conv_transpose3d(x, weight, stride=2), f"bntr{level}", mask).relu()
            x = self.blocks(torch.cat([x, beside.pop()], dim=1), f"block{level + 1}", mask)
        return x

    def blocks(self, x: torch.Tensor, name: str, mask: torch.Tensor) -> torch.Tensor:
        number = 0
        while f"{name}.{number}.conv1.kernel" in self.tensors:
            block = f"{name}.{number}"
            out = self.norm(self.kernel3(x, f"{block}.conv1", mask), f"{block}.norm1", mask, 0.1).relu()
            out = self.norm(self.kernel3(out, f"{block}.conv2", mask), f"{block}.norm2", mask, 0.1)
            if f"{block}.downsample.0.kernel" in self.tensors:
                x = torch.einsum("bcxyz,cd->bdxyz", x, self.tensors[f"{block}.downsample.0.kernel"])
                x = self.norm(x, f"{block}.downsample.1", mask)
            x = (out + x).relu()
            number += 1
        return x

    def kernel3(self, x: torch.Tensor, name: str, mask: torch.Tensor) -> torch.Tensor:
        return F.conv3d(x, self.permuted(name, 3).permute(4, 3, 2, 1, 0), padding=1) * mask

    def permuted(self, name: str, edge: int) -> torch.Tensor:
        kernel = self.tensors[f"{name}.kernel"]
        return kernel.reshape(edge, edge, edge, *kernel.shape[1:])

    def norm(self, x: torch.Tensor, name: str, mask: torch.Tensor, momentum: float | None = None) -> torch.Tensor:
        """Over the occupied voxels alone; others are zero."""
        where = mask[:, 0] > 0
        weight, bias, mean, variance = (
            self.tensors[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        rows = F.batch_norm(
            x.movedim(1, -1)[where], mean, variance, weight, bias, self.training, momentum or self.momentum
        )
        out = torch.zeros_like(x.movedim(1, -1))
        out[where] = rows
        return out.movedim(-1, 1)
