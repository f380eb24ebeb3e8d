from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scalr.errors import StoreError
from scalr.evaluate.stored_scans import rows_in_scan

FRAME, STORE = SimpleNamespace(token="frame7"), Path("s.zarr")
SCAN = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)


@pytest.mark.parametrize("rows", [range(50), range(0, 50, 3), [4, 5, 49]])
def test_each_stored_point_has_its_row_in_the_scan(rows):
    np.testing.assert_array_equal(rows_in_scan(SCAN[list(rows)], SCAN, FRAME, STORE), list(rows))


@pytest.mark.parametrize("column", range(4))
def test_points_that_differ_anywhere_are_of_another_scan(column):
    stored = SCAN[:10].copy()
    stored[3, column] = np.nextafter(stored[3, column], np.float32(9))
    message = r"s\.zarr: the stored scan of frame frame7 differs from the dataset's \(10 points, 50 in "
    with pytest.raises(StoreError, match=message):
        rows_in_scan(stored, SCAN, FRAME, STORE)


def test_a_shorter_scan_is_another():
    with pytest.raises(StoreError, match=r"\(50 points, 49 in the dataset\)"):
        rows_in_scan(SCAN, SCAN[:49], FRAME, STORE)
