"""Settings of a MinkUNet: the section `student` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ....settings import above, at_least, up_to
from ..backbone import BackboneConfig

Width = Annotated[int, at_least(1), up_to(4096)]
Blocks = Annotated[int, at_least(1), up_to(64)]

Convolution = Literal["gather", "spconv"]

STAGES_DOWN = 4  # of the eight stages


@dataclass(frozen=True)
class MinkUNetConfig(BackboneConfig):
    """The network. The defaults, except for the head, are Res16UNet34C as SLidR pretrains it.

    Raises:
        StudentError: a value that cannot be used.
    """

    backbone: str = "minkunet"
    stem_width: Width = 32
    # One value per stage: four down, four up. The last width is that of the features.
    widths: tuple[Width, Width, Width, Width, Width, Width, Width, Width] = (32, 64, 128, 256, 256, 128, 96, 96)
    blocks: tuple[Blocks, Blocks, Blocks, Blocks, Blocks, Blocks, Blocks, Blocks] = (2, 3, 4, 6, 2, 2, 2, 2)
    convolution: Convolution = "gather"  # spconv: the package of that name, on a GPU
    bn_momentum: Annotated[float, above(0), up_to(1)] = 0.05  # of all batch norms except those within blocks

    @property
    def title(self) -> str:
        """MinkUNet34-96: the number of convolutions down to the coarsest grid, and the width of the features."""
        return f"MinkUNet{2 * sum(self.blocks[:STAGES_DOWN]) + STAGES_DOWN}-{self.widths[-1]}"
