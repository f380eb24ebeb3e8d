"""JSON as every reader takes it: it has neither NaN nor infinity, so a number that is none is null."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """Plain values, arrays and paths as JSON."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False, default=str)


def sha256_of_values(values: Any) -> str:
    """One digest of plain JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # an array, or a number out of one
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
