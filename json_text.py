"""Strict JSON, which every reader accepts: NaN and infinity are written as null."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON text of plain values, arrays and paths."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False, default=str)


def sha256_of_values(values: Any) -> str:
    """A SHA-256 of plain JSON values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # an array, or an element of one
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
