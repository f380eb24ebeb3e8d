from __future__ import annotations

import gzip
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.pandas_pickle import read_columns
from scalr.extract.datasets.pandaset import LABELS

pandas = pytest.importorskip("pandas", reason="PandaSet's files are pandas tables")


def write(path: Path, value: object, protocol: int = 3) -> Path:
    path.write_bytes(gzip.compress(pickle.dumps(value, protocol)))
    return path


def test_splits_follow_each_scene_s_own_gps(simulated, tmp_path):
    root = Path(shutil.copytree(simulated("pandaset"), tmp_path / "pandaset"))
    assert {frame.scene for frame in open_dataset("pandaset_64", root, "train").frames} == {"001"}
    assert {frame.scene for frame in open_dataset("pandaset_gt", root, "val").frames} == {"101"}
    assert len(open_dataset("pandaset_64", root, "001,101").frames) == 4
    shutil.copy(root / "001/meta/gps.json", root / "101/meta/gps.json")
    assert {frame.scene for frame in open_dataset("pandaset_64", root, "train").frames} == {"001", "101"}
    entries = json.loads((root / "101/meta/gps.json").read_text())
    (root / "101/meta/gps.json").write_text(json.dumps([entries[0], *({**each, "lat": 0} for each in entries)]))
    assert len(open_dataset("pandaset_64", root, "train").frames) == 4  # where the scene begins is what counts
    shutil.rmtree(root / "101/annotations/semseg")  # as most scenes of the real set: not used
    assert {frame.scene for frame in open_dataset("pandaset_64", root, "train").frames} == {"001"}


def test_a_folder_with_scenes_of_the_other_split_is_said(simulated, tmp_path):
    shutil.copytree(simulated("pandaset") / "001", tmp_path / "001")
    with pytest.raises(DatasetError, match=r"no scan of split 'val'\. Choose among scenes \['001'\]"):
        open_dataset("pandaset_64", tmp_path, "val")


def test_each_lidar_has_its_cameras_and_points(simulated):
    spinning, forward = (open_dataset(name, simulated("pandaset"), "train") for name in ("pandaset_64", "pandaset_gt"))
    assert len(spinning.frames[0].views) == 6
    assert [view.camera for view in forward.frames[0].views] == ["front"]
    table = pandas.read_pickle(simulated("pandaset") / "001/lidar/00.pkl.gz")
    assert len(spinning.read_points(spinning.frames[0])) == (table.d == 0).sum()
    assert len(forward.read_points(forward.frames[0])) == (table.d == 1).sum()
    assert spinning.intensity != forward.intensity


@pytest.mark.parametrize("protocol", range(2, 6))
def test_tables_of_every_protocol_are_read(tmp_path, protocol):
    table = pandas.DataFrame({"x": np.arange(4.0), "d": np.arange(4), "i": np.arange(4, dtype=np.float32)})
    path = write(tmp_path / "t.pkl.gz", table[table.d > 0], protocol)
    np.testing.assert_array_equal(read_columns(path, ("x", "d")), [[1, 1], [2, 2], [3, 3]])


class Calls:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function",
    [eval, pandas.eval, pandas.read_pickle, pandas.read_csv, np.load, np.fromfile, Path.unlink, getattr],
    ids=lambda function: function.__qualname__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_function_is_called_that_a_table_does_not_need(tmp_path, function, protocol):
    """Not even those of pandas and numpy, some of which open files or run code."""
    path = write(tmp_path / "t.pkl.gz", Calls(function, "1"), protocol)
    with pytest.raises(DatasetError, match=r"the pickle names .*, which no table needs"):
        read_columns(path, ("x",))


def test_without_pandas_the_extra_is_named(simulated, monkeypatch):
    dataset = open_dataset("pandaset_64", simulated("pandaset"), "train")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(DatasetError, match=r"pip install 'scalr-distill\[pandaset\]'"):
        dataset.read_points(dataset.frames[0])


NAMES = {7: "road", 10: "road_marking", 16: "truck", 29: "other_vehicle", 34: "traffic_cone", 42: "manmade"}


@pytest.mark.parametrize(("raw", "name"), NAMES.items())
def test_raw_ids(raw, name):
    (train_id,) = LABELS.train_ids(np.array([raw]), Path())
    assert LABELS.class_names[train_id] == name


def test_all_forty_three_ids_are_in_a_class_or_ignored():
    train_ids = LABELS.train_ids(np.arange(43), Path())
    assert set(train_ids.tolist()) == {*range(17), IGNORE_LABEL}
    assert (train_ids == IGNORE_LABEL).sum() == 11
