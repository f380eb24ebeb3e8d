"""Small teachers of each kind, in place of those that take minutes to build."""

from __future__ import annotations

import pytest

from scalr.extract.teachers import registry
from scalr.extract.teachers.teacher import Teacher
from small_teachers import small_spec, small_teacher


@pytest.fixture
def small(monkeypatch):
    """Call with a teacher's name and options for a small teacher of its kind."""

    def call(name: str, **options) -> Teacher:
        monkeypatch.setitem(registry.TEACHERS, name, small_spec(name))
        return small_teacher(name, **options)

    return call
