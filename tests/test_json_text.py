from __future__ import annotations

import json
import math
from pathlib import Path

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalr.cli import main, show
from scalr.distill.run import DistillSummary
from scalr.evaluate.result import RunResult, write_result
from scalr.json_text import json_text

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def refuse(token: str) -> None:
    raise AssertionError(token)  # json.loads calls it for NaN, Infinity and -Infinity


@settings(max_examples=100, derandomize=True)
@given(value=PLAIN)
def test_any_plain_value_is_valid_json_and_all_that_json_can_say_comes_back(value):
    def said(item):
        if isinstance(item, dict):
            return {key: said(each) for key, each in item.items()}
        if isinstance(item, list):
            return [said(each) for each in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    assert json.loads(json_text(value), parse_constant=refuse) == said(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": (math.nan, math.inf, 1.5)}, '{"a": [null, null, 1.5]}'),
        (np.array([1.0, np.nan]), "[1.0, null]"),
        (np.float32("inf"), "null"),
        (np.int64(3), "3"),
        ({"p": Path("a/b")}, '{"p": "a/b"}'),
    ],
)
def test_arrays_and_paths_are_plain_too(value, text):
    assert json_text(value) == text


def test_a_result_file_with_figures_that_are_none_is_valid_json(tmp_path):
    result = RunResult(
        title="t",
        figures={"mIoU": math.nan, "mCE": math.inf},
        interval=(math.nan, math.nan),
        protocol={"range": math.inf},
        provenance={"nested": [{"deep": -math.inf}]},
        values={"iou": {"car": math.nan, "bus": 0.5}},
    )
    write_result(result, tmp_path)
    written = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert written["figures"] == {"mIoU": None, "mCE": None}
    assert written["iou"] == {"car": None, "bus": 0.5}
    assert written["provenance"] == {"nested": [{"deep": None}]}
    assert "NaN" not in (tmp_path / "result.md").read_text()


def test_what_verbs_print_is_valid_json(capsys):
    with click.Context(main):
        show(DistillSummary(Path("s.safetensors"), [0.5, math.nan], math.inf), as_json=True)
    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert printed == {"student": "s.safetensors", "losses": [0.5, None], "data_wait": None}
