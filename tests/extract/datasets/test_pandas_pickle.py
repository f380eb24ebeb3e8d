from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from scalr.errors import DatasetError
from scalr.extract.datasets.pandas_pickle import read_columns

pandas = pytest.importorskip("pandas", reason="PandaSet's files are pandas tables")


def write(path: Path, value: object, protocol: int = 3) -> Path:
    path.write_bytes(gzip.compress(pickle.dumps(value, protocol)))
    return path


@pytest.mark.parametrize("protocol", range(2, 6))
def test_tables_of_every_protocol_are_read(tmp_path, protocol):
    table = pandas.DataFrame({"x": np.arange(4.0), "d": np.arange(4), "i": np.arange(4, dtype=np.float32)})
    path = write(tmp_path / "t.pkl.gz", table[table.d > 0], protocol)
    np.testing.assert_array_equal(read_columns(path, ("x", "d")), [[1, 1], [2, 2], [3, 3]])


@pytest.mark.parametrize(
    "renamed",
    [
        {"pandas.core.indexes.base\nIndex": "pandas.core.indexes.numeric\nInt64Index"},  # pandas 1
        {"pandas.core.indexes.base\nIndex": "pandas.core.indexes.numeric\nFloat64Index"},
        {"numpy.core.multiarray\n": "numpy._core.multiarray\n"},  # numpy 2
    ],
    ids=["Int64Index", "Float64Index", "numpy 2"],
)
def test_tables_of_other_versions_are_read(tmp_path, renamed):
    """Pickles name modules and classes, and protocol 3 has the names as lines."""
    table = pandas.DataFrame({"x": np.arange(4.0), "d": np.arange(4)})
    content = pickle.dumps(table[table.d > 0], 3)
    for here, there in renamed.items():
        assert here.encode() in content
        content = content.replace(here.encode(), there.encode())
    (tmp_path / "t.pkl").write_bytes(content)
    np.testing.assert_array_equal(read_columns(tmp_path / "t.pkl", ("x", "d")), [[1, 1], [2, 2], [3, 3]])


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
    with pytest.raises(
        DatasetError, match=r"the pickle names .*, which a table of numbers does not need and which could run code"
    ):
        read_columns(path, ("x",))


def test_columns_come_in_the_order_that_is_asked_for(tmp_path):
    path = write(tmp_path / "t.pkl.gz", pandas.DataFrame({"x": [1, 2], "i": [0.5, 0.25], "d": [0, 1]}))
    found = read_columns(path, ("d", "x"))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[0, 1], [1, 2]])


@pytest.mark.parametrize("value", [{"x": 1}, [1, 2], None, 3])
def test_what_is_no_table_is_said(tmp_path, value):
    path = write(tmp_path / "t.pkl.gz", value)
    with pytest.raises(DatasetError, match=r"t\.pkl\.gz: the pickle is not a table of numbers with the columns x, d"):
        read_columns(path, ("x", "d"))


def test_a_column_that_is_missing_or_no_numbers_is_said(tmp_path):
    path = write(tmp_path / "t.pkl.gz", pandas.DataFrame({"x": [1, 2]}))
    with pytest.raises(DatasetError, match="with the columns x, y"):
        read_columns(path, ("x", "y"))


@pytest.mark.parametrize("content", [b"", b"text", gzip.compress(b"text", mtime=0)])  # names of tests: the same always
def test_a_damaged_file_is_said(tmp_path, content):
    (tmp_path / "t.pkl.gz").write_bytes(content)
    with pytest.raises(DatasetError, match="the pickle cannot be read"):
        read_columns(tmp_path / "t.pkl.gz", ("x",))
    with pytest.raises(DatasetError, match="the file is missing"):
        read_columns(tmp_path / "nowhere.pkl.gz", ("x",))
