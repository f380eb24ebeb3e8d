"""The encodings of targets in a store, and their sizes.

`point` stores one vector per pair, its target. `patch` stores only the patch tokens that some pair needs, in row-major
order of the patch map; a pair's target is then the weighted sum of four of them. Both are stored as float16, or as int8
with a scale per vector, and an offset and a scale per channel. `segments` stores no targets of pairs, only the float16
vectors of each segment (`segments.py`), which all encodings have if images have superpixels. `targets.py` implements
the arithmetic of pairs; this module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import StoreError

Layout = Literal["point", "patch", "segments"]
StoredDtype = Literal["float16", "int8"]


@dataclass(frozen=True)
class Encoding:
    """How a teacher's targets are stored.

    >>> Encoding("patch", "int8").bytes_per_view(num_pairs=3700, num_patches=350, dim=1024)
    359800
    """

    layout: Layout = "patch"
    dtype: StoredDtype = "int8"

    def __post_init__(self) -> None:
        known = [(layout, dtype) for layout in get_args(Layout) for dtype in get_args(StoredDtype)]
        known.remove(("segments", "int8"))
        if (self.layout, self.dtype) not in known:
            raise StoreError(
                f"unknown encoding {self.layout} {self.dtype}",
                where="targets",
                fix=f"Use one of {', '.join(map(' '.join, known))}.",
            )

    @property
    def of_pairs(self) -> bool:
        """Whether the store has targets of pairs."""
        return self.layout != "segments"

    def bytes_per_view(self, num_pairs: int, num_patches: int, dim: int, num_segments: int = 0) -> int:
        """Size of the targets of a view before compression.

        Args:
            num_pairs: pairs of the view.
            num_patches: patches that these pairs need.
            dim: D, channels of a vector.
            num_segments: segments that hold a pair; 0 without superpixels.
        """
        vector_bytes = 2 * dim if self.dtype == "float16" else dim + 4
        num_vectors = {"point": num_pairs, "patch": num_patches, "segments": 0}[self.layout]
        return num_vectors * vector_bytes + num_segments * (2 * 2 * dim + 6)


ENCODINGS = tuple(Encoding(layout, dtype) for layout in ("point", "patch") for dtype in get_args(StoredDtype))
OF_SEGMENTS = Encoding("segments", "float16")  # the vectors that every store with superpixels has
