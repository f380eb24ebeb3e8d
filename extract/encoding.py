"""How targets are kept in a store, and how large that makes them.

`point` keeps one vector per pair, its target. `patch` keeps only the patch vectors that some pair reads, in row-major
order of the patch map; a pair's target is then the weighted sum of four of them. Either is kept as float16, or as int8
with a scale per vector, and an offset and a scale per channel. `targets.py` has the arithmetic; this module needs no
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import StoreError

Layout = Literal["point", "patch"]
StoredDtype = Literal["float16", "int8"]


@dataclass(frozen=True)
class Encoding:
    """How a teacher's targets are kept.

    >>> Encoding("patch", "int8").bytes_per_view(num_pairs=3700, num_patches=350, dim=1024)
    359800
    """

    layout: Layout = "patch"
    dtype: StoredDtype = "int8"

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout) or self.dtype not in get_args(StoredDtype):
            raise StoreError(
                f"unknown encoding {self.layout} {self.dtype}",
                where="targets",
                fix=f"Use one of {get_args(Layout)} with one of {get_args(StoredDtype)}.",
            )

    def bytes_per_view(self, num_pairs: int, num_patches: int, dim: int) -> int:
        """Size of the targets of a view whose pairs read `num_patches` patches, before compression."""
        vector_bytes = 2 * dim if self.dtype == "float16" else dim + 4
        return (num_pairs if self.layout == "point" else num_patches) * vector_bytes


ENCODINGS = tuple(Encoding(layout, dtype) for layout in get_args(Layout) for dtype in get_args(StoredDtype))
