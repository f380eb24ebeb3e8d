"""The same convolutions with the kernels of spconv (https://github.com/traveller59/spconv), if it is installed.

spconv makes its own kernel maps on the GPU, once per batch, with its own order of the voxels of coarser grids.

Letters in shapes: M voxels of a grid, C channels in, D channels out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ....errors import StudentError
from .inputs import VoxelBatch
from .kernel_maps import LEVELS

Convolve = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (features (M, C), kernel (K, C, D)) -> features


class SpconvGrids:
    """The grids of one batch, in place of the kernel maps of a `VoxelBatch`; to be used in order from the finest grid.

    Args:
        batch: on a device that spconv supports.
        algorithm: a value of `spconv.core.ConvAlgo`; None leaves the choice to spconv.

    Raises:
        StudentError: spconv is not installed.
    """

    def __init__(self, batch: VoxelBatch, algorithm: Any = None) -> None:
        try:
            import spconv.pytorch as spconv
        except ImportError:
            raise StudentError(
                "student.convolution is spconv, and spconv is not installed",
                where="student.convolution",
                fix="Set student.convolution to gather, or install the spconv package of this CUDA version,"
                " such as spconv-cu126.",
            ) from None
        self._layers, self._options = spconv, {"bias": False, "algo": algorithm}
        self._tensor = spconv.SparseConvTensor(batch.features, batch.voxels, list(batch.extent), batch.num_scans)
        self._grids = [self._tensor]  # the grids reached so far on the way down
        self.neighbours = tuple(partial(self._same, level) for level in range(LEVELS))
        self.children = tuple(_Down(self, level) for level in range(LEVELS - 1))

    def _same(self, level: int, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return self._run(self._layers.SubMConv3d, f"same {level}", level, x, kernel, 3).features

    def down(self, level: int, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        found = self._run(self._layers.SparseConv3d, f"children {level}", level, x, kernel, 2, stride=2)
        self._grids.append(found)
        return found.features

    def up(self, level: int, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return self._run(self._layers.SparseInverseConv3d, f"children {level}", level + 1, x, kernel, 2).features

    def _run(
        self, layer: Any, key: str, level: int, x: torch.Tensor, kernel: torch.Tensor, edge: int, **options: Any
    ) -> Any:
        _, channels, outputs = kernel.shape
        with torch.device("meta"):  # spconv's own weight is not used
            convolution = layer(channels, outputs, edge, indice_key=key, **options, **self._options)
        del convolution.weight
        # (K, C, D), with axis 0 of space fastest -> (D, axis 0, axis 1, axis 2, C).
        convolution.weight = kernel.unflatten(0, (edge, edge, edge)).permute(4, 2, 1, 0, 3).contiguous()
        return convolution(self._grids[level].replace_feature(x))


class _Down:
    """The convolution to the next grid, and the one back as in `KernelMap`."""

    def __init__(self, grids: SpconvGrids, level: int) -> None:
        self._down: Convolve = partial(grids.down, level)
        self._up: Convolve = partial(grids.up, level)

    def swapped(self) -> Convolve:
        return self._up

    def __call__(self, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return self._down(x, kernel)
