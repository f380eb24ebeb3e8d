"""Read PandaSet's `.pkl.gz` and `.pkl` files, pickled pandas tables, without running other code that a pickle may hold.

A pickle names the functions that rebuild its objects, and loading calls them. Only functions that rebuild a table are
allowed, so that a file from an unknown source cannot run code.
"""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import DatasetError
from .files import COPY_AGAIN, read_bytes

OLD_INDEX = "pandas.core.indexes.numeric"  # of pandas 1
# The names in pickled tables of numbers, with the modules of pandas 0.25 to 2 and of numpy 1 and 2.
ALLOWED = {
    "_codecs": {"encode"},
    "__builtin__": {"slice"},  # its name in protocol 2
    "builtins": {"slice", "bytearray"},
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "pandas": {"Index", "RangeIndex", "DataFrame"},
    "pandas.core.frame": {"DataFrame"},
    "pandas.core.internals.managers": {"BlockManager"},
    "pandas.core.internals.blocks": {"new_block"},
    "pandas._libs.internals": {"_unpickle_block"},
    "pandas.core.indexes.base": {"Index", "_new_Index"},
    OLD_INDEX: {"Int64Index", "UInt64Index", "Float64Index"},
    "pandas.core.indexes.range": {"RangeIndex"},
}
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file


def read_columns(path: Path, names: Sequence[str]) -> np.ndarray:
    """Read columns of a pickled table, (rows, len(names)) float64.

    Raises:
        DatasetError: a file that is missing, truncated or no such table, that names a forbidden function, or that lacks
            a column; or pandas is not installed.
    """
    table = _load(path)
    try:
        return np.stack([np.asarray(table[name], dtype=np.float64) for name in names], axis=1)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise DatasetError(
            f"the pickle is not a table of numbers with the columns {', '.join(names)}", where=path, fix=COPY_AGAIN
        ) from None


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if name not in ALLOWED.get(module, ()):
            raise _ForbiddenError(f"{module}.{name}")
        if module == OLD_INDEX:
            return super().find_class("pandas", "Index")
        return super().find_class(module.replace("numpy._core", "numpy.core"), name)  # numpy 1 lacks the former


class _ForbiddenError(Exception):
    """The pickle names a function or class that no table needs."""


def _load(path: Path) -> object:
    try:
        import pandas  # noqa: F401
    except ImportError:
        raise DatasetError(
            "PandaSet's files are pickled pandas tables, and pandas is not installed",
            where=path,
            fix="Install pandas: pip install 'scalr-distill[pandaset]'.",
        ) from None
    content = read_bytes(path)
    try:
        if content.startswith(GZIP):
            content = gzip.decompress(content)
        return _TableUnpickler(io.BytesIO(content)).load()
    except _ForbiddenError as name:
        raise DatasetError(
            f"the pickle names {name}, which a table of numbers does not need and which could run code",
            where=path,
            fix=f"{COPY_AGAIN[:-1]}, or write it with pandas 1 or 2.",
        ) from None
    except Exception as error:  # a damaged file can raise any error in gzip, pickle, numpy or pandas
        raise DatasetError(
            f"the pickle cannot be read ({type(error).__name__}: {error})", where=path, fix=COPY_AGAIN
        ) from None
