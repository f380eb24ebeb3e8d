from __future__ import annotations

import pytest

from scalr.errors import TeacherError
from scalr.extract.teachers.choices import choose_weights


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("hub",), {"a": "hub", "b": "hub"}),
        (("a=1.pth", "b=x=2.pth"), {"a": "1.pth", "b": "x=2.pth"}),
        (("random", "b=2.pth"), {"a": "random", "b": "2.pth"}),
        (("a=1.pth", "2.pth"), {"a": "1.pth", "b": "2.pth"}),
        (("a=1.pth",), {"a": "1.pth"}),
        ((), {}),
    ],
)
def test_each_teacher_has_its_weights(given, expected):
    assert choose_weights(("a", "b"), given) == expected


@pytest.mark.parametrize("given", [("1.pth",), ("c=1.pth",), ("hub", "random"), ("a=1", "b=2", "hub", "random")])
def test_weights_that_cannot_be_shared_are_said(given):
    with pytest.raises(TeacherError, match="Give each teacher its own: --weights TEACHER=FILE"):
        choose_weights(("a", "b"), given)


def test_two_files_for_one_teacher_are_said():
    assert choose_weights(("a",), ("a=1", "a=1")) == {"a": "1"}
    with pytest.raises(
        TeacherError, match=r"^--weights: teacher a has two weights: 1 and 2\. Give each teacher one file$"
    ):
        choose_weights(("a", "b"), ("a=1", "b=2", "a=2"))


def test_one_file_serves_one_teacher_alone():
    assert choose_weights(("a",), ("w.pth",)) == {"a": "w.pth"}
    for name in ("hub", "random"):
        assert choose_weights(("a", "b"), (name,)) == {"a": name, "b": name}
    with pytest.raises(TeacherError, match=r"^--weights: w\.pth cannot serve a and b alike"):
        choose_weights(("a", "b"), ("w.pth",))
    with pytest.raises(TeacherError, match=r"^--weights: 1 and 2 cannot serve all teachers alike"):
        choose_weights(("a",), ("a=3", "1", "2"))
