from __future__ import annotations

import pytest

from scalr.distill.recipes import read_recipe, recipe_names
from scalr.errors import StudentError


def test_names_are_those_of_the_files_in_order():
    names = recipe_names()
    assert names == sorted(names)
    assert {"demo", "scalr_wi768", "scalr_plus", "table1_similarity"} < {*names}
    assert not any("." in name or name.startswith("__") for name in names)


def test_a_recipe_is_its_base_s_with_its_own_values_over_them():
    """Section by section, value by value, whatever the number of bases."""
    base, plus = read_recipe("scalr_wi768"), read_recipe("scalr_plus")
    assert base["student"] == {"width": 768, "depth": 48, "norm": "layer", "activation": "relu", "head": "linear"}
    assert plus["student"] == base["student"] | {"activation": "gelu", "stochastic_depth": 0.2, "head": "mlp"}
    assert (plus["training"]["epochs"], plus["training"]["batch_size"]) == (65, 8)
    assert "base" not in plus
    assert plus["objective"] == base["objective"]


def test_a_text_in_place_of_a_recipe_is_said_by_its_beginning(tmp_path):
    (tmp_path / "mine.yaml").write_text("a" * 40 + "b" * 40)
    with pytest.raises(StudentError, match=rf"mine\.yaml: '{'a' * 40}' is no section with lines of key: value"):
        read_recipe(str(tmp_path / "mine.yaml"))


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "mine.yaml").write_text("# to be written\n")
    assert read_recipe(str(tmp_path / "mine.yaml")) == {}


def test_a_recipe_that_there_is_not_is_said():
    with pytest.raises(StudentError, match=r"no recipe 'scalr_pluss', did you mean 'scalr_plus'.*path of a YAML file"):
        read_recipe("scalr_pluss")
