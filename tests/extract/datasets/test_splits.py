from __future__ import annotations

import pytest
from click.testing import CliRunner

from calls import SeenEnough, calls_of
from scalr.cli import main
from scalr.errors import DatasetError
from scalr.extract import check
from scalr.extract.datasets.splits import EVERY_NTH, Split, chosen_scenes


def test_shares_of_labels_are_every_nth():
    """SLidR's skip ratios: 100 for 1 %, 20 for 5 %, 10 for 10 %, 4 for 25 %; by the same rule, 2 for 50 %."""
    assert EVERY_NTH == {"1": 100, "5": 20, "10": 10, "25": 4, "50": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", ("train", 1)),
        ("train-10%", ("train", 10)),
        ("slidr_train-1%", ("slidr_train", 100)),
        ("scene-0001,scene-0002-25%", ("scene-0001,scene-0002", 4)),
        ("scene-0001", ("scene-0001", 1)),
        ("-1%", ("-1%", 1)),
    ],
)
def test_a_split_is_a_name_and_a_share(text, expected):
    assert Split.parse(text) == expected


@pytest.mark.parametrize("percent", ["0.5", "2", "100", "1.0"])
def test_a_share_without_a_rule_is_said(percent):
    with pytest.raises(
        DatasetError, match=rf"'val-{percent}%' is unknown: there is no label subset of {percent} %.*val-1%, val-5%"
    ):
        Split.parse(f"val-{percent}%")


NAMED, AVAILABLE = {"train": {"c", "a"}, "val": {"b"}, "mini": {"z"}}, ["c", "b", "a"]


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("train", ["c", "a"]),
        ("val", ["b"]),
        ("mini", []),
        ("a, c", ["c", "a"]),
        ("b", ["b"]),
        ("val,train", ["c", "b", "a"]),
        ("val,a", ["b", "a"]),
        ("train,a", ["c", "a"]),
    ],
)
def test_scenes_come_in_the_dataset_s_order(base, expected):
    assert chosen_scenes(base, NAMED, AVAILABLE) == expected


@pytest.mark.parametrize(
    ("base", "available", "message"),
    [
        ("a,d", AVAILABLE, r"no split and no scene 'd'\. Use one of: train, val, mini; .*such as c,b$"),
        ("trian", AVAILABLE, "no scene 'trian', did you mean 'train'"),
        ("d", [], r"such as a,b$"),
        ("", AVAILABLE, "'' holds an empty name"),
        ("train,", AVAILABLE, r"'train,' holds an empty name\. Name splits, separated by single commas"),
        ("train,vla", AVAILABLE, "no split and no scene 'vla', did you mean 'val'"),
        ("train,val,train", AVAILABLE, "'train' is named twice in 'train,val,train'"),
        ("train-1%", AVAILABLE, "'train-1%' is unknown: this dataset has no published subsets"),
        ("train-10%,val", AVAILABLE, "'train-10%,val' has several splits with a fraction of the labels"),
    ],
)
def test_what_is_not_there_is_said(base, available, message):
    with pytest.raises(DatasetError, match=message):
        chosen_scenes(base, NAMED, available)


def test_a_share_is_of_one_split_or_of_scenes_alone():
    """`train,val-10%` might mean a tenth of one of them or of both."""
    assert chosen_scenes("a,c", NAMED, AVAILABLE, every_nth=10) == ["c", "a"]
    with pytest.raises(DatasetError, match="'train,val' has several splits with a fraction of the labels"):
        chosen_scenes("train,val", NAMED, AVAILABLE, every_nth=10)


def test_an_option_that_is_repeated_means_all_of_its_values(monkeypatch):
    seen = calls_of(monkeypatch, check, "check", SeenEnough())
    for options in (("--split", "train", "--split", "val"), ("--split", "train,val"), ()):
        CliRunner().invoke(main, ["check", "--root", "r", *options])
    assert [arguments[-1] for arguments, _ in seen] == ["train,val", "train,val", "train"]
