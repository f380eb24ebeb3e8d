"""Settings of a WaffleIron: the section `student` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ....settings import at_least, below, up_to
from ..backbone import BackboneConfig

Norm = Literal["batch", "layer"]
Activation = Literal["relu", "gelu"]


@dataclass(frozen=True, kw_only=True)
class WaffleIronConfig(BackboneConfig):
    """The network. The defaults are WI-48-256 with a head for the features of a ViT-L.

    ScaLR's WI-48-768 has width 768 and norm "layer". ScaLR+ adds activation "gelu", stochastic_depth 0.2, head "mlp".

    Raises:
        StudentError: a value that cannot be used.
    """

    backbone: str = "waffleiron"
    width: Annotated[int, at_least(1), up_to(8192)] = 256
    depth: Annotated[int, at_least(1), up_to(1024)] = 48
    norm: Norm = "batch"
    activation: Activation = "relu"
    # Probability of leaving out a residual of a scan in training.
    stochastic_depth: Annotated[float, at_least(0), below(1)] = 0.0

    @property
    def title(self) -> str:
        """WI-depth-width, as in the papers."""
        return f"WI-{self.depth}-{self.width}"

    @property
    def description(self) -> str:
        return f"{self.title}, {self.norm} norm, {self.activation}"
