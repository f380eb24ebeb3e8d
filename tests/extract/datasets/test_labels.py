from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets.labels import IGNORE_LABEL, LabelMap, check_length

PATH = Path("scan.label")
MAP = LabelMap({"left": (7, 65535), "right": (0,)}, ignored=(3,))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
def test_classes_number_the_ids_and_what_is_ignored_is_255(dtype):
    """255 is what torch's losses are told to leave out, and what every other reader of these sets has."""
    found = MAP.train_ids(np.array([7, 0, 3], dtype), PATH)
    assert (found.tolist(), found.dtype, IGNORE_LABEL) == ([0, 1, 255], np.uint8, 255)
    assert MAP.class_names == ("left", "right")


@pytest.mark.parametrize("raw", [1, 254, 255, 65534, 65536, 2**32 - 1, -1])
def test_an_id_that_the_dataset_does_not_have_is_said(raw):
    """Whatever its size: 65535 is the last that 16 bits hold."""
    assert MAP.train_ids(np.array([65535]), PATH).tolist() == [0]
    with pytest.raises(
        DatasetError, match=rf"scan\.label: the file has label ids that the dataset does not define: {raw}\. Check"
    ):
        MAP.train_ids(np.array([7, raw, 0]), PATH)


def test_no_more_than_five_unknown_ids_are_listed():
    with pytest.raises(DatasetError, match=r"does not define: 11, 12, 13, 14, 15\. "):
        MAP.train_ids(np.array([16, 15, 14, 13, 12, 11, 11]), PATH)


def test_more_ids_can_be_ignored():
    more = MAP.with_ignored((41,))
    assert more.train_ids(np.array([7, 0, 3, 41]), PATH).tolist() == [0, 1, 255, 255]
    assert (more.class_names, more.raw_ids, more.ignored) == (MAP.class_names, MAP.raw_ids, (3, 41))
    with pytest.raises(DatasetError, match="does not define: 41"):
        MAP.train_ids(np.array([41]), PATH)


def test_labels_are_one_a_point():
    check_length(3, 3, "1.bin", PATH)
    for count in (2, 4):
        with pytest.raises(
            DatasetError, match=rf"scan\.label: the file has {count} labels, and the scan 1\.bin has 3 points"
        ):
            check_length(count, 3, "1.bin", PATH)
