from __future__ import annotations

import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.corruptions import corruption_folder


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val", "no split 'val': 'val' is unknown. Use CORRUPTION/SEVERITY, of fog, wet_ground"),
        ("fog/hevy", "no split 'fog/hevy': 'hevy' is unknown, did you mean 'heavy'?"),
        ("fog/heavy", "fog/heavy: the folder of this corruption is missing"),
        ("fog/heavy,fog/light", "several splits are given, 'fog/heavy,fog/light'. Name one corruption and severity"),
    ],
)
@pytest.mark.parametrize("name", ["nuscenes_c", "semantic_kitti_c"])
def test_splits_of_corruptions(name, split, message, tmp_path):
    with pytest.raises(DatasetError) as caught:
        open_dataset(name, tmp_path, split)
    assert message in str(caught.value)


def test_a_split_is_its_folder(tmp_path):
    (tmp_path / "snow/heavy").mkdir(parents=True)
    assert corruption_folder(tmp_path, "snow/heavy") == "snow/heavy"
