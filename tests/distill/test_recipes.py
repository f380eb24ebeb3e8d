from __future__ import annotations

import pytest
from click.testing import CliRunner

from scalr.cli import main
from scalr.distill.recipe import load_recipe
from scalr.distill.recipes import read_recipe, recipe_names
from scalr.errors import StudentError


def test_names_are_those_of_the_files_in_order():
    names = recipe_names()
    assert names == sorted(names)
    assert {"demo", "scalr_wi768", "scalr_plus", "table1_similarity"} < {*names}
    assert not any("." in name or name.startswith("__") for name in names)


def test_the_list_has_each_recipe_with_a_sentence():
    shown = CliRunner().invoke(main, ["distill", "--list-recipes"]).output.splitlines()
    assert [line.split()[0] for line in shown] == recipe_names()
    texts = [line.split(maxsplit=1)[1] for line in shown]
    assert all(text[0].isupper() and "#" not in text and ". " not in text for text in texts)
    assert "ScaLR with a WaffleIron of width 256, the default recipe" in texts


def test_a_recipe_is_its_base_s_with_its_own_values_over_them():
    """Section by section, value by value, whatever the number of bases."""
    base, plus = read_recipe("scalr_wi768"), read_recipe("scalr_plus")
    assert base["student"] == {"width": 768, "depth": 48, "norm": "layer", "activation": "relu", "head": "linear"}
    assert plus["student"] == base["student"] | {"activation": "gelu", "stochastic_depth": 0.2, "head": "mlp"}
    assert (plus["training"]["epochs"], plus["training"]["batch_size"]) == (65, 8)
    assert "base" not in plus
    assert plus["objective"] == base["objective"]


def test_a_text_in_place_of_a_recipe_is_said_by_its_beginning(tmp_path):
    (tmp_path / "mine.yaml").write_text("a" * 400)
    with pytest.raises(StudentError, match=r"mine\.yaml: .*aaa.* is not a section with lines of key: value") as error:
        read_recipe(str(tmp_path / "mine.yaml"))
    assert len(error.value.what) < 200


LAUGHS = "\n".join(  # three times as long with each line
    ["a: &a [x, x]", *(f"{b}: &{b} [*{a}, *{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))]
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(range(256)), "not valid YAML"),
        ("training: {epochs: 3} # ü".encode("latin-1"), "not valid YAML"),
        (b"\x00\x01", "not valid YAML"),
        (b"training: {[a]: 3, {b: 4}: 5}", "not valid YAML"),
        (b"training: {epochs: 2001-99-99}", "not valid YAML"),
        (b"training: {epochs: !!int ''}", "not valid YAML"),
        (b"training: {epochs: " + b"9" * 5000 + b"}", "not valid YAML"),
        (b"training: " + b"[" * 3000, "not valid YAML"),
        (b"training: {epochs: !!python/object:os.system {}}", "not valid YAML"),
        (b"training: &a {epochs: *a}", r"training\.epochs: {'epochs': {.*cannot be used"),
        (b"&a [*a]", "is not a section"),
        (LAUGHS.encode(), "'a' is not a section"),
        (b"[" + b"1, " * 1000 + b"1]", r"\[1, 1, 1, 1, 1, 1, \.\.\.\] is not a section"),
        (b"3: {epochs: 3}", "3 is not a section"),
        (b"null: {epochs: 3}", "None is not a section"),
        (b"base: [demo]", r"base \['demo'\] is not a bundled recipe"),
        (b"training: {3: 3}", "unknown key 3"),
        (b"training: {null: 3}", "unknown key None"),
    ],
)
def test_a_file_that_is_no_recipe_is_said_in_a_line(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(StudentError, match=message) as error:
        load_recipe(str(path))
    assert len(str(error.value)) < 1000


def test_a_recipe_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(StudentError, match="no recipe"):
        read_recipe(str(tmp_path))
    with pytest.raises(
        StudentError, match=r"the recipe cannot be read \(File name too long\)\. Choose a shorter name, or pass"
    ):
        read_recipe("a" * 300)


@pytest.mark.parametrize("text", ["", "# to be written\n", "{}"])
def test_an_empty_file_is_no_recipe(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(StudentError, match=r"mine\.yaml: the recipe has no section\. Copy the form"):
        read_recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("training: {epochs: 3}\nstudent: {width: 8}\ntraining: {batch_size: 2}", "training"),
        ("training:\n  epochs: 3\n  'epochs': 4", "epochs"),
    ],
)
def test_a_key_that_is_there_twice_is_named(tmp_path, text, key):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(StudentError, match=rf"not valid YAML \(the key {key} is there twice .*line 3"):
        read_recipe(str(tmp_path / "mine.yaml"))


def test_keys_that_merge_into_a_mapping_are_not_there_twice(tmp_path):
    text = "training: &one {epochs: 3, batch_size: 2}\nstudent: {<<: *one, epochs: 4}"
    (tmp_path / "mine.yaml").write_text(text)
    assert read_recipe(str(tmp_path / "mine.yaml"))["student"] == {"epochs": 4, "batch_size": 2}


def test_a_head_for_classes_is_not_distilled():
    with pytest.raises(StudentError, match=r"student\.head: 'probe' cannot be used\. Use linear or mlp"):
        load_recipe("demo", ["student.head=probe"])


def test_a_recipe_that_there_is_not_is_said():
    with pytest.raises(StudentError, match=r"no recipe 'scalr_pluss', did you mean 'scalr_plus'.*path of a YAML file"):
        read_recipe("scalr_pluss")
