"""Scans of a store, matched with the scans of the dataset that it was extracted from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import StoreError
from ..extract.datasets.frame import Frame


def rows_in_scan(stored: np.ndarray, scan: np.ndarray, frame: Frame, store: Path) -> np.ndarray:
    """Rows (P,) int64 in a dataset's scan (N, 4) of the points (P, 4) that a store keeps of the scan.

    A store may keep only the visible points, in the same order.

    Raises:
        StoreError: the stored points are not of this scan.
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
    """(N, 4) float32 as (N,) values, which are equal if all four columns are."""
    return np.ascontiguousarray(points, np.float32).view("V16").ravel()
