"""Scans of a store beside those of the dataset that it was extracted from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import StoreError
from ..extract.datasets.frame import Frame


def rows_in_scan(stored: np.ndarray, scan: np.ndarray, frame: Frame, store: Path) -> np.ndarray:
    """(P,) int64: the row in a dataset's scan (N, 4) of each point that a store keeps of it (P, 4).

    A store may keep visible points alone, in their order.

    Raises:
        StoreError: they are not of this scan.
    """
    rows = np.flatnonzero(np.isin(_as_values(scan), _as_values(stored)))
    if len(rows) != len(stored):
        raise StoreError(
            f"the stored scan of frame {frame.token} differs from the dataset's ({len(stored)} points,"
            f" {len(scan)} in the dataset)",
            where=store,
            fix="Pass --root with the dataset that the store was extracted from.",
        )
    return rows


def _as_values(points: np.ndarray) -> np.ndarray:
    """(N, 4) float32 as (N,) values that are equal where all four are."""
    return np.ascontiguousarray(points, np.float32).view("V16").ravel()
